"""`lorascope dimension`: the intrinsic dimension of full fine-tuning against BA, from run folders."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lorascope.cli._options import (
    AdapterName,
    Check,
    Data,
    EvaluationBase,
    Html,
    Json,
    LabelColumn,
    Labels,
    MaxLength,
    PairColumn,
    Sarif,
    Split,
    Task,
    Template,
    TextColumn,
    computed,
    csv_of,
    matching,
)
from lorascope.cli._outputs import Outputs
from lorascope.training.given import given_by

Paths = Annotated[
    list[Path],
    typer.Argument(metavar="RUN...", help="Finished run directories, or directories containing them (e.g. a sweep)."),
]
Matrices = Annotated[str | None, matching("Truncate only matrices whose name", "; others stay as trained")]
Device = Annotated[str, computed("models are evaluated and ΔW is decomposed")]
MaxSamples = Annotated[
    int, typer.Option(min=1, metavar="N", help="Evaluate on at most N examples (runtime is proportional).")
]
Baseline = Annotated[
    str,
    typer.Option(
        metavar="START",
        help="Where gain is measured from: matrices (base matrices, trained head and vectors), prior (predicting class"
        " frequencies), a run directory (such as one that trained the head alone), or a loss.",
    ),
]
Draws = Annotated[int, typer.Option(min=1, metavar="N", help="Draws of each random control.")]
Search = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Search for d90: train random_subspace runs in DIR, adaptively; resumes."),
]
Said = Annotated[
    str,
    typer.Option(
        "--said-scaling",
        metavar="HOW",
        help="For --search: none (DID), or a trained factor per layer or tensor (SAID).",
    ),
]
OldSaid = Annotated[str | None, typer.Option("--said", hidden=True, help="Earlier name of --said-scaling.")]
Start = Annotated[int, typer.Option(min=2, metavar="D", help="For --search: first d to try.")]
Tolerance = Annotated[
    float, typer.Option(metavar="RATIO", help="For --search: stop when the bracket's high / low is at most RATIO.")
]
Seeds = Annotated[int, typer.Option(min=1, metavar="N", help="For --search: number of seeds at each d.")]
Rates = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help="For --search: learning rates to try at each d (e.g. 1e-2,3e-2); the best is used. Default:"
        " 2e-2·√(1000/d), ×1/3 and ×3.",
    ),
]


def dimension(  # one parameter per option
    paths: Paths,
    html: Html = None,
    json: Json = None,
    csv: Annotated[Path | None, csv_of("matrix, point of a curve, and run")] = None,
    check: Check = None,
    sarif: Sarif = None,
    modules: Matrices = None,
    adapter_name: AdapterName = None,
    split: Split = None,
    max_samples: MaxSamples = 1000,
    baseline: Baseline = "matrices",
    draws: Draws = 3,
    device: Device = "auto",
    search: Search = None,
    said_scaling: Said = "none",
    said: OldSaid = None,
    start: Start = 1000,
    tolerance: Tolerance = 1.5,
    seeds: Seeds = 1,
    learning_rates: Rates = None,
    base: EvaluationBase = None,
    data: Data = None,
    task: Task = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    template: Template = None,
    max_length: MaxLength = None,
    labels: Labels = None,
) -> None:
    """Measure the intrinsic dimension of full fine-tuning and compare it with LoRA.

    Truncates every ΔW of a full fine-tuning run to one rank, and finds the smallest rank that keeps 90, 95 and 99 % of
    the gain in held-out loss (k90, k95, k99), with controls. Compares them with the smallest LoRA rank that reaches as
    much, and with random subspaces (d90), all by their number of parameters. Example:

        lorascope dimension runs/full runs/ranks --html dimension.html

    With --search it trains the random subspaces that d90 needs; a search that was stopped resumes:

        lorascope dimension runs/full --search runs/subspace --seeds 2

    For a tuned model and adapters of other trainers, evaluated on rows of a file:

        lorascope dimension tuned-model trl-output --data held-out.jsonl --base smollm2
    """
    outputs = Outputs(html, json, csv, sarif, check)
    outputs.refuse([*paths, search, base, data])
    given = given_by(
        base, data, labels, adapter_name, task=task, text_column=text_column, text_pair_column=text_pair_column,
        label_column=label_column, template=template, max_length=max_length,
    )  # fmt: skip
    _check_search(search, data)
    from lorascope.training.threads import limit_omp_spin

    limit_omp_spin()
    from lorascope import api
    from lorascope.cli._progress import Counter, note
    from lorascope.training.runs import SubspaceSearch, find, parse_baseline, parse_rates

    counter = Counter("dimension")
    how, rates, reference = said or said_scaling, parse_rates(learning_rates), parse_baseline(baseline)
    command = ("lorascope", *sys.argv[1:])
    searched = SubspaceSearch(search, how, start, tolerance, seeds, rates, command, counter.close)
    runs = find(paths, search, given)
    _set_threads()
    result = api.dimension(
        *runs, modules=modules, baseline=reference, draws=tuple(range(draws)), split=split, max_samples=max_samples,
        device=device, search=searched, on_note=note, on_progress=counter, **vars(given),
    )  # fmt: skip
    counter.close()
    outputs.show(result, paths)


def _check_search(search: Path | None, data: str | None) -> None:
    from lorascope.errors import InputError

    if search is not None and data is not None:
        raise InputError("--search trains like a run of lorascope, which --data has not", hint="leave one of them out")


def _set_threads() -> None:
    from lorascope.training.run import set_threads  # torch: only now, so that a refusal is quick

    set_threads(None)
