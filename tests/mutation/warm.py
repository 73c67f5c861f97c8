"""Changes of functions, tried in forks of one pytest session that has collected every test: a fork costs no import.

In a fork the changed function's code is put into the function object itself, so that whoever imported it has the
change, and the tests that call it run until one fails.
"""

import ast
import gc
import os
import resource
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

from tests.mutation.operators import Mutation

SURVIVED, KILLED, ELSEWHERE = 0, 1, 3  # how a fork exits; the last: the change cannot be made in memory
MEMORY = 12 << 30  # bytes of addresses beyond what the session has: a changed size may ask for anything


class Warm:
    """A plug-in that tries changes in place of pytest's own loop.

    Args:
        root: of the tree.
        jobs: number, change, tests in their order, and the seconds of processor time it may take.
        workers: how many forks run at once.
        report: called with a job's number and what became of it: "survived", "killed", "timeout" or "elsewhere".
    """

    def __init__(
        self,
        root: Path,
        jobs: Iterable[tuple[int, Mutation, list[str], float]],
        workers: int,
        report: Callable[[int, str], None],
    ):
        self.root, self.jobs, self.workers, self.report = root, jobs, workers, report
        self.running: dict[int, tuple[int, float]] = {}

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        self.functions = _functions(self.root)
        self.folder = session.config._tmp_path_factory.getbasetemp()
        gc.collect()
        gc.freeze()
        for number, change, tests, seconds in self.jobs:
            while len(self.running) >= self.workers:
                self._wait()
            child = os.fork()
            if not child:
                self._child(number, change, tests, seconds)
            self.running[child] = number, time.monotonic() + 60 + 10 * seconds
        while self.running:
            self._wait()
        return True

    def _wait(self) -> None:
        """Until one fork has ended, or is ended because it waits for something that never comes."""
        while True:
            for child, (number, end) in list(self.running.items()):
                done, status = os.waitpid(child, os.WNOHANG)
                late = not done and time.monotonic() > end
                if late:
                    os.killpg(child, 9)
                    os.waitpid(child, 0)
                if done or late:
                    del self.running[child]
                    shutil.rmtree(self.folder / str(number), ignore_errors=True)
                    code = -9 if late else os.waitstatus_to_exitcode(status)
                    said = {SURVIVED: "survived", KILLED: "killed", ELSEWHERE: "elsewhere"}
                    self.report(number, said.get(code, "timeout"))
                    return
            time.sleep(0.01)

    def _child(self, number: int, change: Mutation, tests: list[str], seconds: float) -> None:
        code = KILLED
        try:
            os.setsid()
            if not make(self.root, change, self.functions):
                code = ELSEWHERE
                return
            limit = int(5 + seconds)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            code = self._tests(number, [self.items[test] for test in tests if test in self.items])
        finally:
            os._exit(code)

    def _tests(self, number: int, items: list[pytest.Item]) -> int:
        from _pytest.runner import runtestprotocol

        if not items:
            return SURVIVED
        own = self.folder / str(number)
        own.mkdir()
        items[0].config._tmp_path_factory._basetemp = own  # type: ignore[attr-defined]
        for item, following in zip(items, [*items[1:], None], strict=True):
            if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
                return KILLED
        return SURVIVED


def _functions(root: Path) -> dict[tuple[str, str], list[FunctionType]]:
    """The function objects of the tree, by file and qualified name."""
    found = defaultdict(list)
    start = f"{root}/"
    for each in gc.get_objects():
        if isinstance(each, FunctionType) and each.__code__.co_filename.startswith(start):
            code = each.__code__
            found[code.co_filename.removeprefix(start), code.co_qualname].append(each)
    return dict(found)


def make(root: Path, change: Mutation, functions: dict[tuple[str, str], list[FunctionType]]) -> bool:
    """Put a change's code and defaults into the function; False where it has no object, or more than one definition."""
    live = functions.get((change.file, change.function), [])
    tree = ast.parse(change.source)
    codes = list(_codes(compile(tree, f"{root / change.file}", "exec"), change.function))
    node = _definition(tree, change.function)
    if not live or len(codes) != 1 or node is None or len({f.__code__ for f in live}) != 1:
        return False
    try:
        defaults = _defaults(node, live[0])
        for function in live:
            function.__code__ = codes[0]
            function.__defaults__, function.__kwdefaults__ = defaults
    except Exception:
        return False
    return True


def _codes(code: CodeType, name: str) -> Iterable[CodeType]:
    """Every code object of this qualified name."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            if constant.co_qualname == name:
                yield constant
            elif "<locals>" not in constant.co_qualname:
                yield from _codes(constant, name)


def _definition(tree: ast.AST, name: str) -> ast.FunctionDef | None:
    """The `def` of a qualified name."""
    first, _, rest = name.partition(".")
    for node in getattr(tree, "body", ()):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == first:
            if rest:
                return _definition(node, rest)
            return node if isinstance(node, ast.FunctionDef) else None
    return None


def _defaults(node: ast.FunctionDef, live: FunctionType) -> tuple[Any, Any]:
    """The defaults that the definition gives, computed where the function is."""
    if not node.args.defaults and not any(node.args.kw_defaults):
        return live.__defaults__, live.__kwdefaults__
    arguments = ast.arguments(
        [ast.arg(a.arg) for a in node.args.posonlyargs],
        [ast.arg(a.arg) for a in node.args.args],
        ast.arg(node.args.vararg.arg) if node.args.vararg else None,
        [ast.arg(a.arg) for a in node.args.kwonlyargs],
        node.args.kw_defaults,
        ast.arg(node.args.kwarg.arg) if node.args.kwarg else None,
        node.args.defaults,
    )
    expression = ast.Expression(ast.Lambda(arguments, ast.Constant(None)))
    made = eval(compile(ast.fix_missing_locations(expression), "defaults", "eval"), live.__globals__)
    return made.__defaults__, made.__kwdefaults__
