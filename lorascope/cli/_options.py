"""Options that several commands share: one spelling, one help text. No command itself."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorascope.cli._outputs import Html, Json, to_file


def csv_of(rows: str) -> Any:
    """The option `--csv`; `rows` says what a row is, such as "module"."""
    return to_file(f"Write CSV, one row per {rows}.")


Base = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Base model (folder or name). Required for DoRA and (IA)³; enables comparisons of ΔW with W.",
    ),
]
Modules = Annotated[
    str | None, typer.Option(metavar="REGEX", help="Analyse only modules whose path matches this regex.")
]
AdapterName = Annotated[
    str | None, typer.Option(metavar="NAME", help="Of a file that holds several adapters, which one to read.")
]
Sort = Annotated[str, typer.Option(metavar="METRIC", help="Metric used to rank the modules in the terminal table.")]
Top = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="List the N largest and N smallest modules (else 3 in a line)."),
]
Cache = Annotated[Path | None, typer.Option(metavar="DIR", help="With --base: cache directory for base-weight SVDs.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="With --base: do not use the SVD cache.")]
Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, or a torch device such as cuda.")]

Evaluated = Annotated[str, typer.Option(help="Where models are evaluated: auto, cpu, or a torch device such as cuda.")]
Split = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Dataset split to evaluate on, such as test (default: the held-out examples)."),
]

__all__ = [
    "AdapterName", "Base", "Cache", "Device", "Evaluated", "Html", "Json", "Modules", "NoCache", "Sort", "Split", "Top",
    "csv_of", "to_file",
]  # fmt: skip
