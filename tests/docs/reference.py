"""Reference pages: methods, training keys, findings, JSON, benchmarks."""

import ast
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorascope.adapt.describe import describe, settings
from lorascope.adapt.method import methods
from lorascope.analyses import json_schema, rules
from lorascope.analyses.spectrum import checks
from lorascope.blocks import Block, Code, Column, Facts, Heading, Prose, Rich, Span, Table
from lorascope.models.config import ModelConfig
from lorascope.training import config, sweep
from tests.docs.commands import paragraphs
from tests.docs.markdown import said, told

ROOT = Path(__file__).parents[2]
SETTINGS = (Column("name", "key", "code"), Column("type", "value", "code"), Column("default", "default", "code"),
            Column("doc", "what it does"))  # fmt: skip
SECTIONS = (("model", ModelConfig), ("data", config.DataConfig), ("method", config.MethodSection),
            ("optim", config.OptimConfig), ("training", config.TrainingConfig))  # fmt: skip
OF_METHOD = "A method, by name, and its settings, which are on the page of methods."
METHOD_DOCS = {
    "name": "a registered method",
    "targets": "names, a regular expression, or attention / mlp / all-linear",
    "modules_to_save": "modules trained as a whole, such as a new head; null means a classifier's head and no other",
}


def method_blocks() -> tuple[Block, ...]:
    """Every registered method: what it trains, its facts, its settings, and the docstring of its file."""
    ours = [name for name, method in methods.built_in() if method.__module__.startswith("lorascope.")]  # no plug-ins
    described = [describe(name) for name in ours]
    columns = (
        Column("name", "method"),
        Column("kind", "update"),
        Column("formula", "ΔW"),
        Column("what", "what it trains"),
    )
    rows = tuple(
        (Rich((Span(d.name, "code", f"#{d.name}"),)), Rich((Span(d.kind or "none of a weight"),)),
         Rich((Span(d.formula),)), Rich((Span(d.what),)))
        for d in described
    )  # fmt: skip
    made: list[Block] = [Heading("All methods", 2, "all"), Table(columns, rows)]
    for d in described:
        kind = ((f"kind {d.kind}", d.formula),) if d.kind else (("kind", "no update of a weight"),)
        made += [Heading(d.name, 2, d.name), said(d.what), Facts((("paper", d.paper), *kind, *d.facts))]
        made += _settings(methods.get(d.name).Config, f"{d.name}-")
        made += _as_it_stands(d.about)
    return tuple(made)


def _settings(cls: type, prefix: str, docs: dict[str, str] | None = None) -> Iterator[Block]:
    found = settings(cls)
    rows = tuple(
        (Rich((Span(s.name, "code"),)), s.type, s.default, told((docs or {}).get(s.name) or s.doc)) for s in found
    )
    if rows:
        yield Table(SETTINGS, rows, anchors=tuple(f"{prefix}{s.name}" for s in found))


def _as_it_stands(docstring: str) -> Iterator[Block]:
    """Paragraphs; lists and formulas, which are indented or marked, keep their lines."""
    for paragraph in docstring.split("\n\n"):
        lines = paragraph.splitlines()
        if any(line.startswith((" ", "-", "*", "|")) for line in lines):
            yield Code(inspect.cleandoc(paragraph) + "\n")
        else:
            yield said(paragraph)


def training_blocks() -> tuple[Block, ...]:
    """Every key of a config, by section."""
    made = list(_as_it_stands(inspect.cleandoc(config.__doc__ or "")))
    for name, cls in SECTIONS:
        about = OF_METHOD if name == "method" else paragraphs(cls.__doc__ or "")[0]
        made += [Heading(name, 2, name), said(about)]
        made += _settings(cls, f"{name}-", METHOD_DOCS if name == "method" else None)
    made += [Heading("sweep", 2, "sweep"), *_as_it_stands(inspect.cleandoc(sweep.__doc__ or ""))]
    return tuple(made)


