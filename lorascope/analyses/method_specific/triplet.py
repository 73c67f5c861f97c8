"""AdaLoRA: ΔW = s·P diag(E) Q. Which ranks were kept, by depth and type, and are P and Q orthogonal enough?

Zhang et al. 2023, arXiv 2303.10512. A triplet counts as kept where its E is not zero; PEFT drops the others from the
file, so the rank before pruning is known from the setting `init_r` alone. The budget of the whole is `target_r` times
the number of modules, and the schedule meets it exactly.

The random baseline of an uneven map is a budget that is handed out blindly: the same number of triplets drawn from all
modules' init_r (multivariate hypergeometric). The Gini coefficient of the kept ranks is given with its mean over such
draws.

‖PᵀP − I‖_F and ‖QQᵀ − I‖_F, per √rank, say whether E can be read as singular values; with them the value that
P, Q ~ N(0, 0.02²), the initialisation, would give in expectation.

When it misleads: a rank that was kept need not be used (see the spectrum's stable rank); the map depends on the seed,
and one run cannot say how much; in a file written before the schedule ended, nothing is pruned yet.
"""

from collections.abc import Sequence

import numpy as np

from lorascope.analyses import rules
from lorascope.analyses.base import Metric
from lorascope.analyses.method_specific.engine import (
    TRAINED,
    KindMetrics,
    Section,
    Subject,
    as_float,
    kind_metrics,
    maps,
)
from lorascope.analyses.method_specific.vectors import gini
from lorascope.analyses.toolkit import Row, group, median, module_table, type_table
from lorascope.blocks import Block, Definition, Finding
from lorascope.linalg.spectrum import frobenius_norm

INITIAL_STD = 0.02
FAR_FROM_ORTHOGONAL = 0.3  # ‖PᵀP − I‖_F / √rank at which E is no longer near the singular values
_DRAWS = 1000
MAX_DRAWN = 10**9  # of ranks; numpy's own limit

_ORTHOGONALITY = "‖PᵀP − I‖_F/√k and ‖QQᵀ − I‖_F/√k, k the kept rank"
_UNTRAINED = "random baseline: in expectation at the initialisation N(0, 0.02²)"

METRICS = (
    Metric(
        "kept_rank", "kept rank", "int", "triplets with E ≠ 0", "the number of triplets with E ≠ 0",
        "Zhang et al. 2023, arXiv 2303.10512, §3.3", term="Kept rank",
        meaning="How much rank the pruning left to this module: 0 if it lost all of it.",
    ),
    Metric("initial_rank", "of", "int", "triplets before pruning (init_r)", term="Kept rank"),
    Metric("largest_e", "max |E|", "float", "largest weight of a triplet"),
    Metric("norm_e", "‖E‖", "float", "Euclidean norm of the triplets' weights"),
    *(
        metric
        for side, product in (("P", "PᵀP"), ("Q", "QQᵀ"))
        for metric in (
            Metric(
                f"off_orthogonal.{side}", f"{side} off", "float", f"‖{product} − I‖_F/√rank", _ORTHOGONALITY,
                _UNTRAINED, f"null.off_orthogonal.{side}", "Off orthogonal",
                "How far P and Q are from orthogonal: near 0 E can be read as singular values.",
            ),
            Metric(f"null.off_orthogonal.{side}", "untrained", "float", "the same at N(0, 0.02²)",
                   term="Off orthogonal"),
        )
    ),
)  # fmt: skip
MORE_DEFINITIONS = (
    Definition(
        "Gini coefficient",
        "Σ_ij |x_i − x_j| / (2 n² mean)",
        "random baseline: mean over 1000 random allocations of the budget",
        "How unevenly the ranks are shared out: 0 if all modules kept the same, near 1 if a few kept nearly all.",
    ),
)


def measure(subject: Subject) -> Section:
    start = subject.setting("init_r", "init_rank")
    rows = [subject.row(update.name) | _measured(update.read(), start) for update in subject.updates]
    return Section(tuple(rows), _summary(subject, rows))


def _measured(roles: dict[str, np.ndarray], start: int | None) -> Row:
    e = roles["E"].reshape(-1)
    keep = e != 0
    left, right = roles["B"][:, keep], roles["A"][keep].T
    kept = int(keep.sum())
    largest = float(np.max(np.abs(e), initial=0.0))
    return {
        "shape": [roles["B"].shape[0], roles["A"].shape[1]],
        "kept_rank": kept,
        "initial_rank": start if isinstance(start, int) else len(e),
        "largest_e": largest if np.isfinite(largest) else None,
        "norm_e": frobenius_norm(np.abs(e)) if np.all(np.isfinite(e)) else None,
        "off_orthogonal": {"P": _off_orthogonal(left), "Q": _off_orthogonal(right)},
        "null": {
            "off_orthogonal": {
                "P": _at_initialisation(left.shape[0], kept),
                "Q": _at_initialisation(right.shape[0], kept),
            }
        },
    }


def _off_orthogonal(tall: np.ndarray) -> float | None:
    """‖TᵀT − I‖_F / √k of T (d, k)."""
    k = tall.shape[1]
    if k == 0 or not np.all(np.isfinite(tall)):
        return None
    return float(np.linalg.norm(tall.T @ tall - np.eye(k)) / k**0.5)


def _at_initialisation(d: int, k: int) -> float | None:
    """The root of E‖TᵀT − I‖²/k for T (d, k) with entries N(0, σ²): (dσ² − 1)² + 2dσ⁴ + (k − 1)dσ⁴."""
    variance = INITIAL_STD**2
    return float(((d * variance - 1) ** 2 + (k + 1) * d * variance**2) ** 0.5) if k else None


