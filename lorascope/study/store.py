"""The store: finished work by the hash of what it is, so that nothing is done twice, in whatever study.

Each job has a folder named by its key: `spec.json` (what it is), what it made (a training run in `run/`), and
`done.json`, written last; or `failed.json`, which says why it is not there. A run's key covers its resolved config, the
versions that its numbers depend on and `RECIPE`; not the device, nor how many threads.
"""

import ast
import hashlib
import inspect
import json
import shutil
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorascope import __version__
from lorascope.training.record import package_version, write_json

# Raised by hand when a change of the code changes what a config trains: `tests/study/test_store.py` notices.
RECIPE = 1
VERSIONS = ("torch", "transformers", "tokenizers")  # of the packages whose release changes a run's numbers
NOT_OF_THE_RESULT = ("device", "num_threads", "measure_cost", "save_steps", "logging_steps")


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
        spec: what it is, JSON types only: `kind` is "train" or "measure".
        inputs: keys of jobs whose folders it reads.
        title: for the progress display and the failures.
    """

    spec: Mapping[str, Any]
    inputs: tuple[str, ...] = ()
    title: str = ""

    @property
    def key(self) -> str:
        """Sixteen hexadecimal digits."""
        spec = dict(self.spec)
        if spec["kind"] == "train":
            training = {k: v for k, v in spec["config"]["training"].items() if k not in NOT_OF_THE_RESULT}
            spec["config"] = {**spec["config"], "training": training}
            spec["versions"] = {name: package_version(name) for name in VERSIONS} | {"recipe": RECIPE}
        else:
            spec["script"] = Path(spec["script"]).name  # not where it lies
        text = json.dumps([spec, list(self.inputs)], sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint(function: Callable[..., Any]) -> str:
    """Of a function's code and that of the functions of its own module that it names, comments and docstrings apart.

    A measure whose code changes is measured again.
    """
    found: dict[str, str] = {}
    _collect(function, found)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def _collect(function: Callable[..., Any], found: dict[str, str]) -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            node.body = body[1:] or [ast.Pass()]
    found[function.__name__] = ast.dump(tree)
    for node in ast.walk(tree):
        other = function.__globals__.get(node.id) if isinstance(node, ast.Name) else None
        own = inspect.isfunction(other) and other.__module__ == function.__module__
        if own and other.__name__ not in found:
            _collect(other, found)


class Store:
    """Folders by key under one root, made where it is not there."""

    def __init__(self, root: Path):
        self.root = root
        root.mkdir(parents=True, exist_ok=True)

    def folder(self, key: str) -> Path:
        return self.root / key[:2] / key

    def run_folder(self, key: str) -> Path:
        """A training run's own folder, as `lorascope train` writes it."""
        return self.folder(key) / "run"

    def done(self, key: str) -> Mapping[str, Any] | None:
        """What `finish` was told; None where the job is not finished."""
        return _read(self.folder(key) / "done.json")

    def failure(self, key: str) -> Mapping[str, Any] | None:
        """Why the job failed when it was last tried; None where it did not."""
        return None if self.done(key) else _read(self.folder(key) / "failed.json")

    def begin(self, job: Job) -> Path:
        """The job's folder, ready to work in. What an earlier try left is kept, so that it can be resumed."""
        folder = self.folder(job.key)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "failed.json").unlink(missing_ok=True)
        write_json(folder / "spec.json", {**job.spec, "inputs": list(job.inputs), "lorascope": __version__})
        return folder

    def finish(self, key: str, facts: Mapping[str, Any]) -> None:
        write_json(self.folder(key) / "done.json", facts)

    def fail(self, job: Job, message: str) -> None:
        folder = self.folder(job.key)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "failed.json", {"title": job.title, "message": message})

    def discard(self, key: str) -> None:
        shutil.rmtree(self.folder(key), ignore_errors=True)


def _read(path: Path) -> Mapping[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
