"""The scripts of TRAINERS.md: short, complete, and what they write is what PEFT and we read."""

import re
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments

import lorascope as ls

PAGE = (Path(__file__).parents[2] / ".github/TRAINERS.md").read_text()
SCRIPTS = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.S))


def test_there_is_one_for_each_trainer_and_none_is_long():
    assert list(SCRIPTS) == ["own_loop", "trainer", "sft", "accelerated", "dpo", "several"]
    assert all(len(text.strip().splitlines()) <= 30 for text in SCRIPTS.values())


@pytest.fixture
def run(tiny_llama, tmp_path, monkeypatch, one_thread):
    """Runs a script in a folder of its own, on the CPU, without reporters; what it leaves in its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_DISABLED", "true")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    before = TrainingArguments.__post_init__

    def on_the_cpu(self):
        self.use_cpu, self.bf16, self.report_to, self.disable_tqdm = True, False, [], True
        before(self)

    monkeypatch.setattr(TrainingArguments, "__post_init__", on_the_cpu)

    def script(name: str) -> dict:
        names: dict = {}
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning) if name == "several" else warnings.simplefilter("ignore")
            exec(compile(SCRIPTS[name].replace('"MODEL"', repr(str(tiny_llama))), f"{name}.py", "exec"), names)
        return names

    return script


def logits(model, tokenizer):
    with torch.no_grad():
        return model.eval()(**tokenizer("the dog runs", return_tensors="pt")).logits


@pytest.mark.parametrize("name", ["own_loop", "trainer", "sft", "accelerated", "dpo"])
def test_a_script_trains_and_peft_opens_what_it_writes(name, run, tiny_llama):
    if name in ("sft", "dpo"):
        pytest.importorskip("trl")
    names = run(name)
    tokenizer = AutoTokenizer.from_pretrained("adapter")
    files = {path.name for path in Path("adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json"} <= files
    assert not any(file.startswith("model") for file in files), "the base is not in it"
    trained = names["injected"].model if name == "accelerated" else names["model"]
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), "adapter")
    # float32, sums in another order
    torch.testing.assert_close(logits(theirs, tokenizer), logits(trained, tokenizer), rtol=1e-4, atol=1e-5)
    base = logits(AutoModelForCausalLM.from_pretrained(tiny_llama), tokenizer)
    assert not torch.allclose(base, logits(trained, tokenizer), atol=1e-5), "it has trained"
    if name == "own_loop":
        again = AutoModelForCausalLM.from_pretrained("merged")
        torch.testing.assert_close(logits(again, tokenizer), logits(trained, tokenizer), rtol=1e-6, atol=1e-6)
    if name == "trainer":
        assert not list(Path("out/checkpoint-4").glob("model*"))
        assert Path("out/trajectory.html").is_file()
    if name == "sft":
        batch = names["trainer"].get_train_dataloader().collate_fn([names["trainer"].train_dataset[0]])
        assert 0 < int((batch["labels"] != -100).sum()) < batch["labels"].numel(), "the question does not count"


def test_several_adapters(run):
    adapters = run("several")["adapters"]
    assert (adapters.active, adapters.names) == ("fresh", ("fresh", "both"))
    assert isinstance(adapters, type(ls.adapters(adapters.model)))
