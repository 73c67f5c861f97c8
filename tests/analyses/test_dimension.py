"""Intrinsic dimension: planted updates whose functional rank is known, spectra with known answers, runs by size."""

import json
import math
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lorascope.analyses.dimension import run
from lorascope.analyses.dimension.show import PLOTS
from lorascope.analyses.dimension.spectra import split
from lorascope.errors import InputError
from lorascope.linalg.factored import Factored
from lorascope.linalg.matrix import as_matrix
from lorascope.run_data import Candidate, facts_of, labels_of
from lorascope.training.runs import prior_loss

N = 32
NAMES = tuple(f"layer.{i}.{kind}" for i in range(2) for kind in ("query", "dense"))
SHAPES = {name: (N, N) if name.endswith("query") else (2 * N, N) for name in NAMES}


def orthonormal(rng, rows, columns):
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def planted(rng, shape, sigma):
    """A matrix with exactly these singular values."""
    return (orthonormal(rng, shape[0], len(sigma)) * sigma) @ orthonormal(rng, shape[1], len(sigma)).T


@dataclass
class Synthetic:
    """A run whose loss is the share of the target's energy that is missing, plus what a missing vector costs.

    With ΔW = target + tail and a tail of negligible size, recovered(k) of the leading components is the share of the
    target's energy that they hold: known exactly.
    """

    target: dict
    deltas: dict
    vector: float = 0.5
    head_parameters: int = 7
    place: object = None
    now: dict = field(default_factory=dict)
    scores: list = field(default_factory=list)

    def __post_init__(self):
        self.now = dict(self.deltas)

    @property
    def shapes(self):
        return {name: tuple(delta.shape) for name, delta in self.deltas.items()}

    def delta(self, name):
        return as_matrix(self.deltas[name])

    def put(self, deltas):
        self.now = dict(deltas)

    def score(self):
        missing = sum(
            np.linalg.norm(as_matrix(self.now[n]).dense() - t if n in self.now else t) ** 2
            for n, t in self.target.items()
        )
        loss = missing / sum(np.linalg.norm(t) ** 2 for t in self.target.values())
        loss += 0.0 if "layer.0.bias" in self.now else self.vector
        self.scores.append(loss)
        return SimpleNamespace(loss=float(loss), accuracy=float(1 - loss))


HEAD = np.array([1.0, 1.0, 1.0])  # three equal directions carry everything: two of them keep two thirds
TAIL = np.geomspace(1e-3, 1e-4, N - 3)  # full rank, of no use


def full_run(seed=0, head=HEAD, tail=TAIL, bias=True):
    rng = np.random.default_rng([11, seed])
    target, deltas = {}, {}
    for name in NAMES:
        u, v = orthonormal(rng, SHAPES[name][0], N), orthonormal(rng, N, N)
        k = len(head)
        tail = tail[: N - k]
        target[name] = (u[:, :k] * head) @ v[:, :k].T
        deltas[name] = target[name] + (u[:, k : k + len(tail)] * tail) @ v[:, k : k + len(tail)].T
    if bias:
        deltas["layer.0.bias"] = np.ones((N, 1))
    return Synthetic(target, deltas)


def config(method="full", seed=0, rate=1e-3, path="rows.csv", **settings):
    return {
        "model": {"name": "m", "dropout": None},
        "data": {"path": path, "max_eval_samples": None},
        "method": {"name": method, **settings},
        "optim": {"learning_rate": rate},
        "training": {"seed": seed, "max_steps": 10},
    }


def facts(label, values=None, summary=None, trained=1000):
    return facts_of(
        label, f"runs/{label}", values or config(), summary or {"steps": 10}, {"trained_parameters": trained}
    )


def candidate(label, values, opened, **more):
    return Candidate(facts(label, values, **more), lambda: opened)


def full_candidate(synthetic=None, seed=0, **more):
    return candidate(f"full-{seed}", config(seed=seed), synthetic or full_run(seed), **more)


def lora_candidate(rank, share, seed=0, rate=1e-3):
    """A LoRA run that holds this share of a target of its own, of rank one, padded to `rank` with zeros."""
    rng = np.random.default_rng([7, seed])
    target, deltas = {}, {}
    for name, shape in SHAPES.items():
        left, right = orthonormal(rng, shape[0], rank), orthonormal(rng, shape[1], rank).T
        left[:, 1:] = 0
        target[name] = left @ right
        deltas[name] = Factored((1 - math.sqrt(1 - share)) * left, right)
    opened = Synthetic(target, deltas, vector=0.0)
    values = config("lora", seed, rate, rank=rank, alpha=2 * rank, targets="all")
    return candidate(f"rank={rank},seed={seed},lr={rate}", values, opened)


