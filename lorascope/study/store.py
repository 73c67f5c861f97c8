"""The store: finished work by the hash of what it is, so that nothing is done twice, in whatever study.

Each job has a folder named by its key: `spec.json` (what it is), what it made (a training run in `run/`), and
`done.json`, written last; or `failed.json`, which says why it is not there. A run's key covers its resolved config, the
versions that its numbers depend on and `RECIPE`; not the device, nor how many threads. A measure's covers its code; the
device, which changes its numbers by rounding alone, neither.

Several processes may use one store at once: each job is worked on under its lock, and who waited for it finds it done.

A run's weights may be missing where its scores are there (`scored`): they were removed to make room, or did not travel
with the rest (`pack`). A measure that needs them has the run trained again.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorascope import __version__, portable
from lorascope.errors import InputError, LorascopeError
from lorascope.inputs import read_json
from lorascope.outputs import write_json
from lorascope.study.source import source
from lorascope.training.run_folder import package_version

# Raised by hand when a change of the code changes what a config trains: `tests/study/test_store.py` notices.
RECIPE = 2
VERSIONS = ("torch", "transformers", "tokenizers")  # of the packages whose release changes a run's numbers
# Code that a measure's numbers depend on. Not what reads files: its own tests see that it reads what is there.
MEASURING = ("linalg", "updates", "analyses", "study", "architectures", "weights.base_svd")
# Modules of an analysis that put its numbers in words, or draw them.
IN_WORDS = ("base", "checks", "findings", "metrics", "page", "rules", "screen", "show", "verdict")
# Config keys that are newer than stored runs: at their default they change nothing, and stay out of the key.
ADDED_LATER: Mapping[str, Mapping[str, Any]] = {
    "data": {"add_bos_token": None, "add_eos_token": True},
    "training": {"compile": False, "data_seed": None},
}
# What is left of a finished job without its weights.
LIGHT = (
    "rows.json",
    *(
        f"run/{name}"
        for name in (
            "summary.json", "config.yaml", "run.json", "test.json", "texts.npz", "metrics.jsonl", "calibration.json",
        )
    ),
)  # fmt: skip
NOT_OF_THE_RESULT = ("device", "num_threads", "measure_cost", "save_steps", "snapshot_steps", "logging_steps")


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
            spec["config"] = _as_before({**spec["config"], "training": training})
            spec["versions"] = {name: package_version(name) for name in VERSIONS} | {"recipe": RECIPE}
        else:
            spec["script"] = Path(spec["script"]).name  # not where it lies
            spec.pop("device", None)
        text = json.dumps([spec, list(self.inputs)], sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _as_before(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without those of `ADDED_LATER` that are at their default."""
    return {
        section: {
            k: v for k, v in keys.items() if k not in (defaults := ADDED_LATER.get(section, {})) or v != defaults[k]
        }
        for section, keys in config.items()
    }


def fingerprint(function: Callable[..., Any]) -> str:
    """A hash of a measure's code and of all code of `MEASURING` that it names, however far down; not of comments,
    docstrings and errors, nor of files of an analysis that put its numbers in words.

    A measure whose code changes is measured again. For code that trains, `RECIPE` is raised by hand.
    """
    code = source(function, lambda module: module == function.__module__ or _measures(module), imported=True)
    return hashlib.sha256(json.dumps([RECIPE, code], sort_keys=True).encode()).hexdigest()[:16]


def _measures(module: str) -> bool:
    """Whether numbers of a measure are made in the module of this name."""
    package, _, inner = module.partition(".")
    if package != "lorascope":
        return package.startswith("lorascope")  # a study's script
    rooms = inner.startswith(tuple(f"{name}." for name in MEASURING)) or inner in MEASURING
    return rooms and not (inner.startswith("analyses.") and inner.rpartition(".")[2] in IN_WORDS)


def data_hashes(config: Mapping[str, Any]) -> list[str]:
    """Of the files that a resolved config's data come from; a packaged set or one of the hub is known by its name."""
    files = [Path(path) for path in (config["data"]["path"], config["data"]["eval_path"]) if path]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files if path.is_file()]


DONE = {"seconds?": (float,), "device?": (str,), "files?": {str: (int,)}}
FAILED = {"title?": (str,), "message": (str,)}


