"""Every file of a run, damaged in every way that files are: one short sentence, no traceback, no waiting."""

import copy
import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch

from lorascope import locks
from lorascope.errors import InputError, LorascopeError
from lorascope.models.card import read_card
from lorascope.training import run, sweep
from lorascope.training.calibrate import calibrate
from lorascope.training.checkpoint import resume_from
from lorascope.training.config import load, override, parse, resolved
from lorascope.training.data import DataConfig
from lorascope.training.loop import Loop
from lorascope.training.member import Member
from lorascope.training.parallel import World
from lorascope.training.reopen import finished_config
from lorascope.training.rows import read_file
from lorascope.training.run_folder import Record, read_config, read_facts, read_summary
from tests.training.tiny import classifier_values

HERE = World(torch.device("cpu"))


@pytest.fixture(scope="module")
def trained(tiny_bert, labelled, tmp_path_factory):
    """(config, folder): a finished run, beside whose files its last checkpoint was kept; begun under a stale lock."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    method = {"name": "lora_drop", "targets": ["query"], "rank": 2, "keep": ["layer.0.attention.self.query"]}
    values = classifier_values(tiny_bert, labelled) | {"method": method}
    more = ["training.save_steps=2", "training.max_steps=2", "training.measure_cost=false", "training.num_threads=1"]
    config = parse(override(values, [*more, "training.load_best_model_at_end=true", "training.eval_steps=1"]))
    folder.mkdir()
    (folder / locks.NAME).write_text("999999999 elsewhere\n")
    kept, save = folder.parent / "kept.pt", Loop.save
    with pytest.MonkeyPatch.context() as patch:

        def saving(self, path):
            if self.step == 2:
                self.members[0].ended = None  # as in the middle
                self.members[0].total += 2
            save(self, path)
            shutil.copy(path, kept)
            if self.step == 2:
                self.members[0].ended = "finished"

        patch.setattr(Loop, "save", saving)
        run.train(config, folder)
    shutil.move(kept, folder / "checkpoint.pt")
    plan = sweep.plan({**override(values, more), "sweep": {"method.rank": [1, 2]}})
    (folder / "sweep.yaml").write_text(plan.text())
    return config, folder


@pytest.fixture
def folder(trained, tmp_path):
    return Path(shutil.copytree(trained[1], tmp_path / "run"))


def test_no_lock_is_left_and_the_whole_run_opens(trained):
    config, folder = trained
    assert not (folder / locks.NAME).exists()
    assert not list(folder.glob(".*"))
    assert finished_config(folder) == config
    assert read_summary(folder)["steps"] == 2
    assert read_facts(folder)["trained_parameters"] > 0
    assert read_card(folder / "adapter")["labels"] == ["no", "yes"]


@pytest.fixture(scope="module")
def prepared(trained):
    return run.prepare(trained[0], HERE.device)


def apply_calibration(config, folder, prepared):
    calibrate(prepared.injected, prepared.train, config, HERE, None, folder, resume=True)


OPENERS = {
    "config.yaml": [
        lambda config, folder, _: finished_config(folder),
        lambda config, folder, _: read_config(folder),
        lambda config, folder, _: Record(folder, config, resume=True),
    ],
    "run.json": [lambda config, folder, _: read_facts(folder)],
    "summary.json": [lambda config, folder, _: read_summary(folder), lambda config, folder, _: finished_config(folder)],
    "adapter/lorascope.json": [lambda config, folder, _: read_card(folder / "adapter")],
    "calibration.json": [apply_calibration],
    "sweep.yaml": [
        lambda config, folder, _: sweep._claim(sweep.Plan((sweep.Entry("a", {}, config),), 1), folder, True)
    ],
}


def texts(content: bytes) -> dict[str, bytes]:
    return {
        "empty": b"",
        "binary": bytes(range(256)) * 8,
        "zeros": bytes(4096),
        "cut off": content[: len(content) // 2],
        "a list": b"[1, 2]",
        "a number": b"7",
        "null": b"null",
        "not UTF-8": content[:20] + b"\xff\xfe" + content[20:],
        "deep": b"[" * 100_000,
        "deep maps": b'{"a":' * 50_000,
        "400 digits": b'{"steps": ' + b"9" * 400 + b"}",
        "5,000 digits": b'{"steps": ' + b"9" * 5_000 + b"}",
        "a lone surrogate": b'{"diverged": "\\ud800", "steps": 1}',
        "aliases": b"a: &a [" + b"x," * 90 + b"]\nb: &b [" + b"*a," * 90 + b"]\nc: &c [" + b"*b," * 90 + b"]",
        "a tag": b"model: !!python/object/apply:os.system ['true']",
        "a date": b"model: 2020-01-01",
    }


def one_sentence(error: BaseException) -> None:
    text = str(error)
    assert "\n" not in text
    assert 0 < len(text) <= 1_500
    assert error.exit_code == 2


@pytest.mark.parametrize("name", OPENERS)
@pytest.mark.parametrize("damage", [*texts(b""), "a folder", "a pipe"])
def test_a_damaged_file_is_one_sentence(trained, prepared, folder, name, damage):
    path = folder / name
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage == "a pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(texts(content)[damage])
    for opens in OPENERS[name]:
        with pytest.raises(LorascopeError) as error:
            opens(trained[0], folder, prepared)
        one_sentence(error.value)


WRONG = [None, "x", -1, 2**63, 1e999, True, [], {}, [None], {"x": None}]


def places(value, path=()):
    """Every path in nested maps and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in items:
        yield (*path, key)
        yield from places(each, (*path, key))


