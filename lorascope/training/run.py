"""From a config to a trained adapter on disk."""

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from lorascope.adapt import inference_cost
from lorascope.adapt.base_params import BaseParam, BaseParamModule
from lorascope.adapt.inject import Injected, inject
from lorascope.adapt.method import methods
from lorascope.adapt.stacked import skeleton
from lorascope.adapt.targets import NotAdapted, not_adapted
from lorascope.architectures import CLASSIFIER_HEADS
from lorascope.errors import InputError, preview
from lorascope.models import loading as models
from lorascope.models.card import base_name, write_card
from lorascope.outputs import staged, write_json
from lorascope.training import data, preflight
from lorascope.training.batches import Encoded
from lorascope.training.calibrate import calibrate
from lorascope.training.checkpoint import resume_from
from lorascope.training.config import RunConfig
from lorascope.training.failures import in_words
from lorascope.training.loop import Loop
from lorascope.training.member import Member
from lorascope.training.parallel import World, shard_base, world
from lorascope.training.run_folder import SUMMARY, Record, read_summary, working_in
from lorascope.training.scores import Score, evaluate
from lorascope.training.threads import usable_cores
from lorascope.weights.series import SNAPSHOTS

ROUNDING = 1e-5  # of a held-out loss: float32 sums in another order


@dataclass(frozen=True)
class Prepared:
    """A base model with a fresh adapter in it, and its data.

    `notes` are sentences on what its user may not expect, and `not_adapted` what the targets pass over.
    """

    injected: Injected
    tokenizer: Any
    train: Encoded
    held_out: Encoded
    notes: tuple[str, ...] = ()
    not_adapted: tuple[NotAdapted, ...] = ()

    @property
    def model(self) -> nn.Module:
        return self.injected.model


@dataclass(frozen=True)
class Finished:
    """How a run ended: the adapter's folder, the held-out score, the seconds training took, and how many steps.

    `first` is true in the one process that wrote files and should print.
    """

    adapter: Path
    score: Score
    seconds: float
    steps: int
    first: bool = True


def set_threads(number: int | None) -> None:
    """Use so many CPU threads; by default the cores this process may use, unless OMP_NUM_THREADS says otherwise."""
    if number is not None or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(number or usable_cores())


def prepare(config: RunConfig, device: torch.device) -> Prepared:
    """Load the data and the base model, and inject the method.

    Raises:
        InputError: the model, the data or the targets are not what the config says.
    """
    return prepare_together([config], device)[0]


def prepare_together(configs: Sequence[RunConfig], device: torch.device) -> list[Prepared]:
    """What `prepare` gives for each config, with one base model in memory: all models hold the same tensors.

    The configs agree in their model. Data and whatever a seed draws (a new head) are each config's own.

    Raises:
        InputError: the model, the data or the targets are not what a config says.
    """
    tokenizer = models.load_tokenizer(configs[0].model)
    seeds = {config.training.seed_of_data: config for config in configs}
    texts = {s: data.load(c.data, c.model.task_type, tokenizer, s) for s, c in seeds.items()}
    first = configs[0].training.seed_of_data
    base = load_base(configs[0], len(texts[first][0].label_names), device)
    lm = configs[0].model.task_type == "CAUSAL_LM"
    if lm:
        preflight.refuse_bidirectional(base, configs[0].model.name)
    drawn = {first: base}
    for seed, config in seeds.items():
        if seed != first:  # only a classifier has a head to draw
            other = base if lm else load_base(config, len(texts[seed][0].label_names), device)
            drawn[seed] = share_tensors(other, base)
    of_texts = {seed: preflight.fit_model(drawn[seed], encoded) for seed, encoded in texts.items()}
    of_all = [*models.notes(base), *(data.notes(tokenizer, configs[0].data) if lm else ())]
    prepared = []
    for config in configs:
        seed = config.training.seed_of_data
        model = drawn[seed] if len(configs) == 1 else skeleton(drawn[seed])
        if config.training.gradient_checkpointing:
            cast(Any, model).gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        injected = inject_method(model, config)
        passed = _passed_over(injected, config)
        notes = (*of_all, *of_texts[seed], *_new_modules(injected), *map(preflight.not_adapted_in_words, passed))
        prepared.append(Prepared(injected, tokenizer, *texts[seed], notes, tuple(passed)))
    return prepared