# --- functional -------------------------------------------------------------------------------------------------------


def test_functional_rank_of_a_planted_update_is_exact():
    result = run([full_candidate()])
    assert [result.k(share) for share in (0.9, 0.95, 0.99)] == [[3], [3], [3]]
    top = result.full[0].curve("top")
    known = {point.k: point.recovered for point in top.points}
    # The tail has 1e-5 of the energy, and the parts are kept in float32.
    assert known[0] == 0
    assert known[1] == pytest.approx(1 / 3, abs=1e-4)
    assert known[2] == pytest.approx(2 / 3, abs=1e-4)
    assert known[3] == pytest.approx(1, abs=1e-4)
    assert known[N] == 1


def test_the_three_shares_have_their_own_rank():
    """Energies 90, 6, 3 and 1 of 100: one direction keeps 90 %, two 96 %, three 99 %."""
    result = run([full_candidate(full_run(head=np.sqrt([90.1, 5.9, 3.1, 0.9])))])
    assert [result.k(share) for share in (0.9, 0.95, 0.99)] == [[1], [2], [3]]


def test_controls_know_their_place():
    result = run([full_candidate()], draws=tuple(range(8)))
    first, k = result.full[0], 3
    (bottom,) = (point.recovered for point in first.curve("bottom").at(k))
    assert bottom < 0.2
    assert bottom == pytest.approx(0, abs=1e-2)
    for kind in ("random", "haar"):
        # ‖target Q‖² / ‖target‖² for k of n random directions: mean k/n; 8 draws of 4 matrices of 3 directions each
        # have a standard error below 0.01.
        found = [point.recovered for point in first.curve(kind).at(4)]
        assert len(found) == 8
        assert len(set(found)) == 8
        assert np.mean(found) == pytest.approx(4 / N, abs=0.03)


def test_a_random_control_within_a_row_space_of_low_rank_finds_it():
    """ΔW of rank 3 in 32 dimensions: two random directions of its row space keep about 2/3, of all of R^32 2/32."""
    result = run([full_candidate(full_run(tail=np.empty(0), head=np.ones(6)))], draws=tuple(range(6)))
    inside, anywhere = (np.mean([p.recovered for p in result.full[0].curve(kind).at(4)]) for kind in ("random", "haar"))
    assert inside == pytest.approx(4 / 6, abs=0.05)
    assert anywhere == pytest.approx(4 / N, abs=0.05)


def test_one_threshold_spends_rank_where_it_is_needed():
    """Of four matrices one carries nearly everything, in six directions: 6 per matrix with the same k, 2 on average."""
    synthetic = full_run()
    rng = np.random.default_rng(3)
    for i, name in enumerate(NAMES):
        sigma = np.linspace(1, 0.95, 6) * (1 if i == 0 else 1e-3)
        synthetic.target[name] = planted(rng, SHAPES[name], sigma)
        synthetic.deltas[name] = synthetic.target[name]
    result = run([full_candidate(synthetic)])
    assert result.k(0.9) == [6]
    assert result.k(0.9, "threshold") == [2]


def test_vectors_stay_as_trained_and_the_frozen_base_stands_beside():
    result = run([full_candidate()])
    full = result.full[0]
    assert full.start_loss == pytest.approx(1.0)  # all of the target is missing, and the vector is not
    assert full.frozen_loss == pytest.approx(1.5)  # both are
    assert full.vector_parameters == N
    assert full.head_parameters == 7


class ByRank(Synthetic):
    """A run whose recovered gain is a given function of the number of components."""

    def gain(self, k):
        steps = {0: 0.0, 1: 0.3, 2: 0.95, 3: 0.92, 4: 0.8, 5: 0.85, 6: 0.85, 7: 0.91, 31: 0.97}
        return next((gain for most, gain in steps.items() if k <= most), 1.0)

    def score(self):
        k = self.now[NAMES[0]].left.shape[1] if NAMES[0] in self.now else 0
        return SimpleNamespace(loss=2 - self.gain(k), accuracy=0.5)


