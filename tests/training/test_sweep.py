"""A sweep's adapters against the runs that each would have been alone."""

import csv
import json
import subprocess
import sys

import pytest
import torch
import yaml

from lorascope.errors import InputError
from lorascope.models import loading as models
from lorascope.training import run, sweep
from lorascope.training.config import parse, read
from lorascope.training.loop import Loop
from lorascope.training.member import Member
from lorascope.training.parallel import World
from tests.training.tiny import classifier_values, lm_values

HERE = World(torch.device("cpu"))
# Sums over other batches and paddings, through a few steps of Adam: it divides by the root of a mean square, which
# magnifies rounding, 1e-16 in float64, where a gradient is near zero. Measured: below 1e-13.
DOUBLE = 1e-10


@pytest.fixture
def double(monkeypatch):
    """Base models in float64; adapters follow."""
    load = models.load_model
    monkeypatch.setattr(models, "load_model", lambda *arguments: load(*arguments).double())


@pytest.fixture
def labels(tiny_bert, labelled):
    values = classifier_values(tiny_bert, labelled)
    values["model"]["dropout"] = 0.0
    values["method"]["dropout"] = 0.0
    return values


@pytest.fixture
def language(tiny_llama, plain_text):
    return lm_values(tiny_llama, plain_text)


def planned(values, *configs, **more):
    return sweep.plan({**values, "sweep": {"configs": list(configs), **more}})


def together(plan):
    configs = [entry.config for entry in plan.entries]
    prepared = run.prepare_together(configs, HERE.device)
    members = [
        Member(p.injected, p.train, p.held_out, config, HERE) for p, config in zip(prepared, configs, strict=True)
    ]
    loop = Loop.together(members)
    loop.run_all()
    return loop


def alone(config):
    prepared = run.prepare(config, HERE.device)
    loop = Loop(prepared.injected, prepared.train, prepared.held_out, config, HERE)
    loop.run_all()
    return loop.members[0]


def distance(one, other):
    """The largest difference of two members' adapters, frozen roles and heads included."""
    mine, theirs = one.injected.state_dict(), other.injected.state_dict()
    assert mine.keys() == theirs.keys()
    return max(float((mine[key].double() - theirs[key].double()).abs().max()) for key in mine)


def assert_each_is_its_own_run(plan, tolerance=DOUBLE, passes=1):
    loop = together(plan)
    assert len(loop._passes) == passes
    for entry, member in zip(plan.entries, loop.members, strict=True):
        own = alone(entry.config)
        assert member.ended == own.ended, entry.name
        assert distance(member, own) < tolerance, entry.name
        assert member.score.loss == pytest.approx(own.score.loss, abs=max(tolerance, 1e-7)), entry.name
        fresh = run.prepare(entry.config, HERE.device).injected
        moved = max(float((member.injected.state_dict()[k] - t).abs().max()) for k, t in fresh.state_dict().items())
        assert moved > 1e-4, f"{entry.name} has not trained"


VARIED = (
    {"method.rank": 1, "method.alpha": 2, "optim.learning_rate": 1e-2, "optim.max_grad_norm": 0.01},
    {"method.rank": 4, "method.alpha": 3, "optim.learning_rate": 3e-3, "training.seed": 1, "optim.weight_decay": 0.1},
    {"method.rank": 4, "method.init": "gaussian", "optim.lr_scheduler_type": "cosine", "training.seed": 2},
    {"method.rank": 2, "method.targets": ["key"], "optim.adam_beta2": 0.9, "optim.warmup_ratio": 0.5},
)


def test_each_classifier_and_its_new_head_are_those_of_its_own_run(double, labels):
    """Ranks, scales, rates, clipping, schedules, seeds (data split, order, head) and targets all differ."""
    assert_each_is_its_own_run(planned(labels, *VARIED))


def test_each_language_model_adapter_is_that_of_its_own_run(double, language):
    varied = [{k: v for k, v in each.items() if k != "method.targets"} for each in VARIED]
    language["training"]["gradient_accumulation_steps"] = 2
    assert_each_is_its_own_run(planned(language, *varied, {"method.targets": ["embed_tokens", "up_proj"]}))


def test_dropout_draws_what_the_own_run_draws(double, labels, language):
    """Texts are of unequal length, so that own batches are narrower than the joint one."""
    for values in (labels, language):
        settings = [
            {"method.dropout": p, "training.seed": seed} for p, seed in ((0.0, 0), (0.3, 0), (0.5, 3), (0.1, 4))
        ]
        assert_each_is_its_own_run(planned(values, *settings))


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_float32_to_rounding(labels, gradient_checkpointing):
    labels["training"]["gradient_checkpointing"] = gradient_checkpointing
    # Adam's steps at rates up to 1e-2; where a gradient is near its ε of 1e-8 or rounding, a step differs in part.
    assert_each_is_its_own_run(planned(labels, *VARIED), tolerance=2e-4)


