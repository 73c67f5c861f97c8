"""The adapter that `delta` extracts: all that its rank can hold, what it leaves out and names, tied ends, its task."""

import numpy as np
import pytest

from lorascope.analyses import delta
from lorascope.analyses.delta.result import EXTRACTION
from lorascope.updates.base import dense
from lorascope.weights import io
from lorascope.weights.checkpoint import open_checkpoint
from tests.analyses.test_delta import checkpoint


def test_the_best_adapter_captures_all_that_its_rank_can_and_is_written_for_peft(rng, tmp_path):
    base = checkpoint(
        dtype="F64", **{f"layers__{i}__{n}__weight": rng.standard_normal((20, 30)) for i in "01" for n in "qv"}
    )
    arrays = {k.replace(".", "__"): s.values + 0.1 * rng.standard_normal((20, 30)) for k, s in base.stored.items()}
    tuned = checkpoint(dtype="F64", **arrays, layers__0__q__bias=np.ones(4))
    result = delta.run(base, tuned, extract=5)
    io.write(result.extracted, tmp_path)
    read = io.read(tmp_path)
    assert (read.source.format, len(read.updates)) == ("peft", 4)
    for matrix in result.matrices:
        change = tuned.weight(matrix.name).read() - base.weight(matrix.name).read()
        u, s, vh = np.linalg.svd(change)
        best = (u[:, :5] * s[:5]) @ vh[:5]
        np.testing.assert_allclose(
            dense(read.updates[matrix.name].delta()), best, rtol=0, atol=1e-6
        )  # stored in float32
    again = delta.run(base, tuned, adapters=[read])
    whole = again.captured(again.adapters[0].label)
    assert whole["both"] == pytest.approx(whole["best"], rel=1e-6)
    assert whole["residual"] == pytest.approx(1 - whole["best"], rel=1e-5)


def test_peft_merges_the_extracted_adapter_into_the_tuned_model(tmp_path):
    """GPT-2: Conv1D stores its maps transposed, and an embedding changes, too."""
    torch, peft, transformers = (pytest.importorskip(name) for name in ("torch", "peft", "transformers"))
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=20, n_positions=12)
    model = transformers.GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "base")
    tuned = dict(model.state_dict())
    changed = [
        n for n, w in tuned.items() if w.ndim == 2 and ("attn" in n or "mlp" in n or "wpe" in n) and ".bias" not in n
    ]
    for name in changed:
        m, n = tuned[name].shape
        tuned[name] = tuned[name] + torch.randn(m, 2) @ torch.randn(2, n)
    model.load_state_dict(tuned)
    model.save_pretrained(tmp_path / "tuned")
    base = open_checkpoint(tmp_path / "base")
    io.write(delta.run(base, open_checkpoint(tmp_path / "tuned"), extract=3).extracted, tmp_path / "adapter")
    fresh = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "base")
    merged = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").merge_and_unload().state_dict()
    assert len(changed) == 5
    for name, weight in tuned.items():
        torch.testing.assert_close(merged[name], weight, atol=2e-5, rtol=1e-5)  # float32 sums of entries up to 10


def test_vectors_are_reported_and_what_the_adapter_leaves_out_is_said(rng):
    w = rng.standard_normal((8, 9))
    base = checkpoint(layers__0__q__weight=w, layers__0__q__bias=np.ones(8), norm__weight=np.ones(9))
    tuned = checkpoint(layers__0__q__weight=w + 1, layers__0__q__bias=np.ones(8) * 1.5, norm__weight=np.ones(9))
    result = delta.run(base, tuned, extract=1)
    changes = {v.name: v.relative_change for v in result.vectors}
    assert changes == {"layers.0.q.bias": pytest.approx(0.5), "norm": 0}
    assert [item.name for item in result.skipped_in(EXTRACTION)] == ["layers.0.q.bias"]
    lost = [finding for finding in result.findings if finding.rule == "LS410"]
    assert [finding.modules for finding in lost] == [("layers.0.q.bias",)] * 2
    assert lost[1].text.startswith("1 changed parameter is not in the extracted adapter ('layers.0.q.bias')")


def test_what_a_lora_has_no_place_for_is_left_out_and_named(rng):
    e, x = rng.standard_normal((9, 4)), rng.standard_normal((2, 5, 6))
    base = checkpoint(embed_tokens__weight=e, mlp__experts__up=x, q__weight=e)
    tuned = checkpoint(embed_tokens__weight=np.vstack([e, e[:1]]) + 1, mlp__experts__up=x + 1, q__weight=e + 1)
    result = delta.run(base, tuned, extract=1)
    assert list(result.extracted.updates) == ["q"]
    reasons = {item.name: item.reason for item in result.skipped_in(EXTRACTION)}
    assert reasons == {
        "embed_tokens": "resized", "mlp.experts.up[0]": "a fused expert", "mlp.experts.up[1]": "a fused expert",
    }  # fmt: skip
    assert len(result.matrices) == 4


