"""The checkpoints of one training run, in order: found by their folders' and files' names, with their losses.

Known are the folders of our own runs (`snapshots/step-10`, and `adapter`), the `checkpoint-10` of transformers' Trainer
and TRL, and files with a number in their name: MLX's `0000100_adapters.safetensors`, sd-scripts'
`name-step00000500.safetensors` and `name-000004.safetensors`, ai-toolkit's `name_000000500.safetensors`.
"""

import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from lorascope.errors import InputError, preview
from lorascope.inputs import open_regular, read_json, read_json_lines

SNAPSHOTS = "snapshots"  # of our own runs: a folder with one adapter for each step, step-0000010
STATE = "trainer_state.json"  # transformers', in each of its checkpoints
WEIGHTS = (".safetensors", ".bin", ".gguf")
_FOLDER = re.compile(r"^(?:checkpoint|step|global_step|iter|epoch)[-_]?(\d+)$")
_FILES = (
    ("step", re.compile(r"^(?P<name>.*?)[-_]step[-_]?(?P<number>\d+)$")),
    ("step", re.compile(r"^(?P<number>\d{5,})_(?P<name>adapters)$")),
    ("step", re.compile(r"^(?P<name>.+)_(?P<number>\d{6,})$")),
    ("epoch", re.compile(r"^(?P<name>.+)-(?P<number>\d{6})$")),
)
_LOSSES = {"loss": "training", "train_loss": "training", "eval_loss": "evaluation"}
MAX_LOSSES = 200_000  # lines of a log


@dataclass(frozen=True)
class Snapshot:
    """One checkpoint: an adapter's file or folder, and when it was written. `step` is None where nothing says."""

    path: Path
    step: int | None


@dataclass(frozen=True)
class Loss:
    """A loss of the run's own log. `kind` is training or evaluation."""

    step: int
    kind: str
    loss: float


@dataclass(frozen=True)
class Series:
    """Checkpoints by step, the run's losses, and what should be known of how they were found.

    Attributes:
        unit: what the steps count: step, epoch, or order where nothing says.
    """

    snapshots: tuple[Snapshot, ...]
    losses: tuple[Loss, ...] = ()
    unit: str = "step"
    notes: tuple[str, ...] = ()


def find(paths: Sequence[Path]) -> Series:
    """The checkpoints at these paths: of one folder, those in it; several, each by itself or the ones in it.

    Raises:
        InputError: a path is missing, there are fewer than two checkpoints, or two of one step.
    """
    snapshots: list[Snapshot] = []
    notes: list[str] = []
    units = set()
    for path in paths:
        if not path.exists():
            raise InputError(f"no such file or folder: {path}")
        inside, unit, of_folder = _inside(path)
        snapshots += inside or [Snapshot(path, _step_of(path))]
        units |= {unit} if inside else {_unit_of(path)}
        notes += of_folder
    if len(snapshots) < 2:
        counted = f"{len(snapshots)}"
        if len(paths) == 1:
            empty = paths[0].is_dir() and not any(paths[0].iterdir())
            counted = f"{'nothing' if empty else counted} in {paths[0]}"
        raise InputError(
            "a trajectory needs two checkpoints or more",
            found=counted,
            expected="a run's folder with snapshots or checkpoint-N in it, or several checkpoints",
            hint="train with training.snapshot_steps: N, which keeps the adapter of every N steps (training.save_steps"
            " keeps none: its checkpoint is for resuming); with transformers' Trainer, set save_steps=N without"
            " save_total_limit",
        )
    unit = units.pop() if len(units) == 1 else "step"
    if any(each.step is None for each in snapshots):
        notes.append("No name and no file says of which step each checkpoint is: they are taken in the order given")
        return Series(tuple(replace(s, step=i) for i, s in enumerate(snapshots, 1)), (), "order", tuple(notes))
    snapshots.sort(key=lambda each: each.step or 0)
    for one, other in pairwise(snapshots):
        if one.step == other.step:
            places = f"{one.path} and {other.path}"
            raise InputError(f"two checkpoints are of {unit} {one.step}", found=places, hint="name those of one run")
    return Series(tuple(snapshots), tuple(_losses(paths, snapshots)), unit, tuple(notes))


# --- where checkpoints lie -------------------------------------------------------------------------------------------


def _inside(path: Path) -> tuple[list[Snapshot], str, list[str]]:
    """The checkpoints in a folder, what their numbers count, and remarks; none where it is one itself."""
    if not path.is_dir():
        return [], "step", []
    at = path / SNAPSHOTS if (path / SNAPSHOTS).is_dir() else path
    folders = [Snapshot(each, int(m[1])) for each in _entries(at) if each.is_dir() and (m := _FOLDER.match(each.name))]
    if folders:
        last, notes = _last_adapter(path, folders)
        return [*folders, *last], "step", notes
    return _numbered_files(path)


def _entries(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if not each.name.startswith("."))


