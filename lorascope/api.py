"""The public functions, `import lorascope as ls`: the command line and notebooks go through them.

Whatever takes an adapter takes a path (file, folder, index), a `PeftModel` or a transformers model with an adapter, a
state dict (with `config=`), an injected model, or an `Adapter` that was read before. Whatever takes a base model takes
a folder, a file, a packaged or cached hub name, or an `nn.Module`. torch is imported only where a model is touched.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from lorascope.analyses.base import Result, analyses
from lorascope.errors import InputError, needs_train
from lorascope.training.given import Given
from lorascope.weights import io, memory
from lorascope.weights.adapter import Adapter
from lorascope.weights.checkpoint import Checkpoint, open_checkpoint
from lorascope.weights.series import find as series_at

if TYPE_CHECKING:
    from torch import nn

    from lorascope.adapt.inject import Injected
    from lorascope.adapt.merged import Merged
    from lorascope.adapt.method import Method
    from lorascope.adapt.several import Adapters

AdapterLike = Union[str, Path, Adapter, "Injected", "nn.Module", Mapping[str, Any]]
ModelLike = Union[str, Path, Checkpoint, "nn.Module"]

__all__ = [
    "activations", "adapters", "analyze", "compare", "delta", "dimension", "inject", "intruders", "load", "merge",
    "open_model", "read", "resize", "save", "trajectory",
]  # fmt: skip


def read(
    source: AdapterLike, *, config: Any = None, base: ModelLike | None = None, adapter_name: str | None = None
) -> Adapter:
    """The adapter in a file or in memory: one update per module, its settings, and what was skipped.

    A model in memory gives the numbers of the files that PEFT would write.

    Args:
        source: a path, a model with an adapter in it, a state dict, or an adapter.
        config: of a state dict, its `adapter_config.json`: a dictionary, a path or a PEFT config.
        base: the base model, which helps where a format's names or shapes are lossy (kohya, VeRA).
        adapter_name: of a file, a state dict or a model with several adapters, which; of a model, the active one by
            default.

    Raises:
        InputError: there is no adapter in it, or it cannot be read; see `weights.io.read`.
    """
    if isinstance(source, Adapter):
        return source
    opened = None if base is None else open_model(base)
    if isinstance(source, str | Path):
        return io.read(source, opened, adapter_name)
    if callable(export := getattr(source, "export", None)):  # an injected model
        return export()
    if memory.is_peft(source):
        return io.read_bundle(memory.bundle_of_peft(source, adapter_name), opened)
    if isinstance(source, Mapping):
        return io.read_bundle(memory.bundle_of_state(source, config), opened, adapter_name=adapter_name)
    if memory.is_model(source):
        from lorascope.adapt.inject import injected_in

        if (injected := injected_in(source)) is not None:  # type: ignore[arg-type]  # a model, as was asked
            return injected.export()
        raise InputError(
            f"the {type(source).__name__} carries no adapter that can be read from the model alone",
            expected="a PeftModel, or what lorascope.inject returned",
            hint="two full models are compared by lorascope.delta(base, tuned)",
        )
    raise InputError(
        "this cannot be read as an adapter",
        found=f"a {type(source).__name__}",
        expected="a path, a model with an adapter, a state dict or an Adapter",
    )


def open_model(model: ModelLike) -> Checkpoint:
    """A full model's weights, read one at a time when they are used.

    Args:
        model: a folder, a file, a packaged or cached hub name, or an `nn.Module` without adapters.

    Raises:
        InputError: there is no such model, or the module carries an adapter.
    """
    if isinstance(model, Checkpoint):
        return model
    if isinstance(model, str | Path):
        from lorascope.models import assets

        return open_checkpoint(assets.resolve(str(model)))
    return memory.checkpoint_of(model)


def analyze(
    source: AdapterLike,
    *,
    base: ModelLike | None = None,
    modules: str | None = None,
    config: Any = None,
    progress: Callable[[list], Any] = iter,
) -> Result:
    """What is in an adapter: rank use, singular values, where it changes the model, problems. `lorascope analyze`.

    Args:
        source, config: as for `read`.
        base: the base model: required for DoRA and (IA)³; enables comparisons of ΔW with W.
        modules: a regular expression; only modules whose path it matches are analysed.
        progress: wraps the list of modules, such as `tqdm.tqdm`.

    Raises:
        InputError: `source` or `base` cannot be read, or nothing is left to analyse.
    """
    opened = None if base is None else open_model(base)
    adapter = read(source, config=config, base=opened)
    return analyses.get("analyze").run(adapter, base=opened, modules=modules, progress=progress)


def compare(
    *sources: AdapterLike | Sequence[AdapterLike],
    base: ModelLike | None = None,
    modules: str | None = None,
    groups: Sequence[str] | None = None,
    **options: Any,
) -> Result:
    """Whether adapters share subspaces, compared with chance and a shared initialisation. `lorascope compare`.

    Args:
        sources: two or more, as for `read`; or one list of them.
        base: the base model; kinds whose ΔW depends on W need it.
        modules: a regular expression; only modules whose path it matches are compared.
        groups: the group of each adapter (its task, say), to compare agreement within and between groups.
        options: further arguments of `analyses.compare.run`.

    Raises:
        InputError: fewer than two adapters, or no module in common.
    """
    if len(sources) == 1 and isinstance(sources[0], list | tuple):
        sources = tuple(sources[0])
    opened = None if base is None else open_model(base)
    adapters = [read(source, base=opened) for source in sources]  # type: ignore[arg-type]  # a list was taken apart
    return analyses.get("compare").run(adapters, base=opened, modules=modules, named_groups=groups, **options)


def delta(
    base: ModelLike,
    tuned: ModelLike,
    *,
    adapters: Sequence[AdapterLike] = (),
    modules: str | None = None,
    **options: Any,
) -> Result:
    """What full fine-tuning changed: the spectrum of every ΔW = tuned − base, compared with noise. `lorascope delta`.

    Args:
        base, tuned: two models, as for `open_model`.
        adapters: trained adapters to compare with ΔW.
        modules: a regular expression; only parameters whose name it matches are measured.
        options: further arguments of `analyses.delta.run`, such as `top`.

    Raises:
        InputError: the two have no parameter in common, or a model cannot be read.
    """
    before = open_model(base)
    after = open_tuned(tuned, before)
    others = [read(adapter, base=before) for adapter in adapters]
    return analyses.get("delta").run(before, after, adapters=others, modules=modules, **options)


def open_tuned(tuned: ModelLike, base: Checkpoint) -> Any:
    """A tuned model; of a path, also the adapter folder of a full fine-tuning run."""
    if isinstance(tuned, str | Path):
        from lorascope.models import assets
        from lorascope.weights.delta import open_tuned

        return open_tuned(assets.resolve(str(tuned)), base)
    return open_model(tuned)


def intruders(source: AdapterLike, base: ModelLike, *, modules: str | None = None, **options: Any) -> Result:
    """Which leading singular directions of W + ΔW the base did not have. `lorascope intruders`.

    Args:
        source: an adapter as for `read`, or a tuned model.
        base: the base model.
        modules: a regular expression; only weights whose name it matches are measured.
        options: further arguments of `analyses.intruders.run`, such as `k` and `epsilon`.

    Raises:
        InputError: the two do not belong together, or one cannot be read.
    """
    before = open_model(base)
    return analyses.get("intruders").run(_adapter_or_model(source, before), before, modules=modules, **options)


def _adapter_or_model(source: AdapterLike, base: Checkpoint) -> Any:
    """An adapter, or a full model where it is one: on disk its files say which, in memory whether PEFT is in it."""
    if isinstance(source, str | Path) and Path(source).is_dir():
        return open_tuned(source, base)
    if isinstance(source, Checkpoint) or (memory.is_model(source) and not memory.is_peft(source)):
        return open_model(source)  # type: ignore[arg-type]  # an nn.Module, which is no PeftModel
    try:
        return read(source, base=base)
    except InputError as error:
        if "full model" not in error.what:
            raise
    return open_model(str(source))


def resize(
    source: AdapterLike,
    *,
    rank: int | None = None,
    energy: float | None = None,
    budget_rank: float | None = None,
    parameters: int | None = None,
    base: ModelLike | None = None,
    modules: str | None = None,
) -> Result:
    """The best adapter of lower rank, and what it loses. `lorascope resize`.

    Without a rule it compares plans; with one, `result.resized` is the smaller adapter, which `save` writes.

    Args:
        source, base: as for `read`; the base where ΔW depends on it.
        rank: one rank for all modules.
        energy: for each module, the smallest rank that retains this share of ‖ΔW‖².
        budget_rank: the average rank, allocated to the largest singular values.
        parameters: at most so many parameters in total.
        modules: a regular expression; modules whose path it does not match keep their rank.

    Raises:
        InputError: no ΔW of it can be reduced, or a rule is impossible to meet.
    """
    from lorascope.analyses.truncate import rules

    chosen = rules(rank=rank, energy=energy, budget_rank=budget_rank, parameters=parameters)
    opened = None if base is None else open_model(base)
    adapter = read(source, base=opened)
    return analyses.get("resize").run(adapter, chosen, base=opened, modules=modules, build=len(chosen) == 1)


def trajectory(
    *checkpoints: AdapterLike,
    base: ModelLike | None = None,
    modules: str | None = None,
    data: str | None = None,
    **options: Any,
) -> Result:
    """How ΔW got where it is: rank, size and directions over the checkpoints of a run. `lorascope trajectory`.

    Args:
        checkpoints: a run's folder (ours, Trainer's, TRL's, MLX's), or checkpoints, as for `read`, the oldest first.
        base: the base model: for ‖ΔW‖/‖W‖, and for kinds whose ΔW depends on W.
        modules: a regular expression; only modules whose path it matches are followed.
        data: of checkpoints on disk, a file or dataset to evaluate each on.
        options: of `analyses.trajectory.run`, such as `evaluate`; with `data`, of `training.given.Given`.

    Raises:
        InputError: fewer than two checkpoints, or no module in all of them.
    """
    opened = None if base is None else open_model(base)
    if all(isinstance(each, str | Path) for each in checkpoints):
        series = series_at([Path(each) for each in checkpoints])  # type: ignore[arg-type]  # paths, all of them
        paths = [each.path for each in series.snapshots]
        checkpoints, options = tuple(paths), {"series": series, **options}
        if data is not None:
            from lorascope.training.foreign import checkpoint_scorer

            given = Given.taken_from(options, str(base) if base else None, data)
            options["evaluate"], options["scored_on"] = checkpoint_scorer(paths, given)
    elif data is not None:
        raise InputError("data is for checkpoints on disk", hint="pass evaluate=")
    adapters = [_adapter_or_model(each, opened) if opened is not None else read(each) for each in checkpoints]
    return analyses.get("trajectory").run(adapters, base=opened, modules=modules, **options)


def _needs_torch() -> None:
    """LorascopeError where torch is not installed."""
    if find_spec("torch") is None:
        raise needs_train("torch")


def inject(model: "nn.Module", method: "str | Method | type[Method]" = "lora", **settings: Any) -> "Injected":
    """Freeze a model and give every target layer a fresh, trainable update. See `adapt.inject.inject`.

    Args:
        model: the base model; changed in place.
        method: a registered name such as "lora", "dora" or "vera"; or a method.
        settings: `target_modules`, `modules_to_save`, `seed`, `adapter_name`, and the method's own settings, such as
            `r` and `lora_alpha`.

    Raises:
        InputError: there is no such method or setting, nothing matches, or the model carries an adapter already.
    """
    _needs_torch()
    from lorascope.adapt.inject import inject as put

    return put(model, method, **settings)  # type: ignore[arg-type]


def adapters(model: "nn.Module") -> "Adapters":
    """What `inject` and `load` put into this model, by name: `adapt.several.Adapters`. InputError where it has none."""
    _needs_torch()
    from lorascope.adapt.several import Adapters

    return Adapters(model)


def save(source: AdapterLike, folder: str | Path, *, format: str | None = None, tokenizer: Any = None) -> list[Path]:
    """Write an adapter into a folder, as PEFT would where PEFT can hold it; the files written.

    Args:
        source: as for `read`; or the result of `resize`.
        format: a registered format that is written, "peft" or "lorascope".
        tokenizer: of an injected model, which also gets label names and a card with the findings, its tokenizer.

    Raises:
        InputError: the format cannot hold this adapter.
        LorascopeError: the folder cannot be written; nothing half-written is left.
    """
    of_method = getattr(getattr(source, "method", None), "format", None)
    if of_method and format in (None, of_method):
        from lorascope.analyses.analyze import findings_of

        return source.save_pretrained(folder, tokenizer, findings_of(read(source)))  # type: ignore[union-attr,operator]
    chosen = format or of_method or "peft"
    adapter = getattr(source, "resized", None)
    return io.write(adapter if isinstance(adapter, Adapter) else read(source), folder, chosen)


def dimension(
    *runs: str | Path,
    modules: str | None = None,
    baseline: float | str | Path | None = None,
    split: str | None = None,
    max_samples: int = 1000,
    device: str = "auto",
    **given: Any,
) -> Result:  # one parameter per option
    """What rank and dimension full fine-tuning's ΔW needs, compared with trained B·A. `lorascope dimension`.

    Args:
        runs: folders of finished runs of one model on one set of data, or folders that hold such; one is full
            fine-tuning.
        modules: a regular expression; only matrices whose name it matches are measured and truncated.
        baseline: the loss that gain is measured from: None for the full run's with its matrices at W, "prior", a run's
            folder, or a loss.
        split: another split to score on than the held-out texts.
        max_samples: at most so many texts.
        device: where models are evaluated and their ΔW decomposed.
        given: of a tuned model and adapters of other trainers, fields of `training.given.Given`: `base`, `data`, ....

    Raises:
        InputError: a folder holds no finished run, or the runs do not belong together.
    """
    _needs_torch()
    from lorascope.training.runs import Runs, find

    files = Given(**given)
    opened = Runs(find([Path(run) for run in runs], given=files), split, max_samples, device, given=files)
    start = opened.start(Path(baseline) if isinstance(baseline, str) and baseline != "prior" else baseline)
    return analyses.get("dimension").run(
        opened.candidates, modules=modules, baseline=start, prior=opened.prior, texts=opened.texts_record
    )


def activations(
    *runs: str | Path,
    modules: str | None = None,
    device: str = "auto",
    base: str | None = None,
    data: str | None = None,
    **sampling: Any,
) -> Result:
    """What ΔW does on real inputs, and how far hidden states move. `lorascope activations`.

    Args:
        runs: folders of finished runs of one base model and dataset; with `data`, adapters of other trainers.
        modules: a regular expression; only layers whose path it matches are measured.
        device: where the models run.
        base, data: of such adapters, the base model (by default the one that their files name), and a file or dataset.
        sampling: fields of `training.activations.Sampling`: `split`, `max_samples`, `samples`, `pooled`, `seed`; and,
            with `data`, of `training.given.Given`, such as `template`.

    Raises:
        InputError: a folder holds no finished run, or the runs are of several base models.
    """
    _needs_torch()
    from lorascope.training.activations import Sampling, record

    given = Given.taken_from(sampling, base, data)
    recorded = record([Path(run) for run in runs], Sampling(**sampling), device, given=given)
    return analyses.get("activations").run(recorded, modules=modules)


def load(model: "nn.Module", source: AdapterLike, *, config: Any = None, adapter_name: str | None = None) -> "Injected":
    """Put a trained adapter into its base model, to train it further, run it or merge it.

    Args:
        model: the base model; changed in place.
        source, config: as for `read`.
        adapter_name: of a model that has adapters already, the name of this further one; it then is the active one.

    Raises:
        InputError: no method here trains such updates (`merge` takes any), or the adapter does not fit the model.
    """
    _needs_torch()
    from lorascope.adapt.load import load as put

    return put(model, read(source, config=config), adapter_name)


def merge(base: "str | Path | nn.Module", source: AdapterLike, *, output: str | Path | None = None) -> "Merged":
    """Put an adapter's ΔW into its base model's weights for good. `lorascope merge`.

    Args:
        base: a folder or name, opened in its own dtype; or a model, changed in place.
        source: as for `read`; of a path, its card says which head the model has.
        output: a new folder for the merged model.

    Raises:
        InputError: the adapter is more than a change of weights, belongs to another base, or something would be lost.
        LorascopeError: the folder cannot be written; nothing half-written is left.
    """
    _needs_torch()
    from lorascope.adapt import merge as merging
    from lorascope.adapt.merged import Merged
    from lorascope.models import adapter_base

    folder = Path(source) if isinstance(source, str | Path) else Path()
    if isinstance(base, str | Path):
        checkpoint = adapter_base.checkpoint_of(str(base))
        adapter = read(source, base=checkpoint)
        merging.refuse(adapter)
        model, tokenizer = adapter_base.load_base(adapter, folder, str(base), checkpoint=checkpoint)
    else:
        adapter, model, tokenizer, checkpoint = read(source), base, None, None
    seeded = adapter_base.seeded(folder) if isinstance(source, str | Path) else ()
    report = merging.merge(model, adapter, seeded, checkpoint)
    if output is not None:
        facts = {"adapter": adapter.source.path, "base": str(base) if isinstance(base, str | Path) else ""}
        merging.save(model, tokenizer, Path(output), report, facts)
    return Merged(model, tokenizer, report)
