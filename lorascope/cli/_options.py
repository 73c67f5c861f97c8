"""Options that several commands share: one spelling, one help text. No command itself."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorascope.cli._outputs import Html, Json, to_file


def csv_of(rows: str) -> Any:
    """The option `--csv`; `rows` says what a row is, such as "module"."""
    return to_file(f"Write CSV, one row per {rows}.")


def base_model(about: str) -> Any:
    """The option `--base`; `about` says what it is for, or what it is by default."""
    return typer.Option("--base", metavar="MODEL", help=f"Base model (folder or name){about}.")


def matching(only: str, rest: str = "") -> Any:
    """The option `--modules`: a regular expression; `only` says of what and for what."""
    return typer.Option("--modules", metavar="REGEX", help=f"{only} matches this regex{rest}.")


def computed(what: str, where: str = "auto, cpu, or a torch device such as cuda") -> Any:
    """The option `--device`; `what` is computed there."""
    return typer.Option("--device", help=f"Where {what}: {where}.")


Base = Annotated[str | None, base_model(". Required for DoRA and (IA)³; enables comparisons of ΔW with W")]
NamedBase = Annotated[str | None, base_model("; default: the one that the adapter's files name")]
Modules = Annotated[str | None, matching("Analyse only modules whose path")]
_ONE_OF = "Which adapter to read, where a file or folder holds several"
AdapterName = Annotated[str | None, typer.Option(metavar="NAME", help=f"{_ONE_OF}.")]
AdapterNames = Annotated[
    list[str] | None,
    typer.Option("--adapter-name", metavar="NAME", help=f"{_ONE_OF}; repeated, one for each adapter in turn."),
]
Sort = Annotated[str, typer.Option(metavar="METRIC", help="Metric used to rank the modules in the terminal table.")]
Top = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="List the N largest and N smallest modules (else 3 in a line)."),
]
Cache = Annotated[Path | None, typer.Option(metavar="DIR", help="Cache directory for SVDs of the base's weights.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Do not use the SVD cache.")]

Check = Annotated[
    str | None,
    typer.Option(metavar="[=warning]", help="Exit with 1 on errors; --check=warning: on warnings too."),
]
Sarif = Annotated[Path | None, to_file("Write the findings as SARIF 2.1.0, for CI.")]
Evaluated = Annotated[str, computed("models are evaluated")]
Split = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Dataset split to evaluate on, such as test (default: the held-out examples)."),
]

# What the files of an adapter that was trained elsewhere do not say.
EvaluationBase = Annotated[
    str | None,
    typer.Option("--base", metavar="MODEL", help="Base model to evaluate on (default: the one that the files name)."),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Data to evaluate on: CSV, TSV, JSON, JSONL, text, a packaged set or a dataset. A run of lorascope has"
        " its own.",
    ),
]
Task = Annotated[
    str | None,
    typer.Option(metavar="TASK", help="With --data: SEQ_CLS or CAUSAL_LM (default: the adapter's task_type)."),
]
TextColumn = Annotated[str | None, typer.Option(metavar="NAME", help="With --data: the column of the text.")]
PairColumn = Annotated[
    str | None, typer.Option("--text-pair-column", metavar="NAME", help="With --data: the column of a second text.")
]
LabelColumn = Annotated[str | None, typer.Option(metavar="NAME", help="With --data: the column of the class.")]
Template = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help='With --data: the text of a language model, columns in braces: "Q: {question} A: {answer}" (default: the'
        " text column, or a conversation by the tokenizer's chat template).",
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(min=2, metavar="N", help="With --data: tokens of a text (default: the model's, at most 1024)."),
]
Labels = Annotated[
    str | None,
    typer.Option(metavar="A,B,...", help="With --data: the classes in the order of the head (default: the base's)."),
]


__all__ = [
    "AdapterName", "AdapterNames", "Base", "Cache", "Check", "Data", "Evaluated", "EvaluationBase", "Html", "Json",
    "LabelColumn", "Labels", "MaxLength", "Modules", "NamedBase", "NoCache", "PairColumn", "Sarif", "Sort", "Split",
    "Task", "Template", "TextColumn", "Top", "base_model", "computed", "csv_of", "matching", "to_file",
]  # fmt: skip
