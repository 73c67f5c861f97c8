"""The adapter that `delta` extracts, in PEFT: it loads, and at full rank the base with it is the tuned model."""

from dataclasses import dataclass

import numpy as np
import pytest

from lorascope.analyses import delta
from lorascope.updates.base import Update
from lorascope.weights import io
from lorascope.weights.adapter import Adapter
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.tensors import InMemory
from tests.analyses.test_delta import checkpoint

RANK = 32  # the largest side of the small models
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}


@dataclass(frozen=True)
class Case:
    """A class of transformers and its config."""

    cls: str
    config: str
    fields: dict


CASES = {
    "t5": Case(
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 20, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 2},
    ),
    "names of the file that are not those in memory": Case(
        "LlavaForConditionalGeneration",
        "LlavaConfig",
        {
            "text_config": {**SMALL, "vocab_size": 20, "model_type": "llama"},
            "vision_config": {**SMALL, "image_size": 8, "patch_size": 4, "model_type": "clip_vision_model"},
        },
    ),
    "a head": Case("BertForSequenceClassification", "BertConfig", {**SMALL, "vocab_size": 20}),
    "a head of two layers": Case("RobertaForSequenceClassification", "RobertaConfig", {**SMALL, "vocab_size": 20}),
    "heads by two names": Case(
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": 20, "dim": 16, "hidden_dim": 24, "n_layers": 1, "n_heads": 2},
    ),
    "a head without bias": Case(
        "LlamaForSequenceClassification", "LlamaConfig", {**SMALL, "vocab_size": 20, "pad_token_id": 0}
    ),
    "a head for spans": Case("BertForQuestionAnswering", "BertConfig", {**SMALL, "vocab_size": 20}),
    "a head that PEFT does not store": Case(
        "BartForSequenceClassification",
        "BartConfig",
        {"vocab_size": 20, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
         "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 12},
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def pair(request, tmp_path):
    """The tuned model, and what opens the base; both checkpoints lie in `tmp_path`."""
    torch, transformers = (pytest.importorskip(name) for name in ("torch", "transformers"))
    case = CASES[request.param]
    cls = getattr(transformers, case.cls)
    torch.manual_seed(0)
    model = cls(getattr(transformers, case.config)(**case.fields))
    model.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            head = "classifier." in name or "qa_outputs." in name
            if (weight.ndim == 2 or head) and weight is not model.get_input_embeddings().weight:
                weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(tmp_path / "tuned")
    return model, lambda: cls.from_pretrained(tmp_path / "base")


def test_the_base_with_the_extracted_adapter_is_the_tuned_model(pair, tmp_path):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    tuned, base = pair
    result = delta.run(open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "tuned"), extract=RANK)
    io.write(result.extracted, tmp_path / "adapter")
    merged = peft.PeftModel.from_pretrained(base(), tmp_path / "adapter").merge_and_unload().state_dict()
    weights, untouched = tuned.state_dict(), base().state_dict()
    assert merged.keys() == weights.keys()
    assert sum(not torch.equal(untouched[name], weight) for name, weight in weights.items()) > 3
    for name, weight in weights.items():
        torch.testing.assert_close(merged[name], weight, atol=2e-5, rtol=1e-5, msg=name)  # float32 products of factors


def test_a_head_of_which_a_part_is_not_measured_is_of_no_task(rng):
    """PEFT would ask for the whole head, and load nothing."""
    config = {"architectures": ["BertForSequenceClassification"]}
    weights = {"layer__0__q__weight": rng.standard_normal((4, 4)), "classifier__weight": rng.standard_normal((2, 4))}
    base, tuned = checkpoint(config=config, **weights), checkpoint(**{name: w + 1 for name, w in weights.items()})
    whole, part = (delta.run(base, tuned, modules=pattern, extract=1).extracted for pattern in (None, "q$"))
    assert list(whole.saved) == ["classifier.weight"]
    assert whole.settings["task_type"] == "SEQ_CLS"
    assert not part.saved
    assert "task_type" not in part.settings


def test_the_head_of_an_adapter_is_written_with_its_update(rng):
    w, b, a = rng.standard_normal((2, 4)), rng.standard_normal((2, 1)), rng.standard_normal((1, 4))
    base = checkpoint(config={"architectures": ["BertForSequenceClassification"]}, q__weight=w, classifier__weight=w)
    roles = {"A": InMemory(a), "B": InMemory(b)}
    adapter = Adapter({name: Update(name, "low_rank", roles, 0.5) for name in ("q", "classifier")})
    saved = delta.run(base, adapter, extract=1).extracted.saved["classifier.weight"]
    np.testing.assert_allclose(saved.read(), w + 0.5 * b @ a, rtol=1e-6)  # float32


def test_names_of_a_file_that_lacks_the_prefix_of_its_models_base():
    """GPT-2's own file has `h.0.…`, and the model that its config names has `transformer.h.0.…`."""
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=20, n_positions=12)
    model = transformers.GPT2LMHeadModel(config)
    weights = {n.replace(".", "__"): w.numpy() for n, w in model.transformer.state_dict().items() if w.ndim == 2}
    settings = {**config.to_dict(), "architectures": ["GPT2LMHeadModel"]}
    base = checkpoint(config=settings, **weights)
    result = delta.run(base, checkpoint(**{name: w + 1 for name, w in weights.items()}), extract=1)
    modules = dict(model.named_modules())
    assert len(result.extracted.updates) == 7  # two embeddings, four maps, the tied output
    assert result.extracted.updates.keys() <= modules.keys()
