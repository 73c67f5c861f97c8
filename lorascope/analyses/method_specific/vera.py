"""VeRA: ΔW = s·diag(b) B diag(d) A. How did d and b move, and is ΔW more than the shared random matrices it is made of?

Kopiczko, Blankevoort and Asano 2024, arXiv 2310.11454. The paper looks at how far d moved, by layer and type; here so
does b, and the subspace question is split into what can be answered.

- *Reach.* Every row of ΔW lies in the row space of A, by construction: that overlap is 1 and says nothing. What says
  something is how much of the input space that is: min(r, d_in)/d_in.
- *Left.* The columns of ΔW lie in diag(b)·span(B), which b bends away from the shared span(B). `in_span_b` is
  ‖P_B ΔW‖²/‖ΔW‖²: 1 for a constant b, about r/d_out for one of random signs. Its random baseline is the same b
  in random order, in closed form. Above it, b follows the shared matrix; at it, b's values do not know which output
  they belong to.
- *Right.* Two modules share A, so their leading input directions overlap for three reasons: by chance (k/d_in), because
  both lie in the r-dimensional row space (k/r), and because A and B have leading directions of their own. The last is
  measured: the same modules with the entries of d and of b shuffled. Only the excess over that was learned.
  k is the number of directions that hold half of ‖ΔW‖² in the median module.
- *Spread.* (Σx²)²/(n·Σx⁴) of b, and of d − d₀: the share of entries that carry the change; 1/3 for Gaussian entries.

When it misleads: the change of d is measured against `d_initial`, and is absent where the file does not say it; b and d
can trade a common factor, so neither's size means much alone, but ‖ΔW‖ does; modules are compared only where they share
the same columns of A, so not across input widths, and not where each layer has projections of its own; at most 24
modules of a width are compared. Where the projections were drawn again from a seed, d and b are the file's own, and
everything about ΔW holds only if that draw is the one that was trained on.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lorascope.analyses import rules
from lorascope.analyses.base import Metric
from lorascope.analyses.method_specific.engine import (
    KindMetrics,
    Section,
    Subject,
    kind_metrics,
    maps,
    unchanged,
)
from lorascope.analyses.method_specific.vectors import GAUSSIAN_SPREAD, cumulative, distribution, spread
from lorascope.analyses.toolkit import Row, extreme, finite, measured, median, module_table, percent, type_table
from lorascope.blocks import Block, Definition, Finding, Heatmap, Marker, Measure
from lorascope.linalg.spectrum import EXTREME, effective_rank, energy_rank
from lorascope.updates.base import Stored, Update
from lorascope.weights.drawn import Drawn
from lorascope.weights.pieces import condensed
from lorascope.weights.tensors import InMemory

MAX_COMPARED = 24
OVERLAP_REPORT_BOUND = 1.25  # times the overlap that the shared matrices alone cause

_SPREAD = "share of the entries that carry"
_SPREAD_FORMULA = ("(Σx²)² / (n·Σx⁴)", "the share of entries that carry the change; 1/3 for Gaussian entries")

METRICS = (
    Metric(
        "d_change", "change of d", "percent", "‖d − d₀‖/‖d₀‖", "‖d − d₀‖ / ‖d₀‖",
        "d₀ is d_initial everywhere; Kopiczko et al. 2024, arXiv 2310.11454", term="Change of d",
        meaning="How far d moved from where it started: 0 if it was not trained.",
    ),
    Metric("d.median", "median d", "float", "of the entries of d"),
    Metric("d.std", "std d", "float", "of the entries of d"),
    Metric("d.negative", "d < 0", "percent", "share of entries below zero"),
    Metric(
        "d_spread", "spread d−d₀", "percent", f"{_SPREAD} the change; 33.3 % for Gaussian entries", *_SPREAD_FORMULA,
        "null.spread", "Spread", "Whether many entries changed or a few: near 100 % all changed alike, far below 33"
        " % a few stand out.",
    ),
    Metric("b_rms", "rms b", "float", "√mean(b²); b starts at zero"),
    Metric(
        "b_spread", "spread b", "percent", f"{_SPREAD} b; 33.3 % for Gaussian entries", *_SPREAD_FORMULA,
        "null.spread", "Spread",
    ),
    Metric(
        "in_span_b", "in span(B)", "percent", "‖P_B ΔW‖²/‖ΔW‖²", "‖P_B ΔW‖² / ‖ΔW‖²",
        "random baseline: the mean over all orders of the entries of b, in closed form", "null.in_span_b", "In span(B)",
        "How much of ΔW lies in the outputs that the shared random B spans: 100 % if b is constant, the random value if"
        " b's order has nothing to do with B.",
    ),
    Metric("null.in_span_b", "random", "percent", "in span(B) with b in random order", term="In span(B)"),
    Metric("reach", "reach", "percent", "min(r, d_in)/d_in: the share of the input space that A reads"),
)  # fmt: skip
MORE_DEFINITIONS = (
    Definition(
        "Overlap of inputs",
        "‖V_iᵀ V_j‖_F² / k, the k leading right singular vectors of two modules' ΔW",
        "random baselines: k/d_in, k/rank(A), and the same modules with d and b shuffled",
        "Whether two modules read the same input directions: only what is above the random baselines was learned.",
    ),
)


@dataclass(eq=False)
class _Shared:
    """Modules that use the same A (r, d_in), and what is computed once for all of them.

    A = right · basis, with basis (p, d_in) orthonormal and p = min(r, d_in): a direction of the shared space is a
    vector of p coordinates.
    """

    A: np.ndarray
    right: np.ndarray
    names: list[str]
    compared: "list[_Directions]" = field(default_factory=list)
    B: np.ndarray | None = None
    span: np.ndarray | None = None

    def span_of(self, b_matrix: np.ndarray) -> np.ndarray:
        """An orthonormal basis (d_out, ·) of B's columns; kept, since neighbours share B."""
        if self.B is None or not np.array_equal(self.B, b_matrix):
            self.B, self.span = b_matrix, np.linalg.qr(b_matrix)[0]
        assert self.span is not None
        return self.span


