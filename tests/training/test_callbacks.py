"""The callback in `Trainer` and TRL: its numbers, its page, and the methods' rules, against loops written out here."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

import lorascope as ls
from lorascope.callbacks import AdapterCallback
from lorascope.errors import InputError
from lorascope.weights import io
from lorascope.weights.series import find
from tests.training.tiny import sentences

STEPS, RATE = 6, 5e-3


class Rows(Dataset):
    """Eight rows of six tokens: one batch is all of them."""

    def __init__(self):
        self.ids = torch.randint(4, 20, (8, 6), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.ids[i]}


def arguments(folder, **more) -> TrainingArguments:
    settings = {"max_steps": STEPS, "logging_steps": 1, "save_strategy": "no", "lr_scheduler_type": "constant", **more}
    return TrainingArguments(
        str(folder), per_device_train_batch_size=8, learning_rate=RATE, report_to=[], use_cpu=True, max_grad_norm=0.0,
        disable_tqdm=True, **settings,
    )  # fmt: skip


def peft_model(base):
    torch.manual_seed(0)
    config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)


class Reporter(TrainerCallback):
    """As the integrations of transformers: takes each log line as it is when its turn comes."""

    def __init__(self):
        self.lines = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.lines.append(dict(logs))


def test_a_trainers_logs_hold_the_dense_updates_spectra(tiny_llama, tmp_path):
    model, reporter = peft_model(tiny_llama), Reporter()
    trainer = Trainer(model, arguments(tmp_path), train_dataset=Rows(), callbacks=[AdapterCallback(every=2)])
    trainer.callback_handler.callbacks.insert(1, reporter)  # where report_to's are
    trainer.train()
    logged = [line for line in trainer.state.log_history if "lorascope/stable_rank" in line]
    assert [line["step"] for line in logged] == [2, 4, 6]
    assert [line for line in reporter.lines if "lorascope/stable_rank" in line], "reporters have them"
    sigmas, relative = [], []
    for module in model.modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            delta = 2.0 * (module.lora_B["default"].weight @ module.lora_A["default"].weight).detach().double()
            sigmas.append(np.linalg.svd(delta.numpy(), compute_uv=False)[:2])
            relative.append(float(delta.norm() / module.base_layer.weight.double().norm()))
    last = logged[-1]
    # float32 factors, whose product above is rounded once more
    assert last["lorascope/sigma_1"] == pytest.approx(np.median([s[0] for s in sigmas]), rel=1e-5)
    assert last["lorascope/stable_rank"] == pytest.approx(
        np.median([np.sum(s**2) / s[0] ** 2 for s in sigmas]), rel=1e-5
    )
    assert last["lorascope/relative_norm"] == pytest.approx(np.median(relative), rel=1e-5)
    assert last["lorascope/update_norm"] == pytest.approx(np.sqrt(sum(np.sum(s**2) for s in sigmas)), rel=1e-5)
    record = json.loads((tmp_path / "trajectory.json").read_text())
    assert [each["step"] for each in record["checkpoints"]] == [2, 4, 6]
    assert all(each["training_loss"] for each in record["checkpoints"])
    assert "<h1" in (tmp_path / "trajectory.html").read_text()
    assert ls.trajectory(tmp_path).steps == (2, 4, 6)


def test_snapshots_are_few_and_even(tiny_llama, tmp_path):
    callback = AdapterCallback(every=1, snapshots=3)
    Trainer(
        peft_model(tiny_llama), arguments(tmp_path, max_steps=9), train_dataset=Rows(), callbacks=[callback]
    ).train()
    steps = [each.step for each in find([tmp_path]).snapshots]
    assert steps[-1] == 9
    assert len(steps) <= 5
    assert max(np.diff(steps[:-1])) == min(np.diff(steps[:-1]))


def test_by_default_it_spends_a_share_of_the_time(tiny_llama, tmp_path, monkeypatch):
    callback = AdapterCallback(snapshots=0)
    monkeypatch.setattr("lorascope.callbacks.BUDGET", 0.0)
    trainer = Trainer(peft_model(tiny_llama), arguments(tmp_path), train_dataset=Rows(), callbacks=[callback])
    trainer.train()
    assert [line["step"] for line in trainer.state.log_history if "lorascope/sigma_1" in line] == [1]
    assert not (tmp_path / "snapshots").exists()


def injected_model(base, method, **settings):
    model = AutoModelForCausalLM.from_pretrained(base)
    return ls.inject(model, method, target_modules=["q_proj", "v_proj"], **settings)


METHODS = {
    "lora_plus": {"r": 2, "lora_alpha": 4, "loraplus_lr_ratio": 16.0},
    "adalora": {"init_r": 3, "target_r": 1, "tinit": 1, "tfinal": 1, "deltaT": 1, "orth_reg_weight": 0.5},
}


def by_hand(injected, steps: int = STEPS) -> None:
    """Training on all rows at once with AdamW, every hook called in the order in which its method wants it."""
    method, ids = injected.method, Rows().ids
    optimizer = torch.optim.AdamW(injected.parameter_groups(RATE), lr=RATE)
    for step in range(steps):
        loss = injected.model(input_ids=ids, labels=ids).loss
        penalty = method.penalty()
        (loss if penalty is None else loss + penalty).backward()
        method.before_step(step, steps)
        optimizer.step()
        method.after_step(step, steps)
        optimizer.zero_grad()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("error:.*is trained by a loop")
def test_the_methods_rules_are_kept(tiny_llama, tmp_path, method):
    expected, trained = (injected_model(tiny_llama, method, **METHODS[method]) for _ in range(2))
    by_hand(expected)
    Trainer(trained.model, arguments(tmp_path), train_dataset=Rows(), callbacks=[AdapterCallback(every=3)]).train()
    for name, parameter in expected.trainable().items():
        # float32, rows in another order; AdamW divides by small second moments
        torch.testing.assert_close(trained.trainable()[name], parameter, rtol=1e-3, atol=1e-5)
    if method == "adalora":
        assert sum(trained.method.ranks().values()) == 4 * 1
    if method == "lora_plus":
        plain = injected_model(tiny_llama, "lora", r=2, lora_alpha=4)
        by_hand(plain)
        a, b = (next(iter(each.trainable().values())) for each in (trained, plain))
        assert not torch.allclose(a, b, rtol=1e-3, atol=1e-5)


def test_checkpoints_hold_the_adapter_alone_and_resume(tiny_llama, tmp_path):
    whole, broken = (injected_model(tiny_llama, "adalora", **METHODS["adalora"]) for _ in range(2))
    settings = {"save_strategy": "steps", "save_steps": 3}
    Trainer(
        whole.model, arguments(tmp_path / "a", **settings), train_dataset=Rows(), callbacks=[AdapterCallback()]
    ).train()
    files = {path.name for path in (tmp_path / "a" / "checkpoint-3").iterdir()}
    assert "model.safetensors" not in files
    assert len(io.read(tmp_path / "a" / "checkpoint-3").updates) == 4
    trainer = Trainer(
        broken.model, arguments(tmp_path / "b", **settings), train_dataset=Rows(), callbacks=[AdapterCallback()]
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    for name, parameter in whole.trainable().items():
        torch.testing.assert_close(broken.trainable()[name], parameter, rtol=1e-3, atol=1e-5)


def test_what_a_trainer_would_drop_is_refused(tiny_llama, tmp_path):
    injected = injected_model(tiny_llama, "lora_plus", **METHODS["lora_plus"])
    trainer = Trainer(
        injected.model, arguments(tmp_path), train_dataset=Rows(), callbacks=[AdapterCallback()],
        optimizers=(torch.optim.AdamW(injected.trainable().values(), lr=RATE), None),
    )  # fmt: skip
    with pytest.raises(InputError, match="lora_plus is its parameter groups"):
        trainer.train()
    plain = Trainer(
        AutoModelForCausalLM.from_pretrained(tiny_llama), arguments(tmp_path), train_dataset=Rows(),
        callbacks=[AdapterCallback()],
    )  # fmt: skip
    with pytest.raises(InputError, match="has no adapter"):
        plain.train()
    with pytest.raises(InputError, match="1 or more"):
        AdapterCallback(every=0)


def test_trl_ends_in_a_page(tiny_llama, tmp_path):
    trl = pytest.importorskip("trl")
    import datasets

    data = datasets.Dataset.from_dict({"text": sentences(16)})
    config = trl.SFTConfig(
        str(tmp_path), max_steps=4, logging_steps=2, report_to=[], use_cpu=True, bf16=False, save_strategy="no",
        per_device_train_batch_size=4, max_length=16, disable_tqdm=True, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        str(tiny_llama), args=config, train_dataset=data, callbacks=[AdapterCallback(every=2)],
        processing_class=AutoTokenizer.from_pretrained(tiny_llama),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    assert [each["step"] for each in json.loads((tmp_path / "trajectory.json").read_text())["checkpoints"]] == [2, 4]
    assert (tmp_path / "trajectory.html").is_file()
