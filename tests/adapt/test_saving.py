"""An adapter's folder against what PEFT writes and reads, and trainers' checkpoints: the adapter, and not the base."""

import json

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer, Trainer, TrainingArguments

import lorascope as ls
from tests.adapt.test_several import logits, randomised
from tests.methods.models import bert, llama, tokens
from tests.training.test_callbacks import Rows


def test_the_config_has_every_field_of_pefts(tmp_path):
    theirs = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    theirs.save_pretrained(tmp_path / "peft")
    ls.inject(llama(), "lora", r=2, lora_alpha=8, target_modules=["q_proj"]).save_pretrained(tmp_path / "ours")
    expected, found = (json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("peft", "ours"))
    assert expected.keys() - found.keys() == {"auto_mapping"}, "PEFT's own, for classes outside of transformers"
    names = expected.pop("target_modules"), found.pop("target_modules")
    assert names == (["q_proj"], [f"model.layers.{i}.self_attn.q_proj" for i in range(2)])
    assert found == {name: value for name, value in expected.items() if name in found}


def test_a_classifier_is_opened_by_pefts_auto_class(tmp_path):
    base = bert()
    base.config.id2label = {0: "no", 1: "perhaps", 2: "yes"}
    base.save_pretrained(tmp_path / "base")
    model = type(base).from_pretrained(tmp_path / "base")
    injected = randomised(ls.inject(model, "lora", r=2, modules_to_save=["classifier"]), 1)
    written = ls.save(injected, tmp_path / "adapter")
    theirs = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=3)
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-6)  # float32, another order of sums
    card = json.loads((tmp_path / "adapter" / "lorascope.json").read_text())
    assert card["labels"] == ["no", "perhaps", "yes"]
    readme = (tmp_path / "adapter" / "README.md").read_text()
    for text in ("0 no, 1 perhaps, 2 yes", f"base_model: {json.dumps(str(tmp_path / 'base'))}", "num_labels=3"):
        assert text in readme
    assert {path.name for path in written} == {path.name for path in (tmp_path / "adapter").iterdir()}


def test_the_card_has_the_findings_and_the_tokenizer_lies_beside(tiny_llama, tmp_path):
    injected = randomised(ls.inject(llama(), "lora", r=2), 1)
    ls.save(injected, tmp_path / "a", tokenizer=AutoTokenizer.from_pretrained(tiny_llama))
    readme = (tmp_path / "a" / "README.md").read_text()
    findings = ls.analyze(tmp_path / "a").findings
    assert findings
    for finding in findings:
        assert finding.text in readme
    assert AutoTokenizer.from_pretrained(tmp_path / "a").vocab_size
    injected.save_pretrained(tmp_path / "b")
    assert "finds" not in (tmp_path / "b" / "README.md").read_text()


def test_a_trainers_checkpoint_holds_the_adapter_alone(tmp_path):
    model = llama()
    injected = ls.inject(model, "lora", r=2, target_modules=["q_proj"])
    arguments = TrainingArguments(
        str(tmp_path / "out"), max_steps=2, save_steps=1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    trainer = Trainer(model, arguments, train_dataset=Rows())
    trainer.train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    assert not list(checkpoint.glob("model*")), "the base is not in it"
    assert (checkpoint / "adapter_model.safetensors").stat().st_size < 4 * injected.parameter_count() + 2000
    theirs = PeftModel.from_pretrained(llama(), checkpoint)
    torch.testing.assert_close(logits(theirs), logits(model), rtol=1e-5, atol=1e-6)  # float32, another order of sums
    fresh = llama()
    ls.load(fresh, checkpoint)
    torch.testing.assert_close(logits(fresh), logits(model), rtol=0, atol=0)
    injected.remove()
    model.save_pretrained(tmp_path / "base")
    assert (tmp_path / "base" / "model.safetensors").is_file()


def test_trainable_parameters_are_printed_as_pefts(capsys):
    get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"])).print_trainable_parameters()
    theirs = capsys.readouterr().out
    ls.inject(llama(), "lora", r=2, target_modules=["q_proj"]).print_trainable_parameters()
    assert capsys.readouterr().out == theirs


@pytest.mark.parametrize("method", ["dora", "vera", "random_subspace"])
def test_every_method_has_a_folder(method, tmp_path):
    model = llama()
    randomised(ls.inject(model, method), 1)
    model.save_pretrained(tmp_path / "a")
    fresh = llama()
    ls.load(fresh, tmp_path / "a") if method != "random_subspace" else None
    if method != "random_subspace":  # whose directions are drawn again from its seed by reading
        with torch.no_grad():
            torch.testing.assert_close(fresh.eval()(tokens()).logits, logits(model), rtol=1e-5, atol=1e-6)
    assert ls.read(tmp_path / "a").updates
