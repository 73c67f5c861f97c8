"""LoRA-XS: ΔW = s·B R A, with B and A frozen. Does the r×r core rescale the directions that W has, or mix them?

Bałazy et al. 2024, arXiv 2405.17604: B = U_r and A = Σ_r V_rᵀ of W = U Σ Vᵀ. So a diagonal R multiplies the leading
singular values of W by 1 + s·R_ii, and everything off the diagonal maps one of W's input directions to the output of
another. R stands for s·R below.

- `on_diagonal` is Σ R_ii² / ‖R‖²; 1/r where the entries have no structure.
- `dominant_rows` is the share of rows with |R_ii| > Σ_{j≠i} |R_ij|: where all are, R is near a rescaling. Its null is
  that of Gaussian cores of the same size.
- `symmetric` is ‖(R + Rᵀ)/2‖² / ‖R‖²; (r + 1)/(2r) where the entries have no structure.
- The ranks are of R, beside a Gaussian R; those of ΔW, in which W's singular values weigh the columns of R, are in the
  spectrum.

When it misleads: the diagonal means what is said only if A and B come from one decomposition of W and in its order;
with random bases R is a core in an arbitrary frame, and only its singular values say anything.
"""

from functools import lru_cache

import numpy as np

from lorascope.analyses.method_specific import draw
from lorascope.analyses.method_specific.base import Part, Row, Subject, particulars
from lorascope.analyses.method_specific.numbers import median
from lorascope.blocks import Block, Definition, Finding, Heatmap, Lines, Measure, Series
from lorascope.linalg.spectrum import effective_rank, stable_rank

MAX_SHOWN = 64  # of a core's sides, in the map of mean |R|
_DRAWS = 64

DEFINITIONS = (
    Definition("On the diagonal", "Σ R_ii² / ‖R‖_F²", "null: 1/r; Bałazy et al. 2024, arXiv 2405.17604, has R"),
    Definition("Dominant rows", "share of i with |R_ii| > Σ_{j≠i} |R_ij|", "null: Gaussian R of the same size"),
    Definition("Symmetric part", "‖(R + Rᵀ)/2‖_F² / ‖R‖_F²", "null: (r + 1)/(2r)"),
)


@particulars.register("core")
def core(subject: Subject) -> Part:
    cores = {update.name: update.scale * update.roles["R"].read() for update in subject.updates}
    rows = [subject.named(name) | _measured(matrix) for name, matrix in cores.items()]
    keys = ("on_diagonal", "dominant_rows", "symmetric", "stable_rank", "effective_rank")
    summary = {
        **{f"median_{key}": median([row[key] for row in rows]) for key in keys},
        "null": {f"median_{key}": median([row["null"][key] for row in rows]) for key in keys},
    }
    return Part(
        "LoRA-XS",
        tuple(rows),
        summary,
        tuple(_findings(rows, summary)),
        tuple(_blocks(rows, cores)),
        DEFINITIONS,
    )


def _measured(matrix: np.ndarray) -> Row:
    row: Row = {"rank": len(matrix), "norm": None, "singular_values": None, "null": _null(len(matrix))}
    row |= dict.fromkeys(("on_diagonal", "dominant_rows", "symmetric", "stable_rank", "effective_rank", "rescaling"))
    if not np.all(np.isfinite(matrix)) or not np.any(matrix):
        return row | {"norm": 0.0 if np.all(np.isfinite(matrix)) else None}
    sigma = np.linalg.svd(matrix, compute_uv=False)
    return row | {
        "norm": float(np.linalg.norm(sigma)),
        "singular_values": sigma.tolist(),
        "stable_rank": stable_rank(sigma),
        "effective_rank": effective_rank(sigma),
        **_shape(matrix),
    }


def _shape(matrix: np.ndarray) -> Row:
    energy = float(np.sum(matrix**2))
    diagonal, rows = np.abs(np.diag(matrix)), np.sum(np.abs(matrix), axis=1)
    return {
        "on_diagonal": float(np.sum(diagonal**2) / energy),
        "dominant_rows": float(np.mean(diagonal > rows - diagonal)),
        "symmetric": float(np.sum(((matrix + matrix.T) / 2) ** 2) / energy),
        "rescaling": float(np.sqrt(np.mean(diagonal**2))),
    }


