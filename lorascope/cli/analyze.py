"""`lorascope analyze`: what is in this adapter? No torch on this path for a safetensors file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli._options import (
    AdapterName,
    Base,
    Cache,
    Check,
    Html,
    Json,
    Modules,
    NoCache,
    Sarif,
    Sort,
    Top,
    csv_of,
)  # fmt: skip
from lorascope.cli._outputs import Outputs

if TYPE_CHECKING:
    from lorascope.analyses.analyze import AnalyzeResult
    from lorascope.blocks import Page
    from lorascope.weights.base_svd import SvdCache

Paths = Annotated[
    list[Path],
    typer.Argument(metavar="PATH...", help="Adapter: a .safetensors or .bin file, a PEFT folder, or a shard index."),
]

Like = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Compare each measure with those of the adapters in this folder (robust z)."),
]


def analyze(  # one parameter for each option
    paths: Paths,
    html: Html = None,
    json: Json = None,
    csv: Annotated[Path | None, csv_of("module")] = None,
    base: Base = None,
    modules: Modules = None,
    adapter_name: AdapterName = None,
    sort: Sort = "energy_share",
    top: Top = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    check: Check = None,
    sarif: Sarif = None,
    like: Like = None,
) -> None:
    """Inspect an adapter file: rank use, singular values, where it changes the model, problems.

    Reports what is specific to a method, too: VeRA's d and b, AdaLoRA's ranks, DoRA's magnitudes, IA³'s scales. Reads
    PEFT, kohya, diffusers, loralib, LyCORIS, torchtune, NeMo, MLX, GGUF and JAX files. With --base it also shows how
    much of W lies in ΔW's directions, compared with W's own and random ones (the LoRA paper's §7.3). Example:

        lorascope analyze adapter.safetensors --html report.html

    Metrics to sort by: frobenius_norm, spectral_norm, nuclear_norm, energy_share, stable_rank, effective_rank,
    energy_effective_rank, participation_ratio, energy_rank_0.9, energy_rank_0.95, energy_rank_0.99, rank_utilisation,
    rank_utilisation_of_null, negligible_share, against_base.relative_norm, against_base.rounding_loss.
    """
    from lorascope.linalg.blas import prepare_process

    outputs = Outputs(html, json, csv, sarif, check)
    outputs.refuse([*paths, base])
    prepare_process()  # before numpy is imported
    from lorascope.analyses.base import metric_to_sort_by
    from lorascope.analyses.spectrum import METRICS
    from lorascope.cli._base_svd import open_cache

    metric_to_sort_by(METRICS, sort)
    svds = None if base is None else open_cache(cache, no_cache)
    results = analysed(paths, base, modules, svds, adapter_name)
    results = results if like is None else [_compared(result, like, modules, adapter_name) for result in results]
    report_on(results, outputs, sort, top)


def analysed(
    paths: Sequence[Path],
    base: str | None = None,
    modules: str | None = None,
    cache: "SvdCache | None" = None,
    adapter_name: str | None = None,
) -> "list[AnalyzeResult]":
    """Read and analyse each path.

    Raises:
        InputError: a file cannot be read, or nothing in it can be analysed.
    """
    from lorascope import api
    from lorascope.api import reading
    from lorascope.cli._progress import bar

    options: dict[str, Any] = {"base": reading.opened_base(base), "base_name": base, "cache": cache}
    options |= {"modules": modules, "adapter_name": adapter_name}
    results: list[Any] = [api.analyze(path, progress=bar(path.name, "modules"), **options) for path in paths]
    return results


def report_on(
    results: "Sequence[AnalyzeResult]", outputs: Outputs, sort: str = "energy_share", top: int | None = None
) -> None:
    """Print the summary, unless the JSON goes to stdout, and write what is asked for. `quickstart` ends with it, too.

    Raises:
        InputError: after all is written: a base was given, and not one module of an adapter could be compared with it.
    """
    page = page_of(results, sort, top, complete=outputs.html is not None)
    found = [([result.spectrum.source.path], result.findings) for result in results]
    outputs.write(page, lambda: _record(results), lambda: _rows(results), found)
    outputs.end(found)
    _refuse_another_base(results)


def page_of(
    results: "Sequence[AnalyzeResult]", sort: str = "energy_share", top: int | None = None, complete: bool = True
) -> "Page":
    """The page of one adapter, or of several under one another; if not `complete`, what the terminal shows of it."""
    import sys
    from dataclasses import replace

    from lorascope.analyses.spectrum import screen

    command = ["lorascope", *sys.argv[1:]]
    pages = [result.page(command, sort=sort, top=top, complete=complete) for result in results]
    if len(results) == 1:
        return pages[0]
    summary, body = screen.of_several([result.spectrum for result in results], [page.blocks for page in pages])
    return replace(pages[0], title=f"{len(results)} adapters", summary=summary, blocks=body)


def _compared(result: "AnalyzeResult", folder: Path, modules: str | None, adapter_name: str | None) -> "AnalyzeResult":
    """The result with its measures compared with those of the adapters in a folder.

    Raises:
        InputError: the folder holds no other adapter that can be read and measured.
    """
    from dataclasses import replace

    from lorascope.analyses import like, spectrum
    from lorascope.cli._progress import bar, note
    from lorascope.errors import InputError
    from lorascope.weights import io

    if not folder.is_dir():
        raise InputError(f"--like {folder} is not a folder", expected="a folder of adapters")
    population, tails = [], []
    for path in bar(folder.name, "adapters")(like.adapters_in(folder, Path(result.spectrum.source.path))):
        try:
            adapter = io.read(path)
            population.append(spectrum.run(adapter, modules=modules))
            tails.append(like.kurtoses(adapter))
        except InputError as error:
            note(f"--like skips {path}: {error.what}")
    if not population:
        raise InputError(f"--like {folder} holds no other adapter that could be measured")
    own = like.kurtoses(io.read(Path(result.spectrum.source.path), adapter_name=adapter_name))
    return replace(result, like=like.compared(result.spectrum, population, own, tails))


def _refuse_another_base(results: "Sequence[AnalyzeResult]") -> None:
    from lorascope.analyses.spectrum.result import COMPARISON
    from lorascope.errors import InputError

    for result in results:
        if result.spectrum.nothing_compared:
            items, base = result.spectrum.skipped_in(COMPARISON), result.spectrum.base
            raise InputError(
                f"none of the {len(items)} modules of {result.spectrum.source.path} was compared with {base}",
                found=f"{items[0].name}: {items[0].reason}",
                hint="give the base model that this adapter was trained on",
            )


def _record(results: "Sequence[AnalyzeResult]") -> dict[str, Any]:
    """One adapter: its object of schema 2. Several: those objects in `adapters`."""
    from lorascope.analyses.base import SCHEMA, SCHEMA_NOTE

    records = [result.to_json() for result in results]
    if len(records) == 1:
        return records[0]
    return {"schema": SCHEMA, "schema_note": SCHEMA_NOTE, "lorascope": records[0]["lorascope"], "adapters": records}


def _rows(results: "Sequence[AnalyzeResult]") -> list[dict[str, Any]]:
    return [row for result in results for row in result.flat_rows()]
