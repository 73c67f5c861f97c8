"""The sentence that a comparison ends in, on pairs whose relation is known because they were made so."""

import numpy as np
import pytest

from lorascope.analyses import compare, rules
from lorascope.analyses.compare.relation import relation
from lorascope.blocks import Text
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Source
from lorascope.weights.tensors import InMemory

M, N, LAYERS, RANK = 96, 128, 3, 6


def adapter(path: str, factors, scale: float = 1.0) -> Adapter:
    updates = {
        f"layers.{i}.q": Update(f"layers.{i}.q", "low_rank", {"A": InMemory(a, "F32"), "B": InMemory(b, "F32")}, scale)
        for i, (b, a) in enumerate(factors)
    }
    return Adapter(updates, {}, Source(path, None, "memory", "LoRA"))


def drawn(seed: int, start: int | None = None):
    rng, first = np.random.default_rng(seed), np.random.default_rng([5, seed if start is None else start])
    return [
        (rng.standard_normal((M, RANK)) * 0.6 ** np.arange(RANK), first.uniform(-1, 1, (RANK, N)) / N**0.5)
        for _ in range(LAYERS)
    ]


def truncated(factors, rank: int, round_to=np.float64):
    made = []
    for b, a in factors:
        u, s, vh = np.linalg.svd(b @ a, full_matrices=False)
        left, right = u[:, :rank] * s[:rank] ** 0.5, (s[:rank] ** 0.5)[:, None] * vh[:rank]
        made.append((left.astype(round_to).astype(float), right.astype(round_to).astype(float)))
    return made


def compared(*adapters):
    result = compare.run(list(adapters))
    return result.findings[-1].text, {f.rule for f in result.findings}, result


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
@pytest.mark.parametrize("swapped", [False, True])
def test_a_truncation_is_named_with_the_energy_it_keeps(dtype, swapped):
    whole = drawn(1)
    part = truncated(whole, 2, dtype)
    kept = sum(np.linalg.norm(b @ a) ** 2 for b, a in part) / sum(np.linalg.norm(b @ a) ** 2 for b, a in whole)
    pair = [adapter("x/whole", whole), adapter("x/part", part)]
    text, found, result = compared(*(pair[::-1] if swapped else pair))
    assert text.startswith(
        f"part is the same update as whole, truncated to {100 * kept:.1f} % of its energy (ranks up to 2 of 6"
    )
    assert f"error {100 * (1 - kept) ** 0.5:.1f} %" in text
    assert rules.SAME_SEED.code not in found
    assert rules.SAME_UPDATE.code in found
    row = result.pairs[0].modules[0]
    assert row["cosine_sd"] == pytest.approx((M * N) ** -0.5)  # the chance level of two updates, not of one start


def test_one_update_at_another_scale_is_rescaled():
    text, _, _ = compared(adapter("x/a", drawn(1)), adapter("x/b", drawn(1), scale=2.0))
    assert text == "b is the same update as a, 2 times as large (α or the scale differs)"
    text, _, _ = compared(adapter("x/a", drawn(1)), adapter("x/b", drawn(1)))
    assert text == "a and b hold the same update"


def test_independent_adapters_are_not_more_similar_than_chance():
    text, found, result = compared(adapter("x/a", drawn(1)), adapter("x/b", drawn(2)))
    assert text.startswith("Not more similar than chance")
    assert rules.SAME_UPDATE.code not in found
    assert not any("most similar" in finding.text for finding in result.findings)


def test_independent_adapters_are_rarely_called_similar():
    """At a rate of 1 %, 60 comparisons have more than 4 false alarms once in 2,900 such tests (binomial)."""
    verdicts = [compared(adapter("x/a", drawn(2 * k)), adapter("x/b", drawn(2 * k + 1)))[0] for k in range(60)]
    assert sum(not text.startswith("Not more similar than chance") for text in verdicts) <= 4


def test_modules_with_nan_are_said_and_not_part_of_the_verdict():
    whole = drawn(1)
    broken = [(b.copy(), a) for b, a in whole]
    broken[1][0][0, 0] = np.nan
    text, found, result = compared(adapter("x/a", whole), adapter("x/b", broken))
    assert text == "a and b hold the same update; 1 module with NaN or Inf not compared"
    assert rules.NON_FINITE.code in found
    (finding,) = (f for f in result.findings if f.rule == rules.NON_FINITE.code)
    assert finding.severity == "error"
    assert "NaN or Inf in 'b' ('layers.1.q')" in finding.text


def test_one_seed_is_said_and_is_no_similarity():
    text, found, _ = compared(adapter("x/a", drawn(1, start=9)), adapter("x/b", drawn(2, start=9)))
    assert text.startswith("From one initialisation of A (same seed), and otherwise not more similar than chance")
    assert rules.SAME_SEED.code in found


def test_a_shared_direction_is_more_than_chance():
    first, second = drawn(1), drawn(2)
    common = np.linalg.qr(np.random.default_rng(3).standard_normal((M, 2)))[0]
    first, second = ([(b + 3 * common @ b[:2], a) for b, a in each] for each in (first, second))
    text, _, _ = compared(adapter("x/a", first), adapter("x/b", second))
    assert text.startswith(("More similar than chance", "Weakly similar"))
    assert "output subspaces above chance in" in text


def test_three_adapters_are_counted():
    text, _, _ = compared(adapter("x/a", drawn(1)), adapter("x/b", drawn(1)), adapter("x/c", drawn(2)))
    assert text == "Of 3 pairs, 1 holds one update (a and b), 2 are not more similar than chance"


def test_a_part_needs_the_lower_rank_and_the_column_space():
    inside = {"phi_whole": 1.0}
    assert relation(0.8, (1.0, 0.8), (4, 2), inside)["kept"] == pytest.approx(0.64)
    assert relation(0.8, (1.0, 0.8), (4, 4), inside) is None
    assert relation(0.8, (1.0, 0.8), (4, 2), {"phi_whole": 0.5}) is None
    assert relation(0.75, (1.0, 0.8), (4, 2), inside) is None
    assert relation(None, (1.0, 0.0), (4, 2), None) is None


def test_two_adapters_that_are_alike_are_told_how_to_get_a_scale():
    whole, other = drawn(1), drawn(2)
    mixed = [(np.hstack([b, c]), np.vstack([a, d])) for (b, a), (c, d) in zip(whole, other, strict=True)]
    _, _, alike = compared(adapter("a", whole), adapter("b", mixed))
    action = "For a scale, add adapters of other tasks or seeds: lorascope compare A B C"
    assert alike.findings[-1].action == action
    assert [block.where for block in alike.blocks() if isinstance(block, Text) and action in block.text] == [
        "page", "terminal"
    ]  # fmt: skip
    for others in ((adapter("b", other),), (adapter("b", mixed), adapter("c", other))):
        _, _, result = compared(adapter("a", whole), *others)
        assert result.findings[-1].action == ""
