"""`lorascope compare`: do these adapters live in the same subspaces, beyond chance and a shared initialisation?"""

from pathlib import Path
from typing import Annotated

import typer

from lorascope.cli._options import AdapterNames, Check, Html, Json, Modules, Sarif, base_model, csv_of
from lorascope.cli._outputs import Outputs

Paths = Annotated[
    list[Path],
    typer.Argument(metavar="A B [...]", help="Adapters, as for analyze; with --base, full models as well."),
]
Csv = Annotated[Path | None, csv_of("module of a pair (per pair, of many adapters)")]
Base = Annotated[str | None, base_model(". Required for DoRA and (IA)³, and to compare full models")]
Directions = Annotated[
    int, typer.Option(min=1, help="Number of leading singular directions used for full-rank updates.")
]
Group = Annotated[
    str | None,
    typer.Option(metavar="REGEX", help="Group adapters by the part of their path that matches, e.g. the task."),
]
AllModules = Annotated[
    bool,
    typer.Option("--all-modules", help="Measure every module even when comparing many adapters (default: a sample)."),
]


def compare(  # one parameter per option
    paths: Paths,
    html: Html = None,
    json: Json = None,
    csv: Csv = None,
    check: Check = None,
    sarif: Sarif = None,
    base: Base = None,
    modules: Modules = None,
    adapter_name: AdapterNames = None,
    directions: Directions = 64,
    group: Group = None,
    all_modules: AllModules = False,
) -> None:
    """Compare adapters: cosine of their updates, principal angles, overlap φ(i, j) of input and output subspaces.

    Each metric is reported with its chance level. Adapters may differ in rank, method and format; nothing depends on
    how ΔW is written as a product. Adapters that share their random initialisation are named. From three adapters on:
    matrices, groups, clusters; with --group, agreement within and between groups, bootstrapped over adapters. Example:

        lorascope compare runs/seed0/adapter runs/seed1/adapter --html overlap.html
    """
    outputs = Outputs(html, json, csv, sarif, check)
    outputs.refuse([*paths, base])
    from lorascope.linalg.blas import prepare_process

    if len(paths) == 2:
        prepare_process()  # many adapters are matrix products, which more threads help
    from lorascope import api
    from lorascope.cli._progress import bar

    result = api.compare(
        *paths,
        base=base,
        modules=modules,
        directions=directions,
        all_modules=all_modules,
        groups=None if group is None else [_group(group, path) for path in paths],
        adapter_name=adapter_name,
        progress=bar(f"{len(paths)} adapters", "modules"),
    )
    outputs.show(result, paths)


def _group(pattern: str, path: Path) -> str:
    """What the pattern (its first group, where it has one) matches in the path."""
    from lorascope.errors import InputError
    from lorascope.patterns import Pattern

    match = Pattern(pattern, "--group").search(str(path))
    if match is None:
        raise InputError(f"--group {pattern!r} matches nothing in {path}", hint="every path must name its group")
    return match[1] or "" if match.re.groups else match[0]
