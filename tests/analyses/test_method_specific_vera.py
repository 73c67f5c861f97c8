"""VeRA's own metrics: spans, overlaps of what modules read, and their random baselines."""

import json
from itertools import permutations

import numpy as np
import pytest
from safetensors.numpy import load_file

from lorascope.blocks import Heatmap, Lines
from lorascope.updates.base import Update, dense
from lorascope.weights import io
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.drawn import Drawn
from tests.analyses.test_method_specific import adapter, section, texts, update
from tests.weights import examples_peft


def vera(name: str, a, b_matrix, d, b) -> Update:
    return update(name, "vera", A=a, B=b_matrix, d=d, b=b)


def test_vera_of_peft_against_its_dense_update(tmp_path):
    example = examples_peft.vera(tmp_path)
    part = section(io.read(example.path), "vera")
    tensors = load_file(example.path / "adapter_model.safetensors")
    for row in part.rows:
        delta, key = example.deltas[row["name"]], f"base_model.model.{row['name']}"
        d, b = (tensors[f"{key}.vera_lambda_{v}"].astype(float) for v in "db")
        span, _ = np.linalg.qr(tensors["base_model.vera_B"][: len(b)].astype(float))
        # 1e-6: PEFT's merged weights are float64, from projections that it keeps in float32
        assert row["in_span_b"] == pytest.approx(
            np.linalg.norm(span.T @ delta) ** 2 / np.linalg.norm(delta) ** 2, rel=1e-6
        )
        assert row["d_change"] == pytest.approx(np.linalg.norm(d - 0.1) / (0.1 * 5**0.5), rel=1e-6)
        assert row["b_rms"] == pytest.approx(np.sqrt(np.mean(b**2)), rel=1e-6)
        assert row["reach"] == 5 / 12
    assert part.summary["pairs_of_projections"] == 1
    assert "drawn again" not in texts(part)


def test_veras_input_overlaps_against_dense_decompositions(tmp_path):
    example = examples_peft.vera(tmp_path)
    (group,) = section(io.read(example.path), "vera").summary["inputs"]
    leading = [np.linalg.svd(example.deltas[name])[2][: group["k"]] for name in group["names"]]
    wanted = [[np.linalg.norm(x @ y.T) ** 2 / group["k"] for y in leading] for x in leading]
    np.testing.assert_allclose(group["pairs"], wanted, rtol=1e-5)
    off = ~np.eye(len(leading), dtype=bool)
    assert group["overlap"] == pytest.approx(np.mean(np.array(wanted)[off]), rel=1e-5)
    assert group["null"]["chance"] == group["k"] / 12
    assert group["null"]["shared_space"] == group["k"] / 5


def test_the_null_of_the_span_is_the_mean_over_all_orders(rng):
    """All 120 orders of b, dense: mean numerator over mean denominator."""
    a, big_b, d, b = rng.standard_normal((2, 6)), rng.standard_normal((5, 2)), rng.random(2), rng.random(5) - 0.3
    row = section(adapter(vera("q", a, big_b, d, b)), "vera").rows[0]
    span, _ = np.linalg.qr(big_b)
    within = whole = 0.0
    for order in permutations(b):
        delta = np.diag(order) @ big_b @ np.diag(d) @ a
        within += np.linalg.norm(span.T @ delta) ** 2
        whole += np.linalg.norm(delta) ** 2
    assert row["null"]["in_span_b"] == pytest.approx(within / whole, rel=1e-12)


def test_a_constant_b_stays_in_the_span_and_random_signs_leave_it(rng):
    a, big_b = rng.standard_normal((8, 64)), rng.standard_normal((400, 8))
    signs = rng.permutation(np.repeat([-1.0, 1.0], 200))
    rows = section(
        adapter(vera("0.q", a, big_b, np.ones(8), np.full(400, 0.3)), vera("1.q", a, big_b, np.ones(8), signs)), "vera"
    ).rows
    assert rows[0]["in_span_b"] == pytest.approx(1, rel=1e-12)
    assert rows[0]["null"]["in_span_b"] == pytest.approx(1, rel=1e-12)
    # r/d_out = 0.02 for balanced signs; a sum of 8 × 8 squares, whose relative deviation is √(2/64) = 0.18
    assert rows[1]["in_span_b"] == pytest.approx(0.02, abs=4 * 0.18 * 0.02)
    assert rows[1]["null"]["in_span_b"] == pytest.approx(0.02, rel=0.2)  # leverages and lengths are not independent


