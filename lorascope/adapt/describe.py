"""A registered method in words: what `lorascope methods` says, read off the method itself and its docstrings."""

import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal

from lorascope.adapt.method import Method, methods
from lorascope.updates.base import kinds


@dataclass(frozen=True)
class Setting:
    """One key of a method's section in the YAML.

    Attributes:
        name: the key.
        type: what may stand there, in words.
        default: as YAML has it.
        doc: from the Config's docstring.
    """

    name: str
    type: str
    default: str
    doc: str


@dataclass(frozen=True)
class Description:
    """Attributes:
    name, paper: of the method.
    what: its docstring's first line.
    kind: of the update it trains; "" where what it trains is no update of a weight.
    formula: the kind's ΔW; "" likewise.
    facts: what else is worth knowing before one chooses it, label and value.
    about: the docstring of its file: formulas, shapes, where the paper and the code in circulation differ.
    settings: of its Config, in order.
    """

    name: str
    what: str
    paper: str
    kind: str
    formula: str
    facts: tuple[tuple[str, str], ...]
    about: str
    settings: tuple[Setting, ...]

    @property
    def example(self) -> str:
        """A config for `lorascope train` that differs from another method's in the line `method:`."""
        method = methods.get(self.name)
        shown = [setting for setting in self.settings if setting.default not in ("null", "required")][:2]
        targets = ["targets: all-linear"] if method.uses_targets else []
        keys = ", ".join([f"name: {self.name}", *targets, *(f"{s.name}: {s.default}" for s in shown)])
        lines = ["model: {name: minilm, head: mean-pool}", "data: {path: wordnet-classes}", f"method: {{{keys}}}"]
        return "\n".join([*lines, "training: {max_steps: 200, per_device_train_batch_size: 32}"])


def describe(name: str) -> Description:
    """The method of that name. InputError with near names where there is none."""
    method = methods.get(name)
    kind = getattr(method, "kind", "")
    module = sys.modules[method.__module__]
    return Description(
        name,
        inspect.cleandoc(method.__doc__ or "").split("\n\n")[0].replace("\n", " "),
        method.paper,
        kind,
        kinds.get(kind).formula if kind else "",
        tuple(_facts(method)),
        inspect.cleandoc(module.__doc__ or ""),
        settings(method.Config),
    )


def _facts(method: type[Method]) -> Iterator[tuple[str, str]]:
    layers = ", ".join(method.layer_kinds) if method.uses_targets else "none: it works on the whole model"
    yield "target layers", layers
    files = {"peft": "PEFT's layout", "lorascope": "lorascope's own layout: PEFT has no place for it"}
    yield "files", files.get(method.format, method.format)
    if method.not_identity:
        yield "a fresh adapter changes the output", method.not_identity
    if method.detached_terms:
        yield "left out of the gradient", method.detached_terms
    if method.not_sharded:
        yield "not sharded", method.not_sharded
    if method.calibrates:
        yield "before training", "it looks at the task first, with a short trial on a sample"


def settings(config: type) -> tuple[Setting, ...]:
    """The fields of a config's dataclass, as the YAML's author needs them."""
    hints, docs = typing.get_type_hints(config), _documented(config)
    return tuple(
        Setting(field.name, in_words(hints[field.name]), _default(field), docs.get(field.name, ""))
        for field in fields(config)
        if field.init
    )


def _default(field: Any) -> str:
    if field.default is not MISSING:
        return as_yaml(field.default)
    return as_yaml(field.default_factory()) if field.default_factory is not MISSING else "required"


def as_yaml(value: Any) -> str:
    """A value as it is written in YAML, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {as_yaml(inner)}" for key, inner in value.items()) + "}"
    return str(value)


def in_words(hint: Any) -> str:
    """A type as the YAML's author needs it: `Literal` by its values, `X | None` as "X or null"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return " | ".join(map(as_yaml, arguments))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(in_words(argument) for argument in arguments)
    if origin in (tuple, list):
        return f"list of {in_words(arguments[0])}"
    names = {int: "int", float: "float", str: "text", bool: "true | false", type(None): "null"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


_ENTRY = re.compile(r"(\w+(?:, \w+)*): (.*)")


def _documented(config: type) -> dict[str, str]:
    """The "Attributes:" of a Config and of what it inherits from, by field; a subclass's words win."""
    docs: dict[str, str] = {}
    for cls in reversed(config.__mro__):
        text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
        _, has_attributes, listed = text.partition("Attributes:\n")
        if has_attributes:
            docs |= _entries(listed)
    return docs


def _entries(listed: str) -> dict[str, str]:
    """`name, other: text`, indented once; its further lines are indented twice. A line that is not indented ends it."""
    entries: dict[str, str] = {}
    names: list[str] = []
    for line in listed.splitlines():
        if line and not line.startswith(" "):
            break
        entry = _ENTRY.fullmatch(line[4:]) if line[4:5].strip() else None
        if entry:
            names = entry[1].split(", ")
            entries |= dict.fromkeys(names, entry[2])
        elif names:
            entries |= {name: f"{entries[name]} {line.strip()}".strip() for name in names}
    return entries
