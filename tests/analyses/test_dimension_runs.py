"""Full fine-tuning beside trained runs of every size: the smallest rank, d90, and runs that do not belong together."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from lorascope.analyses.dimension import run
from lorascope.analyses.dimension.inputs import families, freedom
from lorascope.analyses.dimension.sizes import TrainedRun, family
from lorascope.errors import InputError
from lorascope.linalg.bootstrap import mean_interval
from tests.analyses.test_dimension import (
    NAMES,
    SHAPES,
    N,
    candidate,
    config,
    facts,
    full_candidate,
    full_run,
    lora_candidate,
)


def test_smallest_trained_rank_beside_k90():
    runs = [full_candidate()]
    for seed in (0, 1):
        runs += [lora_candidate(1, 0.5, seed), lora_candidate(2, 0.93, seed), lora_candidate(4, 0.97, seed)]
    result = run(runs)
    (group,) = result.families
    assert (group.label, group.axis) == ("LoRA", "rank")
    assert (group.reach["0.9"].size, group.reach["0.9"].below) == (2, 1)
    assert (group.reach["0.95"].size, group.reach["0.95"].below) == (4, 2)
    assert (group.reach["0.99"].size, group.reach["0.99"].below) == (None, 4)
    assert group.reach["0.9"].interval == (2, 2)
    assert group.levels[0].gain == pytest.approx(0.5, abs=1e-4)
    assert group.levels[0].parameters == 1000 - 7
    assert group.levels[1].freedom == sum(2 * (sum(shape) - 2) for shape in SHAPES.values())
    assert result.truncated.run == "rank=4,seed=0,lr=0.001"
    texts = " ".join(finding.text for finding in result.findings)
    assert "Trained LoRA: 90 % of the gain at rank = 2 (rank 1 falls short; bootstrap over seeds 2)" in texts
    assert "99 % of the gain not reached by rank = 4" in texts


def test_the_best_learning_rate_of_each_size_counts():
    group = run([full_candidate(), lora_candidate(1, 0.5, rate=1e-3), lora_candidate(1, 0.95, rate=1e-2)]).families[0]
    assert group.levels[0].learning_rate == 1e-2
    assert group.levels[0].rates == 2
    assert group.reach["0.9"].size == 1


def scored(size, gain, seed=0, accuracy=0.5, key="d"):
    values = config("random_subspace" if key == "d" else "lora", seed, **{key: size, "said": "none"})
    return TrainedRun(facts(f"{size}-{seed}", values), "DID", 1 - gain, accuracy, gain, size, 0, None)


def test_d90_is_the_first_of_the_grid_with_its_bracket():
    runs = [scored(d, gain) for d, gain in ((10, 0.1), (100, 0.6), (1000, 0.92), (10000, 0.99))]
    group = family("DID", runs, full_accuracy=0.8)
    assert (group.axis, group.reach["0.9"].size, group.reach["0.9"].below) == ("d", 1000, 100)
    assert group.reach["0.9"].interval is None  # one seed
    assert group.metric.size is None  # 0.5 is below 90 % of 0.8


def test_the_bootstrap_over_seeds_knows_an_undecided_grid():
    """At d = 100 half of the seeds reach 90 % by a wide margin: the mean decides one way or the other."""
    runs = [scored(10, 0.1, seed) for seed in range(6)]
    runs += [scored(100, 0.8 if seed % 2 else 1.0, seed) for seed in range(6)]
    runs += [scored(1000, 0.99, seed) for seed in range(6)]
    assert family("DID", runs, 1.0).reach["0.9"].interval == (100, 1000)


def test_a_bootstrap_of_one_value_is_none():
    assert mean_interval([0.3]) == (None, None)
    low, high = mean_interval([0.1, 0.2, 0.3, 0.4])
    assert 0.1 <= low < 0.25 < high <= 0.4


def test_did_and_said_are_families_of_their_own_and_targets_too():
    values = [
        config("random_subspace", d=10, said="none"),
        config("random_subspace", d=20, said="layer"),
        config("lora", rank=1, alpha=2, targets="all"),
        config("lora", rank=4, alpha=8, targets="all"),
        config("lora", rank=1, alpha=2, targets="query"),
    ]
    found = families([facts(str(i), each) for i, each in enumerate(values)])
    assert {name: len(runs) for name, runs in found.items()} == {
        "DID": 1, "SAID by layer": 1, "LoRA (targets = all)": 2, "LoRA (targets = query)": 1,
    }  # fmt: skip


def test_the_axis_of_parameters():
    result = run([full_candidate(), lora_candidate(2, 0.95)])
    truncated = {point.size: point for point in result.axis if point.family.startswith("full")}
    degrees = sum(3 * (sum(shape) - 3) for shape in SHAPES.values())
    assert truncated[3].freedom == degrees
    assert truncated[3].parameters == degrees + N  # and the vector
    assert truncated[3].plain == sum(3 * sum(shape) for shape in SHAPES.values()) + N
    assert truncated[N].freedom == sum(math.prod(shape) for shape in SHAPES.values())
    assert [point.size for point in result.first_on_axis(0.9)] == [3, 2]
    assert freedom((4, 6), 9) == 24  # no more than the matrix has


def test_runs_of_other_data_or_models_are_refused():
    other = candidate("other", config("lora", rank=1, path="elsewhere.csv"), full_run())
    with pytest.raises(InputError, match=r"do not share data\.path; found 'rows.csv' \(full-0\)"):
        run([full_candidate(), other])


def test_a_config_of_an_older_version_lacks_keys_that_are_off():
    newer = config("lora", rank=1, targets="all")
    newer["model"] |= {"random_init": False}
    assert run([full_candidate(), candidate("newer", newer, full_run())]).runs
    newer["model"] |= {"random_init": True}
    with pytest.raises(InputError, match=r"do not share model\.random_init"):
        run([full_candidate(), candidate("newer", newer, full_run())])


def test_without_a_full_run_there_is_nothing_to_measure_against():
    with pytest.raises(InputError, match="no run is a full fine-tuning; found lora"):
        run([lora_candidate(1, 0.5)])
    with pytest.raises(InputError, match="every full fine-tuning run diverged"):
        run([full_candidate(summary={"diverged": "at step 3"})])


def test_a_diverged_run_is_listed_and_not_dropped():
    gone = candidate("gone", config("lora", rank=8), None, summary={"diverged": "a loss of nan"})
    result = run([full_candidate(), gone, lora_candidate(1, 0.95)])
    assert [each.label for each in result.diverged] == ["gone"]
    assert "1 run diverged and is excluded from all figures: 'gone'" in [
        f.text for f in result.findings if f.severity == "warning"
    ]
    assert {row["run"] for row in result.flat_rows() if row["kind"] == "diverged"} == {"gone"}
    assert "a loss of nan" in str(result.blocks())
    assert result.to_json()["diverged"][0]["reason"] == "a loss of nan"


def test_a_full_run_that_changed_no_matrix():
    synthetic = full_run()
    synthetic.deltas = {name: np.zeros(SHAPES.get(name, (N, 1))) for name in synthetic.deltas}
    with pytest.raises(InputError, match="changed no matrix"):
        run([full_candidate(synthetic)])


def test_a_matrix_that_did_not_change_is_no_trouble():
    synthetic = full_run()
    synthetic.deltas[NAMES[0]] = np.zeros(SHAPES[NAMES[0]])
    synthetic.target[NAMES[0]] = np.zeros(SHAPES[NAMES[0]])
    result = run([full_candidate(synthetic)])
    assert result.k(0.9) == [3]
    json.dumps(result.to_json(), allow_nan=False)


def test_full_runs_of_several_rates_take_the_best():
    worse = full_run()
    worse.target = {name: 2 * target for name, target in worse.target.items()}
    slow = candidate("slow", config(rate=1e-6), worse)
    result = run([slow, full_candidate()])
    assert [each.facts.label for each in result.full] == ["full-0"]
    assert [run.family for run in result.runs] == ["full"]


def test_runs_of_different_steps_are_not_ranked():
    other = lora_candidate(1, 0.5)
    other = replace(other, facts=replace(other.facts, training={**other.facts.training, "max_steps": 99}))
    result = run([full_candidate(), other])
    first = result.findings[0]
    assert (first.severity, first.rule) == ("error", "LS601")
    assert "training.max_steps (10, 99)" in first.text
    assert result.first_on_axis(0.9) == []
    assert "not ranked" in result.page().summary
    assert not any(f.text.startswith("trained ") for f in result.findings)
    assert run([full_candidate(), lora_candidate(1, 0.95)]).first_on_axis(0.9)


def test_searched_runs_join_the_others():
    asked = []

    def search(gain):
        found = [lora_candidate(1, 0.5), lora_candidate(2, 0.95)]
        asked.extend(gain(each) for each in found)
        record = {"target": 0.9, "low": 1, "high": 2, "interval": None, "tried": [], "trained": 2, "found": 0}
        return found, record

    result = run([full_candidate()], search=search)
    assert asked == pytest.approx([0.5, 0.95], abs=1e-4)
    assert result.families[0].reach["0.9"].size == 2
    assert any("1 < d ≤ 2" in f.text for f in result.findings)
