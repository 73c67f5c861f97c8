"""Does ΔW lie where W already is, or does it amplify directions that W hardly used?

The LoRA paper's §7.3 (Hu et al. 2021, arXiv 2106.09685, table 7 and figure 8), each number with its random baseline.
With U and V the r leading left and right singular directions of ΔW: ‖UᵀWV‖_F, how much of W lies there; the same for
W's own r leading directions, √Σ_{i≤r} σ_i(W)², and for random ones; the amplification factor ‖ΔW‖_F/‖UᵀWV‖_F and that
of a random ΔW of the same norm; and the overlap φ of ΔW's directions with W's top subspaces, on both sides.

When it misleads: the amplification factor alone says nothing. Recomputing the paper's table, ΔW's is 21.6 at r = 4, but
a random ΔW of the same norm would have 343: what is above chance is ‖UᵀWV‖ itself, 15.9 times the random one. The
factor falls with r for any ΔW. Overlap with W's top subspaces has a chance level of max(i, j)/n and not 0.

It needs the base: `lorascope analyze --base` shows it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from lorascope.analyses.adapter_updates import selected
from lorascope.analyses.base import Analysis, Metric, Result, analyses, definitions
from lorascope.analyses.subspaces import Subspaces, read
from lorascope.analyses.toolkit import (
    Row,
    column,
    group,
    measured,
    median,
    pick,
    plural,
    skipped_table,
    type_table,
    value,
)
from lorascope.architectures import depth, module_types
from lorascope.blocks import Block, Column, Definition, Definitions, Finding, Findings, Heading, Lines, Series, Table
from lorascope.linalg import dense, haar
from lorascope.linalg.blas import one_thread
from lorascope.linalg.cached_svd import CachedSVD
from lorascope.linalg.random_projection import RandomProjectionNorm, fourth_power, random_projection_norm
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Skipped
from lorascope.weights.base_svd import SvdCache
from lorascope.weights.checkpoint import Checkpoint

EXACT = 1024  # up to this shorter side W is decomposed (¼ s there), and kept; above it only where that was done before
TOP_SHARE = 0.1  # of W's singular directions: the paper's figure 8
MAX_LEADING = 128  # directions of W by randomised iteration
NO_SVD = (
    "overlap with the top 10 % of W skipped: W is too large to be decomposed here (`lorascope intruders` does, and"
    " caches it)"
)
CLEAR = 4.0  # standard deviations
MAX_TYPES = 12  # panels of a figure
IN_SPECTRUM = ("name", "type", "depth", "shape", "base_norm", "delta_norm", "notes")  # that a module's spectrum has
_SIDES = ("left", "right")
_CITED = "Hu et al. 2021, arXiv 2106.09685, §7.3, table 7"
_INSIDE, _OVERLAP = "‖UᵀWV‖ and amplification", "Overlap φ(i, j)"

METRICS = (
    Metric("directions", "r", "int", "singular directions of ΔW that U and V hold"),
    Metric("inside", "‖UᵀWV‖", help="of W in ΔW's leading directions, Frobenius norm", null="random", term=_INSIDE),
    Metric("random", "random", help="the same in random directions: r·‖W‖/√(mn)"),
    Metric("ratio", "× random", help="‖UᵀWV‖ over that in random directions"),
    Metric("z", "z", help="standard deviations of ‖UᵀWV‖² above that in random directions"),
    Metric("top", "W's own", help="in W's own r leading directions", term=_INSIDE),
    Metric("top_ratio", "W's / ΔW's", help="W's own over ΔW's", term=_INSIDE),
    Metric(
        "amplification", "ampl.", "float", "‖ΔW‖/‖UᵀWV‖",
        "U, V: the r leading singular directions of ΔW; W's own √Σ_{i≤r} σ_i(W)²; amplification ‖ΔW‖_F/‖UᵀWV‖_F",
        _CITED, "amplification_random", _INSIDE,
        "How much of W lies in the update's directions: more than in random ones means that the update works"
        " where W is strong.",
    ),
    Metric("amplification_random", "of random ΔW", help="the same of a random ΔW of this norm"),
    Metric(
        "left.r.phi", "φ left, r", "float", "overlap of ΔW's left directions with W's top r",
        "‖U_Δᵀ U_W‖_F²/min(i, j); random subspaces of R^n have max(i, j)/n in the mean, z is against them",
        "§7.2, eq. 4", "left.r.chance", _OVERLAP,
        "How far the update's directions lie among the leading ones of W: 1 if all do, the random value if they have"
        " nothing to do with W.",
    ),
    Metric("left.r.z", "z", help="against random subspaces", term=_OVERLAP),
    *(
        metric
        for side in _SIDES
        for metric in (
            Metric(
                f"{side}.tenth.phi", f"φ {side}, 10 %", help=f"overlap of ΔW's {side} directions with W's top 10 %",
                null=f"{side}.tenth.chance", term=_OVERLAP,
            ),
            Metric(f"{side}.tenth.chance", "random", help="its mean for random subspaces", term=_OVERLAP),
            Metric(f"{side}.tenth.z", "z", help="against random subspaces", term=_OVERLAP),
        )
    ),
)  # fmt: skip
BY_TYPE = ("inside", "random", "ratio", "top_ratio", "amplification", "amplification_random", "left.tenth.phi",
           "left.tenth.chance", "right.tenth.phi", "right.tenth.chance")  # fmt: skip
DEFINITIONS = (
    *definitions(METRICS),
    Definition(
        "Random directions",
        "√E‖UᵀWV‖² = r·‖W‖_F/√(mn) for independent uniformly random U and V; its variance is exact as well",
        "Collins and Śniady 2006; a random ΔW of the same norm is amplified by ‖ΔW‖ over this",
        "What ‖UᵀWV‖ would be if the update's directions had nothing to do with W, and z how clearly it is more.",
        ("random", "ratio", "z", "amplification_random"),
    ),
)


@dataclass(frozen=True)
class Overlap:
    """φ = ‖U_Δᵀ U_W‖_F²/min(i, j) of ΔW's i leading directions with W's j leading ones on one side.

    Attributes:
        chance, sd: of random subspaces, exactly; z = (φ − chance)/sd, None where only one value is possible.
    """

    i: int
    j: int
    phi: float
    chance: float
    sd: float
    z: float | None


@dataclass(frozen=True)
class ModuleAgainstBase:
    """The measures of one weight.

    Attributes:
        directions: r, how many singular directions of ΔW: all of a low rank, else its leading ones.
        inside: ‖UᵀWV‖_F.
        top: √Σ_{i≤r} σ_i(W)², the most that r directions can hold.
        random, random_spread: of random directions: √E‖UᵀWV‖², and the standard deviation.
        z: of inside² against random ones.
        ratio: inside/random; top_ratio: top/inside.
        amplification: ‖ΔW‖_F/inside; amplification_random: the same of a random ΔW of this norm.
        left, right: overlaps with W's top subspaces, by "r" and "tenth" (W's top 10 %): that only where W is
            decomposed.
        method: how W's directions were found: "exact", or "randomised", by which `top` is a lower bound, good to
            `error`.
    """

    name: str
    type: str
    depth: int | None
    shape: tuple[int, int]
    directions: int
    base_norm: float
    delta_norm: float
    inside: float
    top: float
    random: float
    random_spread: float
    z: float | None
    ratio: float | None
    top_ratio: float | None
    amplification: float | None
    amplification_random: float | None
    left: Mapping[str, Overlap]
    right: Mapping[str, Overlap]
    method: str
    error: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Directions:
    """W's leading singular directions, as many as are known, and its decomposition where there is one."""

    left: np.ndarray
    sigma: np.ndarray
    right: np.ndarray
    energy: float
    fourth: float
    method: str
    error: float
    known: CachedSVD | None


