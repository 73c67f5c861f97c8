"""Statistics of claims on intruders, of small tables whose answers are counted by hand."""

import pandas as pd
import pytest

from lorascope.study import Results, StudyScale
from lorascope.study.measures import intruder_statistics as of
from lorascope.study.measures.intruding import EPSILONS


def results(**tables):
    return Results(pd.DataFrame(), {name: pd.DataFrame(rows) for name, rows in tables.items()}, StudyScale(), None)


def swept():
    """Two rates of a sweep with ‖ΔW‖ of 10 and 30 and 0 and 8 intruders, and another method at 20 with 6."""
    leading, retained = [], []
    for method, size, found in (("slow", 10, 0), ("fast", 30, 8), ("other", 20, 6)):
        for replicate in (1, 0):
            for module in "ab":  # half of the squares in each of two weights
                row = dict.fromkeys(of.SUMMED, 0) | {f"found_{e}": 0 for e in EPSILONS}
                row |= {"squares": size**2 / 2, "found": found // 2, "margin": size / 10, "strength": 1.0}
                leading.append({"method": method, "replicate": replicate, "module": module, **row})
            retained.append({"method": method, "replicate": replicate, "forgetting": size / 100, "pair_loss": 1.0})
    return leading, retained


def test_methods_are_compared_at_the_same_size():
    leading, retained = swept()
    both = results(leading=leading, retained=retained)
    assert of.average(both, "other", "size") == pytest.approx(20)
    assert of.to_same_size("other", ["slow", "fast"])(both) == pytest.approx(6 / 4)  # 4: half way from 0 to 8
    assert of.to_same_size("other", ["slow", "fast"], "forgetting")(both) == pytest.approx(1)
    with pytest.raises(ValueError, match="size"):
        of.to_same_size("fast", ["slow", "other"])(both)
    with pytest.raises(ValueError, match="in full"):
        of.average(results(leading=leading, retained=retained[:-1]), "other")


def test_forgetting_is_compared_at_equal_task_loss():
    rows = []
    for replicate, better in ((0, 0.0), (1, 0.1)):  # scaling forgets as much as shrinking, and a tenth less
        for factor in (0.3, 0.5, 0.7, 1.0):
            lost = 2 - factor  # task loss; shrinking forgets 0.4 − 0.2 · (loss − 1)
            rows += [
                {"arm": "step", "factor": factor, "loss": lost, "forgetting": 0.4 - 0.2 * (lost - 1)},
                {"arm": "shrink", "factor": factor, "loss": 1.0, "forgetting": 0.4},
                {"arm": "intruder", "factor": factor, "loss": lost + (factor < 1) / 10, "forgetting": 0.4
                 if factor == 1 else 0.4 - 0.2 * (lost + 0.1 - 1) - better},
            ]  # fmt: skip
        rows[-12:] = [{"method": "m", "weights": 3, "replicate": replicate, **row} for row in rows[-12:]]
    without = [{**row, "replicate": 2, "weights": 0, "forgetting": 9.0} for row in rows[:12] if row["factor"] == 1]
    scaled = results(scaled=rows + without)
    assert of.at_equal_loss("m", "intruder", 0.7)(scaled) == pytest.approx(-0.05 / 0.4)
    # at 0.3 it costs more than the strongest shrinking: the end of the path, 0.4 − 0.2 · 0.7, against 0.4 − 0.2 · 0.8
    assert of.at_equal_loss("m", "intruder", 0.3)(scaled) == pytest.approx((-0.02 - 0.05) / 0.4)
    assert of.spared("m", "intruder")(scaled) == pytest.approx(1 - (0.4 - 0.2 * 0.4 - 0.05) / 0.4)


def test_two_rules_predict_the_factor_of_a_weight():
    leading, _ = swept()
    found = [{"method": "slow", "replicate": 0, "module": "b", "measured": 1.5, "predicted": 4.0}]
    both = results(leading=leading, critical=found)
    assert of.factors(both)["plain"] == pytest.approx([1.0])  # σ₁(ΔW) is σ₁₀(W) already
    assert (of.within_two("plain")(both), of.within_two("spectrum")(both)) == (1.0, 0.0)
