"""The Python functions: signatures as they stand in the code, and their docstrings."""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lorascope as ls
from lorascope.blocks import Block, Code, Column, Heading, Rich, Span, Table
from tests.docs.markdown import said, told

_ENTRY = re.compile(r"    (\*{0,2}\w[\w, *]*): (.*)")


def blocks() -> tuple[Block, ...]:
    """Functions first, then classes, each with its anchor."""
    found = {name: getattr(ls, name) for name in sorted(ls.__all__) if name != "__version__"}
    functions = {name: each for name, each in found.items() if inspect.isfunction(each)}
    classes = {name: each for name, each in found.items() if inspect.isclass(each)}
    made: list[Block] = []
    for name, function in functions.items():
        made += [Heading(f"ls.{name}", 2, name), Code(signature(function)), *docstring(function.__doc__ or "")]
    for name, cls in classes.items():
        made += [Heading(f"ls.{name}", 2, name), *docstring(cls.__doc__ or ""), *_methods(cls)]
    return tuple(made)


def signature(function: Any) -> str:
    """`def name(...) -> ...`, as it is written; one line, or one parameter a line."""
    node = _node(function)
    parts, returns = tuple(_parts(node.args)), f" -> {_hint(node.returns)}" if node.returns else ""
    line = f"{node.name}({', '.join(parts)}){returns}"
    if len(line) <= 90:
        return line + "\n"
    lines = ",\n".join(f"    {part}" for part in parts)
    return f"{node.name}(\n{lines},\n){returns}\n"


def _node(function: Any) -> ast.FunctionDef:
    tree = ast.parse(Path(inspect.getsourcefile(function) or "").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == function.__name__:
            return node
    raise ValueError(f"no source of {function.__name__}")


def _hint(annotation: ast.expr) -> str:
    """A type as a reader writes it: without the quotes of one that is imported late."""
    return ast.unparse(annotation).replace("'", "")


def _parts(arguments: ast.arguments) -> Iterator[str]:
    """Each parameter as it is written, with the bare star where keywords begin."""

    def one(arg: ast.arg, default: ast.expr | None, star: str = "") -> str:
        hint = f": {_hint(arg.annotation)}" if arg.annotation else ""
        return f"{star}{arg.arg}{hint}" + (f" = {ast.unparse(default)}" if default else "")

    plain = [*arguments.posonlyargs, *arguments.args]
    missing: list[ast.expr | None] = [None] * (len(plain) - len(arguments.defaults))
    yield from map(one, plain, [*missing, *arguments.defaults])
    if arguments.vararg:
        yield one(arguments.vararg, None, "*")
    elif arguments.kwonlyargs:
        yield "*"
    yield from map(one, arguments.kwonlyargs, arguments.kw_defaults)
    if arguments.kwarg:
        yield one(arguments.kwarg, None, "**")


def docstring(text: str) -> Iterator[Block]:
    """Prose, code that is indented, and a table for each of Args, Attributes and Raises."""
    for part in inspect.cleandoc(text).split("\n\n"):
        first, _, rest = part.partition("\n")
        if first in ("Args:", "Attributes:", "Raises:"):
            yield _table(first, rest)
        elif part.startswith("    "):
            yield Code(inspect.cleandoc(part) + "\n")
        else:
            yield said(part)


def _table(title: str, listed: str) -> Table:
    entries: list[list[str]] = []
    for line in listed.splitlines():
        match = _ENTRY.fullmatch(line)
        if match:
            entries.append([match[1], match[2]])
        elif entries:
            entries[-1][1] = f"{entries[-1][1]} {line.strip()}"
    word = {"Args:": "argument", "Attributes:": "attribute", "Raises:": "raises"}[title]
    rows = tuple((Rich((Span(name, "code"),)), told(about)) for name, about in entries)
    return Table((Column("name", word, "code"), Column("about", "when" if word == "raises" else "what it is")), rows)


def _methods(cls: Any) -> Iterator[Block]:
    """Its own public methods, a line each."""
    rows = []
    for name, each in vars(cls).items():
        function = each.fget if isinstance(each, property) else getattr(each, "func", each)
        if name.startswith("_") or not inspect.isfunction(function) or not function.__doc__:
            continue
        first = " ".join(inspect.cleandoc(function.__doc__).split("\n\n")[0].split())
        shown = name if not inspect.isfunction(each) else f"{name}()"
        rows.append((Rich((Span(shown, "code"),)), told(first)))
    if rows:
        yield Table((Column("name", "member", "code"), Column("about", "what it is")), tuple(rows))


def module_doc(name: str) -> Iterator[Block]:
    """The docstring of a module."""
    yield from docstring(importlib.import_module(name).__doc__ or "")
