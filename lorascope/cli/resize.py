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
    base_model,
    csv_of,
    matching,
    to_file,
)
from lorascope.cli._outputs import Outputs
from lorascope.destinations import check_new_folder
from lorascope.training.given import given_by

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
Truncated = Annotated[str | None, matching("Truncate only modules whose path")]
Output = Annotated[Path | None, to_file("New folder for the resized adapter, in PEFT's layout.", "DIR")]
Dtype = Annotated[
    str | None,
    typer.Option(help="Store factors as float32, float16, bfloat16 or float64 (default: as in the source)."),
]
Base = Annotated[str | None, base_model(". Required for DoRA and (IA)³")]
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
    modules: Truncated = None,
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
    from lorascope import api
    from lorascope.analyses.truncate import rules
    from lorascope.api import reading
    from lorascope.cli._progress import bar

    how: dict[str, Any] = {"rank": rank, "energy": energy, "budget_rank": budget_rank}
    how |= {"parameters": parameters, "by_energy": by_energy}
    _check_output(rules(**how), output)
    checkpoint = reading.opened_base(base)
    opened = api.read(adapter, base=checkpoint, adapter_name=adapter_name)
    scorer, scored_on = _scorer(evaluate, given, opened, device, max_samples)
    result = api.resize(
        opened, **how, modules=modules, base=checkpoint, dtype=dtype, build=output is not None, evaluate=scorer,
        scored_on=scored_on, progress=bar("resize", "modules"),
    )  # fmt: skip
    if output is not None:
        _write(result, adapter, output)
    outputs.show(result, [adapter])


def _write(result: Any, adapter: Path, output: Path) -> None:
    """The resized adapter, with what `lorascope train` left with the original."""
    from lorascope.weights import io

    io.write(result.resized, output, replace=False)
    io.copy_card(adapter, output)
    print(f"wrote {output}", file=sys.stderr)


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