def _passed_over(injected: Injected, config: RunConfig) -> list[NotAdapted]:
    if not injected.layers:
        return []
    return not_adapted(injected.model, config.method.targets, list(injected.layers), list(injected.saved))


def _new_modules(injected: Injected) -> list[str]:
    """A sentence where more than a head is new."""
    new = [path for path in injected.saved if any(name.startswith(path + ".") for name in models.drawn(injected.model))]
    more = [path for path in new if path not in CLASSIFIER_HEADS]
    return (
        [f"new, since the checkpoint does not hold them, and trained and stored whole: {', '.join(new)}"]
        if more
        else []
    )


def load_base(config: RunConfig, classes: int, device: torch.device) -> nn.Module:
    """The base model as a run begins with it; a new head is drawn by the seed of the data."""
    torch.manual_seed(config.training.seed_of_data)  # a new head is drawn from the global generator
    dtype = torch.bfloat16 if config.training.bf16 else torch.float32
    model = models.load_model(config.model, classes, dtype).to(device)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # training keeps no keys and values
    return model


def share_tensors(model: nn.Module, base: nn.Module) -> nn.Module:
    """Let `model`, of the same architecture, hold `base`'s tensors wherever they are equal. Gives `model`."""
    for module, twin in zip(model.modules(), base.modules(), strict=True):
        tensors: list[tuple[dict[str, Any], dict[str, Any]]] = [
            (module._parameters, twin._parameters),
            (module._buffers, twin._buffers),
        ]
        for held, shared in tensors:
            for name, tensor in held.items():
                if tensor is not None and tensor.shape == shared[name].shape and torch.equal(tensor, shared[name]):
                    held[name] = shared[name]
    return model


def inject_method(model: nn.Module, config: RunConfig) -> Injected:
    """Put the config's method into the model. A classifier's head, and what else the checkpoint did not hold, is
    trained whole unless the config says which modules are.

    Raises:
        InputError: the targets are not the model's, or a parameter that was drawn at random would be in no file.
    """
    method = config.method
    saved = method.modules_to_save
    if saved is None:
        saved = models.head_modules(model) if config.model.task_type == "SEQ_CLS" else ()
    made = methods.get(method.name)(method.settings)
    injected = inject(model, made, targets=method.targets, modules_to_save=saved, seed=config.training.seed)
    trained = {param.name for param, _ in _owns(injected)}
    if lost := [name for name in models.untrained(model, list(injected.saved)) if name not in trained]:
        modules = dict.fromkeys(name.rpartition(".")[0] for name in lost)
        raise InputError(
            f"the checkpoint does not hold {preview(lost, 4)}: random values that nothing would train and "
            "no file would hold",
            hint=f"add {', '.join(modules)} to method.modules_to_save, or leave that key out"
            if config.model.task_type == "SEQ_CLS"
            else f"name a checkpoint that has them, or train them: method.modules_to_save: [{', '.join(modules)}]",
        )
    return injected


def _owns(injected: Injected) -> list[tuple[BaseParam, BaseParamModule]]:
    """The base's own parameters that the method trains, each with the part that does."""
    return [
        (param, part)
        for part in injected.parts.values()
        if isinstance(part, BaseParamModule)
        for param in part.base_params
    ]


def not_stored(injected: Injected) -> list[str]:
    """Parameters that were drawn at random and of which the adapter's file holds the change alone: only the run's seed
    gives them again.
    """
    left = set(models.untrained(injected.model, list(injected.saved)))
    return [param.name for param, part in _owns(injected) if param.name in left and not part.stores_values(param)]


def train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    replace_run: bool = False,
    command: Sequence[str] = (),
    say: Callable[[str], None] = warnings.warn,
) -> Finished:
    """Train, and write the run's folder.

    Args:
        resume: continue from the folder's checkpoint; from the start where it was killed before the first one.
        replace_run: take the place of a run that is there already.
        say: is told, before training, what the user may not expect, in sentences.

    Raises:
        InputError: the config does not fit the machine, the model, the data or the folder.
        LorascopeError: training diverged, or the folder cannot be written.
    """
    set_threads(config.training.num_threads)
    with world(config.training.device) as here, working_in(folder, here.first):
        record = Record(folder, config, resume=resume, replace=replace_run) if here.first else None
        here.wait()
        with in_words(config):
            prepared = prepare(config, here.device)
            for note in prepared.notes if here.first else ():
                say(note)
            return fit(prepared, config, here, record, folder, resume, command)


