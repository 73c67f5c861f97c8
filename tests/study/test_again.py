"""Some arms run again: these as a whole run has them, all others as the record has them; nothing else is trained."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lorascope.errors import InputError
from lorascope.linalg import bootstrap
from lorascope.study import Arm, MeasurementSpec, again, making, record, text_files
from lorascope.study.again import Again
from lorascope.study.picking import matching
from lorascope.study.texts import TextScores
from tests.cli.command import here
from tests.study.conftest import TOY
from tests.study.test_runner import Counting

NUMBERS = ("scale", "arms", "tuning", "runs", "tables", "candidates", "strata", "failures")


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(bootstrap, "DRAWN", 50)


@pytest.fixture(scope="module")
def judged(finished, toy_in):
    """The record of the whole study."""
    runner = toy_in(finished.folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bootstrap, "DRAWN", 50)
        return making.make(runner, "smoke", *runner.run(), frozen(runner), None)[0]


@pytest.fixture
def whole(judged):
    return copy.deepcopy(judged)


@pytest.fixture
def some(toy_in, finished):
    """A function: a runner of some arms on an earlier record, in a folder where all runs are done."""

    def runner(before, *options, change=lambda runner: runner, folder=finished.folder):
        found = toy_in(folder)
        found.__class__ = Again  # as the command makes it
        change(found).pick(before, options)
        return found

    return runner


def frozen(runner):
    entry = {"hash": "0", "date": "2026-11-29", "before_runs": False, "text": "", "bounds": ""}
    return {claim.name: [entry] for claim in runner.study.claims}


def made(runner):
    return again.make(runner, "smoke", runner.run(), frozen(runner), Path())[0]


def column(table, name):
    return [row[table["columns"].index(name)] for row in table["rows"]]


def changed(table, name, values):
    at = table["columns"].index(name)
    for row, value in zip(table["rows"], values, strict=True):
        row[at] = value


def test_arms_run_again_as_they_were_change_no_number(whole, some, tmp_path):
    runner = some(whole, "rank=2", "rank=0")
    found = made(runner)
    assert [arm.labels["rank"] for arm in runner.arms] == [2, 0]
    assert {name: found[name] for name in NUMBERS} == {name: whole[name] for name in NUMBERS}
    assert found["schema"] == record.SCHEMA
    assert found["cost"]["runs"] > whole["cost"]["runs"]
    assert [(entry["arms"], entry["date"]) for entry in found["made"]["again"]] == [
        ([{"method": "lora", "rank": 2}, {"method": "lora", "rank": 0}], making.today())
    ]
    path = tmp_path / "toy.json"
    path.write_text(json.dumps(found))
    assert record.read(path) == found  # the shape holds
    assert len(made(some(found, "rank=2"))["made"]["again"]) == 2


def test_what_others_have_comes_from_the_record_and_is_not_done_again(whole, judged, some, tmp_path):
    changed(whole["runs"], "loss", [7.0] * 6)
    changed(whole["tables"]["sizes"], "size", [5.0] * 6)
    engine = Counting()
    runner = some(whole, "rank=2", folder=tmp_path)
    runner.engine = engine
    found = made(runner)
    assert engine.titles
    assert all("rank 2" in title for title in engine.titles)
    losses = [7.0, 7.0, *column(judged["runs"], "loss")[2:4], 7.0, 7.0]
    # trained twice: sums of float32 depend in their last bit on where the operands lie in memory
    assert column(found["runs"], "loss") == pytest.approx(losses, rel=1e-6)
    assert column(found["tables"]["sizes"], "size") == [5.0, 5.0, 9.0, 9.0, 5.0, 5.0]
    assert found["tables"]["waves"] == whole["tables"]["waves"]


def test_runs_that_share_no_texts_are_resampled_apart(whole, some, tmp_path):
    """A record of earlier code: its runs have other hashes, no choice of rates, and a table without a column."""
    before = {name: value for name, value in copy.deepcopy(whole).items() if name != "candidates"}
    del before["strata"]["candidates"]
    changed(before["runs"], "key", [f"old {i}" for i in range(6)])
    before["strata"] |= {"runs": [0, 0, 1, 1, 2, 2], "sizes": [0, 0, 1, 1, 2, 2], "waves": [3] * 4}
    sizes = before["tables"]["sizes"]
    before["tables"]["sizes"] = {"columns": sizes["columns"][:-1], "rows": [row[:-1] for row in sizes["rows"]]}
    found = made(some(before, "rank=2"))
    one, two, none = (found["strata"]["runs"][i] for i in (0, 2, 4))
    assert found["strata"]["runs"] == found["strata"]["sizes"] == [one, one, two, two, none, none]
    assert len({one, two, none, *found["strata"]["waves"]}) == 4
    ranks, arms, places = (column(found["candidates"], name) for name in ("rank", "_arm", "_place"))
    assert list(zip(ranks, arms, places, strict=True)) == [
        *[(1, 0, 0)] * 2, *[(2, 1, 0)] * 2, *[(2, 1, 1)] * 2, *[(0, 2, 0)] * 2,
    ]  # fmt: skip
    assert found["strata"]["candidates"] == [one] * 2 + [two] * 4 + [none] * 2
    assert column(found["tables"]["sizes"], sizes["columns"][-1])[1:3] == [None, sizes["rows"][2][-1]]


def test_an_arm_takes_the_rate_that_the_record_has_of_another(whole, some):
    before = whole
    before["tuning"][0]["learning_rate"] = 0.0123
    (arm,) = some(before, "rank=0").arms
    assert (arm.learning_rates, arm.rate_of) == ((0.0123,), None)
    before["tuning"][0]["learning_rate"] = None
    with pytest.raises(InputError, match="does not have"):
        some(before, "rank=0")
    with pytest.raises(InputError, match=r"rank 0 takes the learning rate of an arm that is run again.*, too"):
        some(whole, "rank=1")


def test_failures_of_arms_that_are_run_again_are_gone(whole, some, tmp_path):
    before = whole
    lost = ["method lora, rank 2 (tuning)", "sizes: power 2; method lora, rank 2, rate 0.001, replicate 0"]
    kept = "method lora, rank 1, rate 0.001, replicate 0"
    before["failures"] = [{"title": title, "message": "no"} for title in (*lost, kept)]
    del before["tables"]["sizes"], before["strata"]["sizes"]
    found = made(some(before, "rank=2"))
    assert [each["title"] for each in found["failures"]] == [kept, "sizes"]  # a measure that the record did not have
    assert column(found["tables"]["sizes"], "rank") == [2, 2]


def test_scores_as_many_texts_as_the_record(whole, some):
    before = whole
    before["scale"]["test_samples"] = 17
    before["scale"]["config"]["data"]["max_eval_samples"] = 3
    runner = some(before, "rank=2")
    job = runner._train_job(runner.arms[0], 1e-3, 0)
    assert job.spec["test_samples"] == 17
    assert job.spec["config"]["data"]["max_eval_samples"] == 3


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda before: before["scale"].update(replicates=5), "another set-up.*replicates 5, now 2"),
        (lambda before: before["scale"]["config"]["training"].update(max_steps=9), "training.max_steps 9, now 3"),
        (lambda before: before["arms"][0]["changes"].update({"method.rank": 3}), "rank 1 with other settings"),
        (lambda before: before["arms"].pop(0), "does not have the arm method lora, rank 1"),
    ],
)
def test_a_record_of_other_runs_is_refused(whole, some, change, said):
    before = whole
    change(before)
    with pytest.raises(InputError, match=said):
        some(before, "rank=2")


def test_without_a_record_nothing_is_run(some):
    with pytest.raises(InputError, match=r"no record of toy at this scale.*run the whole study"):
        some(None, "rank=2")


def test_what_is_measured_of_several_arms_needs_the_whole_study(whole, some, tmp_path):
    def pairs(results):
        keys = {rank: part["key"].tolist() for rank, part in results.runs.groupby("rank")}
        return [MeasurementSpec((keys[1][n], keys[2][n]), {"power": 2, "replicate": n}) for n in range(2)]

    def paired(runner):
        measure = replace(runner.study.measures[0], specs=pairs)
        runner.study = replace(runner.study, measures=(measure, *runner.study.measures[1:]))
        return runner

    with pytest.raises(InputError, match=r"together with others: sizes.*run the whole study"):
        some(whole, "rank=2", change=paired)
    found = made(some(whole, "rank=0", change=paired))
    assert found["tables"]["sizes"] == whole["tables"]["sizes"]  # it has no run of the picked arm


ARMS = [
    Arm({"method": "full fine-tuning, scored as it trains", "rank": None, "share": 0.50}),
    Arm({"method": "lora", "rank": 2, "share": 1e-3}),
    Arm({"method": "lora", "rank": 16}),
]


@pytest.mark.parametrize(
    ("options", "those"),
    [
        (["method=lora"], [1, 2]),
        (["method=lora,rank=2"], [1]),
        (["rank=16", "share=0.5"], [0, 2]),
        (["method=full fine-tuning, scored as it trains, rank=None"], [0]),
        (["share=0.001"], [1]),
    ],
)
def test_labels_name_arms(options, those):
    assert matching(ARMS, options) == [ARMS[i] for i in those]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("method=lora,rank=3", "no arm has the labels.*near it are method=lora,rank=16"),
        ("rnk=2", "takes labels.*rnk=2.*method, rank, share"),
        ("lora", "takes labels"),
        ("rank=2,rank=16", "takes labels"),
    ],
)
def test_labels_of_no_arm_are_refused(option, said):
    with pytest.raises(InputError, match=said):
        matching(ARMS, ["method=lora", option])


# --- scores of texts --------------------------------------------------------------------------------------------------


def scores(*keys, texts=4, values=None):
    loss = np.array([[float(value) + i for i in range(texts)] for value in values or keys])
    return TextScores(keys, loss.astype(np.float32), np.ones(loss.shape, np.int16), np.ones(texts, np.int16))


def test_scores_of_new_runs_join_those_of_kept_ones():
    base = {"runs": {"columns": ["key"], "rows": [["1"], ["2"], ["5"]]}}
    found = again._scores(base, {"test": scores("1", "2", "3")}, {"test": scores("5")})["test"]
    assert found.keys == ("1", "2", "5")
    assert found.loss[:, 0].tolist() == [1.0, 2.0, 5.0]
    assert again._scores(base, {"test": scores("1", "2", texts=3)}, {"test": scores("5")})["test"].keys == ("5",)
    assert again._scores(base, {"test": scores("1", "3")}, {})["test"].keys == ("1",)
    assert again._scores(base, {"test": scores("3")}, {}) == {}


def test_how_many_runs_have_no_scores_is_told(whole, some, tmp_path):
    """The record before has none; the new runs have."""
    runner = some(whole, "rank=2")
    results, tuned = runner.run()
    of_texts = scores(*results.candidates["key"], values=range(4))
    results = replace(results, texts={"held_out": of_texts})
    found, content = again.make(runner, "smoke", (results, tuned), frozen(runner), tmp_path)
    assert found["texts"]["without"] == 4
    (tmp_path / found["texts"]["file"]).write_bytes(content)
    assert text_files.read(found["texts"], tmp_path)["held_out"].keys == of_texts.keys
    later = some(found, "rank=0")
    found = again.make(later, "smoke", later.run(), frozen(later), tmp_path)[0]
    assert found["texts"]["without"] == 4


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_replaces_the_arms_and_draws_the_page(finished, whole, tiny_bert, labelled, tmp_path):
    finished.into(tmp_path)
    (tmp_path / "studies").mkdir()
    (tmp_path / "reports").mkdir()
    shutil.copy(TOY, tmp_path / "studies")
    (tmp_path / "reports/toy.json").write_text(json.dumps(whole))
    arguments = ["--scale", "smoke", "--store", "store", "--set", f"model.name={tiny_bert}"]
    arguments += ["--set", f"data.path={labelled}"]
    done = here("study", "run", "toy", *arguments, "--arms", "method=lora,rank=2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = record.read(tmp_path / "reports/toy.json")
    assert {name: found[name] for name in NUMBERS} == {name: whole[name] for name in NUMBERS}
    page = (tmp_path / "reports/toy.html").read_text()
    assert f"method lora, rank 2 ({making.today()}); all other arms are of {whole['made']['date']}" in page
    assert here("study", "run", "toy", *arguments, "--arms", "rank=7", cwd=tmp_path).returncode == 2
