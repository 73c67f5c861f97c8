"""`lorascope trajectory`: how ΔW got where it is, over the checkpoints of a run."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorascope.cli._options import (
    AdapterName,
    Base,
    Check,
    Data,
    Evaluated,
    Html,
    Json,
    LabelColumn,
    Labels,
    MaxLength,
    Modules,
    PairColumn,
    Sarif,
    Task,
    Template,
    TextColumn,
    csv_of,
    to_file,
)
from lorascope.cli._outputs import Outputs
from lorascope.training.given import given_by

if TYPE_CHECKING:
    from lorascope.weights.adapter import Adapter
    from lorascope.weights.checkpoint import Checkpoint
    from lorascope.weights.series import Series

Paths = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN|CHECKPOINT...",
        help="A run's folder (lorascope's, Trainer's, TRL's, MLX's), or two checkpoints or more.",
    ),
]
Average = Annotated[
    Path | None, to_file("New folder for the average of the checkpoints, in PEFT's layout.", "DIR")
]  # fmt: skip
AverageLast = Annotated[
    int | None, typer.Option(min=2, metavar="N", help="With --average: only the last N checkpoints.")
]

MaxSamples = Annotated[int | None, typer.Option(min=1, metavar="N", help="With --data: use at most N examples.")]


def trajectory(  # one parameter per option
    paths: Paths,
    base: Base = None,
    modules: Modules = None,
    adapter_name: AdapterName = None,
    average: Average = None,
    average_last: AverageLast = None,
    html: Html = None,
    json: Json = None,
    csv: Annotated[Path | None, csv_of("module and checkpoint")] = None,
    check: Check = None,
    sarif: Sarif = None,
    data: Data = None,
    task: Task = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    template: Template = None,
    max_length: MaxLength = None,
    labels: Labels = None,
    max_samples: MaxSamples = None,
    device: Evaluated = "auto",
) -> None:
    """Follow ΔW over the checkpoints of a run: rank, size, and when its directions settled.

    Singular values, stable rank and the rank for 95 % of the energy with their random baselines, ‖ΔW‖/‖W‖ (with
    --base), the rotation of the left and right subspaces against the last checkpoint and the one before, and the
    losses that the run logged. Example:

        lorascope trajectory trl-output --html trajectory.html

    With --data each checkpoint is evaluated, too.
    """
    outputs = Outputs(html, json, csv, sarif, check)
    outputs.refuse([*paths, base, data], average)
    given = given_by(
        base, data, labels, adapter_name, task=task, text_column=text_column, text_pair_column=text_pair_column,
        label_column=label_column, template=template, max_length=max_length,
    )  # fmt: skip
    if data is None:
        from lorascope.linalg.blas import prepare_process

        prepare_process()
    from lorascope import api
    from lorascope.analyses.toolkit import short_path
    from lorascope.api import reading
    from lorascope.cli._progress import bar, note
    from lorascope.weights.series import find

    _check_average(average, average_last)
    series, checkpoint = find(paths), reading.opened_base(base)
    adapters = [reading.adapter_or_model(each.path, checkpoint, adapter_name) for each in series.snapshots]
    title = short_path(str(paths[0])) if len(paths) == 1 else f"{len(paths)} checkpoints"
    result = api.trajectory(
        *adapters, series=series, modules=modules, max_samples=max_samples, device=device, path=title, on_note=note,
        progress=bar("trajectory", "modules"), **vars(given),
    )  # fmt: skip
    if average is not None:
        _write_average(adapters, series, average, average_last)
    outputs.show(result, paths)


def _check_average(output: Path | None, last: int | None) -> None:
    from lorascope.destinations import check_new_folder
    from lorascope.errors import InputError

    if output is not None:
        check_new_folder(output)
    elif last is not None:
        raise InputError("--average-last belongs to --average", hint="name a new folder with --average DIR")


def _write_average(adapters: "list[Adapter | Checkpoint]", series: "Series", output: Path, last: int | None) -> None:
    from lorascope.analyses.toolkit import percent
    from lorascope.analyses.trajectory.average import average
    from lorascope.cli._progress import bar
    from lorascope.errors import InputError
    from lorascope.weights import io
    from lorascope.weights.adapter import Adapter

    named = adapters[-last:] if last else adapters
    chosen = [each for each in named if isinstance(each, Adapter)]
    if len(chosen) < len(named):
        raise InputError("only adapters are averaged", found="full models among the checkpoints")
    made = average(chosen, progress=bar("average", "modules"))
    io.write(made.adapter, output, replace=False)
    steps = [each.step for each in series.snapshots[-len(chosen) :]]
    lost = percent(max(made.lost.values(), default=0.0), 2)
    what = f"the mean ΔW of {series.unit}s {steps[0]} to {steps[-1]}"
    print(f"wrote {output}: {what}; its rank loses at most {lost} of ‖ΔW‖² in a module", file=sys.stderr)
