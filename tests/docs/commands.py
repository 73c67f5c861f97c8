"""One page a command, read off the command line itself: help, recorded runs, options, measures, findings, JSON."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import typer

import lorascope as ls
from lorascope.analyses import json_schema, rules
from lorascope.analyses.base import Analysis, analyses
from lorascope.blocks import Block, Code, Column, Heading, Items, Prose, Rich, Span, Table
from lorascope.cli import app as cli
from lorascope.cli._command import GROUPS
from tests.docs import terms
from tests.docs.markdown import said, told

RULES = {"analyze": "LS([12]|90)", "compare": "LS3", "delta": "LS4", "resize": "LS5", "dimension": "LS6",
         "intruders": "LS7", "activations": "LS8", "trajectory": "LS95"}  # how a command's rules begin  # fmt: skip
PLAIN = {"str": "TEXT", "text": "TEXT", "int": "N", "integer": "N", "int range": "N", "float": "X", "float range": "X"}
SAMPLES = {
    "analyze": ("../quickstart.html", "The page of the quickstart's adapter"),
    "compare": ("sample-compare.html", "Two adapters of one task and two seeds"),
    "delta": ("sample-delta.html", "A merged model against its base, and the adapter that made the difference"),
    "dimension": ("sample-dimension.html", "Full fine-tuning against LoRAs of three ranks"),
    "intruders": ("sample-intruders.html", "The quickstart's adapter over its base"),
    "activations": ("sample-activations.html", "The quickstart's run on its held-out texts"),
    "resize": ("sample-resize.html", "Eight plans for the quickstart's adapter"),
    "trajectory": ("sample-trajectory.html", "Eight snapshots of one run"),
    "study": ("../index.html", "Published claims with their verdicts"),
}


@cache
def commands() -> Mapping[str, Any]:
    """The commands by name, as the command line has them, in the order of its help."""
    cli._register()
    found = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    grouped = [name for _, members in GROUPS for name in members if name in found]
    return {name: found[name] for name in [*grouped, *(name for name in found if name not in grouped)]}


def file_of(name: str) -> str:
    """The page of a command."""
    return f"command-{name}.html"


def summary(command: Any) -> str:
    """The first paragraph of its help."""
    first = inspect.cleandoc(command.help).split("\n\n")[0]
    return " ".join(first.partition(" Example:")[0].split())


def blocks(name: str, recorded: Sequence[Block]) -> tuple[Block, ...]:
    """The page of a command. `recorded`: the sections of COMMANDS.md that are about it."""
    command = commands()[name]
    made: list[Block] = [*_help(f"lorascope {name}", command), *_sample(name), *recorded]
    if hasattr(command, "commands"):
        for own, sub in command.commands.items():
            made.append(Heading(f"lorascope {name} {own}", 2, own))
            made += [said(summary(sub)), *_help(f"lorascope {name} {own}", sub), *_options(sub, f"{own}-")]
    else:
        made += [Heading("Arguments and options", 2, "options"), *_options(command)]
    if name in analyses.names():
        made += _analysis(name, analyses.get(name))
    made += _elsewhere(name)
    return tuple(made)


def _sample(name: str) -> Iterator[Block]:
    if name in SAMPLES:
        file, about = SAMPLES[name]
        yield Prose(Rich((Span("Sample page", "strong"), Span(": "), Span(about, "", file), Span("."))))


def _help(typed: str, command: Any) -> Iterator[Block]:
    """How it is called, and its help without the first paragraph, which is the page's summary."""
    arguments = [p.metavar or p.name.upper() for p in command.params if p.param_type_name == "argument"]
    group = ["COMMAND"] if hasattr(command, "commands") else []
    yield Code(" ".join([typed, *group, *arguments, "[OPTIONS]"]) + "\n")
    for paragraph in inspect.cleandoc(command.help).replace("\b\n", "").split("\n\n")[1:]:
        if paragraph.startswith("    "):
            yield Code(inspect.cleandoc(paragraph) + "\n")
        else:
            yield said(paragraph)


