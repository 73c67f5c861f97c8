"""`lorascope analyze`: what is in this adapter? No torch on this path for a safetensors file."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli._outputs import check, to_file, write_outputs

if TYPE_CHECKING:
    from lorascope.analyses.against_base import AgainstBaseResult
    from lorascope.analyses.method_specific import ParticularsResult
    from lorascope.analyses.spectrum import SpectrumResult
    from lorascope.blocks import Block, Page
    from lorascope.weights.adapter import Adapter
    from lorascope.weights.base_svd import SvdCache


def analyze(
    paths: Annotated[
        list[Path], typer.Argument(metavar="PATH...", help="safetensors file, PEFT folder, .bin, or shard index.")
    ],
    html: Annotated[Path | None, to_file("Write one self-contained HTML page.")] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|-", readable=False, help="Write JSON (schema 1); - is stdout, and then nothing else is."
        ),
    ] = None,
    csv: Annotated[Path | None, to_file("Write one row per module.")] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The base model, a folder or a name: completes DoRA and (IA)³, and sets ΔW beside W."
        ),
    ] = None,
    modules: Annotated[str | None, typer.Option(metavar="REGEX", help="Only modules whose path this finds.")] = None,
    sort: Annotated[
        str, typer.Option(metavar="MEASURE", help="What the listed modules are sorted by.")
    ] = "energy_share",
    top: Annotated[int, typer.Option(min=1, help="How many modules to list at each end.")] = 4,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --base: where decompositions of base weights are kept.")
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="With --base: neither read nor keep decompositions of base weights.")
    ] = False,
) -> None:
    """Say what is in an adapter: rank, spectra, where the update is, and what is wrong with it.

    And what is particular to its method: VeRA's d and b, AdaLoRA's ranks, DoRA's magnitudes, IA³'s scales. Reads
    PEFT, kohya, diffusers, loralib, LyCORIS and torchtune files. With --base also how much of W lies in ΔW's
    directions, beside W's own and random ones (the LoRA paper's §7.3). Example:

        lorascope analyze adapter.safetensors --html report.html

    Measures to sort by: frobenius_norm, spectral_norm, nuclear_norm, energy_share, stable_rank, effective_rank,
    energy_effective_rank, participation_ratio, energy_rank_0.9, energy_rank_0.95, energy_rank_0.99, rank_utilisation,
    rank_utilisation_of_null, negligible_share, relative_norm, rounding_loss.
    """
    kept = None
    if base is not None:
        from lorascope.linalg.blas import prepare_process

        prepare_process()
        from lorascope.cli._base_svd import open_cache

        kept = open_cache(cache, no_cache)
    report_on(
        paths, html=html, json=json, csv=csv, terminal=str(json) != "-", base=base, modules=modules, sort=sort, top=top,
        cache=kept,
    )  # fmt: skip


def report_on(
    paths: list[Path],
    *,
    html: Path | None = None,
    json: Path | None = None,
    csv: Path | None = None,
    terminal: bool = True,
    base: str | Path | None = None,
    modules: str | None = None,
    sort: str = "energy_share",
    top: int = 4,
    cache: "SvdCache | None" = None,
) -> "list[SpectrumResult]":
    """Read each path, analyse it, and write what was asked for. What `quickstart` and `train` end with.

    Raises:
        InputError: a file cannot be read, nothing in it can be analysed, or `sort` is not a measure; and, after all is
            written, where a base was given and not one module could be compared with it.
    """
    import sys
    from dataclasses import replace
    from functools import partial

    from lorascope.linalg.blas import prepare_process

    check([*paths, base], html=html, json=json, csv=csv)
    prepare_process()
    from lorascope.analyses import method_specific as particulars
    from lorascope.analyses import spectrum
    from lorascope.analyses.spectrum.page import SORT_KEYS
    from lorascope.errors import InputError
    from lorascope.weights import io

    if sort not in SORT_KEYS:
        raise InputError(f"--sort {sort!r} is not a measure", expected=f"one of {', '.join(SORT_KEYS)}")
    checkpoint = _open_base(base)
    results, special, beside = [], [], []
    for path in paths:
        adapter = io.read(path, checkpoint)
        particular = particulars.run(adapter, base=checkpoint, modules=modules)
        # IA³'s scales can be told without the base, its spectra cannot; of a prompt, that it is no update of a weight.
        least = 0 if particular.parts or adapter.non_weight_tensors else 1
        measured = spectrum.run(adapter, base=checkpoint, modules=modules, progress=_bar(path), at_least=least)
        special.append(particular)
        results.append(measured)
        beside.append(_against(adapter, checkpoint, modules, cache, path))
    if base is not None:
        results = [replace(result, base=str(base)) for result in results]  # as the user named it, not where it lies
    page = _page(results, special, beside, sort, top)
    if terminal:
        from lorascope.report import terminal as screen

        sys.stdout.write(screen.render(page))
    record, rows = partial(_record, results, special, beside), partial(_rows, results, beside)
    write_outputs(page, record, rows, html=html, json=json, csv=csv)
    for result in results:
        if result.nothing_compared:
            first = result.not_compared[0]
            raise InputError(
                f"none of the {len(result.not_compared)} modules of {result.source.path} was compared with {base}",
                found=f"{first.name}: {first.reason}",
                hint="give the base model that this adapter was trained on",
            )
    return results


def _against(
    adapter: "Adapter", base: Any, modules: str | None, cache: "SvdCache | None", path: Path
) -> "AgainstBaseResult | None":
    """ΔW against W, where there is a W: nothing of it is loaded otherwise."""
    if base is None:
        return None
    from lorascope.analyses import against_base

    return against_base.run(adapter, base, modules=modules, cache=cache, progress=_bar(path))


def _open_base(base: str | Path | None) -> Any:
    if base is None:
        return None
    from lorascope.models import assets
    from lorascope.weights.checkpoint import open_checkpoint

    return open_checkpoint(assets.resolve(base))


def _bar(path: Path) -> Callable[[list], Iterable]:
    """A progress bar on stderr, where somebody is looking and there is something to wait for."""
    import sys

    if not sys.stderr.isatty():
        return iter
    from tqdm import tqdm

    return lambda updates: tqdm(updates, desc=path.name, unit=" modules", leave=False, delay=0.5)


def _page(
    results: "list[SpectrumResult]",
    special: "list[ParticularsResult]",
    beside: "list[AgainstBaseResult | None]",
    sort: str,
    top: int,
) -> "Page":
    import platform
    import shlex
    import sys

    import numpy

    import lorascope
    from lorascope.blocks import Heading, Page

    body: list = []
    for result, particulars, against in zip(results, special, beside, strict=True):
        if len(results) > 1:
            body.append(Heading(result.source.path, level=1))
        body.extend(_body(result, particulars, against, sort, top))
    first = results[0]
    title = "/".join(Path(first.source.path).parts[-2:]) if len(results) == 1 else f"{len(results)} adapters"
    summary = "; ".join(
        f"{r.source.method} ({r.source.format}), {len(r.modules)} modules, ‖ΔW‖_F = {_norm(r)}"
        if r.modules
        else f"{r.source.method} ({r.source.format}), {sum(p.kinds.values())} modules, ‖ΔW‖ known with --base only"
        for r, p in zip(results, special, strict=True)
    )
    command = shlex.join(["lorascope", *sys.argv[1:]])
    made_by = (
        ("command", command),
        ("lorascope", lorascope.__version__),
        ("python", platform.python_version()),
        ("numpy", numpy.__version__),
    )
    return Page(title, tuple(body), kicker="lorascope analyze", summary=summary, made_by=made_by)


def _norm(result: "SpectrumResult") -> str:
    return "not known" if result.frobenius_norm is None else f"{result.frobenius_norm:.4g}"


def _body(
    result: "SpectrumResult",
    particulars: "ParticularsResult",
    against: "AgainstBaseResult | None",
    sort: str,
    top: int,
) -> "list[Block]":
    """The spectrum's blocks, those of the particulars and of W, and the definitions of all."""
    from lorascope.analyses.spectrum.page import DEFINITIONS, blocks
    from lorascope.blocks import Definitions

    *spectrum, _ = blocks(result, sort=sort, top=top)
    beside: list = []
    more: tuple = ()
    if against is not None and against.modules:
        from lorascope.analyses.against_base.page import DEFINITIONS as OF_BASE

        beside, more = list(against.blocks()), OF_BASE
    definitions = Definitions((*DEFINITIONS, *more, *particulars.definitions), where="page")
    return [*spectrum, *beside, *particulars.sections(), definitions]