def test_other_methods_run_by_their_own_code_in_the_same_pass(double, language):
    del language["method"]["alpha"]
    configs = [{"method.name": name, "method.rank": 2} for name in ("lora", "rslora", "dora", "vera", "lora_plus")]
    assert_each_is_its_own_run(planned(language, *configs, {"method.rank": 3, "method.init": "pissa"}))


def test_a_method_that_changes_more_than_layers_gets_a_pass_of_its_own(double, language):
    language["method"] = {"name": "lora"}
    configs = [{"method.rank": 2}, {"method.name": "layernorm"}, {"method.rank": 3}]
    assert_each_is_its_own_run(planned(language, *configs), passes=2)


def test_a_neighbour_that_diverges_leaves_the_others_as_they_are(double, labels):
    """Adam's first step of 1e200 makes infinities; it is seen at the next one, logged or not, and leaves."""
    labels["training"]["logging_steps"] = 3
    wild = {"method.rank": 3, "optim.learning_rate": 1e200, "optim.max_grad_norm": None}
    plan = planned(labels, VARIED[0], wild, VARIED[1])
    loop = together(plan)
    assert [member.ended for member in loop.members] == ["finished", "diverged", "finished"]
    assert "diverged at step 2" in str(loop.members[1].error)
    for i in (0, 2):
        assert distance(loop.members[i], alone(plan.entries[i].config)) < DOUBLE
    assert str(alone(plan.entries[1].config).error) == str(loop.members[1].error)


def test_one_that_stops_early_leaves_the_others_as_they_are(double, labels):
    labels["training"] |= {
        "max_steps": 24,
        "eval_steps": 3,
        "early_stopping_patience": 3,
        "load_best_model_at_end": True,
    }
    plan = planned(labels, {"optim.learning_rate": 1e-3}, {"optim.learning_rate": 0.1})
    loop = together(plan)
    assert [member.ended for member in loop.members] == ["finished", "stopped"]
    for entry, member in zip(plan.entries, loop.members, strict=True):
        own = alone(entry.config)
        assert (member.step, member.best["step"]) == (own.step, own.best["step"])
        assert distance(member, own) < DOUBLE
    assert loop.members[1].best["step"] == loop.members[1].step - 9


def test_hooks_of_the_methods_see_their_own_member(double, language):
    """A penalty and a change of gradients in one member's hooks."""
    plan = planned(language, {"method.rank": 2}, {"method.rank": 3})

    def train_with_hooks(members):
        method = members[-1].method
        parameters = members[-1].parameters
        method.penalty = lambda: sum((p**2).sum() for p in parameters)
        method.before_step = lambda step, total: [p.grad.mul_(0.5) for p in parameters]
        loop = Loop.together(members)
        loop.run_all()
        return members

    configs = [entry.config for entry in plan.entries]
    prepared = run.prepare_together(configs, HERE.device)
    joint = train_with_hooks(
        [Member(p.injected, p.train, p.held_out, c, HERE) for p, c in zip(prepared, configs, strict=True)]
    )
    p = run.prepare(configs[1], HERE.device)
    (own,) = train_with_hooks([Member(p.injected, p.train, p.held_out, configs[1], HERE)])
    assert distance(joint[1], own) < DOUBLE
    assert distance(joint[0], alone(configs[0])) < DOUBLE
    assert distance(joint[1], alone(configs[1])) > 1e-6  # the hooks did something


def test_one_base_is_in_memory(labels):
    plan = planned(labels, {"training.seed": 0}, {"training.seed": 1}, {"method.rank": 3})
    prepared = run.prepare_together([entry.config for entry in plan.entries], HERE.device)
    own = [{p.data_ptr() for p in each.model.parameters() if not p.requires_grad} for each in prepared]
    heads = {p.data_ptr() for each in prepared for o in each.injected.originals.values() for p in o.parameters()}
    assert own[0] - heads == own[1] - heads == own[2] - heads


# The folder


def write(path, values, section):
    path.write_text(yaml.safe_dump({**values, "sweep": section}))
    return path


GRID = {"method.rank": [1, 2], "training.seed": [0, 1]}