def changed(value, path, wrong):
    """A copy with another value at the path; without it where that is `KeyError`."""
    result = copy.deepcopy(value)
    inner = result
    for key in path[:-1]:
        inner = inner[key]
    if wrong is KeyError:
        del inner[path[-1]]
    else:
        inner[path[-1]] = wrong
    return result


@pytest.mark.parametrize("name", ["run.json", "summary.json", "adapter/lorascope.json"])
def test_a_wrong_type_anywhere_is_read_or_refused_in_one_sentence(trained, folder, name):
    path = folder / name
    whole = json.loads(path.read_text())
    refused = 0
    for place in places(whole):
        for wrong in (KeyError, *WRONG):
            path.write_text(json.dumps(changed(whole, place, wrong)))
            for opens in OPENERS[name]:
                try:
                    opens(trained[0], folder, None)
                except LorascopeError as error:
                    one_sentence(error)
                    refused += 1
    assert refused > 20


def test_a_wrong_type_anywhere_in_the_config_is_refused_or_means_the_default(trained, folder):
    path = folder / "config.yaml"
    whole = resolved(trained[0])
    for place in places(whole):
        for wrong in (KeyError, "x", [None]):
            path.write_text(json.dumps(changed(whole, place, wrong)))  # which is YAML
            try:
                Record(folder, finished_config(folder), resume=True)
            except LorascopeError as error:
                one_sentence(error)


def test_a_run_of_an_earlier_version_still_opens(trained, folder):
    """It wrote NaN where a number was none, and fewer keys."""
    (folder / "summary.json").write_text(
        '{"steps": 2, "held_out": {"loss": NaN, "accuracy": 0.5}, "seconds": Infinity}'
    )
    (folder / "run.json").write_text('{"lorascope": "0.1.0"}')
    (folder / "metrics.jsonl").write_text('{"step": 1, "train_loss": NaN}\n{"step": 2, "train_loss": 1.5}\n{"step": 3')
    assert read_summary(folder)["held_out"] == {"loss": None, "accuracy": 0.5}
    assert read_facts(folder) == {"lorascope": "0.1.0"}
    Record(folder, trained[0], resume=True).rewind(1)
    assert (folder / "metrics.jsonl").read_text() == '{"step":1,"train_loss":null}\n'
    assert finished_config(folder) == trained[0]


def test_a_number_that_is_none_is_null_in_the_metrics(trained, tmp_path):
    record = Record(tmp_path / "run", trained[0])
    record.log({"step": 1, "train_loss": math.nan, "grad_norm": math.inf})
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "train_loss": None, "grad_norm": None}