@dataclass(frozen=True)
class _Directions:
    """Of one compared module: energies, and input directions in the coordinates of the shared space (p, p), both
    descending; and the same of the module with d and b shuffled."""

    name: str
    energies: np.ndarray
    vectors: np.ndarray
    shuffled_energies: np.ndarray
    shuffled_vectors: np.ndarray


def measure(subject: Subject) -> Section:
    initial = subject.setting("d_initial")
    initial = float(initial) if isinstance(initial, int | float) and not isinstance(initial, bool) else None
    shared: list[_Shared] = []
    rows = []
    chosen = _chosen(subject.updates)
    for update in subject.updates:
        roles = update.read()
        row = subject.row(update.name) | _vectors(roles, initial)
        if all(np.all(np.isfinite(array)) for array in roles.values()) and roles["A"].size:
            sharing = _sharing(shared, roles["A"], update.name)
            row |= _left(roles, sharing)
            if update.name in chosen and np.any(roles["b"]):
                sharing.compared.append(_directions(update.name, roles, sharing))
        rows.append(row)
    inputs = [_overlaps(each) for each in shared if len(each.compared) > 1]
    drawn = any(_is_drawn(update.roles["A"]) for update in subject.updates)
    drawn = drawn or subject.setting("save_projection") is False
    return Section(tuple(rows), _summary(rows, inputs, shared, initial), {"drawn": drawn})


def _chosen(updates: tuple[Update, ...]) -> set[str]:
    """At most MAX_COMPARED modules of each input width, evenly over the file: comparing takes a decomposition each."""
    widths: dict[tuple[int, ...], list[str]] = {}
    for update in updates:
        widths.setdefault(tuple(update.roles["A"].shape), []).append(update.name)
    kept: set[str] = set()
    for names in widths.values():
        at = np.unique(np.linspace(0, len(names) - 1, min(len(names), MAX_COMPARED)).round().astype(int))
        kept |= {names[i] for i in at}
    return kept


def _vectors(roles: dict[str, np.ndarray], initial: float | None) -> Row:
    d, b = roles["d"], roles["b"]
    moved = d - initial if initial is not None else None
    change = None
    if moved is not None and initial:
        change = finite(float(np.linalg.norm(moved) / (abs(initial) * len(d) ** 0.5)))
    return {
        "shape": [len(b), roles["A"].shape[1]],
        "rank": len(d),
        "d": distribution(d),
        "b": distribution(b),
        "d_change": change,
        "d_spread": spread(moved) if moved is not None else None,
        "b_rms": finite(float(np.sqrt(np.mean(b**2)))),
        "b_spread": spread(b),
        "reach": min(len(d), roles["A"].shape[1]) / roles["A"].shape[1],
        "in_span_b": None,
        "null": {"spread": GAUSSIAN_SPREAD, "in_span_b": None},
    }


def _sharing(shared: list[_Shared], a: np.ndarray, name: str) -> _Shared:
    """The modules that share this A, with this one; new ones where there are none."""
    for sharing in shared:
        if sharing.A.shape == a.shape and np.array_equal(sharing.A, a):
            sharing.names.append(name)
            return sharing
    shared.append(_Shared(a, condensed(InMemory(a, "F64"), 1).triangle, [name]))
    return shared[-1]