def measure(
    side: Subspaces, weight: np.ndarray, cache: SvdCache, *, type: str, depth: int | None
) -> ModuleAgainstBase | str:
    """Measure one weight, or say why it cannot be.

    Args:
        side: ΔW in its bases, as `read` of an update gives it.
        weight: W (d_out, d_in) in float64.
        cache: of W's decompositions.
    """
    r = side.directions
    if r == 0:
        return "ΔW is zero: it has no directions"
    if not np.isfinite(weight).all():
        return "the base weight holds NaN or infinite entries"
    if not weight.any():
        return "the base weight is zero: it has no directions"
    u, v = side.bases.left[:, :r], side.bases.right[:, :r]
    known = _base_directions(weight, r, cache)
    chance = random_projection_norm(*side.shape, r, r, known.energy, known.fourth)
    projected, norm = float(np.linalg.norm((u.T @ weight) @ v)), side.norm()
    tops = {"r": min(r, len(known.sigma))}
    if known.method == "exact":
        tops["tenth"] = max(1, math.ceil(TOP_SHARE * len(known.sigma)))
    overlaps = [
        {name: _overlap(mine, theirs[:, : known.known.cut(j) if known.known else j]) for name, j in tops.items() if j}
        for mine, theirs in ((u, known.left), (v, known.right))
    ]
    return ModuleAgainstBase(
        side.update.name, type, depth, side.shape, r, math.sqrt(known.energy), norm, projected,
        float(np.linalg.norm(known.sigma[:r])), chance.norm, chance.spread,
        (projected**2 - chance.mean) / chance.sd if chance.sd > 0 else None,
        **ratios(projected, float(np.linalg.norm(known.sigma[:r])), norm, chance),
        left=overlaps[0], right=overlaps[1], method=known.method, error=known.error,
        notes=side.notes if known.method == "exact" else (*side.notes, NO_SVD),
    )  # fmt: skip


