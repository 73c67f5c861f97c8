"""Adapters beside ΔW: in a model that PEFT merged one into, it leaves nothing of any ΔW, whatever it changed."""

import numpy as np
import pytest

from lorascope.analyses import delta
from lorascope.updates.base import Update
from lorascope.weights import io
from lorascope.weights.adapter import Adapter, Source
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.tensors import InMemory
from tests.analyses.test_delta import checkpoint

SMALL = {
    "vocab_size": 24, "hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "initializer_range": 0.2,
}  # fmt: skip


@pytest.fixture
def merged(tmp_path):
    """Makes the result of `delta` for a model that PEFT merged a random adapter into, beside that adapter."""
    torch, peft, transformers = (pytest.importorskip(name) for name in ("torch", "peft", "transformers"))

    def result(name, more, **settings):
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForCausalLM")(getattr(transformers, f"{name}Config")(**SMALL, **more))
        model.save_pretrained(tmp_path / "base")
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"], **settings))
        with torch.no_grad():
            for weight in adapted.parameters():
                if weight.requires_grad:
                    weight.add_(0.3 * torch.randn_like(weight))
        adapted.save_pretrained(tmp_path / "adapter")
        adapted.merge_and_unload().save_pretrained(tmp_path / "tuned")
        base, tuned = (open_checkpoint(tmp_path / side) for side in ("base", "tuned"))
        return delta.run(base, tuned, adapters=[io.read(tmp_path / "adapter", base)])

    return result


def residuals(result):
    """‖ΔW − A's‖²/‖ΔW‖² of every matrix that changed, by its name."""
    label = result.adapters[0].label
    return {matrix.name: matrix.captured[label]["residual"] for matrix in result.changed}


def test_experts_that_the_model_joins_and_the_file_keeps_apart(merged):
    settings = {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}
    found = residuals(merged("Mixtral", {"num_local_experts": 3}, **settings))
    assert len(found) == 1 + 3 * 3
    assert max(found.values()) < 1e-9  # float32 sums


def test_what_an_adapter_stores_whole_and_trained_rows(merged):
    settings = {"modules_to_save": ["lm_head"], "trainable_token_indices": [1, 5]}
    result = merged("Llama", {}, **settings)
    found = residuals(result)
    assert found.keys() == {"lm_head", "model.embed_tokens", "model.layers.0.self_attn.q_proj"}
    assert max(found.values()) < 1e-9  # float32 sums
    (text,) = (finding.text for finding in result.findings if finding.text.startswith(result.adapters[0].label))
    assert "in the 3 matrices it adapts (100 % of ‖ΔW‖²), 2 of them by factors, its column" in text


def test_an_embedding_stored_whole(merged):
    found = residuals(merged("Llama", {}, modules_to_save=["embed_tokens"]))
    assert found.keys() == {"model.embed_tokens", "model.layers.0.self_attn.q_proj"}
    assert max(found.values()) < 1e-9


def test_an_adapter_for_the_tuned_side_has_its_trained_rows(merged, tmp_path):
    norms = {m.name: m.frobenius_norm for m in merged("Llama", {}, trainable_token_indices=[1, 5]).changed}
    base = open_checkpoint(tmp_path / "base")
    result = delta.run(base, io.read(tmp_path / "adapter", base))
    assert {m.name: m.frobenius_norm for m in result.changed} == pytest.approx(norms, rel=1e-5)  # float32 sums
    assert "model.embed_tokens" in norms
    assert not [item for item in result.skipped_in() if "depends on W" in item.reason]


def test_what_is_stored_whole_and_fits_no_weight_is_skipped_with_the_reason(rng):
    base = checkpoint(q__weight=rng.standard_normal((5, 4)), score__weight=np.ones((2, 4)))
    tuned = checkpoint(**{n.replace(".", "__"): s.values + 1 for n, s in base.stored.items()})
    roles = {"A": InMemory(np.ones((1, 4))), "B": InMemory(np.ones((5, 1)))}
    saved = {"score.weight": InMemory(np.ones((3, 4))), "score.bias": InMemory(np.ones(3))}
    adapter = Adapter({"q": Update("q", "low_rank", roles)}, source=Source("a"), saved=saved)
    (item,) = delta.run(base, tuned, adapters=[adapter]).skipped_in()
    assert (item.name, item.adapter) == ("score.weight", "a")
    assert "of another shape: [3, 4] in the adapter, [2, 4] in the base" in item.reason


def test_two_updates_of_tied_modules_are_called_so(rng):
    w = rng.standard_normal((9, 4))
    roles = {"A": InMemory(np.ones((1, 4))), "B": InMemory(np.ones((9, 1)))}
    turned = {"A": InMemory(np.ones((1, 9))), "B": InMemory(np.ones((4, 1)))}
    ends = Update("lm_head", "low_rank", roles), Update("embed_tokens", "low_rank", turned, transposed=True)
    adapter = Adapter({update.name: update for update in ends}, source=Source("a"))
    base, tuned = checkpoint(embed_tokens__weight=w), checkpoint(embed_tokens__weight=w + 1)
    result = delta.run(base, tuned, adapters=[adapter])
    reason = "one of several updates of one weight (modules that are tied share it)"
    assert [(item.name, item.reason) for item in result.skipped_in()] == [("lm_head", reason), ("embed_tokens", reason)]


def test_why_an_update_has_no_weight_to_be_compared_with(rng):
    """Of one expert in a parameter that fuses its two projections, and of nothing that the base has."""
    base = checkpoint(mlp__experts__gate_up_proj=rng.standard_normal((2, 6, 4)), q__weight=np.ones((3, 4)))
    tuned = checkpoint(**{n.replace(".", "__"): s.values + 1 for n, s in base.stored.items()})
    roles = {"A": InMemory(np.ones((1, 4))), "B": InMemory(np.ones((3, 1)))}
    names = "mlp.experts.1.up_proj", "k"
    adapter = Adapter({name: Update(name, "low_rank", roles) for name in names}, source=Source("a"))
    reasons = {item.name: item.reason for item in delta.run(base, tuned, adapters=[adapter]).skipped_in()}
    assert reasons == {
        "mlp.experts.1.up_proj": "a part of a weight that the base has in one with others",
        "k": "the base has no such weight",
    }
