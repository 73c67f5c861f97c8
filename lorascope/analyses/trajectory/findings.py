"""What a careful colleague would point out about a series of checkpoints, each with its number."""

from itertools import pairwise

from lorascope.analyses import rules
from lorascope.analyses.toolkit import counted, median, percent
from lorascope.analyses.trajectory.measure import SETTLED
from lorascope.analyses.trajectory.result import TrajectoryResult, partial
from lorascope.blocks import Finding
from lorascope.errors import preview
from lorascope.linalg import haar

GROWING = 0.05  # of ‖ΔW‖_F over the last interval: training has not come to rest
CLEAR = 4.0  # standard deviations of φ of random subspaces: consecutive checkpoints of one run lie far above
WORSE = 0.01  # of a loss


def findings(result: TrajectoryResult) -> list[Finding]:
    return [
        *_one_run(result), *_zero(result), *_settled(result), *_rank(result), *_growth(result), *_losses(result),
        *_best(result), *_reader(result),
    ]  # fmt: skip


def _one_run(result: TrajectoryResult) -> list[Finding]:
    made = []
    for one, other in pairwise(result.checkpoints):
        if one.sha256 is not None and one.sha256 == other.sha256:
            text = f"The checkpoints of {result.unit} {one.step} and {other.step} hold the same bytes"
            text += ": nothing was trained between them, or one file was copied"
            made.append(rules.NOT_ONE_RUN.finding(text, action="Leave one of the two out"))
    if not made and (pair := _unrelated(result)) is not None:
        text = f"From {result.unit} {pair[0]} to {pair[1]} the subspaces overlap no more than random ones: these may"
        action = "Give the checkpoints of one run"
        made.append(rules.NOT_ONE_RUN.finding(f"{text} not be checkpoints of one run", action=action))
    return made


def _unrelated(result: TrajectoryResult) -> tuple[int, int] | None:
    """The first pair of neighbours whose subspaces are hardly more alike than random ones, on both sides."""
    for i, (one, other) in enumerate(pairwise(result.steps), 1):
        scores = []
        for row in result.rows:
            point = row.points[i]
            of_sides = zip((point.left_to_previous, point.right_to_previous), row.shape, strict=True)
            both = [haar.phi(n, row.directions, row.directions).z(phi) for phi, n in of_sides if phi is not None]
            scores += [max(z for z in both if z is not None)] if len(both) == 2 and None not in both else []
        if scores and (median(scores) or 0.0) < CLEAR:
            return one, other
    return None


def _zero(result: TrajectoryResult) -> list[Finding]:
    zero = [row for row in result.rows if row.last.frobenius_norm == 0]
    if not zero:
        return []
    where = counted(len(zero), len(result.rows))
    rule = rules.NO_CHANGE if len(zero) == len(result.rows) else rules.UNCHANGED_MODULES
    text = f"ΔW is zero in {where} at the last checkpoint: B received no gradient, or this is from before training"
    names = tuple(row.name for row in zero)
    action = "Check that these modules were trainable, and give checkpoints from after the first steps"
    return [rule.finding(text, module=names[0] if len(names) == 1 else None, modules=names, action=action)]


def _settled(result: TrajectoryResult) -> list[Finding]:
    rows = [row for row in result.rows if row.last.frobenius_norm > 0 and max(row.chance.values()) < SETTLED]
    settled = [row for row in rows if row.settled_step is not None]
    if not rows:
        return []
    if not settled:
        before = result.checkpoints[-2]
        left, right = (before.medians[f"{side}_to_last"] for side in ("left", "right"))
        if left is None or right is None:
            return []
        text = (
            f"No module had its final direction before the last checkpoint: at {result.unit} {before.step} φ with the"
            f" last is {left:.2f} on the left and {right:.2f} on the right in the median; train longer, or keep more"
            " checkpoints"
        )
        return [Finding("note", text)]
    middle = median(row.settled_step for row in settled)
    text = (
        f"In {counted(len(settled), len(rows))} the direction of ΔW has settled before the last checkpoint, in the"
        f" median from {result.unit} {middle:.0f} of {result.steps[-1]}: φ with the last is {SETTLED:g} or more on"
        " both sides from then on"
    )
    made = [Finding("note", text)]
    last = [row for row in rows if row.settled_step is None]
    if last and len(last) < len(rows):
        text = f"Still turning between the last two checkpoints, as are {len(last) - 1} other modules"
        made.append(Finding("note", text if len(last) > 1 else "Still turning between the last two", last[0].name))
    return made