def fit(
    prepared: Prepared,
    config: RunConfig,
    here: World,
    record: Record | None,
    folder: Path,
    resume: bool = False,
    command: Sequence[str] = (),
) -> Finished:
    """Train what is prepared and write its record. Only the first process has a `record`."""
    if here.size > 1 and config.training.parallel == "fsdp":
        shard_base(prepared.injected, here)
    (member,), seconds = fit_together([Job(config, prepared, folder, record)], here, resume, command)
    if member.error:
        raise member.error
    assert member.score is not None  # of a member that did not diverge
    return Finished(folder / "adapter", member.score, seconds, member.step, here.first)


@dataclass(frozen=True)
class Job:
    """One of the runs that train together: what it is, what is prepared of it, and where it is written."""

    config: RunConfig
    prepared: Prepared
    folder: Path
    record: Record | None


def fit_together(
    jobs: Sequence[Job],
    here: World,
    resume: bool = False,
    command: Sequence[str] = (),
    *,
    progress: bool = True,
    **facts: Any,
) -> tuple[list[Member], float]:
    """Train what is prepared, on one base, and write each job's record; how each member ended, and the seconds it took.

    The checkpoint of them all is in the first one's folder. `progress` shows a bar; `facts` are added to each record.

    Raises:
        InputError: the checkpoint is of other runs.
        LorascopeError: a folder cannot be written.
    """
    bases = [base_score(job, here) for job in jobs]
    members = []
    for job in jobs:
        injected, train = job.prepared.injected, job.prepared.train
        calibrate(injected, train, job.config, here, job.record, job.folder, resume)
        members.append(Member(injected, train, job.prepared.held_out, job.config, here, job.record))
    loop = Loop.together(members)
    checkpoint = jobs[0].folder / "checkpoint.pt"
    if resume and os.path.lexists(checkpoint):
        resume_from(loop, checkpoint, here.device)
    for job in jobs:
        if job.record:
            job.record.rewind(loop.step)
            count = job.prepared.injected.parameter_count()
            trains = {name: list(parameter.shape) for name, parameter in job.prepared.injected.trainable().items()}
            remarks = {**_remarks(job.prepared), **facts}
            job.record.start(command, _describe(here), trained_parameters=count, trains=trains, **remarks)
    began, first = time.perf_counter(), loop.step
    loop.run_all(checkpoint, progress=progress, snapshot=partial(_snapshot, dict(zip(members, jobs, strict=True))))
    seconds = time.perf_counter() - began
    for job, member, base in zip(jobs, members, bases, strict=True):
        if job.record:
            ended = {"resumed_at": first or None, "seconds": round(seconds, 3)}
            _conclude(job, member, base, ended, here if len(jobs) == 1 else None)
    if here.first:
        checkpoint.unlink(missing_ok=True)
    here.wait()
    return members, seconds


def _snapshot(jobs: Mapping[Member, Job], member: Member, step: int) -> None:
    """Keep the adapter as it is after this step, as the run's own folder holds it in the end."""
    job = jobs[member]
    if job.record:
        at = job.folder / SNAPSHOTS / f"step-{step:07d}"
        write_adapter(member.injected, job.config, job.prepared.train.label_names, at)


def _remarks(prepared: Prepared) -> dict[str, Any]:
    """What a run's record says of what its user may not expect."""
    remarks: dict[str, Any] = {"notes": list(prepared.notes)} if prepared.notes else {}
    if prepared.not_adapted:
        remarks["not_adapted"] = {
            "parameters": sum(each.parameters for each in prepared.not_adapted),
            "modules": sum(len(each.paths) for each in prepared.not_adapted),
            "sorts": {each.sort: each.parameters for each in prepared.not_adapted},
        }
    return remarks


