"""`lorascope intruders`: singular directions that tuning added, and what scaling them down does."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli._options import (
    AdapterName,
    Cache,
    Check,
    Data,
    Html,
    Json,
    LabelColumn,
    Labels,
    MaxLength,
    NamedBase,
    NoCache,
    PairColumn,
    Sarif,
    Task,
    Template,
    TextColumn,
    computed,
    csv_of,
    matching,
)
from lorascope.cli._outputs import Outputs
from lorascope.training.given import given_by

if TYPE_CHECKING:
    from lorascope.analyses.intruders import IntrudersResult
    from lorascope.training.given import Given

Tuned = Annotated[
    str,
    typer.Argument(
        metavar="ADAPTER_OR_TUNED", help="An adapter, a tuned model, or a run directory of lorascope train."
    ),
]
K = Annotated[int, typer.Option("--k", "-k", min=1, help="Number of leading singular vectors of each weight.")]
Epsilon = Annotated[
    float,
    typer.Option(help="Bound on the cosine: a vector whose largest |cos| with W is below this is an intruder."),
]
Csv = Annotated[Path | None, csv_of("weight")]
Weights = Annotated[str | None, matching("Only weights whose name")]
Intervene = Annotated[
    bool,
    typer.Option("--intervene", help="For a run, or with --data: scale the intruders and evaluate, with controls."),
]
Lambdas = Annotated[
    str, typer.Option(metavar="LIST", help="With --intervene: factors of the intruders' singular values.")
]
AllIntruders = Annotated[
    bool, typer.Option("--all", help="With --intervene: scale all intruders of a weight, not only the top one.")
]
Retain = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|SET",
        help="With --intervene, language models only: a second dataset on which loss is also reported.",
    ),
]
Samples = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="With --intervene: evaluate on at most N examples of each set.")
]
Device = Annotated[str, computed("models are evaluated", "auto, cpu or cuda. A GPU named here also decomposes W")]


def intruders(  # one parameter per option
    tuned: Tuned,
    base: NamedBase = None,
    k: K = 10,
    epsilon: Epsilon = 0.5,
    html: Html = None,
    json: Json = None,
    csv: Csv = None,
    check: Check = None,
    sarif: Sarif = None,
    modules: Weights = None,
    adapter_name: AdapterName = None,
    intervene: Intervene = False,
    lambdas: Lambdas = "0,0.3,0.5,0.7,0.9,1",
    all_intruders: AllIntruders = False,
    retain: Retain = None,
    samples: Samples = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    device: Device = "auto",
    data: Data = None,
    task: Task = None,
    text_column: TextColumn = None,
    text_pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    template: Template = None,
    max_length: MaxLength = None,
    labels: Labels = None,
) -> None:
    """Find intruder dimensions: singular vectors of W + ΔW that are absent from W.

    Reports the largest |cos| with W's singular vectors on both sides, counts over ε and k, chance levels, the spike
    margin, and what random-matrix theory predicts from W's spectrum. Example:

        lorascope intruders runs/lora/adapter --base minilm --html intruders.html

    With --intervene the intruders of a run are scaled by each λ, and compared with a neighbouring direction, a uniform
    shrink of ΔW to the same norm or by the same distance, and a random direction:

        lorascope intruders runs/lora --intervene

    With --data FILE this works for an adapter that PEFT, TRL or Trainer wrote, too.
    """
    outputs = Outputs(html, json, csv, sarif, check)
    outputs.refuse([tuned, base, retain, data])
    given = given_by(
        base, data, labels, adapter_name, task=task, text_column=text_column, text_pair_column=text_pair_column,
        label_column=label_column, template=template, max_length=max_length,
    )  # fmt: skip
    scaling = {"lambdas": _factors(lambdas), "all_intruders": all_intruders}
    path, base, given = _inputs(tuned, given, intervene, retain)
    evaluation = {"device": device, "samples": samples, "retain": retain, **scaling, "given": given}
    options = {"k": k, "epsilon": epsilon, "modules": modules}
    result = _result(
        path, base, given.adapter_name, (cache, no_cache, device), evaluation if intervene else None, **options
    )
    outputs.show(result, [tuned])


def _result(
    path: str,
    base: str,
    adapter_name: str | None,
    cache: tuple[Path | None, bool, str],
    evaluation: Mapping[str, Any] | None,
    **options: Any,
) -> "IntrudersResult":
    """The intruders, and with the options of an evaluation also the scores of the run with its intruders scaled."""
    from lorascope.linalg.blas import prepare_process

    if evaluation is None:
        prepare_process()
    from lorascope import api
    from lorascope.cli._base_svd import open_cache
    from lorascope.cli._progress import bar

    svds, progress = open_cache(*cache), bar("intruders", "weights")
    result: Any = api.intruders(path, base, adapter_name=adapter_name, cache=svds, progress=progress, **options)
    return result if evaluation is None else _intervened(result, Path(path), cache=svds, **evaluation)


def _factors(text: str) -> list[float]:
    from lorascope.errors import InputError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError("--lambdas is not a list of numbers", found=text, expected="such as 0,0.5,1") from None


def _inputs(tuned: str, given: "Given", intervene: bool, retain: str | None) -> tuple[str, str, "Given"]:
    """What is read as the tuned side, the base, and what is given with the name that still chooses the adapter."""
    from dataclasses import replace

    from lorascope.errors import InputError
    from lorascope.models import adapter_base, assets
    from lorascope.weights.io import adapter_folder, check_exists, one_of

    if retain is not None and not intervene:
        raise InputError("--retain requires --intervene", hint="give both")
    if given.data is not None and not intervene:
        raise InputError("--data requires --intervene", hint="give both")
    tuned = assets.resolve(tuned)
    check_exists(Path(tuned))
    place, name = one_of(Path(tuned), given.adapter_name)
    base = given.base or adapter_base.base_named(place)
    return str(adapter_folder(place)), base, replace(given, adapter_name=name)


def _intervened(
    result: "IntrudersResult",
    run: Path,
    given: "Given",
    device: str,
    samples: int | None,
    retain: str | None,
    **options: Any,
) -> "IntrudersResult":
    """The result with the scores of the run's model with its intruders scaled."""
    from dataclasses import replace

    from lorascope.analyses.intruders.intervention import intervene
    from lorascope.cli._progress import bar
    from lorascope.cli._runs import opened as reopened
    from lorascope.weights.adapter import Skipped

    opened = reopened(run, given, device, max_samples=samples)
    others = _retained(opened, retain, samples) if retain is not None else None
    texts = {"held-out texts": len(opened.held_out)}
    if others is not None:
        texts["other texts"] = len(others)

    def evaluate(deltas: Mapping[str, Any]) -> dict[str, float]:
        opened.put(deltas)
        score = opened.score()
        scores = {"loss": score.loss, "accuracy": score.accuracy}
        return scores if others is None else {**scores, "retained_loss": opened.score(others).loss}

    # A head that was trained whole has a spectrum and is no update: it stays as trained.
    scaled = replace(result, rows=tuple(row for row in result.rows if row.name in opened.updates))
    whole = [row.name for row in result.rows if row.name not in opened.updates]
    reason = "trained whole: it stays as trained while intruders are scaled"
    skipped = (*result.skipped, *(Skipped(name, reason, stage="intervention") for name in whole))
    made = intervene(
        scaled, str(run), opened.base_weight, opened.delta, evaluate,
        texts=texts, progress=bar("evaluations"), **options,
    )  # fmt: skip
    return replace(result, intervention=made, skipped=skipped)


def _retained(opened: Any, retain: str, samples: int | None) -> Any:
    """The texts of `retain`, for the run's language model: all of a file, what a packaged or hub set holds out."""
    from lorascope.errors import InputError
    from lorascope.training import data
    from lorascope.training.config import DataConfig

    config = opened.config
    if config.model.task_type != "CAUSAL_LM":
        raise InputError("--retain is for a language model", found=f"a run of task {config.model.task_type}")
    other = DataConfig(
        retain, eval_path=retain if Path(retain).is_file() else None, eval_split=config.data.eval_split,
        max_length=config.data.max_length, packing=config.data.packing, max_eval_samples=samples,
    )  # fmt: skip
    texts = data.load(other, "CAUSAL_LM", opened.tokenizer, 0)[1]
    if not len(texts):
        raise InputError(f"--retain {retain} contains no text that fits", expected="texts of two tokens or more")
    return texts
