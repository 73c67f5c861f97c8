"""The result as blocks, a section of the page of `lorascope analyze --base`."""

from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.blocks import Block, Column, Definition, Findings, Heading, Lines, Series, Table

if TYPE_CHECKING:
    from lorascope.analyses.against_base.module import ModuleAgainstBase
    from lorascope.analyses.against_base.result import AgainstBaseResult

# What a module is listed by: key (dots go into the overlaps), title, unit, help.
MEASURES = (
    ("directions", "r", "int", "singular directions of ΔW that U and V hold"),
    ("inside", "‖UᵀWV‖", "float", "of W in ΔW's leading directions, Frobenius norm"),
    ("random", "random", "float", "the same in random directions: r·‖W‖/√(mn)"),
    ("ratio", "× random", "float", "‖UᵀWV‖ over that in random directions"),
    ("z", "z", "float", "standard deviations of ‖UᵀWV‖² above that in random directions"),
    ("top", "W's own", "float", "in W's own r leading directions"),
    ("top_ratio", "W's / ΔW's", "float", "W's own over ΔW's"),
    ("amplification", "ampl.", "float", "‖ΔW‖/‖UᵀWV‖"),
    ("amplification_random", "of random ΔW", "float", "the same of a random ΔW of this norm"),
    ("left.r.phi", "φ left, r", "float", "overlap of ΔW's left directions with W's top r"),
    ("left.r.z", "z", "float", "against random subspaces"),
    ("left.tenth.phi", "φ left, 10 %", "float", "overlap of ΔW's left directions with W's top 10 %"),
    ("left.tenth.chance", "chance", "float", "its mean for random subspaces"),
    ("left.tenth.z", "z", "float", "against random subspaces"),
    ("right.tenth.phi", "φ right, 10 %", "float", "overlap of ΔW's right directions with W's top 10 %"),
    ("right.tenth.chance", "chance", "float", "its mean for random subspaces"),
    ("right.tenth.z", "z", "float", "against random subspaces"),
)
BY_TYPE = ("inside", "random", "ratio", "top_ratio", "amplification", "amplification_random", "left.tenth.phi",
           "left.tenth.chance", "right.tenth.phi", "right.tenth.chance")  # fmt: skip
MAX_TYPES = 12

DEFINITIONS = (
    Definition(
        "‖UᵀWV‖ and amplification",
        "U, V: the r leading singular directions of ΔW; amplification ‖ΔW‖_F/‖UᵀWV‖_F",
        "Hu et al. 2021, arXiv 2106.09685, §7.3, table 7",
    ),
    Definition(
        "Random directions",
        "√E‖UᵀWV‖² = r·‖W‖_F/√(mn) for independent uniformly random U and V; its variance is exact as well",
        "Collins and Śniady 2006; a random ΔW of the same norm is amplified by ‖ΔW‖ over this",
    ),
    Definition(
        "Overlap φ(i, j)",
        "‖U_Δᵀ U_W‖_F²/min(i, j); random subspaces of R^n have max(i, j)/n in the mean",
        "§7.2, eq. 4",
    ),
)


def value(module: "ModuleAgainstBase", key: str) -> Any:
    """One of MEASURES for one module; None where it could not be computed."""
    side, _, rest = key.partition(".")
    if not rest:
        return getattr(module, key)
    top, _, measure = rest.partition(".")
    found = getattr(module, side).get(top)
    return getattr(found, measure) if found is not None else None


def blocks(result: "AgainstBaseResult") -> tuple[Block, ...]:
    """The section: what stands out, by type, the three norms by depth, all modules."""
    if not result.modules:
        return ()
    made: tuple[Block, ...] = (
        Heading("ΔW against W", where="page"), Findings(result.findings, title="ΔW against W"), _by_type(result),
        _norms(result), _all(result),
    )  # fmt: skip
    if not result.skipped:
        return made
    columns = (Column("name", "module", "code"), Column("reason", "why"))
    rows = tuple((item.name, item.reason) for item in result.skipped)
    return (*made, Table(columns, rows, title="Not set against W", where="page"))


def groups(result: "AgainstBaseResult") -> "dict[str, list[ModuleAgainstBase]]":
    found: dict[str, list] = {}
    for module in result.modules:
        found.setdefault(module.type, []).append(module)
    return found


def _by_type(result: "AgainstBaseResult") -> Table:
    chosen = [m for key in BY_TYPE for m in MEASURES if m[0] == key]
    columns = (Column("type", "module type"), Column("n", "n", "int"))
    columns += tuple(Column(key, title, unit, help=about) for key, title, unit, about in chosen)
    rows = []
    for name, modules in groups(result).items():
        known = [[v for m in modules if (v := value(m, key)) is not None] for key in BY_TYPE]
        rows.append((name, len(modules), *(float(np.median(v)) if v else None for v in known)))
    caption = "Medians over the modules of a type."
    return Table(columns, tuple(rows), title="W in ΔW's directions, by module type", caption=caption)


def _norms(result: "AgainstBaseResult") -> Lines:
    """‖UᵀWV‖ by depth for W's own, ΔW's and random directions, a panel for each type."""
    series = []
    for name, modules in list(groups(result).items())[:MAX_TYPES]:
        layers: dict[float, list] = {}
        for i, module in enumerate(modules):
            layers.setdefault(float(module.depth if module.depth is not None else i), []).append(module)
        at = tuple(sorted(layers))
        for label, key, weight in (
            ("W's own r leading directions", "top", "normal"),
            ("ΔW's", "inside", "normal"),
            ("random ones", "random", "reference"),
        ):
            line = tuple(float(np.median([value(m, key) for m in layers[layer]])) or None for layer in at)
            if len(at) == 1:  # one module makes no line
                series.append(Series(label, at, line, name, points=(modules[0].name,)))
            else:
                series.append(Series(label, at, line, name, "reference" if weight == "reference" else "normal"))
    return Lines(
        "How much of W lies in W's own, in ΔW's and in random directions", tuple(series), "layer", "‖UᵀWV‖_F",
        log_y=True, where="page",
        caption="Frobenius norms for the same number of directions; medians where a layer has several modules.",
    )  # fmt: skip


def _all(result: "AgainstBaseResult") -> Table:
    shown = [m for m in MEASURES if any(value(module, m[0]) is not None for module in result.modules)]
    columns = (Column("name", "module", "code"), Column("shape", "shape"))
    columns += tuple(Column(key, title, unit, help=about) for key, title, unit, about in shown)
    columns += (Column("notes", "notes"),)
    rows = tuple(
        (m.name, "×".join(map(str, m.shape)), *(value(m, key) for key, *_ in shown), "; ".join(m.notes))
        for m in result.modules
    )
    return Table(columns, rows, title="ΔW against W, all modules", interactive=True, where="page")
