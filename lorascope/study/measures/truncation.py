"""The rank of a trained update by what is lost without it: the gain that truncations of ΔW keep.

Gain is counted twice, each time as a share of the full run's: `gain` from the head trained alone, `gain_from_w` from
the run's own head with its matrices at W. `own` is the share of the truncated run's own gain.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorascope.linalg.threshold import bracket
from lorascope.study.grid import Scalar
from lorascope.study.measures.finished import matrices, opened
from lorascope.study.measures.rank import part_of

if TYPE_CHECKING:
    from lorascope.analyses.dimension.functional import Baseline, Point, Truncations
    from lorascope.training.reopen import Reopened

TENTH = 0.1  # Task Singular Vectors keep a tenth of the directions (Gargiulo et al. 2024, arXiv 2412.00081)
Row = dict[str, Scalar]


def functional(folders: Sequence[Path], replicate: int, texts: int, split: str | None) -> Iterator[Row]:
    """The gain that is left when all ΔW of a run are truncated jointly, in several ways.

    Args:
        folders: of a full run, of the head alone, and of a LoRA.
        replicate: seeds the random directions.
        texts: how many of the `split` are scored.
    """
    from lorascope.analyses.dimension.functional import Baseline
    from lorascope.analyses.dimension.spectra import SHARES

    full, head, adapter = (opened(folder, texts, split) for folder in folders)
    alone = head.score().loss
    cut = truncations(full)
    base, from_w = Baseline(alone, cut.whole().loss), Baseline(cut.start().loss, cut.whole().loss)
    yield from _of_full(cut, base, from_w, replicate)
    yield from _of_parts(cut, base, from_w)
    cut = truncations(adapter)
    adapter_baseline = Baseline(alone, cut.whole().loss)
    points, reach = _refined(cut, "adapter", adapter_baseline, SHARES[:1])
    widest = max(part.rank for part in cut.parts.values())
    yield from rows(
        "adapter", [p for p in points if p.k <= widest], base, from_w, adapter_baseline, {"k90": reach.get("0.9")}
    )


def truncated(folders: Sequence[Path], replicate: int, texts: int, split: str | None) -> Iterator[Row]:
    """The gain of full fine-tuning that is left when every ΔW is truncated to rank k, and Σ k(m + n − k).

    Args:
        folders: of a full run, and of the head alone.
        replicate: of both.
        texts: how many of the `split` are scored.
    """
    from lorascope.analyses.dimension import functional as cuts

    full, head = (opened(folder, texts, split) for folder in folders)
    cut = truncations(full)
    base = cuts.Baseline(head.score().loss, cut.whole().loss)
    for k in cuts.powers(cut.largest):
        ranks = cut.same(k)
        point = cut.point(k, ranks, cut.keep(f"k = {k}", ranks), base)
        yield {"k": k, "freedom": point.freedom, "loss": point.loss, "gain": point.recovered}


def _of_full(cut: "Truncations", base: "Baseline", from_w: "Baseline", replicate: int) -> Iterator[Row]:
    """Its largest, its smallest and random directions; the k that keep a share of the gain are of the largest."""
    from lorascope.analyses.dimension import functional as cuts
    from lorascope.analyses.dimension.spectra import SHARES

    tenth = round(TENTH * cut.largest)
    top, reach = _refined(cut, "top", base, SHARES)
    from_start_points, from_start = _refined(cut, "top", from_w, SHARES[:1])
    ranks = sorted({*cuts.powers(cut.largest), tenth, reach.get("0.9") or tenth})[:-1]
    named = {f"k{float(share):.0%}"[:-1]: k for share, k in reach.items()} | {"k90_from_w": from_start.get("0.9")}
    yield from rows("top", [*top, *from_start_points, point(cut, base, tenth)], base, from_w, base, named)
    for curve in (cuts.bottom(cut, base, ranks), cuts.random(cut, base, ranks, [replicate], inside=True)):
        points = [*curve.points, point(cut, base, cut.largest)]
        yield from rows(curve.kind, points, base, from_w, base, {"k90": reached(points)})


def _of_parts(cut: "Truncations", base: "Baseline", from_w: "Baseline") -> Iterator[Row]:
    """The matrices of one part truncated, the others whole."""
    from lorascope.analyses.dimension.functional import powers

    for part in ("attention", "MLP"):
        points = [point(cut, base, k, part) for k in (0, *powers(cut.largest))]
        yield from rows(f"{part} alone", points, base, from_w, base, {"k90": reached(points)})


def _refined(cut, kind: str, base: "Baseline", shares: Sequence[float]):
    from lorascope.analyses.dimension.functional import refined

    curve = refined(cut, kind, cut.same, base, shares)
    return curve.points, curve.reach


def rows(
    kind: str,
    points: Sequence["Point"],
    base: "Baseline",
    from_w: "Baseline",
    own: "Baseline",
    reach: Mapping[str, int | None],
) -> Iterator[Row]:
    """One for each k."""
    for each in {each.k: each for each in points}.values():
        yield {
            "curve": kind,
            "k": each.k,
            "loss": each.loss,
            "accuracy": each.accuracy,
            "gain": base.recovered(each.loss),
            "gain_from_w": from_w.recovered(each.loss),
            "own": own.recovered(each.loss),
            "numbers": each.plain,
            "freedom": each.freedom,
            **reach,
        }


def point(cut: "Truncations", base: "Baseline", k: int, part: str | None = None) -> "Point":
    """One truncation, of the matrices of one part alone where it is named."""
    ranks = {name: r if part in (None, part_of(name)) else cut.largest for name, r in cut.same(k).items()}
    return cut.point(k, ranks, cut.keep(f"k = {k}", ranks), base)


def reached(points: Sequence["Point"]) -> int | None:
    """The smallest k from which on all measured k keep 90 % of the gain."""
    return bracket(
        {
            point_measured.k: np.nan if point_measured.recovered is None else point_measured.recovered
            for point_measured in points
        },
        0.9,
    )[1]


def truncations(run: "Reopened") -> "Truncations":
    from lorascope.analyses.dimension.functional import Truncations
    from lorascope.analyses.dimension.spectra import decompose_all

    return Truncations("", run, decompose_all(run, matrices(run)), lambda what: None)
