"""The analyses that evaluate models on data, or can: of finished runs, and of adapters that others trained."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.analyses.base import Result, analyses
from lorascope.api import reading
from lorascope.api.adapting import needs_torch, save
from lorascope.api.reading import AdapterLike, ModelLike
from lorascope.errors import InputError
from lorascope.training.given import Given, given_by

if TYPE_CHECKING:
    from lorascope.training.runs import SubspaceSearch
    from lorascope.weights.series import Series


def trajectory(  # one parameter for each option
    *checkpoints: AdapterLike | ModelLike,
    base: ModelLike | None = None,
    modules: str | None = None,
    evaluate: Callable[[int], dict[str, float]] | None = None,
    scored_on: str = "",
    data: str | None = None,
    task: str | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    template: str | None = None,
    max_length: int | None = None,
    labels: Sequence[str] | None = None,
    max_samples: int | None = None,
    device: str = "auto",
    adapter_name: str | None = None,
    series: "Series | None" = None,
    path: str = "",
    on_note: Callable[[str], None] = lambda text: None,
    progress: Callable[[list], Any] = iter,
) -> Result:
    """How ΔW got where it is: rank, size and directions over the checkpoints of a run. `lorascope trajectory`.

    Args:
        checkpoints: a run's folder (ours, Trainer's, TRL's, MLX's), or checkpoints, as for `read`, the oldest first;
            with `base`, full models, too.
        base: the base model: for ‖ΔW‖/‖W‖, and for kinds whose ΔW depends on W.
        modules: a regular expression; only modules whose path it matches are followed.
        evaluate: scores the checkpoint of that index.
        scored_on: what `evaluate` scores on, in words.
        data: of checkpoints on disk, a file or dataset to evaluate each on.
        task, text_column, text_pair_column, label_column, template, max_length, labels: with `data`, what the files do
            not say, as of `training.given.Given`.
        max_samples: with `data`, at most so many examples.
        device: with `data`, where the model runs.
        adapter_name: of files that hold several adapters, which.
        series: of checkpoints that were read before, where they are from, their steps and the run's losses.
        path: what the page's title names.
        on_note: told what should be known of the inputs, such as what an evaluated model differs in.
        progress: wraps the list of modules, such as `tqdm.tqdm`.

    Raises:
        InputError: fewer than two checkpoints, or no module in all of them.
    """
    given = given_by(
        _named(base), data, labels, adapter_name, task=task, text_column=text_column, text_pair_column=text_pair_column,
        label_column=label_column, template=template, max_length=max_length,
    )  # fmt: skip
    if max_samples is not None and data is None:
        raise InputError("--max-samples belongs to --data", hint="name the data with --data FILE")
    opened = reading.opened_base(base)
    if series is None and all(isinstance(each, str | Path) for each in checkpoints):
        from lorascope.weights.series import find

        series = find([Path(each) for each in checkpoints])  # type: ignore[arg-type]  # paths, all of them
        checkpoints = tuple(each.path for each in series.snapshots)
    if data is not None:
        evaluate, scored_on = _scorer(series, given, device, max_samples, on_note)
    adapters = [reading.adapter_or_model(each, opened, adapter_name) for each in checkpoints]
    return analyses.get("trajectory").run(
        adapters, series=series, base=opened, modules=modules, evaluate=evaluate, scored_on=scored_on, path=path,
        progress=progress,
    )  # fmt: skip


def _named(base: ModelLike | None) -> str | None:
    """The base by its path or name, which a model in memory has not."""
    named = base if isinstance(base, str | Path) else getattr(base, "path", None)
    return str(named) if named else None


def _scorer(
    series: "Series | None", given: Given, device: str, max_samples: int | None, on_note: Callable[[str], None]
) -> tuple[Callable[[int], dict[str, float]], str]:
    """A function that scores a checkpoint by its index, and on what."""
    if series is None:
        raise InputError("data is for checkpoints on disk", hint="pass evaluate=")
    from lorascope.training.foreign import checkpoint_scorer

    return checkpoint_scorer([each.path for each in series.snapshots], given, device, max_samples, on_note)


def dimension(  # one parameter for each option
    *runs: AdapterLike,
    modules: str | None = None,
    baseline: float | str | Path | None = None,
    draws: Sequence[int] = (0, 1, 2),
    split: str | None = None,
    max_samples: int = 1000,
    device: str = "auto",
    search: "SubspaceSearch | None" = None,
    base: str | Path | None = None,
    data: str | None = None,
    task: str | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    template: str | None = None,
    max_length: int | None = None,
    labels: Sequence[str] | None = None,
    adapter_name: str | None = None,
    on_note: Callable[[str], None] = lambda text: None,
    on_progress: Callable[[str], None] = lambda what: None,
) -> Result:
    """What rank and dimension full fine-tuning's ΔW needs, compared with trained B·A. `lorascope dimension`.

    Args:
        runs: folders of finished runs of one model on one set of data, or folders that hold such; one is full
            fine-tuning. With `data`, a tuned model and adapters of any trainer, on disk or in memory; what is in memory
            is written into a temporary folder, as its own trainer would save it.
        modules: a regular expression; only matrices whose name it matches are measured and truncated.
        baseline: the loss that gain is measured from: None for the full run's with its matrices at W, "prior", a run's
            folder, or a loss.
        draws: seeds of the random controls.
        split: another split to score on than the held-out texts.
        max_samples: at most so many texts.
        device: where models are evaluated and their ΔW decomposed.
        search: how d90 is searched for, by training runs in random subspaces (`training.runs.SubspaceSearch`).
        base: with `data`, the base model's folder or name; by default the one that the files name.
        data: a file, a packaged set or a dataset to evaluate on; runs of lorascope have their own.
        task, text_column, text_pair_column, label_column, template, max_length, labels: with `data`, what the files do
            not say, as of `training.given.Given`.
        adapter_name: of files that hold several adapters, which.
        on_note: told what should be known of the inputs, such as what a reopened run differs in.
        on_progress: called before each evaluation with what it is.

    Raises:
        InputError: a folder holds no finished run, or the runs do not belong together.
    """
    given = given_by(
        _named(base), data, labels, adapter_name, task=task, text_column=text_column, text_pair_column=text_pair_column,
        label_column=label_column, template=template, max_length=max_length,
    )  # fmt: skip
    needs_torch()
    from lorascope.training.runs import Runs, find

    with _on_disk(runs, given) as folders:
        opened = Runs(
            find(folders, search.folder if search else None, given), split, max_samples, device, on_note, given
        )
        start = opened.start(Path(baseline) if isinstance(baseline, str) and baseline != "prior" else baseline)
        return analyses.get("dimension").run(
            opened.candidates, modules=modules, baseline=start, prior=opened.prior, draws=draws,
            texts=opened.texts_record, search=search.of(opened) if search else None, on_progress=on_progress,
        )  # fmt: skip


def activations(  # one parameter for each option
    *runs: AdapterLike,
    modules: str | None = None,
    split: str | None = None,
    max_samples: int = 512,
    samples: int = 2048,
    pooled: bool = False,
    seed: int = 0,
    device: str = "auto",
    base: str | Path | None = None,
    data: str | None = None,
    task: str | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    template: str | None = None,
    max_length: int | None = None,
    labels: Sequence[str] | None = None,
    adapter_name: str | None = None,
    on_note: Callable[[str], None] = lambda text: None,
    progress: Callable[[list], Any] = iter,
) -> Result:
    """What ΔW does on real inputs, and how far hidden states move. `lorascope activations`.

    Args:
        runs: folders of finished runs of one base model and dataset. With `data`, adapters of any trainer, on disk or
            in memory; what is in memory is written into a temporary folder, as its own trainer would save it.
        modules: a regular expression; only layers whose path it matches are measured.
        split: another split than the one held out.
        max_samples: at most so many texts.
        samples: tokens of the hidden states, spread evenly over the texts.
        pooled: a sample of hidden states is the mean over a text's tokens, and not one token.
        seed: chooses the tokens.
        device: where the models run.
        base: with `data`, the base model's folder or name; by default the one that the files name.
        data: a file, a packaged set or a dataset to evaluate on; runs of lorascope have their own.
        task, text_column, text_pair_column, label_column, template, max_length, labels: with `data`, what the files do
            not say, as of `training.given.Given`.
        adapter_name: of files that hold several adapters, which.
        on_note: told what should be known of the inputs, such as what a reopened run differs in.
        progress: wraps the list of layers with hidden states, such as `tqdm.tqdm`.

    Raises:
        InputError: a folder holds no finished run, or the runs are of several base models.
    """
    given = given_by(
        _named(base), data, labels, adapter_name, task=task, text_column=text_column, text_pair_column=text_pair_column,
        label_column=label_column, template=template, max_length=max_length,
    )  # fmt: skip
    needs_torch()
    from lorascope.training.activations import Sampling, record

    sampling = Sampling(split, max_samples, samples, pooled, seed)
    with _on_disk(runs, given) as folders:
        recorded = record(folders, sampling, device, on_note, given)
    return analyses.get("activations").run(recorded, modules=modules, progress=progress)


@contextmanager
def _on_disk(sources: Sequence[AdapterLike], given: Given) -> Iterator[list[Path]]:
    """The folder of each; what is in memory in a temporary one, for as long as it is evaluated.

    Raises:
        InputError: something in memory and no data to evaluate it on, or it cannot be written.
    """
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="lorascope-") as scratch:
        folders = []
        for number, source in enumerate(sources, 1):
            if isinstance(source, str | Path):
                folders.append(Path(source))
                continue
            kind = type(source).__name__
            if given.data is None:
                raise InputError(
                    f"a {kind} in memory does not say what it is to be evaluated on",
                    hint="pass data=, and base= where its config names none; or the folder of a finished run",
                )
            folders.append(Path(scratch) / f"{kind}-{number}")
            _write(source, folders[-1])
        yield folders


def _write(source: Any, folder: Path) -> None:
    """An adapter as `save` writes it; a full model by its own `save_pretrained`."""
    if not reading.is_full_model(source):
        save(source, folder)
    elif callable(write := getattr(source, "save_pretrained", None)):
        write(folder)
    else:
        raise InputError(
            f"a {type(source).__name__} cannot be evaluated: it has no save_pretrained", hint="pass the folder it is in"
        )
