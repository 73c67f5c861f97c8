"""`lorascope resize`: an adapter at lower rank, and what that loses."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli._options import (
    AdapterName,
    Check,
    Data,
    Evaluated,
    Html,
    Json,
    LabelColumn,
    Labels,
    MaxLength,
    PairColumn,
    Sarif,
    Task,
    Template,
    TextColumn,
    csv_of,
    to_file,
)
from lorascope.cli._outputs import Outputs
from lorascope.cli._runs import given_by
from lorascope.destinations import check_new_folder

if TYPE_CHECKING:
    from lorascope.analyses.truncate import Rule
    from lorascope.training.given import Given
    from lorascope.weights.adapter import Adapter

Adapted = Annotated[Path, typer.Argument(metavar="ADAPTER", help="Adapter file or folder, in any format, or a run.")]
Rank = Annotated[list[int] | None, typer.Option(min=1, metavar="R", help="One rank for all modules; may be repeated.")]
Energy = Annotated[
    list[float] | None,
    typer.Option(
        min=0.0, max=1.0, metavar="P", help="Per module, the smallest rank that retains this fraction of ‖ΔW‖²"
        " (e.g. 0.95).",
    ),
]  # fmt: skip
BudgetRank = Annotated[
    list[float] | None,
    typer.Option(metavar="R", help="Average rank R per module, allocated to the largest singular values."),
]
Parameters = Annotated[
    list[int] | None,
    typer.Option(min=1, metavar="N", help="At most N parameters in total, allocated to the largest singular values."),
]
ByEnergy = Annotated[
    bool, typer.Option("--by-energy", help="With --parameters: allocate by energy per parameter instead.")
]
Modules = Annotated[
    str | None, typer.Option(metavar="REGEX", help="Truncate only modules whose path matches this regex.")
]
Output = Annotated[Path | None, to_file("New folder for the resized adapter, in PEFT's layout.", "DIR")]
Dtype = Annotated[
    str | None,
    typer.Option(help="Store factors as float32, float16, bfloat16 or float64 (default: as in the source)."),
]
Base = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Base model (folder or name): needed for DoRA and (IA)³.")
]
Run = Annotated[
    Path | None,
    typer.Option(
        metavar="RUN|ADAPTER",
        help="Folder of the training run: score each plan on its held-out data; with --data, an adapter's folder"
        " (default: the one that is resized).",
    ),
]
MaxSamples = Annotated[int | None, typer.Option(min=1, metavar="N", help="With --evaluate: use at most N examples.")]


def resize(  # one parameter per option
    adapter: Adapted,
    rank: Rank = None,
    energy: Energy = None,
    budget_rank: BudgetRank = None,
    parameters: Parameters = None,
    by_energy: ByEnergy = False,
    modules: Modules = None,
    adapter_name: AdapterName = None,
    output: Output = None,
    dtype: Dtype = None,
    base: Base = None,
    evaluate: Run = None,
    max_samples: MaxSamples = None,
    data: Data = None,
    task: Task = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    template: Template = None,
    max_length: MaxLength = None,
    labels: Labels = None,
    html: Html = None,
    json: Json = None,
    csv: Annotated[Path | None, csv_of("plan and module")] = None,
    check: Check = None,
    sarif: Sarif = None,
    device: Evaluated = "auto",
) -> None:
    """Truncate an adapter to a lower rank: uniform, by energy, or under a parameter budget.

    Without --output, and without any rule, it compares plans and writes nothing. The result has PEFT's layout, with a
    rank_pattern where ranks differ; heads and trained biases are carried over. Example:

        lorascope resize runs/lora/adapter --budget-rank 4 --output smaller --evaluate runs/lora
    """
    outputs = Outputs(html, json, csv, sarif, check)
    outputs.refuse([adapter, base, evaluate, data], output)
    given = given_by(
        base if evaluate or data else None, data, labels, task=task, text_column=text_column,
        text_pair_column=text_pair_column, label_column=label_column, template=template, max_length=max_length,
    )  # fmt: skip
    evaluate = evaluate or (adapter if data else None)
    if evaluate is None:
        from lorascope.linalg.blas import prepare_process

        prepare_process()
    from lorascope.analyses import resize as analysis
    from lorascope.analyses.truncate import dtype_named, rules
    from lorascope.cli._progress import bar
    from lorascope.weights import io

    plans = rules(rank=rank, energy=energy, budget_rank=budget_rank, parameters=parameters, by_energy=by_energy)
    _check_output(plans, output)
    checkpoint = _open_base(base)
    opened = io.read(adapter, checkpoint, adapter_name)
    scorer, scored_on = _scorer(evaluate, given, opened, device, max_samples)
    result = analysis.run(
        opened, plans, modules=modules, base=checkpoint, dtype=dtype_named(dtype), build=output is not None,
        evaluate=scorer, scored_on=scored_on, progress=bar("resize", "modules"),
    )  # fmt: skip
    if output is not None and result.resized is not None:
        io.write(result.resized, output, replace=False)
        io.copy_card(adapter, output)
        print(f"wrote {output}", file=sys.stderr)
    outputs.show(result, [adapter])


def _check_output(plans: "list[Rule]", output: Path | None) -> None:
    from lorascope.errors import InputError

    if output is None:
        return
    if len(plans) != 1:
        raise InputError(
            "--output takes exactly one rule",
            found=", ".join(rule.label for rule in plans) or "none",
            expected="one of --rank, --energy, --budget-rank and --parameters, once",
            hint="without --output several are compared",
        )
    check_new_folder(output)


def _open_base(base: str | None) -> Any:
    if base is None:
        return None
    from lorascope.models import assets
    from lorascope.weights.checkpoint import open_checkpoint

    return open_checkpoint(assets.resolve(base))


def _scorer(
    run: Path | None, given: "Given", adapter: "Adapter", device: str, max_samples: int | None
) -> tuple[Callable[[Any], dict[str, float]] | None, str]:
    """A function that scores a ΔW in the run's model, and on what it does."""
    from lorascope.errors import InputError

    if run is None:
        if max_samples is not None:
            raise InputError("--max-samples belongs to --evaluate", hint="name the run with --evaluate RUN")
        return None, ""
    from lorascope.cli._runs import opened
    from lorascope.training.runs import scorer

    return scorer(opened(run, given, device, max_samples=max_samples), adapter)
