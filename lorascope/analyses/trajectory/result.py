"""The run over all modules, and its frozen result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, ClassVar

from lorascope.analyses.adapter_updates import PARTIAL
from lorascope.analyses.base import Result
from lorascope.analyses.compare.inputs import Modules, align
from lorascope.analyses.toolkit import Row, flat, median, value
from lorascope.analyses.trajectory.measure import LARGEST, ModuleTrajectory, measure
from lorascope.architectures import depth, module_types
from lorascope.errors import InputError
from lorascope.linalg.blas import one_thread
from lorascope.linalg.spectrum import frobenius_norm
from lorascope.updates.base import Stored, Update
from lorascope.weights.adapter import Adapter, Skipped
from lorascope.weights.series import Loss, Series, Snapshot

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

Score = Mapping[str, float]  # loss, and accuracy
PER_STEP = (
    "frobenius_norm", "relative_norm", "stable_rank", "energy_rank_0.95", "cosine_to_last", "left_to_last",
    "right_to_last", "left_to_previous", "right_to_previous",
)  # fmt: skip


@dataclass(frozen=True)
class CheckpointRow:
    """One checkpoint: its file, and what was measured of it over all modules.

    Attributes:
        medians: over modules, by the metric's key.
        training_loss, evaluation_loss: of the run's own log, at this step.
        score: loss and accuracy on the data that were given.
    """

    step: int
    path: str
    sha256: str | None
    frobenius_norm: float
    medians: Mapping[str, float | None]
    training_loss: float | None = None
    evaluation_loss: float | None = None
    score: Score | None = None

    def record(self) -> Row:
        return {**vars(self), "medians": dict(self.medians), "score": dict(self.score) if self.score else None}


@dataclass(frozen=True, repr=False)
class TrajectoryResult(Result):
    """A series of checkpoints.

    Attributes:
        rows: one for each module.
        checkpoints: one for each checkpoint, by step.
        losses: of the run's own log.
        unit: what the steps count.
        scored_on: the data that checkpoints were scored on, in words.
        base: the path of the base model, where one was given.
    """

    analysis: ClassVar[str] = "trajectory"

    rows: tuple[ModuleTrajectory, ...]
    checkpoints: tuple[CheckpointRow, ...]
    losses: tuple[Loss, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    unit: str = "step"
    notes: tuple[str, ...] = ()
    scored_on: str = ""
    base: str | None = None
    path: str = ""

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(each.step for each in self.checkpoints)

    @property
    def best(self) -> CheckpointRow | None:
        """The checkpoint of the lowest loss on the data that were given; of equal ones the first."""
        scored = [each for each in self.checkpoints if each.score is not None]
        return min(scored, key=lambda each: each.score["loss"], default=None)  # type: ignore[index]

    @property
    def lowest_logged(self) -> Loss | None:
        """The lowest evaluation loss of the run's own log."""
        logged = [loss for loss in self.losses if loss.kind == "evaluation"]
        return min(logged, key=lambda loss: loss.loss, default=None)

    def summary(self) -> Row:
        settled = [row.settled_step for row in self.rows if row.settled_step is not None]
        lowest = self.lowest_logged
        return {
            "modules": len(self.rows),
            "checkpoints": len(self.checkpoints),
            "first_step": self.steps[0],
            "last_step": self.steps[-1],
            "median_stable_rank": median(row.last.stable_rank for row in self.rows),
            "median_null_stable_rank": median(row.null["stable_rank"] for row in self.rows if row.null),
            "median_energy_rank_0.95": median(row.last.energy_rank for row in self.rows),
            "modules_settled": len(settled),
            "median_settled_step": median(settled),
            "best_step": self.best.step if self.best is not None else None,
            "lowest_logged_step": lowest.step if lowest is not None else None,
        }

    def record(self) -> Row:
        return {
            "base": self.base,
            "unit": self.unit,
            "scored_on": self.scored_on or None,
            "summary": self.summary(),
            "checkpoints": [each.record() for each in self.checkpoints],
            "losses": [asdict(loss) for loss in self.losses],
            "modules": self.records(),
            "notes": list(self.notes),
        }

    def records(self) -> list[Row]:
        return [{**vars(row), "points": [point.record() for point in row.points]} for row in self.rows]

    def flat_rows(self) -> list[Row]:
        """One row for each module and checkpoint."""
        made = []
        for row in self.rows:
            facts = {
                "name": row.name, "type": row.type, "depth": row.depth, "shape": row.shape, "rank": row.rank,
                "directions": row.directions, "settled_step": row.settled_step, "null": row.null, "chance": row.chance,
            }  # fmt: skip
            for point in row.points:
                numbers = {key: v for key, v in point.record().items() if key != "singular_values"}
                made.append(flat({**facts, **numbers}))
        return made


