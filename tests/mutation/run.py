"""Changes are tried in forks of a warm pytest session; what an import computes, in a copy of the tree."""

import contextlib
import importlib
import json
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
from functools import cached_property
from pathlib import Path
from queue import Queue

from tests.mutation.operators import Mutation

HEAVY = ("numpy", "scipy.linalg", "scipy.stats", "pandas", "torch", "peft", "lycoris", "hypothesis", "pytest")
MAX_SECONDS = 20.0  # of tests for one change, as they take without it
CHEAP_FILE = 4.0  # seconds: such a test file is run whole (a cache may hide which of its tests depend on a function)
UNAVAILABLE = float("inf")  # the seconds of a test that fails or is skipped without a change


@dataclass(frozen=True)
class Tests:
    """Which tests call a function ("file:name"), and what they cost."""

    called: dict[str, list[str]]  # by test, or by test file what its import and fixtures call
    seconds: dict[str, float]

    @cached_property
    def by_function(self) -> dict[str, set[str]]:
        found = defaultdict(set)
        for where, functions in self.called.items():
            for function in functions:
                found[function].add(where)
                found[function.split(":")[0] + ":"].add(where)
        return dict(found)

    @cached_property
    def by_file(self) -> dict[str, dict[str, float]]:
        """The tests that can be used, and their seconds, by test file."""
        found: dict[str, dict[str, float]] = defaultdict(dict)
        for test, seconds in self.seconds.items():
            if seconds < UNAVAILABLE:
                found[test.split("::")[0]][test] = seconds
        return dict(found)

    def at_import(self, change: Mutation) -> bool:
        """Whether a test file's import, or its fixtures, call the changed function."""
        callers = self.by_function.get(f"{change.file}:{change.function}", set())
        return not change.function or any("::" not in where for where in callers)

    def for_change(self, change: Mutation) -> tuple[list[str], float]:
        """Test ids, those of the file of the same name and of its room first, then the cheap; the seconds they take."""
        callers = self.by_function.get(f"{change.file}:{change.function}", set())
        chosen = {}
        for file, usable in self.by_file.items():
            calling = {test: s for test, s in usable.items() if test in callers}
            if file in callers or (calling and sum(usable.values()) < CHEAP_FILE):
                calling = usable
            if calling:
                chosen[file] = calling
        name, room = f"test_{Path(change.file).stem}.py", f"tests/{change.file.split('/')[1]}/"

        def rank(file: str) -> tuple[bool, bool, float]:
            return not file.endswith(name), not file.startswith(room), sum(chosen[file].values())

        picked, total = [], 0.0
        for file in sorted(chosen, key=rank):
            for test, seconds in sorted(chosen[file].items(), key=lambda pair: pair[1]):
                if total + seconds <= MAX_SECONDS:
                    picked, total = [*picked, test], total + seconds
        return picked, total


def outcomes(root: Path, mutations: list[Mutation], tests: Tests, workers: int) -> Iterator[tuple[Mutation, str]]:
    """Each change with what became of it ("survived", "killed", "timeout"); one that no test calls has survived."""
    cold = [change for change in mutations if not change.function]
    for change, outcome in _in_memory(root, [c for c in mutations if c.function], tests, workers):
        if outcome == "elsewhere" or (outcome == "survived" and tests.at_import(change)):
            cold.append(change)
        else:
            yield change, outcome
    if cold:
        yield from _in_copies(root, cold, tests, workers)


def _in_memory(root: Path, changes: list[Mutation], tests: Tests, workers: int) -> Iterator[tuple[Mutation, str]]:
    """As `outcomes`, and "elsewhere" for what cannot be tried in memory."""
    jobs = [(number, change, *tests.for_change(change)) for number, change in enumerate(changes)]
    yield from ((change, "survived") for _, change, picked, _ in jobs if not picked)
    jobs = [job for job in jobs if job[2]]
    files = sorted({test.split("::")[0] for _, _, picked, _ in jobs for test in picked})
    if not jobs:
        return
    source, sink = os.pipe()
    child = os.fork()
    if not child:
        os.close(source)
        code = 1
        try:
            from tests.mutation.warm import Warm

            def report(number: int, outcome: str) -> None:
                os.write(sink, (json.dumps([number, outcome]) + "\n").encode())

            code = _pytest(root, files, [Warm(root, jobs, workers, report)])
        finally:
            os._exit(code)
    os.close(sink)
    left = {number: change for number, change, _, _ in jobs}
    with open(source) as lines:
        for line in lines:
            number, outcome = json.loads(line)
            yield left.pop(number), outcome
    os.waitpid(child, 0)
    yield from ((change, "elsewhere") for change in left.values())  # the session ended: a test file does not import


def _pytest(tree: Path, tests: list[str], plugins: list | None = None) -> int:
    """pytest's exit code in this process, of the tree's own modules, silently."""
    os.chdir(tree)
    sys.path[:] = [str(tree), *(p for p in sys.path if not (Path(p) / "lorascope").is_dir())]
    for name in [m for m in sys.modules if m.split(".")[0] in ("tests", "lorascope")]:
        del sys.modules[name]
    os.environ |= {"PYTHONPATH": str(tree)}
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    import pytest

    options = ["-x", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--tb=no"]
    with tempfile.TemporaryDirectory() as folder:
        return int(pytest.main([*options, f"--basetemp={folder}/tests", *tests], plugins=plugins))


def _copy(root: Path, to: Path) -> Path:
    """A tree that a worker may change."""
    skipped = shutil.ignore_patterns(".git", "__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", "*.egg-info")
    return Path(shutil.copytree(root, to / "tree", ignore=skipped))


def _run(tree: Path, tests: list[str], limit: float) -> str:
    """What becomes of the tests in a fork: "survived", "killed" or "timeout"."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setsid()
            code = _pytest(tree, tests)
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


def _in_copies(root: Path, changes: list[Mutation], tests: Tests, workers: int) -> Iterator[tuple[Mutation, str]]:
    """As `outcomes`, each change written into a copy of the tree, whose tests are imported afresh."""
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
            yield from pool.map(one, changes)


def _forget(source: Path) -> None:
    """No compiled file of an earlier state: within a second, and of one size, Python takes it for this one's."""
    for compiled in (source.parent / "__pycache__").glob(f"{source.stem}.*"):
        compiled.unlink()
