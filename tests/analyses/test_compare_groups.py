"""Agreement within and between named groups: planted blocks, the null of permuted labels, coverage over adapters."""

import dataclasses
import itertools

import numpy as np
import pytest

from lorascope.analyses.compare import run, seeds
from lorascope.analyses.compare.matrices import Matrices
from lorascope.analyses.compare.seeds import contrast
from lorascope.weights import io


def matrices(values: np.ndarray) -> Matrices:
    return Matrices(**{field.name: values for field in dataclasses.fields(Matrices)})


def symmetric(size: int, rng: np.random.Generator) -> np.ndarray:
    """Pairs that depend on their members, as pairs of adapters do: u_i u_j and a little noise."""
    drawn = rng.standard_normal((size, size)) * 0.1
    own = 1 + rng.standard_normal(size) * 0.5
    return np.outer(own, own) + (drawn + drawn.T) / 2


def test_means_are_those_of_the_pairs():
    values = symmetric(6, np.random.default_rng(0))
    values[0, 4] = values[4, 0] = np.nan  # no module in common
    found = contrast(matrices(values), list("aabbbc"))
    label = np.array(list("aabbbc"))
    pairs = [(i, j) for i, j in itertools.combinations(range(6), 2) if np.isfinite(values[i, j])]
    for where, same in (("within", True), ("between", False)):
        expected = np.mean([values[i, j] for i, j in pairs if (label[i] == label[j]) == same])
        assert found["measures"]["cosine"][where]["mean"] == pytest.approx(expected, rel=1e-12)
    assert found["groups"] == {"a": [0, 1], "b": [2, 3, 4], "c": [5]}


def test_a_planted_block_is_found_and_labels_without_meaning_are_not(monkeypatch):
    label = np.repeat(list("ab"), 6)
    values = symmetric(12, np.random.default_rng(1)) * 0.2 + (label[:, None] == label[None, :])
    found = contrast(matrices(values), label.tolist())["measures"]["cosine"]
    assert found["p"] < 0.01  # 1 of 462 partitions is as uneven
    assert found["difference"]["low"] > 0.5
    monkeypatch.setattr(seeds, "DRAWS", 400)  # of 35 partitions of eight
    monkeypatch.setattr(seeds, "MEASURES", ("cosine",))
    rng = np.random.default_rng(2)
    p = [contrast(matrices(symmetric(8, rng)), list("aaaabbbb"))["measures"]["cosine"]["p"] for _ in range(60)]
    assert np.mean(np.array(p) <= 0.1) < 0.1 + 4 * (0.09 / 60) ** 0.5  # uniform: 10 % and 4 standard errors
    assert np.mean(p) == pytest.approx(0.5, abs=4 * (1 / 12 / 60) ** 0.5)


def test_the_interval_has_the_width_of_adapters_not_of_pairs():
    """The mean over pairs of u_i u_j is (mean u)² up to the diagonal: with 30 adapters ± 2·2·0.5/√30. Pairs taken as
    samples would give a sixth of that. 40 trials: 95 % less what 30 adapters and 4 standard errors take."""
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(40):
        found = contrast(matrices(symmetric(30, rng)), ["a"] * 30)["measures"]["cosine"]["within"]
        covered += found["low"] <= 1 <= found["high"]
        assert 0.4 < found["high"] - found["low"] < 1.2
    assert covered >= 31


def test_what_cannot_be_known_is_none(lora_folder):
    found = run([io.read(lora_folder)] * 3, named_groups=["a", "a", "b"])
    about = found.by_label["measures"]["cosine"]
    assert about["within"] == {"mean": pytest.approx(1), "low": None, "high": None}  # one pair, nothing to draw
    one = run([io.read(lora_folder)] * 3, named_groups=["a", "a", "a"]).by_label["measures"]["cosine"]
    assert one["between"]["mean"] is None
    assert one["p"] is None
    assert run([io.read(lora_folder)] * 3).to_json()["groups_by_label"] is None
