"""Gains against arithmetic on a table of four runs."""

import pandas as pd
import pytest

from lorascope.study import Results, StudyScale
from lorascope.study.gains import (
    BASE_ALONE,
    FULL_TUNING,
    HEAD_ALONE,
    accuracy_lead,
    by_method,
    gain,
    lead,
    loss,
    parameters,
    share,
    share_of,
)

ROWS = [(HEAD_ALONE, 2.0, 10), (FULL_TUNING, 1.0, 1000), ("lora", 1.1, 60), ("lora", 1.3, 60), ("vera", 1.5, 15)]


@pytest.fixture
def results():
    runs = pd.DataFrame(ROWS, columns=["method", "loss", "trained"]).assign(task="easy", learning_rate=0.01)
    return Results(runs, {}, StudyScale(), pd.DataFrame())


def test_gains_are_counted_from_the_head_alone_in_units_of_full_fine_tuning(results):
    assert loss(results, "lora") == pytest.approx(1.2)
    assert gain(results, "lora", task="easy") == pytest.approx(0.8)
    assert share(results, "vera") == pytest.approx(0.5)
    assert lead("lora", "vera")(results) == pytest.approx(0.3)
    assert parameters(results, "vera") == 5


def test_of_a_decoder_they_are_counted_from_the_base_alone(results):
    of_decoder = Results(results.runs, {}, StudyScale(testbed="decoder"), pd.DataFrame())
    assert gain(of_decoder, "lora") == pytest.approx(0.8)
    table = by_method(of_decoder)
    assert BASE_ALONE in table.caption
    methods = [row[0] for row in table.rows]
    assert BASE_ALONE in methods
    assert HEAD_ALONE not in methods


def test_a_missing_arm_is_an_error(results):
    with pytest.raises(ValueError, match="no run of dora"):
        share(results, "dora")
    with pytest.raises(ValueError, match="no run of"):
        gain(results, "lora", task="hard")


def test_an_effect_is_told_in_nats_and_in_points_too(results):
    """Losses 1.2 and 1.5 in the table; accuracies 0.61 and 0.5, of the head 0.3."""
    runs = results.runs.assign(accuracy=[0.3, 0.8, 0.60, 0.62, 0.5])
    results = Results(runs, {}, StudyScale(), pd.DataFrame())
    difference = lead("lora", "vera", task="easy")
    assert {unit: other(results) for unit, other in difference.also.items()} == pytest.approx(
        {"nats": 0.3, "points of accuracy": 11}
    )
    alone = share_of("vera")
    assert alone(results) == pytest.approx(0.5)
    assert {unit: other(results) for unit, other in alone.also.items()} == pytest.approx(
        {"nats": 0.5, "points of accuracy": 20}
    )
    by_accuracy = accuracy_lead("lora", "vera")
    assert by_accuracy(results) == pytest.approx(0.11)
    assert {unit: other(results) for unit, other in by_accuracy.also.items()} == pytest.approx({"nats": 0.3})


def test_the_table_is_by_parameters(results):
    table = by_method(results)
    assert [row[0] for row in table.rows] == [HEAD_ALONE, "vera", "lora", FULL_TUNING]
    assert table.rows[2][1:] == pytest.approx((50, 0.01, 1.2, 0.8, 0.8))


def test_a_share_is_of_full_fine_tunings_gain_on_the_same_task():
    """Full fine-tuning gains 1 on the easy task and 4 on the hard one: 0.8 is 80 % and 20 %."""
    hard = [(HEAD_ALONE, 6.0, 10), (FULL_TUNING, 2.0, 1000), ("lora", 5.2, 60), ("vera", 5.6, 15)]
    columns = ["method", "loss", "trained"]
    both = [pd.DataFrame(rows, columns=columns).assign(task=task) for rows, task in ((ROWS, "easy"), (hard, "hard"))]
    results = Results(pd.concat(both, ignore_index=True).assign(learning_rate=0.01), {}, StudyScale(), pd.DataFrame())
    assert share(results, "lora", task="easy") == pytest.approx(0.8)
    assert share(results, "lora", task="hard") == pytest.approx(0.2)
    assert lead("lora", "vera", task="hard")(results) == pytest.approx(0.1)
    table = by_method(results, task="hard")
    assert {row[0]: row[-1] for row in table.rows} == pytest.approx(
        {HEAD_ALONE: 0, "vera": 0.1, "lora": 0.2, FULL_TUNING: 1}
    )
