"""The folder of a run: everything needed to know what was done, and to do it again.

config.yaml     the resolved config, every default written out
run.json        the command, package versions, seed, device
metrics.jsonl   one line per logged step
rehearsal.json  what the method learned of the task before training, where it does (LoRA-drop's scores)
checkpoint.pt   adapter, optimiser and step, while it runs
adapter/        the trained adapter in PEFT's layout
summary.json    how it ended
"""

import json
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from lorascope import __version__
from lorascope.atomic import write_bytes
from lorascope.errors import InputError, LorascopeError
from lorascope.training.config import RunConfig, parse, resolved

FILES = ("config.yaml", "run.json", "metrics.jsonl", "rehearsal.json", "checkpoint.pt", "summary.json")
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "datasets", "scikit-learn")


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
            for name in FILES:
                for left in folder.glob(f".{name}.*"):  # of a run that was killed while it wrote
                    left.unlink()
        except OSError as error:
            raise LorascopeError(
                f"cannot use the folder {folder}", found=error.strerror, hint="name another"
            ) from error

    def claim(self) -> None:
        """Write the config: from now on the folder holds a run, which can be resumed."""
        write_bytes(self.folder / "config.yaml", self.text.encode())

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
        write_json(self.folder / "run.json", facts)

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to the metrics."""
        path = self.folder / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise LorascopeError(f"cannot write {path}", found=error.strerror) from error

    def rewind(self, step: int) -> None:
        """Drop the metrics after `step`: a resumed run writes them again."""
        path = self.folder / "metrics.jsonl"
        if path.exists():
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
            write_bytes(path, "".join(line + "\n" for line in lines).encode())

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"

    def _same_config(self) -> None:
        path = self.folder / "config.yaml"
        if not path.is_file():
            raise InputError(f"{self.folder} holds no run to resume", hint="start it without --resume")
        before, now = yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(self.text)
        with suppress(InputError):  # of a version that had fewer keys: their defaults are what it did
            before = yaml.safe_load(yaml.safe_dump(resolved(parse(before))))
        if before != now:
            keys = [f"{s}.{k}" for s in now for k in now[s] if before.get(s, {}).get(k) != now[s][k]]
            raise InputError(
                f"the config is not the one {self.folder} was started with",
                found=f"other values of {', '.join(keys) or 'some keys'}",
                hint="resume with the same config, or name another --output",
            )

    def _clear(self, replace: bool) -> None:
        if not (self.folder / "config.yaml").exists() and any(self.folder.iterdir()):
            raise InputError(f"{self.folder} is not empty and holds no run of lorascope", hint="name another --output")
        if (self.folder / "config.yaml").exists() and not replace:
            raise InputError(
                f"{self.folder} holds a run already", hint="continue it with --resume, or name another --output"
            )
        for name in ("metrics.jsonl", "rehearsal.json", "checkpoint.pt", "summary.json"):
            (self.folder / name).unlink(missing_ok=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):  # half a line, of a run that was killed while it wrote
        return float("inf")


def package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