def ratios(projected: float, top: float, norm: float, chance: RandomProjectionNorm) -> dict[str, float | None]:
    """The quotients of table 7: None where one would divide by zero."""
    return {
        "ratio": projected / chance.norm if chance.norm > 0 else None,
        "top_ratio": top / projected if projected > 0 else None,
        "amplification": norm / projected if projected > 0 else None,
        "amplification_random": norm / chance.norm if chance.norm > 0 else None,
    }


def _base_directions(weight: np.ndarray, r: int, cache: SvdCache) -> _Directions:
    known = cache.of(weight) if min(weight.shape) <= EXACT else cache.kept(weight)
    if known is not None:
        left, right = known.leading(weight, min(known.rank, max(r, math.ceil(TOP_SHARE * len(known.sigma))) + r))
        squares = known.sigma**2
        return _Directions(
            left, known.sigma, right, float(squares.sum()), float(np.sum(squares**2)), "exact", 0.0, known
        )
    leading = dense.leading(weight, min(r, MAX_LEADING))
    energy = float(np.linalg.norm(weight) ** 2)
    error = float(leading.spectrum.error[-1])
    return _Directions(leading.u, leading.s, leading.vh.T, energy, fourth_power(weight), "randomised", error, None)


def _overlap(update: np.ndarray, theirs: np.ndarray) -> Overlap:
    n, i, j = update.shape[0], update.shape[1], theirs.shape[1]
    chance = haar.phi(n, i, j)
    phi = min(float(np.sum((update.T @ theirs) ** 2)) / min(i, j), 1.0)
    return Overlap(i, j, phi, chance.mean, chance.sd, chance.z(phi))