_measured: dict[tuple, Score] = {}  # by base and texts: runs of a sweep or a study share many


def base_score(job: Job, here: World) -> Score:
    """The held-out score of the base model, the fresh adapter disabled. Draws no random numbers.

    Runs of one process that share base and held-out texts measure it once.
    """
    injected, held_out, config = job.prepared.injected, job.prepared.held_out, job.config
    drawn = config.model.random_init or models.drawn(injected.model)
    texts = hash((tuple(map(tuple, held_out.tokens)), held_out.labels and tuple(held_out.labels)))
    dtypes = tuple({p.dtype for p in injected.model.parameters()})
    size = config.training.per_device_eval_batch_size
    place = Path(models.assets.resolve(config.model.name))
    changed = place.stat().st_mtime_ns if place.is_dir() else None
    base = (config.model, changed, config.training.seed_of_data if drawn else None, str(here.device), here.size, dtypes)
    key = (*base, config.training.bf16, texts, size)
    if key not in _measured:
        if len(_measured) >= 256:
            _measured.clear()
        with injected.disable_adapter():
            _measured[key] = evaluate(injected.model, held_out, size, here)
    return _measured[key]


def status_of(member: Member, base: Score) -> str:
    """ "finished", "stopped" (early) or "diverged"; "worse_than_base" where the adapter that is kept is that."""
    if member.error is None and member.score is not None and member.score.loss > base.loss * (1 + ROUNDING):
        return "worse_than_base"
    return member.ended or "finished"


def _inference(job: Job, here: World) -> dict[str, Any]:
    """What the adapter costs at inference, where that was asked for; a base sharded over processes is not timed."""
    training, held_out = job.config.training, job.prepared.held_out
    if not training.measure_cost or (here.size > 1 and training.parallel == "fsdp"):
        return {}
    batch = held_out.batch(range(min(inference_cost.TEXTS, len(held_out)))).to(here.device)
    return {"inference": inference_cost.measure(job.prepared.injected, batch).to_json()}


def _conclude(job: Job, member: Member, base: Score, facts: Mapping[str, Any], here: World | None) -> None:
    """Write the adapter, and how the run ended. One that diverged has no adapter.

    What it costs at inference is measured `here`, where that is given: of a sweep it would be the same for many.
    """
    best = None if member.best is None else member.best["step"]
    ended = {"steps": member.step, "best_step": best, **facts, "base": asdict(base)}
    ended["status"] = status_of(member, base)
    if member.error or member.score is None:
        write_json(job.folder / SUMMARY, {**ended, "diverged": str(member.error)})
        return
    adapter = job.folder / "adapter"
    write_adapter(member.injected, job.config, job.prepared.train.label_names, adapter)
    ended |= {"stopped_early": True} if member.ended == "stopped" else {}
    ended |= {"held_out": asdict(member.score), "adapter": adapter.name}
    ended |= {} if here is None else _inference(job, here)
    of_method = member.method.summary()
    write_json(job.folder / SUMMARY, {**ended, "method": of_method} if of_method else ended)


def summary_of(finished: Finished) -> dict[str, Any]:
    """How the run ended, as its record has it."""
    return read_summary(finished.adapter.parent)


def write_adapter(injected: Injected, config: RunConfig, label_names: Sequence[str], folder: Path) -> None:
    """The adapter in its method's layout, PEFT's where that has a place for it. The folder appears whole or not at all.

    Beside it lies what is needed to build the model it belongs to.
    """
    from lorascope.weights import io

    name = base_name(config.model.name)
    adapter = injected.export(base_model_name_or_path=name, task_type=config.model.task_type)
    drawn = not_stored(injected)
    facts = {"drawn": {"seed": config.training.seed_of_data, "parameters": drawn}} if drawn else {}
    with staged(folder, replace=True) as stage:
        io.write(adapter, stage, injected.method.format)
        write_card(stage, config.model, label_names, injected.model, injected.method.name, facts)


def with_device(config: RunConfig, device: str | None) -> RunConfig:
    """The config with another device, where one is named."""
    return config if device is None else replace(config, training=replace(config.training, device=device))


def _describe(here: World) -> str:
    name = torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else "cpu"
    return name if here.size == 1 else f"{here.size} × {name}"
