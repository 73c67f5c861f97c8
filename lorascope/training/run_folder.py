"""The folder of a run: everything needed to know what was done, and to do it again.

config.yaml     the resolved config, every default written out
run.json        the command, package versions, seed, device
metrics.jsonl   one line per logged step
calibration.json  what the method learned of the task before training, where it does (LoRA-drop's scores)
checkpoint.pt   adapter, optimiser and step, while it runs
snapshots/      the adapter as it was after some steps, where the config asks for it
adapter/        the trained adapter in PEFT's layout
summary.json    how it ended
"""

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from lorascope import __version__, locks
from lorascope.destinations import check_regular
from lorascope.errors import InputError, LorascopeError
from lorascope.inputs import ANY, OBJECT, parse_yaml, read_json, read_json_lines, read_yaml
from lorascope.outputs import append_json, finite, json_text, write_json, write_text
from lorascope.training.config import RunConfig, parse, resolved
from lorascope.weights.series import SNAPSHOTS

FILES = (
    "config.yaml", "run.json", "metrics.jsonl", "calibration.json", "rehearsal.json", "checkpoint.pt", "summary.json",
    "adapter",
)  # fmt: skip
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "datasets", "scikit-learn")
FACTS, SUMMARY = "run.json", "summary.json"


def _number(value: object) -> bool:
    """Whether it is a number or null. Earlier versions wrote NaN for some."""
    return value is None or type(value) in (int, float)


COUNT, MAYBE_COUNT, WORD, MAYBE_WORD = (int,), (int, type(None)), (str,), (str, type(None))
SCORE = {"loss": _number, "accuracy": _number, "targets?": COUNT}
# What the files of a run must hold, in the words of `inputs.misfit`; earlier versions wrote fewer keys.
SHAPES: dict[str, Any] = {
    FACTS: {
        "command?": [WORD],
        "device?": WORD,
        "trained_parameters?": MAYBE_COUNT,
        "trains?": {str: [COUNT]},
        "notes?": [WORD],
        "versions?": {str: WORD},
    },
    SUMMARY: {
        "steps?": COUNT,
        "best_step?": MAYBE_COUNT,
        "seconds?": _number,
        "diverged?": MAYBE_WORD,
        "status?": MAYBE_WORD,
        "held_out?": SCORE,
        "base?": SCORE,
        "inference?": {str: ANY},
        "method?": {str: ANY},
    },
    "config.yaml": {
        "model": OBJECT,
        "data": OBJECT,
        "method": {"name": WORD, "rank?": MAYBE_COUNT, "d?": MAYBE_COUNT},
        "optim": {"learning_rate": (float,)},
        "training": {"seed": COUNT},  # its last line: what is cut off lacks it
    },
}
AGAIN = "restore the file, or train the run again"


def read_facts(folder: Path) -> dict[str, Any]:
    """What a run's record says of how it was started; empty where there is none. InputError where it is damaged."""
    path = folder / FACTS
    return read_json(path, SHAPES[FACTS], hint=AGAIN) if os.path.lexists(path) else {}


