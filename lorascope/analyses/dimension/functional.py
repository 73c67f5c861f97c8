"""The functional reading: how much of the gain is left when every ΔW is truncated, all of them jointly.

Truncations of a model are `Keep`s: how many components of each matrix. The curve over the powers of two is refined by
bisection where it crosses 90, 95 and 99 % of the gain. It need not be monotone: k90 is the smallest k from which on all
larger k that were measured keep 90 %, and a curve that falls somewhere says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from lorascope.analyses.dimension.inputs import freedom
from lorascope.analyses.dimension.spectra import Parts
from lorascope.analyses.toolkit import Row, finite
from lorascope.linalg.factored import Factored
from lorascope.linalg.threshold import bracket, largest_drop
from lorascope.run_data import OpenedRun, ScoreLike

OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class Point:
    """One evaluation: k components in each matrix (0: every matrix at W), and what is left.

    Attributes:
        k: of a curve with one threshold for all matrices, the mean over them.
        recovered: the gain as a share of the whole run's; None where the run gained nothing.
        freedom: Σ k(m + n − k) over the matrices, with the k of each.
        plain: Σ k(m + n), the parameters of its factors.
        draw: of a random control, which draw.
    """

    k: int
    loss: float
    accuracy: float
    recovered: float | None
    freedom: int
    plain: int
    draw: int | None = None

    def record(self) -> Row:
        return {**asdict(self), "loss": finite(self.loss)}


@dataclass(frozen=True)
class Curve:
    """Points of one way of truncating one run.

    Attributes:
        run: the label of its run.
        kind: "top", "threshold" (the largest singular values of all matrices together), "bottom" (the smallest),
            "random" (directions drawn from inside ΔW's own row space), "haar" (from anywhere), or "lora".
        reach: share of the gain to the smallest k from which on all measured k keep it; empty for the controls.
        drop: the largest fall, (by how much, from k, to k), where there is one.
    """

    run: str
    kind: str
    points: tuple[Point, ...]
    reach: Mapping[str, int | None] = field(default_factory=dict)
    drop: tuple[float, int, int] | None = None

    def at(self, k: int | None) -> list[Point]:
        return [point for point in self.points if point.k == k]

    def record(self) -> Row:
        return {
            "run": self.run,
            "kind": self.kind,
            "points": [point.record() for point in self.points],
            "reach": dict(self.reach),
            "drop": None if self.drop is None else dict(zip(("by", "from", "to"), self.drop, strict=True)),
        }


@dataclass(frozen=True)
class Baseline:
    """What gain is measured from, and to: losses of the start and of the whole run."""

    start: float
    end: float

    def recovered(self, loss: float) -> float | None:
        """(start − loss) / (start − end); None where the run gained nothing, or the loss is not finite."""
        gain = self.start - self.end
        return (self.start - loss) / gain if gain > 0 and np.isfinite(loss) else None


class Truncations:
    """One opened run whose matrices are truncated; its vectors, and what `modules` does not match, stay as trained.

    Args:
        trained: the run.
        parts: the SVD of every matrix that is truncated.
        on_progress: called before each evaluation with what it is.
    """

    def __init__(self, label: str, trained: OpenedRun, parts: Mapping[str, Parts], on_progress: OnProgress):
        self.label, self.trained, self.parts, self.on_progress = label, trained, parts, on_progress
        self.kept = {name: trained.delta(name) for name in trained.shapes if name not in parts}
        self.largest = max((min(part.shape) for part in parts.values()), default=0)
        everything = np.concatenate([part.s for part in parts.values()])
        self._sorted = np.sort(everything)[::-1]
        self._scores: dict[tuple[int, ...], ScoreLike] = {}

    def score(self, what: str, deltas: Mapping[str, Any], vectors: bool = True) -> ScoreLike:
        """The score with these ΔW in place, all other matrices at W."""
        self.on_progress(f"{self.label}: {what}")
        self.trained.put({**(self.kept if vectors else {}), **deltas})
        return self.trained.score()

    def keep(self, what: str, ranks: Mapping[str, int]) -> ScoreLike:
        """The score with so many leading components of each matrix; each is evaluated once."""
        key = tuple(min(ranks[name], part.rank) for name, part in self.parts.items())
        if key not in self._scores:
            named = zip(self.parts.items(), key, strict=True)
            self._scores[key] = self.score(what, {name: part.between(0, k) for (name, part), k in named if k})
        return self._scores[key]

    def start(self) -> ScoreLike:
        """Every matrix at W."""
        return self.keep("matrices at W", dict.fromkeys(self.parts, 0))

    def whole(self) -> ScoreLike:
        """All of the run."""
        return self.keep("all of ΔW", self.same(self.largest))

    def same(self, k: int) -> dict[str, int]:
        return {name: min(k, min(part.shape)) for name, part in self.parts.items()}

    def above(self, k: int) -> dict[str, int]:
        """One threshold on σ for all matrices, k components in each on average."""
        total = min(k * len(self.parts), len(self._sorted))
        threshold = self._sorted[total - 1] if total else np.inf
        return {name: int(np.sum(part.s >= threshold)) for name, part in self.parts.items()}

    def sizes(self, ranks: Mapping[str, int]) -> tuple[int, int]:
        """Degrees of freedom, and parameters of the factors."""
        shapes = {name: part.shape for name, part in self.parts.items()}
        plain = sum(min(k, *shapes[name]) * sum(shapes[name]) for name, k in ranks.items())
        return sum(freedom(shapes[name], k) for name, k in ranks.items()), plain

    def point(
        self, k: int, ranks: Mapping[str, int], score: ScoreLike, base: Baseline, draw: int | None = None
    ) -> Point:
        return Point(k, score.loss, score.accuracy, base.recovered(score.loss), *self.sizes(ranks), draw)


def powers(largest: int) -> list[int]:
    """1, 2, 4, … up to `largest`, which is the last."""
    return [*(2**i for i in range(largest.bit_length()) if 2**i < largest), largest] if largest else []


def refined(
    cut: Truncations, kind: str, choose: Callable[[int], dict[str, int]], base: Baseline, shares: Sequence[float]
) -> Curve:
    """The curve over powers of two, bisected where it crosses each share of the gain."""
    points: dict[int, Point] = {}

    def evaluate(k: int) -> None:
        ranks = choose(k)
        points[k] = cut.point(k, ranks, cut.keep(f"{kind}, k = {k}", ranks), base)

    for k in (0, *powers(cut.largest)):
        evaluate(k)
    reach: dict[str, int | None] = {}
    gained = points[cut.largest].recovered is not None
    for share in shares:
        while gained:
            low, high = bracket(_values(points), share)
            if low is None or high is None or high - low <= 1:
                break
            evaluate((low + high) // 2)
        reach[str(share)] = bracket(_values(points), share)[1] if gained else None
    ordered = tuple(points[k] for k in sorted(points))
    drop, start, end = largest_drop({p.k: p.recovered for p in ordered if p.recovered is not None})
    return Curve(cut.label, kind, ordered, reach, None if start is None or end is None else (drop, start, end))


def _values(points: Mapping[int, Point]) -> dict[int, float]:
    """Recovered gain by k; NaN, which is below every share, where the loss was not finite."""
    return {k: np.nan if p.recovered is None else p.recovered for k, p in points.items()}


def bottom(cut: Truncations, base: Baseline, places: Sequence[int]) -> Curve:
    """The k smallest components of every matrix: what is left if the spectrum's head is cut off."""
    points = []
    for k in places:
        deltas = {}
        for name, part in cut.parts.items():
            p = part.rank
            deltas[name] = part.between(max(p - k, 0), p)
        score = cut.score(f"bottom, k = {k}", deltas)
        points.append(cut.point(k, cut.same(k), score, base))
    return Curve(cut.label, "bottom", tuple(points))


def random(cut: Truncations, base: Baseline, places: Sequence[int], seeds: Sequence[int], inside: bool) -> Curve:
    """ΔW projected on k random orthonormal directions of its inputs, a draw for each seed.

    Args:
        inside: drawn from ΔW's own row space; else from all of R^n (Haar).
    """
    kind = "random" if inside else "haar"
    points = []
    for seed in seeds:
        for k in places:
            deltas = {name: _projected(part, k, _rng(seed, i), inside) for i, (name, part) in enumerate(_items(cut))}
            score = cut.score(f"{kind} {seed}, k = {k}", deltas)
            points.append(cut.point(k, cut.same(k), score, base, seed))
    return Curve(cut.label, kind, tuple(points))


def _items(cut: Truncations) -> list[tuple[str, Parts]]:
    return [(name, part) for name, part in cut.parts.items() if part.rank]


def _rng(seed: int, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, index])


def _projected(part: Parts, k: int, rng: np.random.Generator, inside: bool) -> Factored:
    """ΔW Q Qᵀ with Q (n, k) orthonormal: Q = V G for a Haar G (p, k), or Q itself Haar."""
    p = part.rank
    scaled, vh = part.u[:, :p] * part.s[:p], part.vh[:p]
    size = p if inside else part.shape[1]
    q, _ = np.linalg.qr(rng.standard_normal((size, min(k, size))))
    return Factored(scaled @ q, q.T @ vh) if inside else Factored(scaled @ (vh @ q), q.T)


def truncated_adapter(cut: Truncations, base: Baseline) -> Curve:
    """A trained adapter of high rank, truncated to k = 0, 1, 2, 4, … of its own components."""
    points = []
    largest = max((part.rank for part in cut.parts.values()), default=0)
    for k in (0, *powers(largest)):
        ranks = {name: min(k, part.rank) for name, part in cut.parts.items()}
        points.append(cut.point(k, ranks, cut.keep(f"truncated, k = {k}", ranks), base))
    return Curve(cut.label, "lora", tuple(points))