# --- result ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class AgainstBaseResult(Result):
    """ΔW against W in every adapted weight that the base has.

    Attributes:
        rows: one for each weight, in the file's order.
        skipped: what could not be measured, and why.
    """

    analysis: ClassVar[str] = "against_base"

    rows: tuple[ModuleAgainstBase, ...]
    skipped: tuple[Skipped, ...] = ()

    def summary(self) -> Row:
        """Medians over the modules."""
        keys = ("ratio", "top_ratio", "amplification", "amplification_random", "z")
        return {"modules": len(self.rows), **{key: median(getattr(m, key) for m in self.rows) for key in keys}}

    def record(self) -> Row:
        return {"summary": self.summary(), "modules": self.records()}

    def records(self) -> list[Row]:
        return [asdict(module) for module in self.rows]

    def of_module(self, name: str) -> Row:
        """What there is to add to the `against_base` of a module's spectrum; empty where it was not measured."""
        module = self._by_name.get(name)
        return {} if module is None else {k: v for k, v in asdict(module).items() if k not in IN_SPECTRUM}

    @cached_property
    def _by_name(self) -> dict[str, ModuleAgainstBase]:
        return {module.name: module for module in self.rows}


def run(
    adapter: Adapter,
    base: Checkpoint,
    *,
    modules: str | None = None,
    cache: SvdCache | None = None,
    progress: Callable[[list[Update]], Any] = iter,
) -> AgainstBaseResult:
    """Measure every weight of `adapter` that the base has, one at a time.

    Args:
        adapter: as `weights.io.read` gives it.
        base: the model it belongs to.
        modules: a regular expression; only modules whose name it matches are measured.
        cache: of the base's decompositions; without one they are computed, where they are small, and forgotten.
        progress: wraps the list of updates, such as a progress bar.

    Raises:
        InputError: `modules` is not a regular expression, or matches nothing.
    """
    updates, _ = selected(adapter, base, modules)
    types = module_types(update.name for update in updates)
    cache = cache if cache is not None else SvdCache(None)
    measured, skipped = [], []
    with one_thread():
        for update in progress(updates):
            module = _module(update, types[update.name], base, cache)
            if isinstance(module, str):
                skipped.append(Skipped(update.name, module))
            else:
                measured.append(module)
    return AgainstBaseResult(tuple(measured), tuple(skipped))


def _module(update: Update, type: str, base: Checkpoint, cache: SvdCache) -> ModuleAgainstBase | str:
    stored = base.lookup(update)
    if isinstance(stored, str):
        return stored
    if min(stored.shape) < 2:
        return "a vector: it has no singular directions"
    side = read(update, stored, with_a=False)
    if isinstance(side, str):
        return side
    return measure(side, stored.read(), cache, type=type, depth=depth(update.name))


# --- findings and page -----------------------------------------------------------------------------------------------


def findings(result: AgainstBaseResult) -> list[Finding]:
    if not result.rows:
        return []
    whole = result.summary()
    text = (
        f"‖UᵀWV‖ in ΔW's directions is {_times(whole['ratio'])} that in random directions (median module); in W's"
        f" own leading directions it is {_times(whole['top_ratio'])} that in ΔW's"
    )
    made = [Finding("note", text)]
    text = (
        f"Amplification ‖ΔW‖/‖UᵀWV‖: {_short(whole['amplification'])} in the median module; a random ΔW of"
        f" the same norm would have {_short(whole['amplification_random'])}"
    )
    made.append(Finding("note", text))
    for top, of in (("tenth", "top 10 %"), ("r", "top r")):
        sides = {side: [getattr(m, side)[top] for m in result.rows if top in getattr(m, side)] for side in _SIDES}
        if sides["left"]:
            text = ", ".join(_overlap_in_words(side, overlaps) for side, overlaps in sides.items())
            made.append(Finding("note", f"Overlap φ of ΔW's directions with W's {of}: {text}"))
    if number := sum(m.method != "exact" for m in result.rows):
        text = "Overlap with the top 10 % of W skipped for weights without a cached SVD: run `lorascope intruders`"
        modules = f"{number} module{'s' * (number != 1)}"
        made.append(Finding("note", f"{text} with the same --base to compute and cache it ({modules})"))
    return made


