"""The code that a number depends on, as values that can be hashed: of a statistic, or of a measure.

Functions, classes and constants of lorascope and of the study's script that the code names, and what a closure, a
partial function or an instance carries. Comments, docstrings, annotations and errors that are raised do not count, nor
does the layout, nor how a release of Python writes a syntax tree out (`_canonical`).
"""

import ast
import functools
import importlib
import inspect
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

LAYOUT = ("ctx", "kind", "type_comment", "type_params", "annotation", "returns")  # fields that change no number
NOT_DECISIVE = ("also",)  # of a statistic: the effect in other units
OURS = "lorascope"  # what the names of our modules begin with, those of scripts too (`work.script`)


def source(
    function: Any, covers: Callable[[str], bool] = lambda module: module.startswith(OURS), imported: bool = False
) -> list[Any]:
    """The code of a function, and of all that it names: JSON's types, the same for code that does the same.

    Args:
        covers: whether a module of this name is looked into; what others define counts by its name.
        imported: whether what a function imports in its own body is looked into as well, and not by its name alone;
            caches, which change while the code runs (containers of a module in lower case), then do not count.
    """
    found = _Found(covers, imported)
    return [found.value(function), dict(sorted(found.named.items()))]


class _Found:
    def __init__(self, covers: Callable[[str], bool], imported: bool) -> None:
        self._covers, self._imported = covers, imported
        self.named: dict[str, Any] = {}  # what the code names, each once
        self._open: list[int] = []  # objects that are being looked at: one may contain itself

    def value(self, value: Any) -> Any:
        """A value that code carries: what it is, as JSON has it."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if id(value) in self._open:
            return "itself"
        self._open.append(id(value))
        try:
            return self._compound(value)
        finally:
            self._open.pop()

    def _compound(self, value: Any) -> Any:
        if hasattr(value, "__wrapped__"):  # what it remembers of earlier calls is not part of it
            return self.value(value.__wrapped__)
        if isinstance(value, Mapping):
            return ["mapping", [[self.value(key), self.value(each)] for key, each in value.items()]]
        if isinstance(value, list | tuple):
            return [self.value(each) for each in value]
        if isinstance(value, Set):
            return ["set", sorted((self.value(each) for each in value), key=str)]
        if isinstance(value, functools.partial):
            return ["partial", self.value(value.func), self.value(value.args), self.value(value.keywords)]
        if isinstance(value, MethodType):
            return ["method", self.value(value.__self__), self.value(value.__func__)]
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, ModuleType):
            return ["module", value.__name__]
        if self._is_ours(type(value)):
            parts = {name: each for name, each in getattr(value, "__dict__", {}).items() if name not in NOT_DECISIVE}
            return ["instance", self._class(type(value)), self.value(parts)]
        return [type(value).__qualname__, str(value) if _is_plain(value) else ""]

    def _function(self, function: FunctionType) -> Any:
        if not self._is_ours(function):
            return ["function", f"{function.__module__}.{function.__qualname__}"]
        node = _definition(function.__code__)
        self._names(node, function.__globals__)
        cells = {}
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                cells[name] = self.value(cell.cell_contents)
            except ValueError:  # it is not filled yet
                cells[name] = None
        defaults = [self.value(function.__defaults__), self.value(function.__kwdefaults__)]
        return ["function", _canonical(node), defaults, cells]

    def _class(self, cls: type) -> Any:
        name = f"{cls.__module__}.{cls.__qualname__}"
        if self._is_ours(cls) and name not in self.named:
            self.named[name] = None
            module = inspect.getmodule(cls)
            node = next(
                (each for each in _definitions(inspect.getsourcefile(cls) or "")
                 if isinstance(each, ast.ClassDef) and each.name == cls.__name__), None,
            )  # fmt: skip
            if node is not None and module is not None:
                self._names(node, vars(module))
                self.named[name] = _canonical(node)
        return ["class", name]

    def _names(self, node: ast.AST, namespace: Mapping[str, Any]) -> None:
        """Take up what the code names: what is defined at the top of a module of ours."""
        if self._imported:
            namespace = ChainMap(_imports(node, self._covers), namespace)  # type: ignore[arg-type]  # nothing writes to it
        for each in _walk(node):
            if isinstance(each, ast.Name) and each.id in namespace:
                self._take(f"{namespace.get('__name__')}.{each.id}", namespace[each.id])
            elif isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name):
                module = namespace.get(each.value.id)
                if isinstance(module, ModuleType) and self._covers(module.__name__):
                    self._take(f"{module.__name__}.{each.attr}", getattr(module, each.attr, None))

    def _take(self, name: str, value: Any) -> None:
        if isinstance(value, ModuleType) or (isinstance(value, type) and not self._is_ours(value)):
            return
        if isinstance(value, FunctionType):
            name = f"{value.__module__}.{value.__qualname__}"
        if self._imported and name.rpartition(".")[2].islower() and isinstance(value, dict | list | set):
            return
        if name not in self.named and not isinstance(value, type):
            self.named[name] = None
            self.named[name] = self.value(value)
        elif isinstance(value, type):
            self._class(value)

    def _is_ours(self, value: Any) -> bool:
        return self._covers(str(getattr(value, "__module__", "")))


def _imports(node: ast.AST, covers: Callable[[str], bool]) -> dict[str, Any]:
    """What the code imports from modules that are looked into, by the names that it has there; no other is loaded."""
    found = {}
    for each in ast.walk(node):
        if isinstance(each, ast.ImportFrom) and each.module:
            for alias in each.names:
                inner = f"{each.module}.{alias.name}"
                if covers(each.module) or covers(inner):
                    module = importlib.import_module(each.module)
                    whole = importlib.import_module(inner) if not hasattr(module, alias.name) else None
                    found[alias.asname or alias.name] = getattr(module, alias.name, whole)
    return found


def _is_plain(value: Any) -> bool:
    """Whether its text says what it is, and not where it lies in memory."""
    return type(value).__repr__ is not object.__repr__ and " at 0x" not in str(value)


@functools.cache
def _definitions(path: str) -> list[ast.Lambda | ast.FunctionDef | ast.ClassDef]:
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Lambda | ast.FunctionDef | ast.ClassDef)]


def _definition(code: CodeType) -> ast.AST:
    """Where the code is defined: the function of its name and line, or the lambda that encloses its instructions."""
    nodes = _definitions(code.co_filename)
    if code.co_name != "<lambda>":
        for node in nodes:
            if isinstance(node, ast.FunctionDef) and (node.name, _first_line(node)) == (
                code.co_name,
                code.co_firstlineno,
            ):
                return node
        raise ValueError(f"{code.co_name} is not in {Path(code.co_filename).name} any more")
    places = [(line, column) for line, _, column, end in code.co_positions() if line and column is not None and end]
    around = [
        node for node in nodes
        if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno
        and all(_start(node.body) <= place < _end(node.body) for place in places)
    ]  # fmt: skip
    if not around:
        raise ValueError(f"a lambda of {Path(code.co_filename).name} is not where it was")
    return max(around, key=lambda node: _start(node.body))  # the innermost


def _first_line(node: ast.FunctionDef) -> int:
    """Of its decorators, where it has any."""
    return min([node.lineno, *(each.lineno for each in node.decorator_list)])


def _start(node: ast.expr) -> tuple[int, int]:
    return node.lineno, node.col_offset


def _end(node: ast.expr) -> tuple[int, int]:
    return node.end_lineno or 0, node.end_col_offset or 0


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """The node and all that it contains but annotations."""
    yield node
    for name, field in ast.iter_fields(node):
        if name not in LAYOUT:
            for each in field if isinstance(field, list) else [field]:
                if isinstance(each, ast.AST):
                    yield from _walk(each)


def _canonical(node: Any) -> Any:
    """The code as lists and names, in a form that no release of Python words otherwise: empty fields are not there."""
    if isinstance(node, list):
        return [_canonical(each) for each in node]
    if not isinstance(node, ast.AST):
        return node if node is None or isinstance(node, bool | int | float | str) else repr(node)
    if isinstance(node, ast.Raise):
        return ["Raise"]
    fields = {name: _canonical(each) for name, each in ast.iter_fields(node) if name not in LAYOUT}
    if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
        fields["body"] = fields["body"][1:]
    return [type(node).__name__, {name: each for name, each in fields.items() if each is not None and each != []}]
