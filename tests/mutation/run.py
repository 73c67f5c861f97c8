"""A mutation is run in a copy of the tree, by a fork of a process that has imported the heavy packages already."""

import contextlib
import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from tests.mutation.operators import Mutation

HEAVY = ("numpy", "scipy.linalg", "scipy.stats", "pandas", "torch", "peft", "lycoris", "hypothesis", "pytest")
MAX_SECONDS = 90.0  # of tests for one mutation, as they take without it
CHEAP_FILE = 4.0  # seconds: such a test file is run whole (a cache may hide which of its tests depend on a function)


@dataclass(frozen=True)
class Tests:
    """Which tests call a function ("file:name"), and what they cost."""

    by_function: dict[str, set[str]]  # tests, or test files
    seconds: dict[str, float]

    @classmethod
    def of(cls, calls: dict) -> "Tests":
        by_function = defaultdict(set)
        for where, functions in calls["called"].items():
            for function in functions:
                by_function[function].add(where)
                by_function[function.split(":")[0] + ":"].add(where)
        return cls(dict(by_function), {test: float(s) for test, s in calls["seconds"].items()})

    def for_change(self, change: Mutation) -> tuple[list[str], float]:
        """Test ids, the file of the same name and cheap files first, and the seconds they take."""
        callers = self.by_function.get(f"{change.file}:{change.function}", set())
        of_file = defaultdict(dict)
        for test, seconds in self.seconds.items():
            of_file[test.split("::")[0]][test] = seconds
        chosen = {}
        for file, every in of_file.items():
            usable = {test: s for test, s in every.items() if s < float("inf")}
            calling = {test: s for test, s in usable.items() if test in callers}
            cheap = sum(usable.values()) < CHEAP_FILE
            if file in callers or (calling and cheap):
                calling = usable
            if calling:
                chosen[file] = calling
        name = f"test_{Path(change.file).stem}.py"
        order = sorted(chosen, key=lambda file: (not file.endswith(name), sum(chosen[file].values())))
        picked, total = [], 0.0
        for file in order:
            for test, seconds in sorted(chosen[file].items(), key=lambda pair: pair[1]):
                if total + seconds <= MAX_SECONDS:
                    picked, total = [*picked, test], total + seconds
        return picked, total


def _copy(root: Path, to: Path) -> Path:
    """A tree that a worker may change."""
    skipped = shutil.ignore_patterns(".git", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", "*.egg-info")
    return Path(shutil.copytree(root, to / "tree", ignore=skipped))


def _child(tree: Path, tests: list[str]) -> int:
    """Run the tests in this process, until one fails; pytest's exit code."""
    os.chdir(tree)
    sys.path[:] = [str(tree), *(p for p in sys.path if not (Path(p) / "lorascope").is_dir())]
    for name in [m for m in sys.modules if m.split(".")[0] in ("tests", "lorascope")]:
        del sys.modules[name]
    os.environ |= {"PYTHONPATH": str(tree)}
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    import pytest

    return int(pytest.main(["-x", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--tb=no", *tests]))


def _run(tree: Path, tests: list[str], limit: float) -> str:
    """What becomes of the tests in a fork: "survived", "killed" or "timeout"."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setsid()
            code = _child(tree, tests)
        finally:
            os._exit(code)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return "survived" if code == 0 else "killed"
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


def outcomes(root: Path, mutations: list[Mutation], tests: Tests, workers: int) -> Iterator[tuple[Mutation, str]]:
    """Each mutation with what became of it; one that no test calls has survived."""
    for name in HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        trees: Queue[Path] = Queue()
        for worker in range(workers):
            trees.put(_copy(root, Path(folder) / str(worker)))

        def one(change: Mutation) -> tuple[Mutation, str]:
            picked, seconds = tests.for_change(change)
            if not picked:
                return change, "survived"
            tree = trees.get()
            target = tree / change.file
            before = target.read_text()
            try:
                target.write_text(change.source)
                _forget(target)
                return change, _run(tree, picked, 60 + 10 * seconds)
            finally:
                target.write_text(before)
                _forget(target)
                trees.put(tree)

        with ThreadPoolExecutor(workers) as pool:
            yield from pool.map(one, mutations)


def _forget(source: Path) -> None:
    """No compiled file of an earlier state: within a second, and of one size, Python takes it for this one's."""
    for compiled in (source.parent / "__pycache__").glob(f"{source.stem}.*"):
        compiled.unlink()