def _options(command: Any, prefix: str = "") -> Iterator[Block]:
    columns = (Column("name", "name", "code"), Column("value", "value", "code"), Column("default", "default", "code"),
               Column("what", "what it does"))  # fmt: skip
    shown = [p for p in command.params if not getattr(p, "hidden", False)]
    rows = tuple((Rich((Span(_name(p), "code"),)), _value(p), _default(p), told(p.help or "")) for p in shown)
    if rows:
        yield Table(columns, rows, anchors=tuple(f"{prefix}option-{p.name.replace('_', '-')}" for p in shown))


def _name(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return parameter.metavar or parameter.name.upper()
    return ", ".join((*parameter.opts, *parameter.secondary_opts))


def _value(parameter: Any) -> str:
    """What is given with it: nothing with a flag."""
    if parameter.param_type_name == "argument" or getattr(parameter, "is_flag", False):
        return ""
    if choices := getattr(parameter.type, "choices", None):
        return " | ".join(str(getattr(choice, "value", choice)) for choice in choices)
    kind = getattr(parameter.type, "name", None) or ""
    many = ", repeatable" if parameter.multiple else ""
    return f"{parameter.metavar or PLAIN.get(kind, kind.upper() or 'PATH')}{many}"


def _default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "required"
    if value is None or value == () or isinstance(value, bool) or callable(value) or not str(value).isprintable():
        return ""
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _analysis(name: str, analysis: Analysis) -> Iterator[Block]:
    question, *rest = paragraphs(analysis.question)
    yield Heading("What it measures", 2, "measures")
    yield said(question)
    yield from (said(each) for each in rest)
    columns = (Column("key", "key", "code"), Column("title", "column"), Column("what", "what it is"),
               Column("formula", "formula"), Column("source", "source"))  # fmt: skip
    rows = []
    for metric in analysis.metrics:
        place = terms.anchor_of(metric, name)
        key = Span(metric.key, "code", f"{terms.FILE}#{place}" if place else "")
        rows.append((Rich((key,)), Rich((Span(metric.title),)), told(metric.help or metric.meaning),
                     Rich((Span(metric.formula),)), metric.source))  # fmt: skip
    if rows:
        yield Table(columns, tuple(rows))
    codes = [rule for rule in rules.RULES.values() if name in RULES and re.match(RULES[name], rule.code)]
    if codes:
        yield Heading("What it can find", 2, "findings")
        columns = (Column("rule", "rule"), Column("name", "name", "code"), Column("severity", "severity"),
                   Column("about", "what it looks for"))  # fmt: skip
        yield Table(columns, tuple((_rule(r.code), r.name, r.severity, r.about) for r in codes))


def _rule(code: str) -> Rich:
    return Rich((Span(code, "code", f"findings.html#{code.lower()}"),))


def paragraphs(docstring: str) -> list[str]:
    """The paragraphs of a docstring, each on one line."""
    return [" ".join(part.split()) for part in inspect.cleandoc(docstring).split("\n\n")]


def _elsewhere(name: str) -> Iterator[Block]:
    """Where else the same is described: Python, JSON, other pages."""
    lines = []
    if name in ls.__all__:
        lines.append((Span("In Python: "), Span(f"ls.{name}", "code", f"python.html#{name}")))
    if name in json_schema.COMMANDS:
        lines.append((Span("Its JSON: ", ""), Span(f"lorascope schema {name}", "code", f"json.html#{name}")))
    more = {
        "train": (("training.html", "every key of the config"), ("methods.html", "every method and its settings")),
        "methods": (("methods.html", "all methods in full"),),
        "schema": (("json.html", "the JSON of every command"),),
        "study": (("studies.html", "how a claim is judged"),),
        "quickstart": (("../quickstart.html", "the page that it writes"),),
        "merge": (("formats.html", "what is read"),),
        "analyze": (("formats.html", "what is read"), ("findings.html", "every check and its bound")),
    }
    lines += [(Span("See also: "), Span(text, "", to)) for to, text in more.get(name, ())]
    if lines:
        yield Heading("Elsewhere", 2, "elsewhere")
        yield Items(tuple(Rich(tuple(line)) for line in lines))