@pytest.mark.parametrize("line", ["{", "[1]", '{"step": "1"}', "\0" * 40, '{"step": ' + "9" * 400 + "}"])
def test_the_last_line_of_the_metrics_may_be_cut_off_and_no_other(trained, folder, line):
    path = folder / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line)
    record = Record(folder, trained[0], resume=True)
    record.rewind(5)
    assert path.read_text() == '{"step":1}\n'
    path.write_text(line + '\n{"step": 1}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl is damaged; found no step in line 1"):
        record.rewind(5)


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_metrics_that_are_no_file(trained, folder, make):
    path = folder / "metrics.jsonl"
    path.unlink()
    make(path)
    with pytest.raises(InputError, match=r"metrics\.jsonl is not a file"):
        Record(folder, trained[0], resume=True)


def loop_of(config, prepared):
    loop = Loop.together([Member(prepared.injected, prepared.train, prepared.held_out, config, HERE)])
    loop.members[0].total += 2  # as the fixture's checkpoint says
    return loop


@pytest.mark.parametrize("damage", ["missing", "empty", "binary", "cut off", "a list", "a folder", "a pipe"])
def test_a_damaged_checkpoint_is_one_sentence(trained, prepared, folder, damage):
    path = folder / "checkpoint.pt"
    content = path.read_bytes()
    path.unlink()
    if damage in ("a folder", "a pipe"):
        path.mkdir() if damage == "a folder" else os.mkfifo(path)
    elif damage != "missing":
        path.write_bytes(texts(content)[damage])
    with pytest.raises(InputError, match=r"checkpoint\.pt") as error:
        resume_from(loop_of(trained[0], prepared), path, HERE.device)
    one_sentence(error.value)


def test_a_wrong_type_anywhere_in_a_checkpoint(trained, prepared, folder, monkeypatch):
    path = folder / "checkpoint.pt"
    whole = torch.load(path, weights_only=True)
    loop = loop_of(trained[0], prepared)
    resume_from(loop, path, HERE.device)
    assert loop.step == 2
    refused = 0
    tensors = [torch.zeros(7, 3), torch.zeros(2, 3).to_sparse(), torch.zeros(1, device="meta")]
    for place in places(whole):
        for wrong in (KeyError, None, "x", -1, [None], {"x": None}, *tensors):
            state = changed(whole, place, wrong)
            monkeypatch.setattr(torch, "load", lambda *_, state=state, **__: state)
            try:
                resume_from(loop, path, HERE.device)
            except LorascopeError as error:
                one_sentence(error)
                refused += 1
    assert refused > 300


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"total_steps": "4", "sensitivity": {}, "uncertainty": {}},
        {"total_steps": 4, "sensitivity": {"x": 1}, "uncertainty": {}},
        {"total_steps": 4, "sensitivity": {"x": torch.zeros(2)}, "uncertainty": {}},
        {"total_steps": 4, "sensitivity": [], "uncertainty": {}},
    ],
)
def test_the_methods_own_state_is_compared_with_its_parameters(trained, prepared, tiny_bert, labelled, state):
    method = {"name": "adalora", "targets": ["query"], "init_r": 2, "target_r": 1}
    config = parse(classifier_values(tiny_bert, labelled) | {"method": method})
    injected = run.inject_method(run.load_base(config, 2, HERE.device), config)
    member = Member(injected, prepared.train, prepared.held_out, config, HERE)
    with pytest.raises(InputError, match="the checkpoint's state of the method is damaged") as error:
        member.load_state_dict({**member.state_dict(), "method": state})
    one_sentence(error.value)


@pytest.mark.parametrize(("step", "total"), [(4, 4), (-1, 4), (9, 4)])
def test_a_checkpoint_that_would_never_end(trained, prepared, folder, monkeypatch, step, total):
    whole = torch.load(folder / "checkpoint.pt", weights_only=True)
    whole |= {"step": step}
    monkeypatch.setattr(torch, "load", lambda *_, **__: whole)
    with pytest.raises(InputError, match=f"found step {step} of {total}"):
        resume_from(loop_of(trained[0], prepared), folder / "checkpoint.pt", HERE.device)


@pytest.mark.parametrize("wrong", [".inf", ".nan", "-.inf", "1e999", "9" * 30, "9" * 400, "99999999999"])
@pytest.mark.parametrize("key", ["optim.learning_rate", "training.max_steps", "method.rank", "training.seed"])
def test_a_setting_beyond_all_sizes_is_named(tiny_bert, labelled, key, wrong):
    values = classifier_values(tiny_bert, labelled)
    fine = (key == "optim.learning_rate" and wrong.isdecimal()) or (key == "training.seed" and wrong == "99999999999")
    if fine and len(wrong) < 20:
        parse(override(values, [f"{key}={wrong}"]))
        return
    with pytest.raises(InputError, match=key.replace(".", r"\.")) as error:
        parse(override(values, [f"{key}={wrong}"]))
    one_sentence(error.value)


def test_a_giant_integer_in_a_file_is_named(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("training:\n  max_steps: " + "9" * 400)
    with pytest.raises(InputError, match=r"an integer beyond 64 bits as training\.max_steps"):
        load(path)


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".txt"])
@pytest.mark.parametrize("damage", ["binary", "deep", "5,000 digits", "a lone surrogate", "a folder", "a pipe"])
def test_damaged_rows_are_one_sentence(tmp_path, suffix, damage):
    path = tmp_path / f"rows{suffix}"
    if damage in ("a folder", "a pipe"):
        path.mkdir() if damage == "a folder" else os.mkfifo(path)
    else:
        path.write_bytes(texts(b"")[damage])
    if suffix in (".csv", ".txt") and damage in ("deep", "5,000 digits", "a lone surrogate"):
        return  # text like any other
    with pytest.raises(InputError) as error:
        read_file(path)
    one_sentence(error.value)
    assert DataConfig(str(path))


def test_a_kill_while_the_adapter_is_written_leaves_no_folder(trained, prepared, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_card", killed)
        with pytest.raises(KeyboardInterrupt):
            run.write_adapter(prepared.injected, trained[0], ["no", "yes"], tmp_path / "adapter")
    assert not list(tmp_path.iterdir())
    run.write_adapter(prepared.injected, trained[0], ["no", "yes"], tmp_path / "adapter")
    names = {"adapter_model.safetensors", "adapter_config.json", "lorascope.json", "README.md"}
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == names
