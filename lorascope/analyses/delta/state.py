"""What is finished of a large pair: a folder from which an interrupted run goes on.

`modules.jsonl` begins with the key of the run (hashes of all files, options), and has one line for each finished
parameter. Factors for `--extract` are in further files, one for each module. Every line has the hash of its record and
of its factors: what was cut off or changed is measured again. The folder is removed when the run is complete.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.analyses.delta.matrix import MatrixDelta, VectorDelta
from lorascope.destinations import check_regular
from lorascope.errors import InputError
from lorascope.inputs import misfit, open_regular, read_json_lines
from lorascope.locks import owning
from lorascope.outputs import append_json, json_text
from lorascope.weights.safetensors import open_safetensors, write_safetensors
from lorascope.weights.tensors import InMemory

_KINDS = {"matrix": MatrixDelta, "vector": VectorDelta}
_FACTORS = re.compile(r"[0-9a-f]{24}\.safetensors")
_VERSION = 4  # of the record: another one starts afresh


@contextlib.contextmanager
def keeping(folder: Path | None, key: Mapping[str, Any]) -> Iterator["State | None"]:
    """The state of one run, which no other process may have at the same time; None without a folder.

    Raises:
        InputError: another process is at work in it.
        LorascopeError: the folder cannot be read or written.
    """
    if folder is None:
        yield None
        return
    try:
        with owning(folder):
            yield State(folder, key)
    finally:
        with contextlib.suppress(OSError):  # unfinished work, or other files, lie there
            folder.rmdir()


class State:
    """The finished parameters of one run in `folder`.

    Args:
        folder: where they lie; made when the first one is finished.
        key: what the run depends on; a folder of another run is begun afresh.

    Raises:
        LorascopeError: the folder cannot be read or written.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]):
        self.folder, self.path = folder, folder / "modules.jsonl"
        text = json.dumps([_VERSION, dict(key)], sort_keys=True, default=str)
        self.key = hashlib.sha256(text.encode()).hexdigest()
        self.done: dict[str, MatrixDelta | VectorDelta] = {}
        self._started = False
        check_regular([self.path, *self._kept_factors()])
        if self.path.exists():
            self._read()

    def _read(self) -> None:
        lines = read_json_lines(self.path)
        first = next(lines, None)
        if first != {"key": self.key}:
            if self.path.stat().st_size and misfit(first, {"key": (str,)}):  # an empty one is of a run that was killed
                raise InputError(f"{self.path} is not a state of lorascope", hint="name another folder with --state")
            self._clear()
            return
        self._started = True
        for record in lines:
            with contextlib.suppress(KeyError, TypeError, AttributeError, InputError):  # damaged: measured again
                name = record["name"]
                if record.pop("sha256") == _hash(record) and self._are_kept(name, record["factors"]):
                    self.done[name] = _restored(record)

    def add(self, name: str, finished: MatrixDelta | VectorDelta, factors: Mapping[str, np.ndarray] | None) -> None:
        """Keep one finished parameter, on the disk before this returns."""
        if factors is not None:
            stored = {role: InMemory(values, "F32") for role, values in factors.items()}
            write_safetensors(self._factors(name), stored, {})
        if not self._started:
            append_json(self.path, {"key": self.key})
        self._started = True
        kept = None if factors is None else self._about_factors(name)
        record = json.loads(json_text(_record(name, finished, kept), default=_plain))
        append_json(self.path, {**record, "sha256": _hash(record)})
        self.done[name] = finished

    def _about_factors(self, name: str) -> list[Any]:
        """The size and the hash of their file."""
        with open_regular(self._factors(name)) as file:
            return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()]

    def _are_kept(self, name: str, about: list[Any] | None) -> bool:
        """Whether a parameter's factors, where it has any, are those that were written."""
        path = self._factors(name)
        if about is None:
            return not path.exists()
        return path.exists() and path.stat().st_size == about[0] and self._about_factors(name) == about

    def factors(self, name: str) -> dict[str, np.ndarray] | None:
        """The factors kept with a finished parameter, where there are any."""
        path = self._factors(name)
        return {role: stored.read() for role, stored in open_safetensors(path)[0].items()} if path.is_file() else None

    def _factors(self, name: str) -> Path:
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.safetensors"

    def remove(self) -> None:
        """The run is complete: nothing of it is left behind. Other files in the folder are not ours."""
        if self._started:
            self._clear()

    def _clear(self) -> None:
        for path in (self.path, *self._kept_factors()):
            path.unlink(missing_ok=True)

    def _kept_factors(self) -> list[Path]:
        return [path for path in self.folder.glob("*.safetensors") if _FACTORS.fullmatch(path.name)]


def _record(name: str, finished: MatrixDelta | VectorDelta, factors: list[Any] | None) -> dict[str, Any]:
    kind = next(kind for kind, sort in _KINDS.items() if isinstance(finished, sort))
    return {"name": name, "kind": kind, "record": asdict(finished), "factors": factors}


def _hash(record: Mapping[str, Any]) -> str:
    """Of what a line says, as it is read back."""
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _restored(record: dict[str, Any]) -> MatrixDelta | VectorDelta:
    values = record["record"]
    for key in ("shape", "singular_values", "notes"):
        if isinstance(values.get(key), list):
            values[key] = tuple(values[key])
    return _KINDS[record["kind"]](**values)


def _plain(value: Any) -> Any:
    """What json does not know: mappings and records inside a record."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return dict(value) if isinstance(value, Mapping) else float(value)
