"""Full fine-tuning's curve: its steps to a loss, and the runs that it is made of."""

import json

import pandas as pd

from lorascope.study import Results
from lorascope.study.gains import BY_STEP, FULL_TUNING, by_method, steps_to
from lorascope.study.measures import by_step
from lorascope.study.tasks import scales

SCALE = scales({"smoke": {}, "small": {}, "full": {}})["small"]


def results(losses):
    """Of one replicate, scored at steps 10, 20, ..., with LoRA at 0.75 and full fine-tuning at 0.5."""
    table = pd.DataFrame({"replicate": 0, "step": range(10, 10 * len(losses) + 1, 10), "held_out_loss": losses})
    runs = [
        {
            "method": method,
            "replicate": 0,
            "learning_rate": 1e-3,
            "loss": loss,
            "held_out_loss": loss,
            "trained": n,
            "key": method,
        }
        for method, loss, n in (("head alone", 1.0, 5), ("LoRA", 0.75, 7), (FULL_TUNING, 0.5, 9), (BY_STEP, 0.5, 9))
    ]
    return Results(pd.DataFrame(runs), {"by_step": table}, SCALE, pd.DataFrame())


def test_steps_to_a_loss_lie_on_lines_between_evaluations():
    found = results([1.0, 0.8, 0.9, 0.6])
    assert steps_to(found, 0.9) == 15  # half way from 1.0 to 0.8
    assert steps_to(found, 0.7) == 35  # the rise to 0.9 at step 30 is no progress
    assert steps_to(found, 1.1) is None
    assert steps_to(found, 0.5) is None


def test_the_table_of_methods_has_the_steps_and_not_the_arm():
    table = by_method(results([1.0, 0.5]))
    place = [column.key for column in table.columns].index("steps")
    assert {row[0]: row[place] for row in table.rows} == {"head alone": 10, "LoRA": 15, FULL_TUNING: 20}
    assert "steps" not in [column.key for column in by_method(results([])).columns]


def test_the_arm_and_what_is_measured_on_it(tmp_path):
    arm = by_step.arm(SCALE, {"rank": None})
    assert (arm.changes["training.eval_steps"], arm.rate_of) == (10, {"method": FULL_TUNING, "rank": None})
    lines = [{"step": 10, "train_loss": 1.5}, {"step": 10, "eval_loss": 1.25}, {"step": 20, "eval_loss": 0.75}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [tuple(row.values()) for row in by_step.held_out_by_step([tmp_path], BY_STEP)] == [(10, 1.25), (20, 0.75)]
    assert len(by_step.figure(results([1.0, 0.5]))) == 1
    assert by_step.figure(results([])) == []
    assert [spec.runs for spec in by_step.specs(results([]))] == [(BY_STEP,)]