def _rank(result: TrajectoryResult) -> list[Finding]:
    first = next((c for c in result.checkpoints if c.medians["stable_rank"] is not None), None)
    last = result.checkpoints[-1]
    if first is None or first is last or last.medians["stable_rank"] is None:
        return []
    before, after = first.medians["stable_rank"], last.medians["stable_rank"]
    word = "rises" if after > 1.05 * before else "falls" if after < 0.95 * before else "stays near"  # type: ignore[operator]
    numbers = f"{after:.3g}" if word == "stays near" else f"from {before:.3g} to {after:.3g}"
    null = result.summary()["median_null_stable_rank"]
    baseline = "" if null is None else f"; random factors of these shapes have {null:.3g}"
    text = f"The median stable rank {word} {numbers} between {result.unit} {first.step} and {last.step}{baseline}"
    return [Finding("note", text)]


def _growth(result: TrajectoryResult) -> list[Finding]:
    before, last = result.checkpoints[-2:]
    if not before.frobenius_norm:
        return []
    change = last.frobenius_norm / before.frobenius_norm - 1
    if abs(change) < GROWING:
        return [Finding("note", f"‖ΔW‖_F changes by {percent(abs(change))} over the last interval: it is at rest")]
    word = "grows" if change > 0 else "shrinks"
    text = f"‖ΔW‖_F still {word} by {percent(abs(change))} between {result.unit} {before.step} and {last.step}"
    return [Finding("note", text)]


def _losses(result: TrajectoryResult) -> list[Finding]:
    lowest = result.lowest_logged
    logged = [loss for loss in result.losses if loss.kind == "evaluation"]
    if lowest is None or len(logged) < 2:
        return []
    last = logged[-1]
    if last.loss <= lowest.loss * (1 + WORSE):
        return []
    nearest = min(result.checkpoints, key=lambda each: abs(each.step - lowest.step))
    text = f"The logged evaluation loss is lowest at step {lowest.step} ({lowest.loss:.4g}) and ends at {last.loss:.4g}"
    action = f"Use the checkpoint of {result.unit} {nearest.step}"
    return [rules.EARLIER_BETTER.finding(text, action=action)]


def _best(result: TrajectoryResult) -> list[Finding]:
    best = result.best
    if best is None or best.score is None:
        return []
    last = result.checkpoints[-1].score
    assert last is not None  # all are scored, or none
    loss = f"loss {best.score['loss']:.4f}"
    text = f"The checkpoint of {result.unit} {best.step} evaluates best on {result.scored_on}: {loss}"
    better = best.step != result.steps[-1]
    text += f"; the last one has {last['loss']:.4f}" if better else ", and it is the last one"
    return [Finding("note", text, action=f"Use {best.path}" if better else "")]


def _reader(result: TrajectoryResult) -> list[Finding]:
    made = [rules.about_file(note) for note in result.notes]
    if partial(result):
        text = "What is followed is the low-rank part s·B·A alone, not the whole ΔW"
        made.append(rules.PARTIAL_UPDATE.finding(text, action="Pass --base MODEL for the full ΔW"))
    if result.skipped:
        names, count = preview([item.name for item in result.skipped], 2), len(result.skipped)
        made.append(
            rules.SKIPPED.finding(f"{count} tensor{'s' * (count != 1)} skipped ({names}); reasons in the table")
        )
    return made
