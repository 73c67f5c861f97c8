"""The search for d90: on curves with a known crossing, with and without noise, and with real (tiny) runs."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorascope.errors import InputError
from lorascope.training.config import load, parse, resolved
from lorascope.training.search import SubspaceRuns, search


def logistic(crossing, steepness=2.0):
    """A gain that rises in log d and is 0.9 exactly at the crossing."""
    shift = math.log(crossing) - math.log(9) / steepness
    return lambda d, seed=0: 1 / (1 + math.exp(-steepness * (math.log(d) - shift)))


@settings(max_examples=60)
@given(st.floats(3, 9e5), st.integers(2, 1_000_000), st.sampled_from([1.1, 1.5, 3.0]))
def test_a_monotone_curve_is_bracketed_to_the_tolerance(crossing, start, tolerance):
    asked = []
    gain = logistic(crossing)

    def evaluate(d, seed):
        asked.append((d, seed))
        return gain(d)

    found = search(evaluate, highest=1_000_000, start=start, tolerance=tolerance)
    assert found.low < crossing * (1 + 1e-9)  # rounding of the curve at the crossing itself
    assert crossing <= found.high * (1 + 1e-9)
    assert found.high / found.low <= tolerance or found.high - found.low == 1
    assert len(asked) == len(set(asked)) == len(found.tried)
    # At most log₄(10⁶) ≈ 10 steps to the bracket, and then halvings of log 4 down to log 1.1.
    assert len(asked) <= 11 + math.ceil(math.log2(math.log(4) / math.log(1.1)))
    assert found.interval is None  # one seed


def test_ends_of_the_range():
    never = search(lambda d, seed: 0.5, highest=5000, start=100)
    assert (never.low, never.high) == (5000, None)
    always = search(lambda d, seed: 0.95, highest=5000, lowest=7, start=100)
    assert (always.low, always.high) == (None, 7)
    assert [each.d for each in always.tried] == [7, 25, 100]
    beyond = search(logistic(40), highest=50, start=1000)
    assert beyond.tried[-1].d == 50


@pytest.mark.parametrize("draw", range(5))
def test_noise_over_seeds_gives_an_interval_that_holds_the_crossing(draw):
    gain = logistic(700, steepness=1.5)
    found = search(
        lambda d, seed: gain(d) + np.random.default_rng([draw, d, seed]).normal(0, 0.02),
        highest=10**6,
        seeds=range(5),
        tolerance=1.5,
    )
    low, high = found.interval
    assert low < 700 <= high
    # The gain's slope in log d at 0.9 is 0.135, so 0.02/√5 times t = 2.1 is a factor of about 1.15, and the grid's 1.5.
    assert high / low < 6


def test_a_lucky_run_does_not_end_the_search():
    """The first d succeeds, and so does the one below it, but a later look between them fails."""
    table = {1000: 0.95, 250: 0.5, 500: 0.95, 354: 0.95}
    found = search(lambda d, seed: table.get(d, 0.5), highest=10**5, tolerance=1.2)
    means = {each.d: each.mean for each in found.tried}
    assert means[found.low] < 0.9 <= means[found.high]
    assert all(mean >= 0.9 for d, mean in means.items() if d >= found.high)


def test_runs_that_diverged_count_as_below():
    found = search(lambda d, seed: math.nan if d < 300 else 1.0, highest=10**5)
    assert found.low < 300 <= found.high


def test_limits_are_checked():
    for wrong in ({"highest": 1, "lowest": 2}, {"highest": 9, "seeds": ()}, {"highest": 9, "tolerance": 1.0}):
        with pytest.raises(ValueError, match="cannot search"):
            search(lambda d, seed: 1.0, **wrong)


# --- with runs --------------------------------------------------------------------------------------------------------


@pytest.fixture
def full(classifier):
    """The resolved config of a tiny full fine-tuning run."""
    values = resolved(classifier("model.dropout=0.0", "training.max_steps=2", "training.measure_cost=false"))
    return resolved(parse({**values, "method": {"name": "full", "embeddings": False}}))


def loss_of(folder):
    return -json.loads((folder / "summary.json").read_text())["held_out"]["loss"]


def test_every_run_is_an_ordinary_folder_and_is_trained_once(full, tmp_path):
    runs = SubspaceRuns(full, tmp_path / "runs", loss_of, rates=[1e-2, 3e-2], command=["lorascope"])
    gain = runs(20, 1)
    names = ["d=20,lr=0.01,seed=1", "d=20,lr=0.03,seed=1"]
    assert [folder.name for folder in runs.folders] == names
    assert gain == max(loss_of(tmp_path / "runs" / name) for name in names)
    assert runs.trained == 2
    config = resolved(load(tmp_path / "runs" / names[0] / "config.yaml"))
    assert config["method"]["name"] == "random_subspace"
    assert (config["method"]["d"], config["method"]["said"], config["method"]["embeddings"]) == (20, "none", False)
    assert config["training"]["seed"] == 1

    again = SubspaceRuns(full, tmp_path / "runs", loss_of, rates=[1e-2, 3e-2])
    assert again(20, 1) == gain
    assert again.trained == 0


def test_a_run_that_was_killed_is_trained_and_another_config_is_refused(full, tmp_path):
    runs = SubspaceRuns(full, tmp_path, loss_of, rates=[1e-2])
    first = runs(10, 0)
    folder = runs.folders[0]
    (folder / "summary.json").unlink()  # as a kill leaves it
    again = SubspaceRuns(full, tmp_path, loss_of, rates=[1e-2])
    assert again(10, 0) == pytest.approx(first, abs=1e-6)
    assert again.trained == 1
    other = {**full, "training": {**full["training"], "max_steps": 3}}
    with pytest.raises(InputError, match="holds a run of another config"):
        SubspaceRuns(other, tmp_path, loss_of, rates=[1e-2])(10, 0)


def test_a_diverged_run_is_not_a_number_and_is_kept(full, tmp_path):
    runs = SubspaceRuns(full, tmp_path, loss_of, rates=[1e30])
    assert math.isnan(runs(10, 0))
    assert json.loads((runs.folders[0] / "summary.json").read_text())["diverged"]
    assert math.isnan(SubspaceRuns(full, tmp_path, loss_of, rates=[1e30])(10, 0))


def test_said_has_folders_of_its_own_and_default_rates_shrink_with_d(full, tmp_path):
    runs = SubspaceRuns(full, tmp_path, loss_of, said="layer")
    runs(40, 0)
    names = [folder.name for folder in runs.folders]
    assert names == [
        "said=layer,d=40,lr=0.033,seed=0",
        "said=layer,d=40,lr=0.1,seed=0",
        "said=layer,d=40,lr=0.3,seed=0",
    ]
    assert load(runs.folders[0] / "config.yaml").method.settings.said == "layer"