def tiny_models():
    """Models that tie their output layer to their embedding, by name: (config, the task in PEFT's words)."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    return {
        "gpt2": (
            transformers.GPT2LMHeadModel,
            transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=20, n_positions=12),
            "CAUSAL_LM",
        ),
        "llama": (
            transformers.LlamaForCausalLM,
            transformers.LlamaConfig(**small, vocab_size=20, num_key_value_heads=2, tie_word_embeddings=True),
            "CAUSAL_LM",
        ),
        "bert": (
            transformers.BertForMaskedLM,
            transformers.BertConfig(**small, vocab_size=20, max_position_embeddings=12),
            None,
        ),
    }


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_the_extracted_adapter_of_a_tied_model_has_both_halves(name, tmp_path):
    """At full rank the base with the adapter in PEFT gives the tuned model's logits: both ends moved."""
    torch, peft = (pytest.importorskip(one) for one in ("torch", "peft"))
    cls, config, task = tiny_models()[name]
    torch.manual_seed(0)
    model = cls(config).eval()
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        model.get_input_embeddings().weight.add_(0.3 * torch.randn_like(model.get_input_embeddings().weight))
    model.save_pretrained(tmp_path / "tuned")
    result = delta.run(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "tuned"), extract=20)
    assert result.extracted.settings.get("task_type") == task
    assert len(result.extracted.updates) == 2
    io.write(result.extracted, tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(cls.from_pretrained(tmp_path / "base"), tmp_path / "adapter").eval()
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        expected, found = model(tokens).logits, loaded(tokens).logits
        untouched = cls.from_pretrained(tmp_path / "base").eval()(tokens).logits
    assert (expected - untouched).abs().max() > 0.1
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)  # float32 products of factors


def test_embeddings_that_encoder_and_decoder_share_are_left_out_by_name(rng):
    w, q = rng.standard_normal((9, 4)), rng.standard_normal((4, 4))
    config = {"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}
    base = checkpoint(shared__weight=w, encoder__q__weight=q, config=config)
    result = delta.run(base, checkpoint(shared__weight=w + 1, encoder__q__weight=q + 1), extract=2)
    assert list(result.extracted.updates) == ["encoder.q"]
    assert result.extracted.settings["task_type"] == "SEQ_2_SEQ_LM"
    assert [(item.name, "shared by other layers" in item.reason) for item in result.skipped_in(EXTRACTION)] == [
        ("shared", True)
    ]


@pytest.mark.parametrize(
    ("architecture", "more", "task"),
    [
        ("LlamaForCausalLM", {}, "CAUSAL_LM"),
        ("BertForSequenceClassification", {}, "SEQ_CLS"),
        ("BertForTokenClassification", {}, "TOKEN_CLS"),
        ("BertForQuestionAnswering", {}, "QUESTION_ANS"),
        ("BartForConditionalGeneration", {"is_encoder_decoder": True}, "SEQ_2_SEQ_LM"),
        ("LlavaForConditionalGeneration", {"text_config": {}}, "CAUSAL_LM"),
        ("BertModel", {}, None),
    ],
)
def test_the_task_of_an_extracted_adapter_is_the_bases(rng, architecture, more, task):
    w = rng.standard_normal((5, 4))
    base = checkpoint(layers__0__q__weight=w, config={"architectures": [architecture], **more})
    extracted = delta.run(base, checkpoint(layers__0__q__weight=w + 1), extract=1).extracted
    assert extracted.settings.get("task_type") == task


def test_a_tie_whose_output_layer_is_in_both_files(rng):
    w = rng.standard_normal((9, 4))
    base = checkpoint(embed_tokens__weight=w, lm_head__weight=w)
    result = delta.run(base, checkpoint(embed_tokens__weight=w + 1, lm_head__weight=w + 1), extract=1)
    updates = result.extracted.updates
    assert set(updates) == {"embed_tokens", "lm_head"}
    for name, expected in (("embed_tokens", np.ones((4, 9))), ("lm_head", np.ones((9, 4)))):
        np.testing.assert_allclose(dense(updates[name].delta()), expected, rtol=0, atol=1e-6)  # float32 factors
