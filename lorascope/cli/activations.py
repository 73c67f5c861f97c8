"""`lorascope activations`: what ΔW does on real inputs, and how far hidden states move."""

from pathlib import Path
from typing import Annotated

import typer

from lorascope.cli._options import (
    AdapterName,
    Check,
    Data,
    Evaluated,
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
    csv_of,
    matching,
)
from lorascope.cli._outputs import Outputs
from lorascope.training.given import given_by

Runs = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN|ADAPTER...",
        help="Finished run directories of one base model and dataset; with --data, adapters of any trainer.",
    ),
]
MaxSamples = Annotated[
    int, typer.Option(min=4, metavar="N", help="Number of held-out examples to pass through the models.")
]
Samples = Annotated[
    int, typer.Option(min=4, metavar="N", help="Number of tokens sampled for CKA, spread evenly over texts.")
]
Pooled = Annotated[
    bool, typer.Option("--pooled", help="For CKA, average over the tokens of each text instead of sampling tokens.")
]
Layers = Annotated[str | None, matching("Measure only layers whose path")]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Random seed for token sampling.")]


def activations(  # one parameter per option
    runs: Runs,
    max_samples: MaxSamples = 512,
    samples: Samples = 2048,
    pooled: Pooled = False,
    split: Split = None,
    modules: Layers = None,
    adapter_name: AdapterName = None,
    seed: Seed = 0,
    base: EvaluationBase = None,
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
    csv: Annotated[Path | None, csv_of("layer of a run, and per pair and layer")] = None,
    check: Check = None,
    sarif: Sarif = None,
    device: Evaluated = "auto",
) -> None:
    """Measure the effect of ΔW on layer outputs and hidden states (CKA).

    ‖ΔW x‖/‖W x‖ and the cosine of the two, compared with a random ΔW of the same norm; debiased CKA between the base,
    LoRA runs and full fine-tuning runs, with its chance level. Models are opened one after another. Example:

        lorascope activations runs/lora runs/full --html activations.html

    For an adapter that PEFT, TRL or Trainer wrote, evaluated on rows of a file:

        lorascope activations trl-output --data held-out.jsonl --base smollm2
    """
    outputs = Outputs(html, json, csv, sarif, check)
    outputs.refuse([*runs, base, data])
    given = given_by(
        base, data, labels, adapter_name, task=task, text_column=text_column, text_pair_column=text_pair_column,
        label_column=label_column, template=template, max_length=max_length,
    )  # fmt: skip
    from lorascope import api
    from lorascope.cli._progress import bar, note

    result = api.activations(
        *runs, modules=modules, split=split, max_samples=max_samples, samples=samples, pooled=pooled, seed=seed,
        device=device, on_note=note, progress=bar("CKA", "layers"), **vars(given),
    )  # fmt: skip
    outputs.show(result, runs)