def rule_reasons() -> dict[str, str]:
    """By the code of a rule, the docstring of the check that makes its findings, where it gives reasons."""
    found: dict[str, str] = {}
    for node in ast.parse(inspect.getsource(checks)).body:
        if isinstance(node, ast.FunctionDef) and (doc := ast.get_docstring(node)):
            names = [n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and n.attr.isupper()
                     and isinstance(n.value, ast.Name) and n.value.id == "rules"]  # fmt: skip
            found = {getattr(rules, name).code: doc for name in names} | found  # the check itself stands first
    return found


def finding_blocks(page: tuple[Block, ...]) -> tuple[Block, ...]:
    """FINDINGS.md with an anchor for each rule, and the reasons of the bounds."""
    made: list[Block] = []
    for block in page:
        if isinstance(block, Table) and block.columns[0].title == "code":
            codes = [str(row[0].text) for row in block.rows if isinstance(row[0], Rich)]
            block = Table(block.columns, block.rows, anchors=tuple(code.lower() for code in codes))
        elif isinstance(block, Table):
            block = Table(block.columns, tuple(map(_led, block.rows)))
        made.append(block)
    reasons = sorted(rule_reasons().items())
    made.append(Heading("Bounds, with their reasons", 2, "bounds"))
    for code, doc in reasons:
        made.append(Heading(f"{code} {rules.RULES[code].name}", 3, f"why-{code.lower()}"))
        made += [said(each) for each in paragraphs(doc)]
    return tuple(made)


def _led(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """The cells, those that are the code of a rule leading to it."""
    return tuple(
        Rich(_coded(cell.text)) if isinstance(cell, Rich) and cell.text.startswith("LS") else cell for cell in row
    )


def _coded(text: str) -> tuple[Span, ...]:
    pieces: list[Span] = []
    for word in text.split(" "):
        code = word.rstrip(":,")
        if code in rules.RULES:
            pieces += [Span(code, "", f"#{code.lower()}"), Span(f"{word[len(code) :]} ")]
        else:
            pieces.append(Span(f"{word} "))
    return tuple(pieces)


def json_blocks(page: tuple[Block, ...]) -> tuple[Block, ...]:
    """JSON.md, and the top-level keys of every command's JSON with their types."""
    made: list[Block] = [*page, Heading("Keys by command", 2, "keys")]
    made.append(said("The top-level keys of each command's JSON, from the schema that the command prints."))
    for name in json_schema.COMMANDS:
        schema = json_schema.of_analysis(name)
        needed = set(schema["required"])
        rows = tuple(
            (Rich((Span(key, "code"),)), in_words(value), "always" if key in needed else "where there is one")
            for key, value in schema["properties"].items()
        )
        made += [Heading(f"lorascope {name} --json", 3, name), Code(f"lorascope schema {name}\n")]
        made.append(Table((Column("key", "key", "code"), Column("type", "type"), Column("there", "present")), rows))
    return tuple(made)


def in_words(schema: dict[str, Any]) -> str:
    """A JSON Schema in a few words."""
    if "const" in schema:
        return json.dumps(schema["const"])
    if "anyOf" in schema:
        return " or ".join(map(in_words, schema["anyOf"]))
    kind = schema.get("type", "any")
    kinds = kind if isinstance(kind, list) else [kind]
    if kinds == ["array"]:
        kind, _, rest = in_words(schema.get("items", {})).partition(" ")
        return f"list of {kind}s {rest}".strip()
    if kinds == ["object"] and "properties" in schema:
        return f"object ({', '.join(schema['properties'])})" if len(schema["properties"]) <= 8 else "object"
    return " or ".join(kinds)


def count_blocks() -> tuple[Block, ...]:
    """The counts of instructions that a slow test holds the program to."""
    known = json.loads((ROOT / "tests/benchmarks/counts.json").read_text(encoding="utf-8"))
    columns = (Column("what", "what"), Column("count", "instructions", "int"))
    where = ", ".join(f"{key} {value}" for key, value in known["environment"].items())
    return (
        Heading("Instructions of three commands", 2, "counts"),
        Prose(Rich((Span(f"Counted by callgrind ({where}); a slow test refuses a tenth more."),))),
        Table(columns, tuple(known["counts"].items())),
    )
