"""`lorascope delta`: tuned − base, matrix by matrix."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli._outputs import check, to_file, write_outputs
from lorascope.destinations import check_new_folder, is_stream

if TYPE_CHECKING:
    from lorascope.analyses.delta import DeltaResult
    from lorascope.blocks import Page


def delta(
    base: Annotated[str, typer.Argument(metavar="BASE", help="The model before: a folder, a file or a name.")],
    tuned: Annotated[
        str, typer.Argument(metavar="TUNED", help="The model after; or the adapter folder of a full fine-tuning run.")
    ],
    adapter: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A trained adapter to set beside ΔW; may be given several times."),
    ] = None,
    extract: Annotated[
        int | None, typer.Option(min=1, metavar="R", help="Write the best rank-R adapter, to --output.")
    ] = None,
    output: Annotated[Path | None, to_file("New folder for the extracted adapter.", "DIR")] = None,
    top: Annotated[
        int | None,
        typer.Option(min=1, metavar="K", help="Only the K leading singular values, randomised, with an error bound."),
    ] = None,
    html: Annotated[Path | None, to_file("Write one self-contained HTML page.")] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|-", readable=False, help="Write JSON (schema 1); - is stdout, and then nothing else is."
        ),
    ] = None,
    csv: Annotated[Path | None, to_file("Write one row per matrix and per vector.")] = None,
    modules: Annotated[str | None, typer.Option(metavar="REGEX", help="Only parameters whose name this finds.")] = None,
    sort: Annotated[
        str, typer.Option(metavar="MEASURE", help="What the listed matrices are sorted by.")
    ] = "energy_share",
    rows: Annotated[int, typer.Option(min=1, help="How many matrices to list at each end.")] = 4,
    state: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep finished matrices here until all are; beside the output by default."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where to decompose: cpu, or a torch device such as cuda.")] = "cpu",
) -> None:
    """Say what full fine-tuning did to the weights: the spectrum of every ΔW = tuned − base, beside what noise gives.

    Rounding of the storage dtype, Marchenko–Pastur, Gavish–Donoho and permuted entries; what a rank-r product keeps at
    best, and what given adapters do keep. Both sides are streamed; an interrupted run goes on where it was. Example:

        lorascope delta minilm sre --adapter runs/lora/adapter --html delta.html

    Measures to sort by: energy_share, relative_norm, frobenius_norm, spectral_norm, stable_rank, effective_rank,
    energy_rank.0.9, energy_rank.0.99, best.8, noise_floor.rank, marchenko_pastur.rank, gavish_donoho.rank,
    permutation.rank, moved_share.
    """
    import sys

    check([base, tuned, *(adapter or ())], html=html, json=json, csv=csv, output=output)
    from lorascope.analyses import delta as analysis
    from lorascope.analyses.delta.page import SORT_KEYS
    from lorascope.errors import InputError
    from lorascope.models import assets
    from lorascope.weights import io
    from lorascope.weights.checkpoint import open_checkpoint
    from lorascope.weights.delta import open_tuned

    if sort not in SORT_KEYS:
        raise InputError(f"--sort {sort!r} is not a measure", expected=f"one of {', '.join(SORT_KEYS)}")
    _check_output(extract, output)
    place = _placer(device)
    before = open_checkpoint(assets.resolve(base))
    result = analysis.run(
        before,
        open_tuned(assets.resolve(tuned), before),
        adapters=[io.read(path, before) for path in adapter or ()],
        top=top,
        modules=modules,
        extract=extract,
        state=state or _beside(path for path in (json, html, csv, output) if path and not is_stream(path)),
        place=place,
        progress=_bar,
    )
    page = _page(result, f"{base} → {tuned}", sort, rows)
    if str(json) != "-":
        from lorascope.report import terminal

        sys.stdout.write(terminal.render(page))
    if output is not None and result.extracted is not None:
        io.write(result.extracted, output, replace=False)
        print(f"wrote {output}", file=sys.stderr)
    write_outputs(page, result.to_json, result.flat_rows, html=html, json=json, csv=csv)


def _check_output(extract: int | None, output: Path | None) -> None:
    from lorascope.errors import InputError

    if (extract is None) != (output is None):
        raise InputError("--extract R and --output DIR go together", hint="give both")
    if output is not None:
        check_new_folder(output)


def _beside(outputs: Iterable[Path]) -> Path | None:
    """Where unfinished work is kept: beside the first thing that will be written; nowhere if nothing is."""
    first = next(iter(outputs), None)
    return None if first is None else first.with_name(f"{first.name}.unfinished")


def _placer(device: str) -> Callable[[Any], Any]:
    if device == "cpu":
        return lambda matrix: matrix
    import torch

    from lorascope.errors import InputError

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device!r} cannot be used", found=str(error).splitlines()[0]) from None
    return lambda matrix: torch.from_numpy(matrix).to(device)


def _bar(pairs: list) -> Iterable:
    """A progress bar on stderr, where somebody is looking and there is something to wait for."""
    import sys

    if not sys.stderr.isatty():
        return iter(pairs)
    from tqdm import tqdm

    return tqdm(pairs, desc="delta", unit=" parameters", leave=False, delay=0.5)


def _page(result: "DeltaResult", title: str, sort: str, rows: int) -> "Page":
    import platform
    import shlex
    import sys

    import numpy

    import lorascope
    from lorascope.analyses.delta.page import blocks
    from lorascope.blocks import Page

    whole = result.summary()
    relative = whole["relative_norm"]
    summary = f"{whole['changed']} of {whole['matrices']} matrices changed, {whole['vectors']} vectors"
    if relative is not None:
        summary += f"; ‖ΔW‖_F = {whole['frobenius_norm']:.4g}, {100 * relative:.3g} % of ‖W‖_F"
    made_by = (
        ("command", shlex.join(["lorascope", *sys.argv[1:]])),
        ("lorascope", lorascope.__version__),
        ("python", platform.python_version()),
        ("numpy", numpy.__version__),
    )
    return Page(title, blocks(result, sort=sort, rows=rows), "lorascope delta", summary, made_by)