def test_a_curve_that_is_not_monotone_says_so_and_takes_the_last_crossing():
    plain = full_run()
    result = run([full_candidate(ByRank(plain.target, plain.deltas))])
    curve = result.full[0].curve("top")
    assert curve.reach["0.9"] == 7  # 2 and 3 reach 90 %, but 4 to 6 do not
    assert curve.reach["0.99"] == 32
    assert curve.drop == (pytest.approx(0.15), 2, 4)
    texts = " ".join(finding.text for finding in result.findings)
    assert "not monotone" in texts
    assert "k = 2 reached 90 %, too" in texts


def test_no_point_is_evaluated_twice():
    synthetic = full_run()
    put = []
    inner = synthetic.put
    synthetic.put = lambda deltas: (put.append(_key(deltas)), inner(deltas))
    run([full_candidate(synthetic)])
    assert len(put) == len(set(put))


def _key(deltas):
    return tuple(sorted((name, np.round(as_matrix(delta).dense(), 6).tobytes()) for name, delta in deltas.items()))


def test_a_run_without_gain_says_so():
    synthetic = full_run()
    synthetic.target = {name: -delta for name, delta in synthetic.target.items()}  # away from what is of use
    result = run([full_candidate(synthetic)])
    assert result.k(0.9) == [None]
    assert result.findings[0].severity == "error"
    assert "gained nothing" in result.findings[0].text
    json.dumps(result.to_json(), allow_nan=False)


def test_modules_chooses_what_is_truncated():
    result = run([full_candidate()], modules="query")
    assert set(result.full[0].matrices) == {name for name in NAMES if "query" in name}
    assert len(result.skipped) == 2
    assert result.to_json()["skipped"][0]["adapter"] == "full-0"
    # The dense matrices hold half of the target and stay: the start is half of what is missing.
    assert result.full[0].start_loss == pytest.approx(0.5, abs=1e-3)
    with pytest.raises(InputError, match="matches none"):
        run([full_candidate()], modules="nothing")
    with pytest.raises(InputError, match="not a regular expression"):
        run([full_candidate()], modules="(")


def test_a_given_baseline():
    result = run([full_candidate()], baseline=2.0, prior=1.9)
    top = {point.k: point.recovered for point in result.full[0].curve("top").points}
    assert top[0] == pytest.approx(0.5, abs=1e-3)  # from 2 to 0, and the matrices at W have 1
    assert result.k(0.9) == [3]


def test_a_start_worse_than_the_class_frequencies_is_a_warning():
    texts = [f.text for f in run([full_candidate()], prior=0.8).findings if f.severity == "warning"]
    assert any("class frequencies" in text for text in texts)
    assert not any("class frequencies" in f.text for f in run([full_candidate()], prior=1.2).findings if
                   f.severity == "warning")  # fmt: skip


# --- spectral and denoised --------------------------------------------------------------------------------------------


def test_spectra_of_known_answers():
    head, tail = np.array([4.0, 2.0, 1.0]), np.zeros(N - 3)
    result = run([full_candidate(full_run(head=head, tail=tail))])
    for each in result.spectra:
        assert each.measures["energy_rank_0.9"] == 2  # 16 + 4 of 21
        assert each.measures["energy_rank_0.99"] == 3
        assert each.measures["stable_rank"] == pytest.approx(21 / 16)
        assert each.null["energy_rank_0.9"] > 10
        assert each.gavish_donoho is None  # no bulk to tell noise from


def test_denoised_ranks_of_spikes_in_noise():
    rng = np.random.default_rng(5)
    synthetic = full_run()
    for name, shape in SHAPES.items():
        noise = rng.standard_normal(shape) / math.sqrt(max(shape))
        synthetic.deltas[name] = 10 * synthetic.target[name] + noise  # the noise's edge lies below 2.1
    result = run([full_candidate(synthetic)])
    assert {each.gavish_donoho for each in result.spectra} == {3}
    assert {each.marchenko_pastur for each in result.spectra} == {3}


@pytest.mark.parametrize("seeds", [2, 3, 4])
def test_seeds_share_the_planted_signal_and_nothing_else(seeds):
    rng = np.random.default_rng(seeds)
    signal = planted(rng, (96, 64), np.array([30.0, 25.0, 20.0, 18.0]))
    noise = [rng.standard_normal((96, 64)) for _ in range(seeds)]  # the edge is √96 + √64 = 17.8, in a mean 17.8/√n
    found = split("m", "m", [signal + each for each in noise])
    assert found.rank == 4
    assert found.energy_rank in (3, 4)  # 93 % of the energy are in three
    energy = float(np.linalg.norm(signal) ** 2)
    share = energy / (energy + 96 * 64)
    # ⟨signal, noise⟩ has standard deviation ‖signal‖ = 48 beside energies of 2249 and 6144.
    assert found.signal_share == pytest.approx(share, abs=0.05)
    assert found.cosine == pytest.approx(share, abs=0.05)


