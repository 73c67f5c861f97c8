"""`lorascope intruders`: singular directions that tuning added, and what scaling them down does."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli._outputs import check, to_file, write_outputs

if TYPE_CHECKING:
    from lorascope.analyses.intruders import IntrudersResult
    from lorascope.blocks import Page


def intruders(
    tuned: Annotated[
        str,
        typer.Argument(
            metavar="ADAPTER_OR_TUNED", help="An adapter, a tuned model, or the folder of a run of lorascope train."
        ),
    ],
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The base model, a folder or a name; of a run's folder its own by default."),
    ] = None,
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="Leading singular vectors of each weight.")] = 10,
    epsilon: Annotated[float, typer.Option(help="Below this largest |cos| a vector is an intruder.")] = 0.5,
    html: Annotated[Path | None, to_file("Write one self-contained HTML page.")] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|-", readable=False, help="Write JSON (schema 1); - is stdout, and then nothing else is."
        ),
    ] = None,
    csv: Annotated[Path | None, to_file("Write one row per weight.")] = None,
    modules: Annotated[str | None, typer.Option(metavar="REGEX", help="Only weights whose name this finds.")] = None,
    intervene: Annotated[
        bool, typer.Option("--intervene", help="Of a run's folder: scale the intruders, and evaluate, with controls.")
    ] = False,
    lambdas: Annotated[
        str, typer.Option(metavar="LIST", help="With --intervene: factors of the intruders' singular values.")
    ] = "0,0.3,0.5,0.7,0.9,1",
    all_intruders: Annotated[
        bool, typer.Option("--all", help="With --intervene: scale all intruders of a weight, not the top one.")
    ] = False,
    retain: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|SET", help="With --intervene, of a language model: other texts whose loss is reported beside."
        ),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With --intervene: evaluate on N texts of each set.")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where decompositions of base weights are kept.")
    ] = None,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither read nor keep decompositions of base weights.")
    ] = False,
    device: Annotated[str, typer.Option(help="With --intervene: where to evaluate, auto, cpu or cuda.")] = "auto",
) -> None:
    """Say which of the leading singular vectors of W + ΔW the base W did not have, beside chance and size.

    Largest |cos| with W's singular vectors on both sides, counts over ε and k, spike margin, and what W's spectrum
    leads one to expect. W's decomposition is computed once and kept. Example:

        lorascope intruders runs/lora/adapter --base minilm --html intruders.html

    With --intervene the intruders of a run are scaled by each λ, beside a neighbouring direction, a uniform shrink of
    ΔW to the same norm or by as far, and a random direction:

        lorascope intruders runs/lora --intervene
    """
    import sys

    check([tuned, base, retain], html=html, json=json, csv=csv)
    from lorascope.linalg.blas import prepare_process

    if not intervene:
        prepare_process()
    from lorascope.analyses import intruders as analysis
    from lorascope.cli._base_svd import open_cache
    from lorascope.models import assets
    from lorascope.weights.checkpoint import open_checkpoint
    from lorascope.weights.delta import open_tuned

    factors = _factors(lambdas)
    path, run, base = _inputs(assets.resolve(tuned), base, intervene, retain)
    before = open_checkpoint(assets.resolve(base))
    kept = open_cache(cache, no_cache)
    after = open_tuned(path, before) if Path(path).is_dir() else _adapter_or_model(path, before)
    result = analysis.run(after, before, k=k, epsilon=epsilon, modules=modules, cache=kept, progress=_bar("intruders"))
    if run is not None and intervene:
        result = _intervened(result, run, device, samples, retain, factors, all_intruders, kept)
    page = _page(result, f"{tuned} over {base}")
    if str(json) != "-":
        from lorascope.report import terminal

        sys.stdout.write(terminal.render(page))
    write_outputs(page, result.to_json, result.flat_rows, html=html, json=json, csv=csv)


def _factors(text: str) -> list[float]:
    from lorascope.errors import InputError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError("--lambdas is no list of numbers", found=text, expected="such as 0,0.5,1") from None


def _inputs(tuned: str, base: str | None, intervene: bool, retain: str | None) -> tuple[str, Path | None, str]:
    """What is read as the tuned side, the run's folder where it is one, and the base."""
    from lorascope.errors import InputError

    folder = Path(tuned)
    is_run = (folder / "config.yaml").is_file() and (folder / "adapter").is_dir()
    if intervene and not is_run:
        raise InputError(f"--intervene evaluates a run, and {tuned} is not the folder of one")
    if retain is not None and not intervene:
        raise InputError("--retain is for --intervene", hint="give both")
    if is_run and base is None:
        from lorascope.training import config

        base = config.load(folder / "config.yaml").model.name
    if base is None:
        raise InputError("the base model is not known", hint="pass --base MODEL")
    return (str(folder / "adapter") if is_run else tuned), (folder if is_run else None), base


def _adapter_or_model(path: str, before: Any) -> Any:
    """A file: an adapter, or a full model."""
    from lorascope.errors import InputError
    from lorascope.weights import io
    from lorascope.weights.checkpoint import open_checkpoint

    try:
        return io.read(Path(path), before)
    except InputError as error:
        if "full model" not in error.what:
            raise
    return open_checkpoint(path)


def _intervened(
    result: "IntrudersResult",
    run: Path,
    device: str,
    samples: int | None,
    retain: str | None,
    factors: list[float],
    all_intruders: bool,
    cache: Any,
) -> "IntrudersResult":
    from dataclasses import replace

    from lorascope.analyses.intruders.intervention import intervene
    from lorascope.cli._runs import opened as reopened

    opened = reopened(run, device, max_samples=samples)
    others = _retained(opened, retain, samples) if retain is not None else None
    texts = {"held-out texts": len(opened.held_out)}
    if others is not None:
        texts["other texts"] = len(others)

    def evaluate(deltas: Mapping[str, Any]) -> dict[str, float]:
        opened.put(deltas)
        score = opened.score()
        found = {"loss": score.loss, "accuracy": score.accuracy}
        return found if others is None else {**found, "retained_loss": opened.score(others).loss}

    made = intervene(
        result, str(run), opened.base_weight, opened.delta, evaluate,
        lambdas=factors, all_of_them=all_intruders, cache=cache, texts=texts, progress=_bar("evaluations"),
    )  # fmt: skip
    return replace(result, intervention=made)


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
        raise InputError(f"--retain {retain} holds no text that fits", expected="texts of two tokens or more")
    return texts


def _bar(what: str) -> Callable[[list], Iterable]:
    """A progress bar on stderr, where somebody is looking and there is something to wait for."""
    import sys

    if not sys.stderr.isatty():
        return iter
    from tqdm import tqdm

    return lambda items: tqdm(items, desc=what, leave=False, delay=0.5)


def _page(result: "IntrudersResult", title: str) -> "Page":
    import platform
    import shlex
    import sys

    import numpy

    import lorascope
    from lorascope.blocks import Page

    whole = result.summary()
    summary = (
        f"{whole['intruders']['left']} intruders among the {result.k} leading singular vectors of {whole['modules']}"
        f" weights at ε = {result.epsilon:g}"
    )
    made_by = (
        ("command", shlex.join(["lorascope", *sys.argv[1:]])),
        ("lorascope", lorascope.__version__),
        ("python", platform.python_version()),
        ("numpy", numpy.__version__),
    )
    return Page(title, result.blocks(), "lorascope intruders", summary, made_by)