def read_summary(folder: Path) -> dict[str, Any]:
    """How a run ended, null for numbers that are none; empty where it has not. InputError where it is damaged."""
    path = folder / SUMMARY
    if not os.path.lexists(path):
        return {}
    summary = finite(read_json(path, SHAPES[SUMMARY], hint=AGAIN))
    if "held_out" not in summary and not summary.get("diverged"):
        raise InputError(f"{path} is damaged", found="neither held_out nor diverged", hint=AGAIN)
    return summary


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a run as it stands in its folder. InputError where it cannot be read or is damaged."""
    return read_yaml(folder / "config.yaml", SHAPES["config.yaml"])


@contextmanager
def working_in(folder: Path, first: bool = True) -> Iterator[None]:
    """Holds the folder of a run for this process, the `first` of a run. One that is refused before it wrote anything
    leaves no folder.

    Raises:
        InputError: another process works in it.
        LorascopeError: the folder cannot be written.
    """
    if not first:
        yield
        return
    try:
        with locks.owning(folder):
            yield
    except LorascopeError:
        with suppress(OSError):  # it is not empty, or another process was first
            folder.rmdir()
        raise


class Record:
    """Writes a run's folder. Every file but the metrics appears whole or not at all.

    Args:
        folder: made where it is not there.
        config: of the run.
        replace: take the place of a run that is there already, as `quickstart` does.

    Raises:
        InputError: the folder holds a run, or other files.
        LorascopeError: it cannot be written.
    """

    def __init__(self, folder: Path, config: RunConfig, *, resume: bool = False, replace: bool = False):
        self.folder, self.config = folder, config
        self.text = yaml.safe_dump(resolved(config), sort_keys=False, allow_unicode=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if resume:
                self._same_config()
            else:
                self._clear(replace)
            check_regular(folder / name for name in FILES if name != "adapter")
            if os.path.lexists(self.adapter) and not self.adapter.is_dir():
                raise InputError(f"{self.adapter} is not a folder", hint="remove it")
            for left in self._left():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        except OSError as error:
            raise LorascopeError(
                f"cannot use the folder {folder}", found=error.strerror, hint="name another"
            ) from error

    def claim(self) -> None:
        """Write the config: from now on the folder holds a run, which can be resumed."""
        write_text(self.folder / "config.yaml", self.text)

    def start(self, command: Sequence[str], device: str, **more: Any) -> None:
        """Write the config and what the run depends on besides."""
        self.claim()
        facts = {
            "lorascope": __version__,
            "command": list(command),
            "seed": self.config.training.seed,
            "device": device,
            "python": sys.version.split()[0],
            "platform": platform.platform(),
            "versions": {name: found for name in PACKAGES if (found := package_version(name))},
            **more,
        }
        write_json(self.folder / FACTS, facts)

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to the metrics; a number that is not finite is null there."""
        append_json(self.folder / "metrics.jsonl", line)

    def rewind(self, step: int) -> None:
        """Drop the metrics after `step`: a resumed run writes them again. InputError where the file is damaged.

        Its last line may be cut off, as a run leaves it that was killed while it wrote.
        """
        path = self.folder / "metrics.jsonl"
        if not os.path.lexists(path):
            return
        lines = list(read_json_lines(path))
        steps = [line.get("step") if isinstance(line, dict) else None for line in lines]
        for number, found in enumerate(steps[:-1], 1):
            if not isinstance(found, int):
                raise InputError(
                    f"{path} is damaged", found=f"no step in line {number}", hint="delete it, and resume again"
                )
        kept = [line for line, at in zip(lines, steps, strict=True) if isinstance(at, int) and at <= step]
        write_text(path, "".join(json_text(line) + "\n" for line in kept))

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    def _same_config(self) -> None:
        path = self.folder / "config.yaml"
        if not os.path.lexists(path):
            raise InputError(
                f"{self.folder} is not a run directory, so there is nothing to resume", hint="start it without --resume"
            )
        before, now = read_config(self.folder), parse_yaml(self.text, "the config")
        with suppress(InputError):  # of a version that had fewer keys: their defaults are what it did
            before = parse_yaml(yaml.safe_dump(resolved(parse(before))), "the config")
        if before != now:
            keys = [f"{s}.{k}" for s in now for k in now[s] if (before.get(s) or {}).get(k) != now[s][k]]
            raise InputError(
                f"the config is not the one {self.folder} was started with",
                found=f"other values of {', '.join(keys) or 'some keys'}",
                hint="resume with the same config, or name another --output",
            )

    def _left(self) -> set[Path]:
        """What a run that was killed left half-written."""
        patterns = (".{}.*.part", "..{}.*.part", "..{}.*.old")  # two dots: of a stage written within a stage
        return {left for name in FILES for each in patterns for left in self.folder.glob(each.format(name))}

    def _clear(self, replace: bool) -> None:
        passed = {*self._left(), self.folder / locks.NAME}
        if not (self.folder / "config.yaml").exists() and set(self.folder.iterdir()) - passed:
            raise InputError(f"{self.folder} is not empty and is not a run directory", hint="name another --output")
        if (self.folder / "config.yaml").exists() and not replace:
            raise InputError(
                f"{self.folder} holds a run already",
                hint="continue it with lorascope train --resume, or name another --output",
            )
        for name in ("metrics.jsonl", "calibration.json", "rehearsal.json", "checkpoint.pt", "summary.json"):
            (self.folder / name).unlink(missing_ok=True)
        if (self.folder / SNAPSHOTS).is_dir():  # of the run whose place this one takes
            shutil.rmtree(self.folder / SNAPSHOTS)


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
