"""The analyses of weights alone."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.analyses.base import Result, analyses
from lorascope.api import reading
from lorascope.api.devices import placer
from lorascope.api.reading import AdapterLike, ModelLike

if TYPE_CHECKING:
    from lorascope.weights.base_svd import SvdCache


def analyze(  # one parameter for each option
    source: AdapterLike,
    *,
    base: ModelLike | None = None,
    modules: str | None = None,
    config: Any = None,
    adapter_name: str | None = None,
    cache: "SvdCache | None" = None,
    base_name: str | None = None,
    progress: Callable[[list], Any] = iter,
) -> Result:
    """What is in an adapter: rank use, singular values, where it changes the model, problems. `lorascope analyze`.

    Args:
        source, config, adapter_name: as for `read`.
        base: the base model: required for DoRA and (IA)³; enables comparisons of ΔW with W.
        modules: a regular expression; only modules whose path it matches are analysed.
        cache: of the base's SVDs (`weights.base_svd.SvdCache`); without one they are computed and forgotten.
        base_name: what the base is called in the result; its path by default.
        progress: wraps the list of modules, such as `tqdm.tqdm`.

    Raises:
        InputError: `source` or `base` cannot be read, or nothing is left to analyse.
    """
    opened = reading.opened_base(base)
    adapter = reading.read(source, config=config, base=opened, adapter_name=adapter_name)
    options: dict[str, Any] = {"cache": cache, "base_name": base_name, "progress": progress}
    return analyses.get("analyze").run(adapter, base=opened, modules=modules, **options)


def compare(  # one parameter for each option
    *sources: AdapterLike | ModelLike | Sequence[AdapterLike | ModelLike],
    base: ModelLike | None = None,
    modules: str | None = None,
    directions: int = 64,
    all_modules: bool = False,
    groups: Sequence[str] | None = None,
    adapter_name: str | Sequence[str] | None = None,
    progress: Callable[[list], Any] = iter,
) -> Result:
    """Whether adapters share subspaces, compared with chance and a shared initialisation. `lorascope compare`.

    Args:
        sources: two or more, as for `read`, with `base` full models, too; or one list of them.
        base: the base model; kinds whose ΔW depends on W need it.
        modules: a regular expression; only modules whose path it matches are compared.
        directions: how many leading directions make the subspace of an update that is not low rank.
        all_modules: measure all modules even where that takes long; else evenly chosen ones of each type.
        groups: the group of each adapter (its task, say), to compare agreement within and between groups.
        adapter_name: of files that hold several adapters, which: one name for all, or one for each.
        progress: wraps the list of modules, such as `tqdm.tqdm`.

    Raises:
        InputError: fewer than two adapters, no module in common, or one cannot be read.
    """
    if len(sources) == 1 and isinstance(sources[0], list | tuple):
        sources = tuple(sources[0])
    opened = reading.opened_base(base)
    names = reading.name_of_each(adapter_name, len(sources))
    adapters = [reading.adapter_or_model(each, opened, name) for each, name in zip(sources, names, strict=True)]  # type: ignore[arg-type]  # a list was taken apart
    return analyses.get("compare").run(
        adapters, base=opened, modules=modules, directions=directions, all_modules=all_modules, named_groups=groups,
        progress=progress,
    )  # fmt: skip


def delta(  # one parameter for each option
    base: ModelLike,
    tuned: AdapterLike | ModelLike,
    *,
    adapters: Sequence[AdapterLike] = (),
    modules: str | None = None,
    top: int | None = None,
    extract: int | None = None,
    state: Path | None = None,
    device: str = "cpu",
    adapter_name: str | Sequence[str] | None = None,
    progress: Callable[[list], Any] = iter,
) -> Result:
    """What full fine-tuning changed: the spectrum of every ΔW = tuned − base, compared with noise. `lorascope delta`.

    Args:
        base, tuned: two models, as for `open_model`; of a tuned one also an adapter whose updates are taken for ΔW.
        adapters: trained adapters to compare with ΔW.
        modules: a regular expression; only parameters whose name it matches are measured.
        top: compute this many leading singular values only, by randomised iteration.
        extract: also the best adapter of this rank, in the result's `extracted`.
        state: a folder to keep finished parameters in, and to resume from; removed at the end.
        device: where to compute SVDs: cpu, or a torch device such as cuda.
        adapter_name: of `adapters` in files that hold several, which: one name for all, or one for each.
        progress: wraps the list of parameters, such as `tqdm.tqdm`.

    Raises:
        InputError: the two have no parameter in common, or a model cannot be read.
    """
    place = placer(device)
    before = reading.open_model(base)
    names = reading.name_of_each(adapter_name, len(adapters))
    others = [reading.read(each, base=before, adapter_name=name) for each, name in zip(adapters, names, strict=True)]
    after = reading.open_tuned(tuned, before)
    return analyses.get("delta").run(
        before, after, adapters=others, modules=modules, top=top, extract=extract, state=state, place=place,
        progress=progress,
    )  # fmt: skip


def intruders(  # one parameter for each option
    source: AdapterLike | ModelLike,
    base: ModelLike,
    *,
    k: int = 10,
    epsilon: float = 0.5,
    epsilons: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    modules: str | None = None,
    adapter_name: str | None = None,
    cache: "SvdCache | None" = None,
    progress: Callable[[list], Any] = iter,
) -> Result:
    """Which leading singular directions of W + ΔW the base did not have. `lorascope intruders`.

    Args:
        source, adapter_name: an adapter as for `read`, or a tuned model.
        base: the base model.
        k: how many leading vectors of each weight; fewer where it is smaller.
        epsilon: a vector is an intruder where its largest |cos| with one of W's is below this.
        epsilons: the grid that counts are given for as well.
        modules: a regular expression; only weights whose name it matches are measured.
        cache: of the base's SVDs (`weights.base_svd.SvdCache`); without one they are computed and forgotten.
        progress: wraps the list of weights, such as `tqdm.tqdm`.

    Raises:
        InputError: the two do not belong together, or one cannot be read.
    """
    before = reading.open_model(base)
    is_folder = isinstance(source, str | Path) and Path(source).is_dir()
    after = (reading.open_tuned if is_folder else reading.adapter_or_model)(source, before, adapter_name)
    return analyses.get("intruders").run(
        after, before, k=k, epsilon=epsilon, epsilons=epsilons, modules=modules, cache=cache, progress=progress
    )


def resize(  # one parameter for each option
    source: AdapterLike,
    *,
    rank: int | Sequence[int] | None = None,
    energy: float | Sequence[float] | None = None,
    budget_rank: float | Sequence[float] | None = None,
    parameters: int | Sequence[int] | None = None,
    by_energy: bool = False,
    base: ModelLike | None = None,
    modules: str | None = None,
    dtype: str | None = None,
    build: bool | None = None,
    evaluate: Callable[[Mapping[str, Any]], dict[str, float]] | None = None,
    scored_on: str = "",
    adapter_name: str | None = None,
    progress: Callable[[list], Any] = iter,
) -> Result:
    """The best adapter of lower rank, and what it loses. `lorascope resize`.

    Without a rule it compares plans; with one, `result.resized` is the smaller adapter, which `save` writes. With
    several, of one kind or of several, it compares them.

    Args:
        source, base, adapter_name: as for `read`; the base where ΔW depends on it.
        rank: one rank for all modules.
        energy: for each module, the smallest rank that retains this share of ‖ΔW‖².
        budget_rank: the average rank, allocated to the largest singular values.
        parameters: at most so many parameters in total.
        by_energy: of `parameters`, first what keeps most energy per parameter.
        modules: a regular expression; modules whose path it does not match keep their rank.
        dtype: what factors are stored in: float32, float16, bfloat16 or float64; by default what the source has.
        build: whether to make `result.resized`; by default where there is one rule.
        evaluate: scores a ΔW for every module, absent ones being zero.
        scored_on: what `evaluate` scores on, in words.
        progress: wraps each list of modules, such as `tqdm.tqdm`.

    Raises:
        InputError: no ΔW of it can be reduced, or a rule is impossible to meet.
    """
    from lorascope.analyses.truncate import dtype_named, rules

    chosen = rules(rank=rank, energy=energy, budget_rank=budget_rank, parameters=parameters, by_energy=by_energy)
    stored_as = dtype_named(dtype)
    opened = reading.opened_base(base)
    adapter = reading.read(source, base=opened, adapter_name=adapter_name)
    return analyses.get("resize").run(
        adapter, chosen, base=opened, modules=modules, dtype=stored_as,
        build=len(chosen) == 1 if build is None else build, evaluate=evaluate, scored_on=scored_on, progress=progress,
    )  # fmt: skip