def test_learned_overlap_stands_out_from_what_sharing_forces(rng):
    """Eight modules that raise the same entry of d: shuffled, they raise different ones."""
    a, big_b = rng.standard_normal((64, 256)), rng.standard_normal((128, 64))
    d = np.full(64, 0.05)
    d[5] = 1.0  # then 86 % of the energy is in this row of A
    modules = [vera(f"{i}.q", a, big_b, d, rng.standard_normal(128)) for i in range(8)]
    part = section(adapter(*modules, d_initial=0.1), "vera")
    (group,) = part.summary["inputs"]
    assert group["overlap"] > 0.9
    assert group["null"]["shared_matrices"] < 0.3
    assert "more than shared A and B explain" in texts(part)
    assert {type(block) for block in part.blocks} >= {Lines, Heatmap}


def test_modules_are_compared_only_where_they_share_a(rng):
    own = [
        vera(f"{i}.q", rng.standard_normal((3, 9)), rng.standard_normal((7, 3)), [1, 2, 3], np.ones(7)) for i in (0, 1)
    ]
    part = section(adapter(*own), "vera")
    assert part.summary["inputs"] == []
    assert part.summary["pairs_of_projections"] == 2
    assert "Every module has an A of its own" in texts(part)
    assert part.rows[0]["d_change"] is None
    assert "does not say d_initial" in texts(part)


def test_projections_from_a_seed_are_said_to_be_drawn_again(tmp_path):
    example = examples_peft.vera_without_projections(tmp_path)
    part = section(io.read(example.path, open_checkpoint(example.base)), "vera")
    assert (part.findings[0].severity, part.findings[0].rule) == ("warning", "LS905")
    assert "drawn again" in part.findings[0].text
    plain = vera("q", np.ones((2, 3)), np.ones((4, 2)), [1, 2], np.ones(4))
    seeded = Update("q", "vera", {**plain.roles, "A": Drawn((2, 3), 1.0, 7), "B": Drawn((4, 2), 1.0, 8)})
    assert "drawn again" in texts(section(adapter(seeded), "vera"))


def test_an_untrained_or_broken_vera_is_said_in_words():
    a, big_b = np.ones((2, 3)), np.ones((4, 2))
    part = section(
        adapter(vera("0.q", a, big_b, [0.1, 0.1], np.zeros(4)), vera("1.q", a, big_b, [np.nan, 1], np.ones(4))), "vera"
    )
    (still,) = (finding for finding in part.findings if "b is zero in 1 of 2 modules" in finding.text)
    assert (still.severity, still.rule, still.modules) == ("warning", "LS103", ("0.q",))
    assert part.rows[0]["in_span_b"] is None
    assert part.rows[1]["d"] is None
    json.dumps(part.rows, allow_nan=False)


def test_dense_of_vera_agrees_with_the_rows(rng):
    """The energies that the overlaps are made of are those of the kind's own formula."""
    from lorascope.analyses.method_specific.vera import _eigen

    a, big_b, d, b = rng.standard_normal((3, 9)), rng.standard_normal((7, 3)), rng.random(3), rng.random(7)
    energies, _ = _eigen(b, d, big_b, np.linalg.qr(a.T, mode="r").T)
    sigma = np.linalg.svd(dense(vera("q", a, big_b, d, b).delta()), compute_uv=False)[:3]
    np.testing.assert_allclose(np.sqrt(energies), sigma, rtol=1e-8)  # through the Gram matrix: half of the digits