def _summary(subject: Subject, rows: list[Row]) -> Row:
    kept = np.array([row["kept_rank"] for row in rows])
    target = subject.setting("target_r", "target_rank")
    return {
        "total_kept": int(kept.sum()),
        "total_initial": int(sum(row["initial_rank"] for row in rows)),
        "budget": target * len(subject.adapter.updates) if isinstance(target, int) else None,
        "modules_asked": len(rows),
        "modules_in_file": len(subject.adapter.updates),
        "pruned_away": int(np.sum(kept == 0)),
        "gini": gini(kept),
        "null": _blind(kept, [row["initial_rank"] for row in rows]),
        "median_off_orthogonal": {side: median([row["off_orthogonal"][side] for row in rows]) for side in ("P", "Q")},
    }


def _blind(kept: np.ndarray, initial: list[int]) -> Row:
    """Gini coefficients where the kept triplets are drawn blindly, and the share of draws as uneven as this one."""
    total = int(kept.sum())
    impossible = any(k > most for k, most in zip(kept, initial, strict=True))
    if total == 0 or impossible or not total <= sum(initial) < MAX_DRAWN:
        return {"gini": None, "p": None}
    rng = np.random.default_rng([total, len(initial)])
    draws = rng.multivariate_hypergeometric(initial, total, size=_DRAWS, method="marginals")
    found = np.array([gini(row) or 0.0 for row in draws])
    as_uneven = int(np.sum(found >= (gini(kept) or 0.0) - 1e-12))
    return {"gini": float(found.mean()), "p": (as_uneven + 1) / (_DRAWS + 1)}


def findings(section: Section) -> list[Finding]:
    rows, summary = section.rows, section.summary
    total, budget = summary["total_kept"], summary["budget"]
    if total == 0:
        return [rules.NO_CHANGE.finding("Every E is zero: this adapter changes nothing", action=TRAINED)]
    made = []
    text = f"{total} of {summary['total_initial']} ranks were kept"
    if budget is None or summary["modules_asked"] < summary["modules_in_file"]:
        made.append(Finding("note", text))
    elif total == budget:
        made.append(Finding("note", f"{text}: the budget of target_r = {budget // len(rows)} a module, exactly"))
    else:
        made.append(_off_budget(text, total - budget, budget))
    null = summary["null"]
    if null["gini"] is not None and total < summary["total_initial"]:
        text = (
            f"The ranks are spread with a Gini coefficient of {summary['gini']:.2g}; a budget handed out blindly gives"
            f" {null['gini']:.2g} (as uneven by chance: p = {null['p']:.2g})"
        )
        made.append(Finding("note", text))
    by_type = group(rows)
    groups = {name: float(np.mean([r["kept_rank"] for r in members])) for name, members in by_type.items()}
    if len(groups) > 1:
        most, least = max(groups, key=groups.__getitem__), min(groups, key=groups.__getitem__)
        text = f"{most} kept most, {groups[most]:.3g} ranks a module on average; {least} least, {groups[least]:.3g}"
        made.append(Finding("note", text))
    if summary["pruned_away"]:
        made.append(Finding("note", f"{summary['pruned_away']} of {len(rows)} modules have no rank left"))
    return made + _orthogonality(rows)


def _off_budget(text: str, over: int, budget: int) -> Finding:
    if over > 0:
        why = "training stopped before AdaLoRA reached its target rank (tfinal); ranks are not final"
        action = "Train on to the end of the schedule: its total_step is the number of steps that it takes"
    else:
        why, action = "PEFT cuts all that tie", "Set a smaller target_r for a file of this size, or train longer"
    text += f", {abs(over)} {'over' if over > 0 else 'under'} the budget of {budget}: {why}"
    return rules.BUDGET.finding(text, action=action)


def _orthogonality(rows: Sequence[Row]) -> list[Finding]:
    known = [row for row in rows if _worse_side(row) is not None]
    if not known:
        return []
    worst = max(known, key=lambda row: row["off_orthogonal"][_worse_side(row)])
    side = _worse_side(worst)
    size, untrained = worst["off_orthogonal"][side], worst["null"]["off_orthogonal"][side]
    most = f"at most by {size:.2g} per √rank ({side} here; {untrained:.2g} untrained)"
    far = [row for row in known if row["off_orthogonal"][_worse_side(row)] > FAR_FROM_ORTHOGONAL]
    if not far:
        return [
            Finding("note", f"P and Q are near orthogonal, off {most}: s·|E| is close to the singular values of ΔW")
        ]
    text = (
        f"P or Q is far from orthogonal in {len(far)} of {len(rows)} modules, {most}: there E does not equal the"
        " singular values of ΔW"
    )
    action, names = "Read the singular values from the spectrum", tuple(row["name"] for row in far)
    return [rules.NOT_ORTHOGONAL.finding(text, module=worst["name"], modules=names, action=action)]


def _worse_side(row: Row) -> str | None:
    """P or Q, whichever is further from orthogonal; None where no triplet is left."""
    known = {side: off for side, off in row["off_orthogonal"].items() if off is not None}
    return max(known, key=known.__getitem__) if known else None


def blocks(section: Section) -> list[Block]:
    rows, summary = section.rows, section.summary
    caption = f"{summary['total_kept']} ranks in all." + (f" Budget {summary['budget']}." if summary["budget"] else "")
    mapped = [m for m in METRICS if m.key != "initial_rank" and not m.key.startswith("null.")]
    return [
        type_table(rows, [as_float(METRICS[0]), *METRICS[1:]]),
        *maps("Ranks kept, depth × module type", rows, mapped, caption),
        module_table("AdaLoRA, all modules", rows, METRICS),
    ]


kind_metrics.register("triplet")(KindMetrics("AdaLoRA", measure, findings, blocks, METRICS, MORE_DEFINITIONS))
