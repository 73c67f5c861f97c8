"""`lorascope delta`: tuned − base, matrix by matrix."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lorascope.cli._options import AdapterNames, Check, Html, Json, Sarif, computed, csv_of, matching
from lorascope.cli._outputs import Outputs, to_file
from lorascope.destinations import check_new_folder, is_stream

BaseModel = Annotated[str, typer.Argument(metavar="BASE", help="Base checkpoint: a folder, a file or a name.")]
Tuned = Annotated[
    str,
    typer.Argument(metavar="TUNED", help="Tuned checkpoint; or the adapter folder of a full fine-tuning run."),
]
Adapters = Annotated[list[Path] | None, typer.Option(metavar="FILE", help="Adapter to compare with ΔW. Repeatable.")]
Extract = Annotated[int | None, typer.Option(min=1, metavar="R", help="Write the best rank-R adapter, to --output.")]
Output = Annotated[Path | None, to_file("New folder for the extracted adapter.", "DIR")]
Leading = Annotated[
    int | None,
    typer.Option(min=1, metavar="K", help="Only the K leading singular values, randomised, with an error bound."),
]
Csv = Annotated[Path | None, csv_of("matrix and per vector")]
Parameters = Annotated[str | None, matching("Only parameters whose name")]
Sort = Annotated[str, typer.Option(metavar="METRIC", help="Metric used to rank the matrices in the terminal table.")]
Rows = Annotated[int, typer.Option(min=1, metavar="N", help="List the N largest and N smallest matrices.")]
State = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Checkpoint directory for resuming; default: next to the output.")
]
Device = Annotated[str, computed("SVDs are computed", "cpu, or a torch device such as cuda")]


def delta(  # one parameter per option
    base: BaseModel,
    tuned: Tuned,
    adapter: Adapters = None,
    adapter_name: AdapterNames = None,
    extract: Extract = None,
    output: Output = None,
    top: Leading = None,
    html: Html = None,
    json: Json = None,
    csv: Csv = None,
    check: Check = None,
    sarif: Sarif = None,
    modules: Parameters = None,
    sort: Sort = "energy_share",
    rows: Rows = 4,
    state: State = None,
    device: Device = "cpu",
) -> None:
    """Compare two full checkpoints: spectrum of ΔW = tuned − base, against noise.

    Noise is what rounding to the storage dtype leaves, the Marchenko–Pastur law, the Gavish–Donoho threshold and the
    same entries permuted. Also reports what a rank-r product keeps at best, and what given adapters capture. Both
    checkpoints are streamed; a stopped run resumes. Example:

        lorascope delta minilm sre --adapter runs/lora/adapter --html delta.html

    Metrics to sort by: energy_share, relative_norm, frobenius_norm, spectral_norm, stable_rank, effective_rank,
    energy_rank_0.9, energy_rank_0.99, best.8, noise_floor.rank, marchenko_pastur.rank, gavish_donoho.rank,
    permutation.rank, moved_share.
    """
    outputs = Outputs(html, json, csv, sarif, check)
    outputs.refuse([base, tuned, *(adapter or ())], output)
    from lorascope.analyses.base import metric_to_sort_by
    from lorascope.analyses.delta.metrics import METRICS

    metric_to_sort_by(METRICS, sort)
    _check_output(extract, output)
    written = [path for path in (json, html, csv, output) if path and not is_stream(path)]
    from lorascope import api
    from lorascope.cli._progress import bar

    result = api.delta(
        base, tuned, adapters=adapter or (), modules=modules, top=top, extract=extract,
        state=state or _state_next_to(written), device=device, adapter_name=adapter_name,
        progress=bar("delta", "parameters"),
    )  # fmt: skip
    if output is not None:
        _write(result, output)
    outputs.show(result, [tuned, base, *(adapter or ())], sort=sort, rows=rows)


def _check_output(extract: int | None, output: Path | None) -> None:
    from lorascope.errors import InputError

    if (extract is None) != (output is None):
        raise InputError("--extract requires --output, and --output requires --extract", hint="give both")
    if output is not None:
        check_new_folder(output)


def _write(result: Any, output: Path) -> None:
    """The adapter that was extracted, where there is one."""
    import sys

    from lorascope.weights import io

    if result.extracted is None:
        return
    io.write(result.extracted, output, replace=False)
    print(f"wrote {output}", file=sys.stderr)


def _state_next_to(outputs: list[Path]) -> Path | None:
    """Where unfinished work is kept: next to the first thing that will be written; nowhere if nothing is."""
    return outputs[0].with_name(f"{outputs[0].name}.unfinished") if outputs else None
