"""From a config to a trained adapter on disk."""

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorascope.errors import InputError
from lorascope.methods.base import methods
from lorascope.methods.inject import Injected, inject
from lorascope.training import data, models
from lorascope.training.config import RunConfig
from lorascope.training.data import Encoded
from lorascope.training.loop import Loop, Score
from lorascope.training.parallel import World, shard_base, world
from lorascope.training.record import Record, write_json
from lorascope.training.rehearse import rehearse
from lorascope.training.threads import usable_cores

CARD = "lorascope.json"  # beside the adapter's files: what `lorascope merge` needs to build the model it belongs to


@dataclass(frozen=True)
class Prepared:
    """A base model with a fresh adapter in it, and its data."""

    injected: Injected
    tokenizer: Any
    train: Encoded
    held_out: Encoded

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
    tokenizer = models.load_tokenizer(config.model)
    task, seed = config.model.task_type, config.training.seed
    train, held_out = data.load(config.data, task, tokenizer, seed)
    torch.manual_seed(seed)  # a new head is drawn from the global generator
    dtype = torch.bfloat16 if config.training.bf16 else torch.float32
    model = models.load_model(config.model, len(train.label_names), dtype).to(device)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # training keeps no keys and values
    if config.training.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return Prepared(inject_method(model, config), tokenizer, train, held_out)


def inject_method(model: nn.Module, config: RunConfig) -> Injected:
    """Put the config's method into the model. A classifier's head is trained whole unless the config says which."""
    method = config.method
    saved = method.modules_to_save
    if saved is None:
        saved = models.head_modules(model) if config.model.task_type == "SEQ_CLS" else ()
    made = methods.get(method.name)(method.settings)
    return inject(model, made, targets=method.targets, modules_to_save=saved, seed=config.training.seed)


def train(
    config: RunConfig,
    folder: Path,
    *,
    resume: bool = False,
    replace_run: bool = False,
    command: Sequence[str] = (),
) -> Finished:
    """Train, and write the run's folder.

    Args:
        resume: continue from the folder's checkpoint; from the start where it was killed before the first one.
        replace_run: take the place of a run that is there already.

    Raises:
        InputError: the config does not fit the machine, the model, the data or the folder.
        LorascopeError: training diverged, or the folder cannot be written.
    """
    set_threads(config.training.num_threads)
    with world(config.training.device) as here:
        record = Record(folder, config, resume=resume, replace=replace_run) if here.first else None
        here.wait()
        prepared = prepare(config, here.device)
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
    rehearse(prepared.injected, prepared.train, config, here, record, folder, resume)
    loop = Loop(prepared.injected, prepared.train, prepared.held_out, config, here)
    checkpoint = folder / "checkpoint.pt"
    if resume and checkpoint.is_file():
        loop.load(_read_checkpoint(checkpoint, here.device))
    if record:
        record.rewind(loop.step)
        record.start(command, _describe(here), trained_parameters=prepared.injected.parameter_count())
    began, first = time.perf_counter(), loop.step
    score = loop.run(record)
    seconds = time.perf_counter() - began
    if record:
        write_adapter(prepared.injected, config, prepared.train.label_names, record.adapter)
        best = None if loop.best is None else loop.best["step"]
        ended = {"steps": loop.total, "resumed_at": first or None, "best_step": best, "seconds": round(seconds, 3)}
        ended |= {"held_out": asdict(score), "adapter": record.adapter.name}
        said = prepared.injected.method.summary()
        write_json(folder / "summary.json", {**ended, "method": said} if said else ended)
        record.checkpoint.unlink(missing_ok=True)
    here.wait()
    return Finished(folder / "adapter", score, seconds, loop.total, here.first)


def write_adapter(injected: Injected, config: RunConfig, label_names: Sequence[str], folder: Path) -> None:
    """The adapter in its method's layout, PEFT's where that has a place for it, and beside it what is needed to build the model it belongs to."""
    from lorascope.weights import io

    adapter = injected.export(base_model_name_or_path=config.model.name, task_type=config.model.task_type)
    io.write(adapter, folder, injected.method.format)
    card = {"model": asdict(config.model), "labels": list(label_names)}
    write_json(folder / CARD, card)


def with_device(config: RunConfig, device: str | None) -> RunConfig:
    """The config with another device, where one is named."""
    return config if device is None else replace(config, training=replace(config.training, device=device))


def _read_checkpoint(path: Path, device: torch.device) -> Any:
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise InputError(f"{path} is no checkpoint of lorascope", found=type(error).__name__) from error


def _describe(here: World) -> str:
    name = torch.cuda.get_device_name(here.device) if here.device.type == "cuda" else "cpu"
    return name if here.size == 1 else f"{here.size} × {name}"
