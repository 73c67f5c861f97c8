"""The phase before training: it leaves nothing behind but what it learned, and a resumed run reads that."""

import json

import pytest
import torch

from lorascope.adapt.method import methods
from lorascope.errors import InputError
from lorascope.training import run
from lorascope.training.calibrate import FILE
from lorascope.training.loop import Loop
from lorascope.weights import io
from tests.training.test_resume import bytes_of, interrupt

DROP = ("method.name=lora_drop", "method.sample_fraction=0.5", "method.sample_epochs=2", "method.threshold=0.6")
ADALORA = ("method.name=adalora", "method.init_r=3", "method.target_r=2", "method.tfinal=2")


def drop(classifier, *overrides):
    return classifier(*DROP, "training.save_steps=2", *overrides)


def adalora(classifier, *overrides):
    """LoRA's own keys go, AdaLoRA's come."""
    from lorascope.training.config import parse, resolved

    values = resolved(classifier("training.save_steps=2", *overrides))
    values["method"] = {
        "name": "adalora", "targets": ["query", "value"], "init_r": 3, "target_r": 2, "tfinal": 2, "dropout": 0.1,
        "tinit": 1,
    }  # fmt: skip
    return parse(values)


def test_what_it_learned_is_recorded(classifier, tmp_path):
    run.train(drop(classifier), tmp_path)
    learned = json.loads((tmp_path / FILE).read_text())
    assert sum(learned["scores"].values()) == pytest.approx(1.0)
    assert 0 < len(learned["kept"]) < len(learned["scores"]) == 4
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["method"] == {"threshold": 0.6, "rest": "share", **learned}
    assert io.read(tmp_path / "adapter").settings["lora_drop"] == summary["method"]
    trained = json.loads((tmp_path / "run.json").read_text())["trained_parameters"]
    assert trained == (len(learned["kept"]) + 1) * 2 * (16 + 16) + 2 * 16 + 2  # one shape is shared; the head


def test_training_starts_afresh(classifier, tmp_path):
    """The same run with the layers given beforehand, and no calibration, ends in the same bytes."""
    run.train(drop(classifier), tmp_path / "found")
    kept = json.loads((tmp_path / "found" / FILE).read_text())["kept"]
    run.train(drop(classifier, f"method.keep={json.dumps(kept)}"), tmp_path / "given")
    assert bytes_of(tmp_path / "found") == bytes_of(tmp_path / "given")
    assert "scores" not in json.loads((tmp_path / "given" / FILE).read_text())


@pytest.mark.parametrize("method", [drop, adalora])
@pytest.mark.parametrize("at", [2, 4])
def test_killed_and_resumed_ends_in_the_same_bytes(classifier, tmp_path, monkeypatch, method, at):
    """At step 4 of 6 AdaLoRA has just cut for good; at step 2 its averages are still needed."""
    config = method(classifier)
    run.train(config, tmp_path / "whole")
    interrupt(config, tmp_path / "broken", monkeypatch, at=at)
    if config.method.name == "lora_drop":
        monkeypatch.setattr(methods.get("lora_drop"), "calibrate", None)  # it must not be needed again
    run.train(config, tmp_path / "broken", resume=True)
    assert bytes_of(tmp_path / "broken") == bytes_of(tmp_path / "whole")
    assert summary(tmp_path / "broken") == summary(tmp_path / "whole")


def summary(folder):
    return json.loads((folder / "summary.json").read_text())["method"]


def test_killed_while_it_rehearses_it_can_be_resumed(classifier, tmp_path, monkeypatch):
    config = drop(classifier)
    run.train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.train(config, tmp_path / "broken")
    run.train(config, tmp_path / "broken", resume=True)
    assert bytes_of(tmp_path / "broken") == bytes_of(tmp_path / "whole")


def interrupted(self, record=None):
    raise KeyboardInterrupt


def test_a_damaged_file_is_refused_in_one_sentence(classifier, tmp_path, monkeypatch):
    interrupt(drop(classifier), tmp_path, monkeypatch, at=2)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(InputError, match=r"calibration\.json is not valid JSON.*delete it"):
        run.train(drop(classifier), tmp_path, resume=True)


def test_a_new_run_forgets_what_the_old_one_learned(classifier, tmp_path):
    run.train(drop(classifier), tmp_path)
    run.train(classifier(), tmp_path, replace_run=True)
    assert not (tmp_path / FILE).exists()


def test_adalora_sees_the_whole_accumulated_gradient(classifier, tmp_path):
    """Its averages are those of the same texts in one pass."""
    kept = []
    for size, passes in ((4, 1), (1, 4)):
        overrides = f"training.per_device_train_batch_size={size}", f"training.gradient_accumulation_steps={passes}"
        config = adalora(classifier, *overrides, "training.max_steps=4", "model.dropout=0.0")
        prepared = run.prepare(config, torch.device("cpu"))
        for layer in prepared.injected.layers.values():
            layer.delta.dropout = 0.0
        from lorascope.training.parallel import World

        loop = Loop(prepared.injected, prepared.train, prepared.held_out, config, World(torch.device("cpu")))
        loop._step()
        kept.append(prepared.injected.method.sensitivity)
    for key, values in kept[0].items():
        torch.testing.assert_close(kept[1][key], values, rtol=1e-3, atol=1e-9)  # float32 sums in another order
