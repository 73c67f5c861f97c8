"""The small formulas that study scripts have of their own, against cases known by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lorascope.study import Results, StudyScale, work

STUDIES = Path(__file__).parents[2] / "studies"


def script(name):
    return work.script(STUDIES / f"{name}.py")


def results(**tables):
    frames = {name: pd.DataFrame(rows) for name, rows in tables.items()}
    return Results(pd.DataFrame(), frames, StudyScale(), pd.DataFrame())


def test_rows_made_longer_move_in_length_alone():
    weight = np.random.default_rng(0).standard_normal((6, 5))
    found = script("dora").moved(weight, 0.5 * weight)
    assert found["magnitude"] == pytest.approx(0.5 * np.linalg.norm(weight, axis=1).mean(), rel=1e-12)
    assert found["direction"] == pytest.approx(0.0, abs=1e-12)  # rounding of a cosine


def test_rows_that_turn_move_in_direction_alone():
    found = script("dora").moved(np.eye(4), np.eye(4)[[1, 0, 3, 2]] - np.eye(4))
    assert found == pytest.approx({"magnitude": 0.0, "direction": 1.0}, abs=1e-12)


def ranks(*maps):
    rows = [
        {"method": "AdaLoRA", "replicate": i, "module": f"m{j}", "rank": rank}
        for i, each in enumerate(maps)
        for j, rank in enumerate(each)
    ]
    return results(ranks=rows)


def test_gini_is_0_of_equal_ranks_and_three_quarters_where_one_of_four_has_all():
    gini = script("adalora").gini("AdaLoRA")
    assert gini(ranks((8, 8, 8, 8))) == 0.0
    assert gini(ranks((32, 0, 0, 0))) == pytest.approx(0.75)


def test_maps_agree_with_their_order_and_a_map_drawn_twice_counts_once():
    stable = script("adalora").stable("AdaLoRA")
    assert stable(ranks((1, 2, 3), (2, 5, 9))) == pytest.approx(1.0)
    assert stable(ranks((1, 2, 3), (9, 5, 2))) == pytest.approx(-1.0)
    assert stable(ranks((1, 2, 3), (9, 5, 2), (9, 5, 2))) == pytest.approx(-1.0)
    with pytest.raises(ValueError, match="one seed"):
        stable(ranks((1, 2, 3), (1, 2, 3)))


def test_random_layers_are_a_third_of_each_kind():
    module = script("lora_drop")
    for seed in range(3):
        chosen = module.random_layers(3, seed)
        wide = [name for name in chosen if name.endswith(module.WIDE) and "attention" not in name]
        assert len(set(chosen)) == 6
        assert len(wide) == 2
    assert module.random_layers(3, 0) != module.random_layers(3, 1)


def test_a_random_update_has_the_norm_of_the_trained_one():
    from lorascope.updates.base import Update
    from lorascope.weights.tensors import InMemory

    rng = np.random.default_rng(0)
    roles = {"A": InMemory(rng.standard_normal((2, 5))), "B": InMemory(rng.standard_normal((4, 2)))}
    update = Update("m", "low_rank", roles, scale=3.0)
    other = script("delta_vs_base").drawn(update, np.random.default_rng(1))
    assert other.rank == 2
    assert other.delta().frobenius_norm() == pytest.approx(update.delta().frobenius_norm(), rel=1e-12)
    assert abs(np.vdot(other.delta().dense(), update.delta().dense())) < 0.99 * update.delta().frobenius_norm() ** 2