def _left(roles: dict[str, np.ndarray], group: _Shared) -> Row:
    """‖P_B ΔW‖²/‖ΔW‖² and its null, the mean of numerator and of denominator over all orders of the entries of b.

    With M = B diag(d) A, E[b_i b_j] = u for i ≠ j and E[b_i²] = c: the numerator is u‖P_B M‖² + (c − u) Σ h_i ‖M_i‖²,
    h_i the squared length of row i of span(B)'s basis, and P_B M = M.
    """
    b, span = _to_unit(roles["b"]), group.span_of(roles["B"])
    product = (roles["B"] * _to_unit(roles["d"])) @ group.right  # (d_out, p)
    lengths = np.sum(product**2, axis=1)  # ‖M_i‖²
    energy, whole, c = float(b**2 @ lengths), float(lengths.sum()), float(np.mean(b**2))
    null: float | None = None
    if len(b) > 1 and c * whole > 0:
        u = (b.sum() ** 2 - b @ b) / (len(b) * (len(b) - 1))
        null = float((u * whole + (c - u) * (np.sum(span**2, axis=1) @ lengths)) / (c * whole))
    share = float(np.sum((span.T @ (b[:, None] * product)) ** 2)) / energy if energy > 0 else None
    return {"in_span_b": share, "null": {"spread": GAUSSIAN_SPREAD, "in_span_b": null}}


def _directions(name: str, roles: dict[str, np.ndarray], group: _Shared) -> _Directions:
    rng = np.random.default_rng(list(name.encode()))
    b, d = _to_unit(roles["b"]), _to_unit(roles["d"])
    trained = _eigen(b, d, roles["B"], group.right)
    shuffled = _eigen(rng.permutation(b), rng.permutation(d), roles["B"], group.right)
    return _Directions(name, *trained, *shuffled)


def _to_unit(vector: np.ndarray) -> np.ndarray:
    """A vector whose largest entry is 1, where its squares would overflow or vanish: shares and ranks stay the same."""
    top = float(np.max(np.abs(vector), initial=0.0))
    return vector if top == 0 or 1 / EXTREME < top < EXTREME else vector / top