def run(  # the inputs of an analysis of many files
    adapters: "Sequence[Adapter | Checkpoint]",
    *,
    series: Series | None = None,
    base: "Checkpoint | None" = None,
    modules: str | None = None,
    evaluate: Callable[[int], Score] | None = None,
    scored_on: str = "",
    path: str = "",
    progress: Callable[[list[str]], Any] = iter,
) -> TrajectoryResult:
    """Follow every module over the checkpoints of one run, one module at a time.

    Args:
        adapters: the checkpoints, oldest first; full models where a base is given.
        series: where they are from, their steps and the run's losses; without it they are numbered.
        base: the base model: for ‖ΔW‖/‖W‖, and for updates that depend on W.
        modules: a regular expression; only modules whose path it matches are followed.
        evaluate: scores the checkpoint of that index on data.
        scored_on: those data, in words.
        path: what the page's title names.
        progress: wraps the list of modules.

    Raises:
        InputError: fewer than two checkpoints, no module in all of them, or `modules` is not a regular expression.
    """
    if len(adapters) < 2:
        raise InputError("a trajectory needs two checkpoints or more", found=len(adapters))
    numbered = Series(tuple(Snapshot(_path(a), i) for i, a in enumerate(adapters, 1)), unit="order")
    series = series or numbered
    steps = [each.step or 0 for each in series.snapshots]
    aligned = align(adapters, base, modules)
    skipped = list(aligned.skipped.get(len(adapters) - 1, ()))
    rows = _followed(aligned, steps, base, skipped, progress)
    if not rows:
        reasons = dict.fromkeys(item.reason for item in skipped)
        raise InputError(
            "no module could be followed over the checkpoints",
            found="; ".join(list(reasons)[:3]) or "no weight update",
            hint="pass the base model with --base" if base is None and reasons else None,
        )
    scores = [evaluate(index) for index in range(len(adapters))] if evaluate is not None else None
    notes = dict.fromkeys(note for one in adapters for note in getattr(one, "notes", ()))
    return TrajectoryResult(
        tuple(rows), _checkpoints(rows, adapters, series, scores), series.losses, tuple(skipped), series.unit,
        (*series.notes, *notes), scored_on, str(base.path) if base is not None else None, path,
    )  # fmt: skip


def _path(one: Any) -> Any:
    return PurePath(getattr(getattr(one, "source", None), "path", "") or str(getattr(one, "path", "")))


def _followed(
    aligned: Modules, steps: Sequence[int], base: "Checkpoint | None", skipped: list[Skipped], progress: Callable
) -> list[ModuleTrajectory]:
    types = module_types(aligned.names)
    rows = []
    with one_thread():
        for name in progress(list(aligned.names)):
            at = aligned.names[name]
            updates = [at[i] for i in range(len(steps)) if i in at]
            if len(updates) < len(steps):
                skipped.append(Skipped(name, f"in {len(updates)} of {len(steps)} checkpoints only"))
                continue
            stored = base.lookup(updates[-1]) if base is not None else None
            weight = None if isinstance(stored, str) else stored
            if (reason := _not_followed(updates, weight, stored)) is not None:
                skipped.append(Skipped(name, reason))
                continue
            try:
                rows.append(measure(updates, steps, type=types[name], depth=depth(name), base=weight))
            except ValueError as error:
                skipped.append(Skipped(name, str(error)))
    return rows


def _not_followed(updates: Sequence[Update], weight: Stored | None, stored: Stored | str | None) -> str | None:
    """Why a module has no trajectory; None where it has one."""
    for update in updates:
        if (reason := update.excess(weight)) is not None:
            return reason
        if weight is None and update.needs_base and not update.has_direction:
            return f"ΔW depends on W: {stored if isinstance(stored, str) else 'pass --base'}"
    shape = weight.shape if updates[-1].needs_base and weight is not None else updates[-1].shape
    if 1 in shape:
        return "a vector: it has no subspaces"
    if updates[-1].rank is None and min(shape) > LARGEST:
        return f"without factors, of {shape[0]} × {shape[1]}: too large to decompose at every checkpoint"
    return None


def _checkpoints(
    rows: Sequence[ModuleTrajectory], adapters: Sequence[Any], series: Series, scores: Sequence[Score] | None
) -> tuple[CheckpointRow, ...]:
    logged = {(loss.step, loss.kind): loss.loss for loss in series.losses}
    made = []
    for i, (one, snapshot) in enumerate(zip(adapters, series.snapshots, strict=True)):
        points = [row.points[i].record() for row in rows]
        medians = {key: median(value(point, key) for point in points) for key in PER_STEP}
        step = snapshot.step or 0
        made.append(CheckpointRow(
            step, str(snapshot.path), getattr(getattr(one, "source", None), "sha256", None),
            frobenius_norm([point["frobenius_norm"] for point in points]), medians,
            logged.get((step, "training")), logged.get((step, "evaluation")), scores[i] if scores else None,
        ))  # fmt: skip
    return tuple(made)


def partial(result: TrajectoryResult) -> bool:
    """Whether some module was followed by its part s·B·A alone."""
    return any(PARTIAL in row.notes for row in result.rows)