def test_each_folder_is_that_of_its_own_run(labels, tmp_path):
    labels["training"]["measure_cost"] = False  # times differ
    plan = sweep.plan({**labels, "sweep": {**GRID, "max_parallel": 3}})
    assert [len(group) for group in plan.groups()] == [3, 1]
    rows = sweep.train(plan, tmp_path / "sweep", command=["lorascope"])
    names = ["rank=1,seed=0", "rank=1,seed=1", "rank=2,seed=0", "rank=2,seed=1"]
    assert [row["name"] for row in rows] == names
    for entry in plan.entries:
        own, mine = tmp_path / f"own {entry.name}", tmp_path / "sweep" / entry.name
        run.train(entry.config, own)
        assert {path.name for path in mine.rglob("*")} == {path.name for path in own.rglob("*")}
        for name in ("config.yaml", "adapter/adapter_config.json", "adapter/lorascope.json"):
            assert (mine / name).read_text() == (own / name).read_text()
        kept = ("steps", "best_step", "resumed_at", "adapter")
        mine, own = (json.loads((folder / "summary.json").read_text()) for folder in (mine, own))
        assert mine.keys() == own.keys()
        assert [mine[key] for key in kept] == [own[key] for key in kept]
        assert mine["held_out"]["loss"] == pytest.approx(own["held_out"]["loss"], rel=1e-3)  # float32
    table = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert table["adapters"] == rows
    lines = list(csv.DictReader((tmp_path / "sweep" / "sweep.csv").open()))
    assert [line["method.rank"] for line in lines] == ["1", "1", "2", "2"]
    assert sum("best" in line for line in sweep.table(rows, accuracy=True).splitlines()) == 1


def test_a_sweep_that_is_refused_leaves_nothing(labels, tmp_path):
    for wrong in ({**labels["method"], "targets": ["nothing"]}, labels["method"] | {"modules_to_save": ["nothing"]}):
        plan = planned({**labels, "method": wrong}, {"method.rank": 2}, {"method.rank": 3})
        with pytest.raises(InputError, match="nothing"):
            sweep.train(plan, tmp_path / "sweep")
        assert not (tmp_path / "sweep").exists()


def test_one_that_diverged_says_so_in_its_folder_and_the_table(labels, tmp_path):
    labels["optim"]["max_grad_norm"] = None
    plan = planned(labels, {"optim.learning_rate": 1e-2}, {"optim.learning_rate": 1e36})
    rows = sweep.train(plan, tmp_path / "sweep")
    folder = tmp_path / "sweep" / plan.entries[1].name
    assert "training diverged" in json.loads((folder / "summary.json").read_text())["diverged"]
    assert not (folder / "adapter").exists()
    assert rows[0]["diverged"] is None
    assert rows[1]["eval_loss"] is None
    assert sweep.table(rows, accuracy=True).splitlines()[2].endswith("diverged")
    json.loads((tmp_path / "sweep" / "sweep.json").read_text(), parse_constant=pytest.fail)  # no NaN, which is no JSON


def adapters(folder):
    paths = sorted(folder.glob("*/adapter/adapter_model.safetensors"))
    return {path.parent.parent.name: path.read_bytes() for path in paths}


def test_stopped_and_resumed_ends_in_the_same_bytes(labels, tmp_path, monkeypatch):
    """Stopped in both of two groups; one member of the first diverges, one of the second stops early."""
    labels["training"] |= {"max_steps": 24, "save_steps": 5, "eval_steps": 3, "load_best_model_at_end": True}
    labels["training"] |= {"early_stopping_patience": 3}
    labels["optim"]["max_grad_norm"] = None
    configs = [{"optim.learning_rate": rate, "method.rank": i + 1} for i, rate in enumerate((1e-3, 1e36, 1e-3, 0.1))]
    plan = planned(labels, *configs, max_parallel=2)
    rows = sweep.train(plan, tmp_path / "whole")
    assert [row["diverged"] is None for row in rows] == [True, False, True, True]
    assert rows[3]["steps"] < 24

    class Stop(Exception):
        pass

    broken, save = tmp_path / "broken", Loop.save
    for group in plan.groups():

        def stopping(self, path):
            save(self, path)
            if self.step == 15:
                raise Stop

        monkeypatch.setattr(Loop, "save", stopping)
        with pytest.raises(Stop):
            sweep.train(plan, broken, resume=broken.exists())
        monkeypatch.setattr(Loop, "save", save)
        assert (broken / group[0].name / "checkpoint.pt").exists()
        assert not (broken / group[0].name / "adapter").exists()

    assert sweep.train(plan, broken, resume=True) == rows
    assert adapters(broken) == adapters(tmp_path / "whole")
    assert len(adapters(broken)) == 3
    assert not list(broken.rglob("checkpoint.pt"))
    assert sweep.train(plan, broken, resume=True) == rows  # finished: nothing happens