def _last_adapter(path: Path, folders: Sequence[Snapshot]) -> tuple[list[Snapshot], list[str]]:
    """The adapter that the run ended with, where it is of a step of its own."""
    if (path / "adapter").is_dir() and (path / "summary.json").is_file():
        summary = read_json(path / "summary.json")
        step = summary.get("best_step") or summary.get("steps")
        if isinstance(step, int) and step not in {each.step for each in folders}:
            return [Snapshot(path / "adapter", step)], []
        return [], []
    final = next((path / f"adapter_model{end}" for end in WEIGHTS if (path / f"adapter_model{end}").is_file()), None)
    if final is None:
        return [], []
    newest = max(folders, key=lambda each: each.step or 0)
    if _same_bytes(final, newest.path / final.name):
        return [], []
    step = _step_of(path) or _state(newest.path).get("max_steps")
    if isinstance(step, int) and step > (newest.step or 0):
        return [Snapshot(path, step)], []
    return [], [f"the adapter in {path} itself was skipped: nothing says of which step it is"]


def _same_bytes(one: Path, other: Path) -> bool:
    if not other.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    digests = []
    for path in (one, other):
        with open_regular(path) as file:
            digests.append(hashlib.file_digest(file, "sha256").digest())
    return digests[0] == digests[1]


def _numbered_files(folder: Path) -> tuple[list[Snapshot], str, list[str]]:
    """Weights files whose names end (MLX: begin) in a number, of one adapter."""
    by_name: dict[tuple[str, str], list[Snapshot]] = {}
    for path in _entries(folder):
        if (place := _numbered(path)) is not None:
            unit, name, number = place
            by_name.setdefault((unit, name), []).append(Snapshot(path, number))
    if not by_name:
        return [], "step", []
    most = max(len(group) for group in by_name.values())
    largest = [key for key, group in by_name.items() if len(group) == most]
    if len(largest) > 1:
        raise InputError(
            f"{folder} holds the checkpoints of several adapters",
            found=preview([name for _, name in largest]),
            hint="name the files of one of them",
        )
    (unit, name), group = largest[0], by_name[largest[0]]
    others = sum(len(each) for each in by_name.values()) - len(group)
    notes = [f"{others} other numbered files of {folder} were skipped: the series is that of {name}"] if others else []
    return group, unit, notes


def _numbered(path: Path) -> tuple[str, str, int] | None:
    """What a weights file's number counts, its name without it, and the number; None of another file."""
    if path.suffix not in WEIGHTS or not path.is_file():
        return None
    for unit, pattern in _FILES:
        if match := pattern.match(path.stem):
            return unit, match["name"], int(match["number"])
    return None


def _unit_of(path: Path) -> str:
    place = _numbered(path)
    return "step" if place is None else place[0]


def _step_of(path: Path) -> int | None:
    """The step of one checkpoint, by its name or what the trainer left in it."""
    if (place := _numbered(path)) is not None:
        return place[2]
    folder = path if path.is_dir() else path.parent
    if match := _FOLDER.match(folder.absolute().name):
        return int(match[1])
    step = _state(folder).get("global_step")
    return step if isinstance(step, int) else None


def _state(folder: Path) -> Mapping[str, Any]:
    """What transformers' Trainer says of a checkpoint; empty where it says nothing."""
    path = folder / STATE
    return read_json(path) if os.path.lexists(path) else {}


# --- losses ----------------------------------------------------------------------------------------------------------


def _losses(paths: Sequence[Path], snapshots: Sequence[Snapshot]) -> list[Loss]:
    """The losses that the run logged, each once, by step."""
    folders = [path for path in paths if path.is_dir()]
    folders += [each.path if each.path.is_dir() else each.path.parent for each in reversed(snapshots)]
    folders += [folder.parent for folder in folders] + [folder.parent.parent for folder in folders]
    losses: dict[tuple[int, str], Loss] = {}
    for folder in dict.fromkeys(folders):
        history = _state(folder).get("log_history")
        for loss in (*losses_in(history if isinstance(history, list) else ()), *_of_metrics(folder)):
            losses.setdefault((loss.step, loss.kind), loss)
    return sorted(losses.values(), key=lambda loss: (loss.step, loss.kind))


def _of_metrics(folder: Path) -> list[Loss]:
    path = folder / "metrics.jsonl"
    return losses_in(read_json_lines(path)) if (folder / "config.yaml").is_file() and os.path.lexists(path) else []


def losses_in(lines: Iterable[Any]) -> list[Loss]:
    """The losses in the lines of a log: transformers' `log_history`, or our `metrics.jsonl`."""
    losses: list[Loss] = []
    for line in lines:
        if not isinstance(line, dict) or type(step := line.get("step")) is not int or len(losses) >= MAX_LOSSES:
            continue
        if "train_runtime" in line:  # the Trainer's last line, whose train_loss is the mean over all steps
            continue
        for key, kind in _LOSSES.items():
            value = line.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                losses.append(Loss(step, kind, float(value)))
    return losses