def test_independent_noise_shares_nothing():
    found = []
    for draw in range(60):
        rng = np.random.default_rng([1, draw])
        found.append(split("m", "m", [rng.standard_normal((48, 32)) for _ in range(2)]))
    # Once in a hundred is asked for: of 60 more than 5 would be a chance of 1 in 10,000 at twice that.
    assert sum(each.rank > 0 for each in found) <= 5
    chance = found[0].cosine_chance
    assert np.std([each.cosine for each in found]) == pytest.approx(chance, rel=0.35)  # 60 draws: 9 % standard error
    assert abs(np.mean([each.signal_share for each in found])) < 4 * chance / math.sqrt(60)


def test_two_full_runs_give_a_split_and_both_curves():
    result = run([full_candidate(seed=0), full_candidate(seed=1)])
    assert result.k(0.9) == [3, 3]
    assert len(result.splits) == len(NAMES)
    assert result.full[1].curve("bottom") is None  # controls of the first one alone
    assert "shared" in str(result.blocks())


def test_where_the_model_is_matrices_of_one_shape_are_decomposed_in_one_call():
    stacks = []

    def place(stack):
        stacks.append(stack.shape)
        return torch.from_numpy(stack)

    placed = run([full_candidate(replace(full_run(seed), place=place), seed) for seed in (0, 1)])
    here = run([full_candidate(seed=seed) for seed in (0, 1)])
    # Two matrices of each shape; then of each the mean of two seeds and their contrast.
    assert stacks == [(2, N, N), (2, 2 * N, N)] * 2 + [(4, N, N), (4, 2 * N, N)]
    for one, other in zip((*placed.spectra, *placed.splits), (*here.spectra, *here.splits), strict=True):
        values = [each.shared if hasattr(each, "shared") else each.singular_values for each in (one, other)]
        np.testing.assert_allclose(*values, atol=1e-14)  # rounding in float64, of values up to 1
    assert placed.k(0.9) == here.k(0.9)


def test_entries_that_are_no_numbers_are_refused():
    broken = full_run()
    broken.deltas[NAMES[1]][0, 0] = np.nan
    with pytest.raises(InputError, match=rf"{NAMES[1]} holds NaN"):
        run([full_candidate(broken)])


# --- small parts ------------------------------------------------------------------------------------------------------


def test_labels_are_as_short_as_they_can_be():
    assert labels_of(["runs/a/x", "runs/b/x", "runs/c"]) == ["a/x", "b/x", "c"]
    assert labels_of(["./one"]) == ["one"]


def test_prior_loss_is_that_of_the_frequencies():
    assert prior_loss([0, 1], [0, 1] * 1000) == pytest.approx(math.log(2), abs=1e-6)
    assert prior_loss([1], [0] * 8) == pytest.approx(math.log(10))  # nothing seen: one added to 0 of 8 + 2


def test_the_record_and_the_rows_are_whole():
    result = run([full_candidate(), lora_candidate(2, 0.95)], prior=1.0, texts={"count": 5, "split": "test"})
    record = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert record["schema"] == 2
    assert len(record["spectra"]) == len(record["adapters"]) == len(NAMES)
    assert {curve["kind"] for curve in record["full"][0]["curves"]} == {"top", "threshold", "bottom", "random", "haar"}
    assert record["summary"]["functional"]["k90"] == [3]
    assert {row["kind"] for row in result.flat_rows()} >= {"full ΔW", "adapter ΔW", "curve top", "curve lora", "run"}
    assert len(result.table()) == len(result.flat_rows())


def test_its_figures_are_lines():
    result = run([full_candidate(), lora_candidate(1, 0.5), lora_candidate(2, 0.95)])
    for name in ("gain", "parameters", "spectra"):
        assert PLOTS[name](result).series
    sentence = "3 of 32 directions in every matrix keep 90 % of full fine-tuning's gain; LoRA reaches it at r = 2"
    assert repr(result) == f"<DimensionResult Intrinsic dimension of full fine-tuning: {sentence}>"