def test_a_sweep_is_resumed_with_its_own_config_alone(labels, tmp_path):
    plan = sweep.plan({**labels, "sweep": {"method.rank": [1]}})
    with pytest.raises(InputError, match="holds no sweep to resume"):
        sweep.train(plan, tmp_path / "new", resume=True)
    sweep.train(plan, tmp_path / "sweep")
    with pytest.raises(InputError, match="is not empty; continue it with --resume"):
        sweep.train(plan, tmp_path / "sweep")
    with pytest.raises(InputError, match="not the one"):
        sweep.train(sweep.plan({**labels, "sweep": {"method.rank": [2]}}), tmp_path / "sweep", resume=True)


# The section


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"method.rank": 4}, "method.rank is 4; expected a list of values"),
        ({"method.rank": []}, "expected a list of values"),
        ({"rank": [4]}, "'rank' names no field; expected section.key"),
        ({"method.rnk": [4]}, "did you mean rank?"),
        ({"method.rank": [2, 2]}, "two adapters of the sweep are the same: "),
        ({"training.max_steps": [2, 4]}, r"must agree in training.max_steps; found 2 \(max_steps=2\) and 4"),
        ({"data.max_length": [8, 16]}, "must agree in data.max_length"),
        ({"max_parallel": 0, "method.rank": [2]}, "max_parallel is wrong; found 0"),
        ({"configs": {"method.rank": 2}}, "configs is not a list of changes"),
        ("method.rank", "neither a grid nor a list"),
    ],
)
def test_a_wrong_section_is_one_sentence(labels, section, message):
    with pytest.raises(InputError, match=message):
        sweep.plan({**labels, "sweep": section})


def test_grid_and_list_make_the_configs_they_name(labels, tmp_path):
    path = write(
        tmp_path / "grid.yaml", labels, [{"method.rank": 3}, {"method.name": "rslora", "method.targets": ["key"]}]
    )
    plan = sweep.plan(read(path, ["sweep.training.seed=[5, 6]", "sweep.max_parallel=2"]))
    assert [entry.name for entry in plan.entries] == [
        "rank=3,seed=5",
        "rank=3,seed=6",
        "name=rslora,targets=key,seed=5",
        "name=rslora,targets=key,seed=6",
    ]
    assert plan.entries[3].config.method.name == "rslora"
    assert plan.entries[3].config.training.seed == 6
    assert plan.entries[0].config == parse(
        {**labels, "method": {**labels["method"], "rank": 3}, "training": {**labels["training"], "seed": 5}}
    )
    assert plan.max_parallel == 2
    default = sweep.plan({**labels, "sweep": GRID})
    assert default.max_parallel == 2048 // (4 * 16)


def test_what_would_not_equal_own_runs_is_refused(labels, tmp_path):
    two = {"method.rank": [1, 2]}
    del labels["model"]["dropout"]
    with pytest.raises(InputError, match=r"own dropout .* found 0.1 in .*; set model.dropout to 0"):
        sweep.train(sweep.plan({**labels, "sweep": two}), tmp_path / "one")
    labels["model"]["dropout"] = 0.0
    labels["method"]["dropout"] = 0.1
    labels["training"]["gradient_checkpointing"] = True
    with pytest.raises(InputError, match="adapters with dropout cannot share a pass"):
        sweep.train(sweep.plan({**labels, "sweep": two}), tmp_path / "two")


def test_patience_needs_evaluations(labels):
    labels["training"]["early_stopping_patience"] = 2
    with pytest.raises(InputError, match="early_stopping_patience needs eval_steps"):
        parse(labels)


@pytest.mark.slow
def test_the_packaged_task_from_the_command_line(tmp_path):
    """Twelve adapters of three ranks, two rates and two seeds on MiniLM: all clearly above the majority."""
    values = {
        "model": {"name": "minilm", "head": "mean-pool", "dropout": 0.0},
        "data": {"path": "wordnet-classes", "max_train_samples": 1600, "max_eval_samples": 250, "max_length": 32},
        "method": {"name": "lora", "targets": ["query", "value"], "alpha": 16},
        "training": {"max_steps": 60, "per_device_train_batch_size": 16, "device": "cpu"},
    }
    grid = {"method.rank": [2, 4, 8], "optim.learning_rate": [1e-3, 3e-3], "training.seed": [0, 1]}
    path = write(tmp_path / "grid.yaml", values, grid)
    code = "from lorascope.cli.app import main; main()"
    command = [sys.executable, "-c", code, "train", str(path), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("rank=") == 12
    rows = json.loads((tmp_path / "out" / "sweep.json").read_text())["adapters"]
    assert min(row["eval_accuracy"] for row in rows) > 0.4  # the majority class has 0.135