def _eigen(b: np.ndarray, d: np.ndarray, big_b: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared singular values of diag(b) B diag(d) · right and its right singular vectors (p, p), descending.

    Through the Gram matrix: small values lose digits, and only the leading directions are used.
    """
    left = b[:, None] * big_b
    inner = right.T @ (d[:, None] * (left.T @ left) * d[None, :]) @ right
    if not np.isfinite(inner).all():  # which the spectrum says
        return np.zeros(len(inner)), np.eye(len(inner))
    energies, vectors = np.linalg.eigh(inner)
    return np.maximum(energies[::-1], 0.0), vectors[:, ::-1]


def _overlaps(group: _Shared) -> Row:
    """Mean overlap of every two modules' leading k input directions, with its three random baselines."""
    members = group.compared
    ranks = [energy_rank(np.sqrt(m.energies), 0.5) or 1 for m in members]
    p, d_in = group.right.shape[1], group.A.shape[1]
    k = int(np.clip(round(float(np.median(ranks))), 1, p))
    trained = _pairs([m.vectors[:, :k] for m in members])
    shuffled = _pairs([m.shuffled_vectors[:, :k] for m in members])
    off = ~np.eye(len(members), dtype=bool)
    return {
        "modules": len(members),
        "of": len(group.names),
        "d_in": d_in,
        "rank": group.A.shape[0],
        "k": k,
        "overlap": float(trained[off].mean()),
        "null": {
            "chance": min(1.0, k / d_in),
            "shared_space": min(1.0, k / p),
            "shared_matrices": float(shuffled[off].mean()),
        },
        "effective_rank": median([effective_rank(np.sqrt(m.energies)) for m in members]),
        "effective_rank_shuffled": median([effective_rank(np.sqrt(m.shuffled_energies)) for m in members]),
        "names": [m.name for m in members],
        "pairs": trained.tolist(),
    }


def _pairs(bases: list[np.ndarray]) -> np.ndarray:
    """(n, n) of ‖V_iᵀ V_j‖_F² / k."""
    k = bases[0].shape[1]
    return np.array([[float(np.sum((x.T @ y) ** 2)) / k for y in bases] for x in bases])


def _summary(rows: list[Row], inputs: list[Row], shared: list[_Shared], initial: float | None) -> Row:
    return {
        "d_initial": initial,
        "median_d_change": median(row["d_change"] for row in rows),
        "median_d_spread": median(row["d_spread"] for row in rows),
        "median_b_rms": median(row["b_rms"] for row in rows),
        "median_b_spread": median(row["b_spread"] for row in rows),
        "median_in_span_b": median(row["in_span_b"] for row in rows),
        "null": {
            "spread": GAUSSIAN_SPREAD,
            "median_in_span_b": median(row["null"]["in_span_b"] for row in rows),
        },
        "pairs_of_projections": len(shared),
        "inputs": inputs,
    }


def findings(section: Section) -> list[Finding]:
    rows, summary = section.rows, section.summary
    made = []
    if section.extra["drawn"]:
        text = (
            "The file holds d and b alone: A and B were drawn again from its seed, and what is said of ΔW holds only if"
            " this is the draw that was trained on"
        )
        action = "Save the adapter with its projections (save_projection=True)"
        made.append(rules.DRAWN_AGAIN.finding(text, action=action))
    still = [row for row in rows if not row["b_rms"]]
    if still:
        made.append(unchanged("b", still, rows))
    moved = extreme(rows, "d_change")
    if moved is not None and summary["median_d_change"] is not None:
        text = (
            f"d changed by {percent(summary['median_d_change'])} relative to d₀ = {summary['d_initial']:g} in the"
            f" median module and by {percent(moved['d_change'])} here (largest)"
        )
        made.append(Finding("note", text, moved["name"]))
    elif summary["d_initial"] is None:
        made.append(Finding("note", "The file does not say d_initial, so the change of d is unknown"))
    if summary["median_in_span_b"] is not None and summary["null"]["median_in_span_b"] is not None:
        text = (
            f"{percent(summary['median_in_span_b'])} of ‖ΔW‖² lies in the span of the shared B in the median"
            f" module; b in random order would give {percent(summary['null']['median_in_span_b'])}"
        )
        made.append(Finding("note", text))
    for group in summary["inputs"]:
        made += [*_of_rank(group), _of_inputs(group)]
    return made + _unshared(rows, summary)


def _is_drawn(stored: Stored) -> bool:
    """Whether this is a draw, or a slice of one, in place of numbers from the file."""
    return isinstance(getattr(stored, "source", stored), Drawn)


def _of_rank(group: Row) -> list[Finding]:
    if group["effective_rank"] is None or group["effective_rank_shuffled"] is None:
        return []  # ΔW is zero there, which the spectrum says
    text = (
        f"Effective rank of ΔW {group['effective_rank']:.3g} of r = {group['rank']} in the median module of width"
        f" {group['d_in']}; d and b in random order give {group['effective_rank_shuffled']:.3g}"
    )
    return [Finding("note", text)]


def _of_inputs(group: Row) -> Finding:
    forced = group["null"]["shared_matrices"]
    ratio = group["overlap"] / forced if forced else 0.0
    verdict = "more than shared A and B explain" if ratio > OVERLAP_REPORT_BOUND else "explained by the shared A and B"
    sample = f"{group['modules']} of the {group['of']}" if group["modules"] < group["of"] else f"the {group['of']}"
    text = (
        f"Two modules' {group['k']} leading input directions overlap by {percent(group['overlap'])} (mean over"
        f" {sample} of width {group['d_in']}): {verdict}. Shuffled d and b give"
        f" {percent(forced)}, random directions in the shared space"
        f" {percent(group['null']['shared_space'])}, anywhere {percent(group['null']['chance'])}"
    )
    return Finding("note", text)


def _unshared(rows: Sequence[Row], summary: Row) -> list[Finding]:
    if len(rows) > 1 and summary["pairs_of_projections"] == len(rows):
        return [Finding("note", "Every module has an A of its own (unshared, or of its own width): none are compared")]
    return []


def blocks(section: Section) -> list[Block]:
    rows, initial = section.rows, section.summary["d_initial"]
    known = measured(METRICS, rows)
    start = (Marker("x", initial, "initial"),) if initial is not None else ()
    return [
        type_table(rows, [m for m in known if m.key not in ("d.negative", "d_spread")]),
        *cumulative("Distribution of d", rows, "d", "d", start),
        *cumulative("Distribution of b", rows, "b", "b", (Marker("x", 0.0, "initial"),)),
        *maps("d and b, depth × module type", rows, known),
        *(_pair_map(each) for each in section.summary["inputs"]),
        module_table("VeRA, all modules", rows, known),
    ]


def _pair_map(group: Row) -> Heatmap:
    values = tuple(tuple(None if i == j else v for j, v in enumerate(line)) for i, line in enumerate(group["pairs"]))
    names = tuple(group["names"])
    null = group["null"]
    return Heatmap(
        f"Overlap of the {group['k']} leading input directions, width {group['d_in']}",
        names,
        tuple(str(i + 1) for i in range(len(names))),
        (Measure("overlap", "overlap", values, help="‖V_iᵀ V_j‖_F²/k"),),
        "module",
        "the same modules, in order",
        caption=(
            f"Shuffled d and b give {percent(null['shared_matrices'])} on average, random directions in the shared"
            f" space {percent(null['shared_space'])}, anywhere {percent(null['chance'])}."
        ),
        where="page",
    )


kind_metrics.register("vera")(KindMetrics("VeRA", measure, findings, blocks, METRICS, MORE_DEFINITIONS))