def _overlap_in_words(side: str, overlaps: list[Overlap]) -> str:
    clear = sum((overlap.z or 0) >= CLEAR for overlap in overlaps)
    phi, chance = (float(np.median([getattr(overlap, key) for overlap in overlaps])) for key in ("phi", "chance"))
    return f"{side} {phi:.3f} (random: {chance:.3f}; z ≥ {CLEAR:g} in {clear} of {len(overlaps)})"


def _times(number: float | None) -> str:
    return "not known against" if number is None else f"{number:.3g} times"


def _short(number: float | None) -> str:
    return "unknown" if number is None else f"{number:.3g}"


def heading(result: AgainstBaseResult) -> tuple[str, str]:
    ratio = _times(result.summary()["ratio"])
    return "ΔW against W", f"{plural(len(result.rows), 'weight')}, ‖UᵀWV‖ {ratio} that in random directions"


def blocks(result: AgainstBaseResult) -> tuple[Block, ...]:
    """What stands out, by type, the three norms by depth, all modules, what was skipped; nothing without modules."""
    return (*sections(result), Definitions(DEFINITIONS, where="page")) if result.rows else ()


def sections(result: AgainstBaseResult) -> tuple[Block, ...]:
    """The page without its definitions."""
    if not result.rows:
        return ()
    made: tuple[Block, ...] = (
        Heading("ΔW against W", where="page"), Findings(result.findings, title="ΔW against W"), _by_type(result),
        norms(result), _all(result),
    )  # fmt: skip
    return (*made, skipped_table(result.skipped, "Not compared with W", "module")) if result.skipped else made


def _by_type(result: AgainstBaseResult) -> Table:
    title = "W in ΔW's directions, by module type"
    return type_table(result.records(), pick(METRICS, BY_TYPE), title=title)


def norms(result: AgainstBaseResult) -> Lines:
    """‖UᵀWV‖ by depth for W's own, ΔW's and random directions, a panel for each type."""
    series = []
    for name, modules in list(group(result.rows).items())[:MAX_TYPES]:
        layers: dict[float, list[ModuleAgainstBase]] = {}
        for i, module in enumerate(modules):
            layers.setdefault(float(module.depth if module.depth is not None else i), []).append(module)
        at = tuple(sorted(layers))
        for label, key in (("W's own r leading directions", "top"), ("ΔW's", "inside"), ("random", "random")):
            line = tuple(float(np.median([value(m, key) for m in layers[layer]])) or None for layer in at)
            if len(at) == 1:  # one module makes no line
                series.append(Series(label, at, line, name, points=(modules[0].name,)))
            else:
                series.append(Series(label, at, line, name, "reference" if key == "random" else "normal"))
    return Lines(
        "‖UᵀWV‖ along the directions of ΔW, of W, and at random", tuple(series), "layer", "‖UᵀWV‖_F",
        log_y=True, where="page",
        caption="Frobenius norms for the same number of directions; medians where a layer has several modules.",
    )  # fmt: skip


def _all(result: AgainstBaseResult) -> Table:
    rows = result.records()
    shown = measured(METRICS, rows)
    columns = (
        Column("name", "module", "code"),
        Column("shape", "shape"),
        *map(column, shown),
        Column("notes", "notes"),
    )
    body = tuple(
        (row["name"], "×".join(map(str, row["shape"])), *(value(row, m.key) for m in shown), "; ".join(row["notes"]))
        for row in rows
    )
    return Table(columns, body, title="ΔW against W, all modules", interactive=True, where="page")


analyses.register("against_base")(
    Analysis(
        __doc__ or "", "adapter and base", run, findings, blocks, heading, "analyze --base", METRICS, {"norms": norms}
    )
)