def _record(
    results: "list[SpectrumResult]", special: "list[ParticularsResult]", beside: "list[AgainstBaseResult | None]"
) -> dict[str, Any]:
    """One adapter: the object of schema 1. Several: those objects in `adapters`."""
    import lorascope

    records = []
    for result, particulars, against in zip(results, special, beside, strict=True):
        record = result.to_json() | {"particulars": particulars.record()}
        if against is not None:
            record |= {"against_base": {"summary": against.summary(), "findings": _said(against)}}
            for module in record["modules"]:
                if module["against_base"] is not None:
                    module["against_base"] |= against.extra(module["name"])
        records.append(record)
    return records[0] if len(records) == 1 else {"schema": 1, "lorascope": lorascope.__version__, "adapters": records}


def _said(against: "AgainstBaseResult") -> list[dict[str, Any]]:
    return [{"severity": f.severity, "module": f.module, "text": f.text} for f in against.findings]


def _rows(results: "list[SpectrumResult]", beside: "list[AgainstBaseResult | None]") -> list[dict[str, Any]]:
    rows = []
    for result, against in zip(results, beside, strict=True):
        for row in result.flat_rows():
            more = against.flat(row["name"]) if against is not None else {}
            rows.append({"path": result.source.path, **row, **{f"against_base.{k}": v for k, v in more.items()}})
    return rows
