"""LoRA-XS: ΔW = s·B R A, with B and A frozen. Does the r×r core rescale the directions that W has, or mix them?

Bałazy et al. 2024, arXiv 2405.17604: B = U_r and A = Σ_r V_rᵀ of W = U Σ Vᵀ. So a diagonal R multiplies the leading
singular values of W by 1 + s·R_ii, and everything off the diagonal maps one of W's input directions to the output of
another. R stands for s·R below.

- `on_diagonal` is Σ R_ii² / ‖R‖²; 1/r where the entries have no structure.
- `dominant_rows` is the share of rows with |R_ii| > Σ_{j≠i} |R_ij|: where all are, R is near a rescaling. Its random
  baseline is that of Gaussian cores of the same size.
- `symmetric` is ‖(R + Rᵀ)/2‖² / ‖R‖²; (r + 1)/(2r) where the entries have no structure.
- The ranks are of R, compared with a Gaussian R; those of ΔW, in which W's singular values weigh the columns of R, are
  in the spectrum.

When it misleads: the diagonal means what is said only if A and B come from one decomposition of W and in its order;
with random bases R is a core in an arbitrary frame, and only its singular values say anything.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from lorascope.analyses.base import Metric
from lorascope.analyses.method_specific.engine import KindMetrics, Section, Subject, kind_metrics, maps, unchanged
from lorascope.analyses.toolkit import Row, extreme, group, median, module_table, percent, type_table
from lorascope.blocks import Block, Finding, Heatmap, Lines, Measure, Series
from lorascope.linalg.spectrum import effective_rank, stable_rank

MAX_SHOWN = 64  # of a core's sides, in the map of mean |R|
_DRAWS = 64

METRICS = (
    Metric("norm", "‖R‖_F", "float", "Frobenius norm of the core"),
    Metric("rescaling", "rms R_ii", "percent", "√mean(R_ii²): by how much W's own singular values change"),
    Metric(
        "on_diagonal", "diagonal", "percent", "Σ R_ii²/‖R‖²", "Σ R_ii² / ‖R‖_F²",
        "random baseline: 1/r; Bałazy et al. 2024, arXiv 2405.17604, has R", "null.on_diagonal", "On the diagonal",
        "Whether the core rescales W's directions or mixes them: near 100 % it rescales, at 1/r it does no more of it"
        " than a random core.",
    ),
    Metric("null.on_diagonal", "random", "percent", "1/r", term="On the diagonal"),
    Metric(
        "dominant_rows", "dominant", "percent", "share of rows with |R_ii| > Σ_{j≠i} |R_ij|",
        "share of i with |R_ii| > Σ_{j≠i} |R_ij|", "random baseline: Gaussian R of the same size",
        "null.dominant_rows", "Dominant rows",
        "In how many rows the diagonal outweighs all the rest: at 100 % the core is close to a rescaling.",
    ),
    Metric(
        "symmetric", "symmetric", "percent", "‖(R + Rᵀ)/2‖²/‖R‖²", "‖(R + Rᵀ)/2‖_F² / ‖R‖_F²",
        "random baseline: (r + 1)/(2r)", "null.symmetric", "Symmetric part",
        "How near the core is to a symmetric matrix: 100 % if it is one, about half if its entries are random.",
    ),
    Metric("null.symmetric", "random", "percent", "(r + 1)/(2r)", term="Symmetric part"),
    Metric("stable_rank", "stable", "float", "Σσ²/σ₁² of R", null="null.stable_rank"),
    Metric("null.stable_rank", "random", "float", "of a Gaussian R"),
    Metric("effective_rank", "effective", "float", "exp H(σ/Σσ) of R", null="null.effective_rank"),
)  # fmt: skip


def measure(subject: Subject) -> Section:
    cores = {update.name: update.scale * update.roles["R"].read() for update in subject.updates}
    rows = [subject.row(name) | _measured(matrix) for name, matrix in cores.items()]
    keys = ("on_diagonal", "dominant_rows", "symmetric", "stable_rank", "effective_rank")
    summary = {
        **{f"median_{key}": median(row[key] for row in rows) for key in keys},
        "null": {f"median_{key}": median(row["null"][key] for row in rows) for key in keys},
    }
    return Section(tuple(rows), summary, {"mean_core": _mean_core(rows, cores)})


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


def findings(section: Section) -> list[Finding]:
    rows, summary = section.rows, section.summary
    zero = [row for row in rows if row["norm"] == 0]
    made = []
    if zero:
        made.append(unchanged("R", zero, rows))
    if summary["median_on_diagonal"] is None:
        return made
    null = summary["null"]
    text = (
        f"{percent(summary['median_on_diagonal'])} of ‖R‖² is on the diagonal in the median module (random:"
        f" {percent(null['median_on_diagonal'])}), and {percent(summary['median_dominant_rows'])} of the rows"
        f" are dominated by it (random: {percent(null['median_dominant_rows'])})"
    )
    made.append(Finding("note", text))
    text = (
        f"Median stable rank of R {summary['median_stable_rank']:.3g} (Gaussian: {null['median_stable_rank']:.3g}),"
        f" effective rank {summary['median_effective_rank']:.3g} (Gaussian: {null['median_effective_rank']:.3g})"
    )
    made.append(Finding("note", text))
    most = extreme(rows, "on_diagonal")
    assert most is not None
    made.append(Finding("note", f"Most on the diagonal, {percent(most['on_diagonal'])}, here", most["name"]))
    return made


def blocks(section: Section) -> list[Block]:
    rows = section.rows
    return [
        type_table(rows, METRICS),
        *_spectra(rows),
        *_core_map(section.extra["mean_core"]),
        *maps("Cores, depth × module type", rows, [m for m in METRICS if not m.key.startswith("null.")]),
        module_table("LoRA-XS, all modules", rows, METRICS),
    ]


def _spectra(rows: Sequence[Row]) -> list[Block]:
    series = []
    for name, members in group(rows).items():
        for row in members:
            sigma = row["singular_values"] or ()
            positive = tuple(s if s > 0 else None for s in sigma)
            index, many = tuple(range(1, len(sigma) + 1)), len(members) > 1
            series.append(Series(row["name"], index, positive, name, "thin" if many else "normal"))
    if not any(s.x for s in series):
        return []
    return [
        Lines("Singular values of the cores R", tuple(s for s in series if s.x), "index i", "σᵢ", log_y=True,
              where="page", shade="depth, first to last", caption="One thin line for each module.")
    ]  # fmt: skip


def _mean_core(rows: Sequence[Row], cores: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Mean |R_ij| over modules, each core scaled to norm 1: a diagonal shows as one. None of cores unequal or large."""
    ranks = {row["rank"] for row in rows}
    known = [cores[row["name"]] / row["norm"] for row in rows if row["norm"]]
    if len(ranks) != 1 or not known or max(ranks) > MAX_SHOWN:
        return None
    return np.mean(np.abs(known), axis=0)


def _core_map(mean: np.ndarray | None) -> list[Block]:
    if mean is None:
        return []
    numbers = tuple(str(i + 1) for i in range(len(mean)))
    values = tuple(tuple(line) for line in mean.tolist())
    return [
        Heatmap("Mean |R_ij| over all modules", numbers, numbers, (Measure("core", "|R_ij|/‖R‖", values),), "row",
                "column", caption="Each core is scaled to norm 1 first.", where="page")
    ]  # fmt: skip


kind_metrics.register("core")(KindMetrics("LoRA-XS", measure, findings, blocks, METRICS))