@lru_cache(maxsize=64)
def _null(r: int) -> Row:
    """Of Gaussian cores (r, r): two in closed form, the others a mean over draws from a fixed seed."""
    draws = np.random.default_rng(r).standard_normal((max(2, min(_DRAWS, 2048 // r)), r, r))
    spectra = np.linalg.svd(draws, compute_uv=False)
    return {
        "on_diagonal": 1 / r,
        "dominant_rows": float(np.mean([_shape(matrix)["dominant_rows"] for matrix in draws])),
        "symmetric": (r + 1) / (2 * r),
        "stable_rank": float(np.mean([stable_rank(sigma) for sigma in spectra])),
        "effective_rank": float(np.mean([effective_rank(sigma) for sigma in spectra])),
    }


def _findings(rows: list[Row], summary: Row) -> list[Finding]:
    zero = [row for row in rows if row["norm"] == 0]
    found = []
    if zero:
        found.append(Finding("warning", f"R is zero in {len(zero)} of {len(rows)} modules: they change nothing"))
    if summary["median_on_diagonal"] is None:
        return found
    null = summary["null"]
    text = (
        f"{draw.percent(summary['median_on_diagonal'])} of ‖R‖² is on the diagonal in the median module (no structure:"
        f" {draw.percent(null['median_on_diagonal'])}), and {draw.percent(summary['median_dominant_rows'])} of the rows"
        f" are dominated by it (no structure: {draw.percent(null['median_dominant_rows'])})"
    )
    found.append(Finding("note", text))
    text = (
        f"median stable rank of R {summary['median_stable_rank']:.3g} (Gaussian: {null['median_stable_rank']:.3g}),"
        f" effective rank {summary['median_effective_rank']:.3g} (Gaussian: {null['median_effective_rank']:.3g})"
    )
    found.append(Finding("note", text))
    most = draw.extreme(rows, "on_diagonal")
    assert most is not None
    found.append(Finding("note", f"most on the diagonal, {draw.percent(most['on_diagonal'])}, here", most["name"]))
    return found


_QUANTITIES = (
    ("norm", "‖R‖_F", "float", "Frobenius norm of the core"),
    ("rescaling", "rms R_ii", "percent", "√mean(R_ii²): by how much W's own singular values change"),
    ("on_diagonal", "diagonal", "percent", "Σ R_ii²/‖R‖²"),
    ("null.on_diagonal", "null", "percent", "1/r"),
    ("dominant_rows", "dominant", "percent", "share of rows with |R_ii| > Σ_{j≠i} |R_ij|"),
    ("symmetric", "symmetric", "percent", "‖(R + Rᵀ)/2‖²/‖R‖²"),
    ("null.symmetric", "null", "percent", "(r + 1)/(2r)"),
    ("stable_rank", "stable", "float", "Σσ²/σ₁² of R"),
    ("null.stable_rank", "null", "float", "of a Gaussian R"),
    ("effective_rank", "effective", "float", "exp H(σ/Σσ) of R"),
)


def _blocks(rows: list[Row], cores: dict[str, np.ndarray]) -> list[Block]:
    mapped = [q for q in _QUANTITIES if not q[0].startswith("null.")]
    return [
        draw.type_table(rows, _QUANTITIES),
        *_spectra(rows),
        *_mean_core(rows, cores),
        *draw.depth_map("Cores, depth × module type", rows, mapped),
        draw.module_table("LoRA-XS, all modules", rows, _QUANTITIES),
    ]


def _spectra(rows: list[Row]) -> list[Block]:
    series = []
    for name, group in draw.by_type(rows).items():
        for row in group:
            sigma = row["singular_values"] or ()
            positive = tuple(s if s > 0 else None for s in sigma)
            weight = "thin" if len(group) > 1 else "normal"
            series.append(Series(row["name"], tuple(range(1, len(sigma) + 1)), positive, name, weight))
    if not any(s.x for s in series):
        return []
    return [
        Lines("Singular values of the cores R", tuple(s for s in series if s.x), "index i", "σ_i", log_y=True,
              where="page", shade="depth, first to last", caption="One thin line for each module.")
    ]  # fmt: skip


def _mean_core(rows: list[Row], cores: dict[str, np.ndarray]) -> list[Block]:
    """Mean |R_ij| over modules, each core scaled to norm 1: a diagonal shows as one."""
    ranks = {row["rank"] for row in rows}
    known = [cores[row["name"]] / row["norm"] for row in rows if row["norm"]]
    if len(ranks) != 1 or not known or max(ranks) > MAX_SHOWN:
        return []
    mean = np.mean(np.abs(known), axis=0)
    numbers = tuple(str(i + 1) for i in range(len(mean)))
    values = tuple(tuple(line) for line in mean.tolist())
    return [
        Heatmap("Mean |R_ij| over all modules", numbers, numbers, (Measure("core", "|R_ij|/‖R‖", values),), "row",
                "column", caption="Each core is scaled to norm 1 first.", where="page")
    ]  # fmt: skip