class Store:
    """Folders by key under one root, made where it is not there.

    Raises:
        LorascopeError: of every method that writes, where that cannot be done, such as on a full disk.
    """

    def __init__(self, root: Path):
        self.root = root
        with _writing(root):
            root.mkdir(parents=True, exist_ok=True)

    def folder(self, key: str) -> Path:
        return self.root / key[:2] / key

    def run_folder(self, key: str) -> Path:
        """A training run's own folder, as `lorascope train` writes it."""
        return self.folder(key) / "run"

    def done(self, key: str) -> Mapping[str, Any] | None:
        """What `finish` was told; None where the job is not finished."""
        return _read(self.folder(key) / "done.json", DONE)

    def intact(self, job: Job) -> bool:
        """Whether the job is finished and all that it made is still there, each file of the size that it had."""
        return self._has(job, lambda name: True)

    def scored(self, job: Job) -> bool:
        """Whether the job is finished and its numbers are there; of a training run, whether or not its weights are."""
        return self._has(job, lambda name: name in LIGHT)

    def _has(self, job: Job, counts: Callable[[str], bool]) -> bool:
        done, folder = self.done(job.key), self.folder(job.key)
        if done is None:
            return False
        files = {name: size for name, size in (done.get("files") or {}).items() if counts(name)}
        sizes = dict.fromkeys(_least(job)) | files
        try:
            return all((folder / name).stat().st_size == size or size is None for name, size in sizes.items())
        except (OSError, ValueError):  # a name that none can be
            return False

    def failure(self, key: str) -> Mapping[str, Any] | None:
        """Why the job failed when it was last tried; None where it did not."""
        return None if self.done(key) else _read(self.folder(key) / "failed.json", FAILED)

    def begin(self, job: Job) -> Path:
        """The job's folder, ready to work in. What an earlier try left is kept, so that it can be resumed."""
        folder = self.folder(job.key)
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name in ("failed.json", "done.json", "spec.json", "rows.json", "run/test.json"):
                _remove(folder / name)
        write_json(folder / "spec.json", {**job.spec, "inputs": list(job.inputs), "lorascope": __version__})
        return folder

    def finish(self, key: str, facts: Mapping[str, Any]) -> None:
        folder = self.folder(key)
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
        write_json(folder / "done.json", {**facts, "files": sizes})

    def fail(self, job: Job, message: str) -> None:
        folder = self.folder(job.key)
        with _writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "failed.json", {"title": job.title, "message": message})

    def start_over(self, key: str) -> None:
        """Remove what an earlier try of a training run left."""
        with _writing(self.run_folder(key)):
            _remove(self.run_folder(key))

    def discard_weights(self, key: str) -> int:
        """Remove what a finished training run made besides its numbers; how many bytes that freed.

        Nothing is removed of a job that is not finished.
        """
        with self.locked([key]):
            if self.done(key) is None:
                return 0
            folder = self.folder(key)
            heavy = [path for path in _files(folder) if path.relative_to(folder).as_posix() not in LIGHT]
            freed = sum(path.lstat().st_size for path in heavy)
            with _writing(folder):
                for path in heavy:
                    path.unlink()
                for path in sorted(self.run_folder(key).rglob("*"), reverse=True):
                    if path.is_dir() and not path.is_symlink() and not any(path.iterdir()):
                        path.rmdir()
        return freed

    @contextlib.contextmanager
    def locked(self, keys: Sequence[str]) -> Iterator[None]:
        """Holds the locks of these jobs, waiting for whoever has them; a process that dies lets go of its own.

        A system without `flock` does not wait: there, one store takes one process at a time.
        """
        with contextlib.ExitStack() as held:
            for key in sorted(set(keys)):  # in one order everywhere, so that no two wait for each other
                path = self.root / key[:2] / f"{key}.lock"
                with _writing(path):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    # Not "a": opening a pipe for writing alone would wait for a reader.
                    file = held.enter_context(open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "rb"))
                portable.wait_for_lock(file.fileno())
            yield


def _remove(path: Path) -> None:
    """Whatever stands there: a file, a folder, a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def _least(job: Job) -> list[str]:
    """Files without which a finished job is worth nothing."""
    if job.spec["kind"] == "train":
        return ["run/summary.json", "run/config.yaml"]
    return ["rows.json"]


def _files(folder: Path) -> list[Path]:
    bookkeeping = {folder / name for name in ("done.json", "failed.json", "spec.json")}
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in bookkeeping]


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise LorascopeError(f"cannot write {path}", found=error.strerror or error) from error


def _read(path: Path, shape: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What is in the file; None where it is not there, or damaged: the work is then done again."""
    try:
        return read_json(path, shape)
    except InputError:
        return None
