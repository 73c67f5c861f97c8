"""Checkpoints found by the names that trainers give them."""

import json

import pytest

from lorascope.errors import InputError
from lorascope.weights.series import find


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode())


def steps(series) -> list[int | None]:
    return [each.step for each in series.snapshots]


@pytest.mark.parametrize(
    ("names", "expected", "unit"),
    [
        (["checkpoint-100", "checkpoint-20", "checkpoint-30"], [20, 30, 100], "step"),
        (["0000100_adapters.safetensors", "0000200_adapters.safetensors", "adapters.safetensors"], [100, 200], "step"),
        (["x-step00000500.safetensors", "x-step00001000.safetensors", "x.safetensors"], [500, 1000], "step"),
        (["x-000002.safetensors", "x-000004.safetensors", "x.safetensors"], [2, 4], "epoch"),
        (["x_000000250.safetensors", "x_000000500.safetensors"], [250, 500], "step"),
        (["snapshots/step-0000004", "snapshots/step-0000008"], [4, 8], "step"),
    ],
)
def test_series_in_a_folder(tmp_path, names, expected, unit):
    for name in names:
        touch(tmp_path / name if "." in name else tmp_path / name / "adapter_model.safetensors")
    series = find([tmp_path])
    assert steps(series) == expected
    assert series.unit == unit


def test_the_same_checkpoints_named_one_by_one(tmp_path):
    paths = [tmp_path / f"checkpoint-{n}" for n in (30, 20)]
    for path in paths:
        touch(path / "adapter_model.safetensors")
    assert steps(find(paths)) == [20, 30]
    files = [tmp_path / f"0000{n}00_adapters.safetensors" for n in (1, 3)]
    touch(*files)
    assert steps(find(files)) == [100, 300]


def test_the_step_of_a_folder_of_another_name_is_the_trainers(tmp_path):
    for name, step in (("late", 9), ("early", 3)):
        touch(tmp_path / name / "adapter_model.safetensors")
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    assert steps(find([tmp_path / "late", tmp_path / "early"])) == [3, 9]


def test_without_any_step_the_order_given_counts(tmp_path):
    paths = [tmp_path / "b.safetensors", tmp_path / "a.safetensors"]
    touch(*paths)
    series = find(paths)
    assert [each.path for each in series.snapshots] == paths
    assert (steps(series), series.unit) == ([1, 2], "order")
    assert "order given" in series.notes[0]


def test_the_adapter_that_a_run_ends_with_counts_once(tmp_path):
    for step in (10, 20):
        touch(tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors")
    (tmp_path / "checkpoint-20" / "trainer_state.json").write_text(json.dumps({"max_steps": 25}))
    touch(tmp_path / "adapter_model.safetensors")
    assert steps(find([tmp_path])) == [10, 20], "the same bytes as the last checkpoint"
    (tmp_path / "adapter_model.safetensors").write_bytes(b"others")
    assert steps(find([tmp_path])) == [10, 20, 25]
    (tmp_path / "checkpoint-20" / "trainer_state.json").unlink()
    series = find([tmp_path])
    assert steps(series) == [10, 20]
    assert "skipped" in series.notes[0]


def test_a_run_of_ours_with_its_losses(tmp_path):
    for step in (2, 4):
        touch(tmp_path / "snapshots" / f"step-{step:07d}" / "adapter_model.safetensors")
    (tmp_path / "config.yaml").write_text("model: {}")
    lines = [{"step": 2, "train_loss": 1.0}, {"step": 2, "eval_loss": 1.5}, {"step": 4, "train_loss": None}, "x"]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    series = find([tmp_path])
    assert [(loss.step, loss.kind, loss.loss) for loss in series.losses] == [
        (2, "evaluation", 1.5),
        (2, "training", 1.0),
    ]
    touch(tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "summary.json").write_text(json.dumps({"steps": 5, "best_step": None}))
    assert steps(find([tmp_path])) == [2, 4, 5]


def test_what_is_no_series_is_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        find([tmp_path / "absent"])
    touch(tmp_path / "one" / "adapter_model.safetensors")
    with pytest.raises(InputError, match="two checkpoints or more") as refusal:
        find([tmp_path / "one"])
    assert "training.snapshot_steps: N" in str(refusal.value.hint)  # the key that keeps them
    for parent in ("a", "b"):
        touch(tmp_path / parent / "checkpoint-10" / "adapter_model.safetensors")
    with pytest.raises(InputError, match="two checkpoints are of step 10"):
        find([tmp_path / parent / "checkpoint-10" for parent in ("a", "b")])
    touch(*(tmp_path / "two" / f"{name}-00000{n}.safetensors" for name in "xy" for n in (1, 2)))
    with pytest.raises(InputError, match="several adapters"):
        find([tmp_path / "two"])
