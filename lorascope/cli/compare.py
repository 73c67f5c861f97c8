"""`lorascope compare`: do these adapters live in the same subspaces, beyond chance and a shared initialisation?"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli._outputs import check, to_file, write_outputs

if TYPE_CHECKING:
    from lorascope.analyses.compare import CompareResult
    from lorascope.blocks import Page


def compare(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="A B [...]", help="Adapters, as for analyze; with --base, full models as well."),
    ],
    html: Annotated[Path | None, to_file("Write one self-contained HTML page.")] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|-", readable=False, help="Write JSON (schema 1); - is stdout, and then nothing else is."
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        to_file("Write one row per module of a pair (per pair, of many)."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The base model: completes DoRA and (IA)³, and makes ΔW of a full model."),
    ] = None,
    modules: Annotated[str | None, typer.Option(metavar="REGEX", help="Only modules whose path this finds.")] = None,
    directions: Annotated[
        int, typer.Option(min=1, help="Leading directions that make the subspace of an update that is not low rank.")
    ] = 64,
    group: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="What it finds in a path names the adapter's group, such as its task."),
    ] = None,
    all_modules: Annotated[
        bool, typer.Option("--all-modules", help="Of very many adapters, too, measure every module, not a sample.")
    ] = False,
) -> None:
    """Say what two or more adapters share: cosine of their updates, principal angles, overlap φ(i, j) on both sides.

    Every number stands beside its chance level. Any ranks, methods and formats; nothing depends on how ΔW is written
    as a product. Adapters that share their random initialisation are named. From three on: matrices, groups, clusters;
    with --group, agreement within and between tasks, with runs and not layers as samples. Example:

        lorascope compare runs/seed0/adapter runs/seed1/adapter --html overlap.html
    """
    check([*paths, base], html=html, json=json, csv=csv)
    from lorascope.linalg.blas import prepare_process

    if len(paths) == 2:
        prepare_process()  # many adapters are matrix products, which more threads help
    from lorascope.analyses.compare import run

    checkpoint = _open_base(base)
    named = None if group is None else [_group(group, path) for path in paths]
    inputs = [_read(path, checkpoint) for path in paths]
    result = run(
        inputs,
        base=checkpoint,
        modules=modules,
        directions=directions,
        all_modules=all_modules,
        named_groups=named,
        progress=_bar(len(paths)),
    )
    page = _page(result)
    if str(json) != "-":
        import sys

        from lorascope.report import terminal as screen

        sys.stdout.write(screen.render(page))
    write_outputs(page, result.to_json, result.flat_rows, html=html, json=json, csv=csv)


def _open_base(base: str | None) -> Any:
    if base is None:
        return None
    from lorascope.models import assets
    from lorascope.weights.checkpoint import open_checkpoint

    return open_checkpoint(assets.resolve(base))


def _read(path: Path, base: Any) -> Any:
    """An adapter; a full model where there is a base to take away from it."""
    from lorascope.errors import InputError
    from lorascope.weights import io

    try:
        return io.read(path, base)
    except InputError as error:
        if base is None or "full model" not in error.what:
            raise
    from lorascope.weights.checkpoint import open_checkpoint

    return open_checkpoint(path)


def _group(pattern: str, path: Path) -> str:
    """What the pattern (its first group, where it has one) finds in the path."""
    from lorascope.errors import InputError
    from lorascope.patterns import Pattern

    found = Pattern(pattern, "--group").search(str(path))
    if found is None:
        raise InputError(f"--group {pattern!r} finds nothing in {path}", hint="every path must name its group")
    return found[1] or "" if found.re.groups else found[0]


def _bar(adapters: int) -> Callable[[list], Iterable]:
    """A progress bar on stderr, where somebody is looking and there is something to wait for."""
    import sys

    if not sys.stderr.isatty():
        return iter
    from tqdm import tqdm

    return lambda names: tqdm(names, desc=f"{adapters} adapters", unit=" modules", leave=False, delay=0.5)


def _page(result: "CompareResult") -> "Page":
    import platform
    import shlex
    import sys

    import numpy

    import lorascope
    from lorascope.blocks import Page

    count = len(result.adapters)
    title = " and ".join(one["label"] for one in result.adapters) if count == 2 else f"{count} adapters"
    most = max(pair.summary["modules"] for pair in result.pairs)
    summary = (
        f"{most} modules in common" if count == 2 else f"{len(result.pairs)} pairs, up to {most} modules in common"
    )
    if result.unmatched:
        summary += f"; {len(result.unmatched)} not on all sides"
    made_by = (
        ("command", shlex.join(["lorascope", *sys.argv[1:]])),
        ("lorascope", lorascope.__version__),
        ("python", platform.python_version()),
        ("numpy", numpy.__version__),
    )
    return Page(title, result.blocks(), kicker="lorascope compare", summary=summary, made_by=made_by)
