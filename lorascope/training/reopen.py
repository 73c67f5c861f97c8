"""A finished run, opened again: its model, its texts, and the score of any change of the weights in the trained one's
place. What an analysis that must evaluate a model is handed.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lorascope.adapt import merge
from lorascope.adapt.model_parameters import ModelParameters, in_model_layout, weight_name
from lorascope.adapt.weight_sum import widened
from lorascope.errors import InputError, preview
from lorascope.linalg.batched import Place
from lorascope.linalg.matrix import Matrix, as_matrix
from lorascope.models import loading as models
from lorascope.models.card import check_config
from lorascope.training import config as configs
from lorascope.training import data
from lorascope.training.batches import Encoded
from lorascope.training.config import RunConfig
from lorascope.training.parallel import World, pick_device
from lorascope.training.rows import has_split
from lorascope.training.run import load_base
from lorascope.training.run_folder import SUMMARY, read_config, read_summary
from lorascope.training.scores import Score, evaluate
from lorascope.updates.base import Update
from lorascope.weights import io
from lorascope.weights.adapter import Adapter

ROUNDED = (
    "{}: the base is held in bfloat16, and what is evaluated is the sum W + ΔW rounded to it; in training ΔW was added "
    "unrounded, layer by layer"
)


@dataclass(frozen=True)
class Reopened:
    """A trained model whose updated weights can be set to anything.

    Attributes:
        folder: of the run.
        config: as it was trained.
        adapter: as it lies in the folder.
        model: in eval mode, the trained weights in it. Whole modules that were trained with the updates (a head) and
            biases that the method changes stay as trained, whatever `put` does.
        train, held_out: the run's texts, or those of the split that was asked for in place of `held_out`.
        tokenizer: the model's.
        world: one process and its device.
        notes: in what the model differs from the one that was trained.
        texts_of: where the held-out texts are from, in words; by default the run's folder.
    """

    folder: Path
    config: RunConfig
    adapter: Adapter
    model: nn.Module
    train: Encoded
    held_out: Encoded
    tokenizer: Any
    world: World
    _base: Mapping[str, Tensor]
    notes: tuple[str, ...] = ()
    texts_of: str = ""

    @property
    def held_out_texts(self) -> str:
        """What `score` scores on, in words."""
        of = self.texts_of or f"held-out texts of {self.folder}"
        return f"{len(self.held_out):,} {of}"

    @property
    def updates(self) -> Mapping[str, Update]:
        """By the update's name. A vector's (a bias, a norm's gain) has the shape (d, 1)."""
        return self.adapter.updates

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(d_out, d_in) of every update."""
        return {name: self._shape(name) for name in self.updates}

    @property
    def head_parameters(self) -> int:
        """Parameters of whole modules that were trained in addition to the updates."""
        heads = self.adapter.saved.keys() - self.adapter.non_weight_tensors.keys()
        return sum(math.prod(self.adapter.saved[name].shape) for name in heads)

    @property
    def place(self) -> Place | None:
        """Puts an array where the model is; None where that is the host's memory."""
        device = self.world.device
        return None if device.type == "cpu" else lambda array: torch.from_numpy(array).to(device)

    def base_weight(self, name: str) -> np.ndarray:
        """W of an update's module in float64, as the map (d_out, d_in)."""
        return _as_map(self.updates[name], self._base[name]).double().cpu().numpy()

    def delta(self, name: str) -> Matrix:
        """The trained ΔW in float64."""
        update = self.updates[name]
        return update.delta(self.base_weight(name) if update.needs_base else None)

    @torch.no_grad()
    def put(self, deltas: Mapping[str, Matrix | np.ndarray]) -> None:
        """Set every updated weight to W + deltas[name], and to W alone where a name is absent.

        Args:
            deltas: maps (d_out, d_in), by the update's name.

        Raises:
            InputError: a name is none of the run's updates, or a shape is not the update's.
        """
        unknown = deltas.keys() - self.updates.keys()
        if unknown:
            raise InputError(
                "no such update in the run", found=preview(sorted(unknown), 3), expected=preview(self.updates)
            )
        for name, update in self.updates.items():
            weight, base = self._weight(update), self._base[name]
            if name not in deltas:
                weight.copy_(base)
                continue
            change = self._entries(as_matrix(deltas[name]))
            if tuple(change.shape) != self._shape(name):
                raise InputError(f"{name} has another shape", found=tuple(change.shape), expected=self._shape(name))
            stored_change = change.t() if update.transposed else change
            weight.copy_(widened(base) + stored_change.reshape(base.shape).to(widened(base)))

    def _entries(self, matrix: Matrix) -> Tensor:
        """In float64. A product is multiplied out where the model is."""
        product = None if self.place is None else matrix.factors()
        factors = (matrix.dense(),) if product is None else (product.left, product.right)
        first, *second = (torch.from_numpy(np.ascontiguousarray(each, dtype=np.float64)) for each in factors)
        return first.to(self.world.device) @ second[0].to(self.world.device) if second else first

    def restore(self) -> None:
        """The trained ΔW again."""
        self.put({name: self.delta(name) for name in self.updates})

    @torch.no_grad()
    def score(self, texts: Encoded | None = None) -> Score:
        """Loss and accuracy of the model as it is now, on the held-out texts or on these."""
        size = self.config.training.per_device_eval_batch_size
        return evaluate(self.model, self.held_out if texts is None else texts, size, self.world)

    def _shape(self, name: str) -> tuple[int, int]:
        rows, columns = _as_map(self.updates[name], self._base[name]).shape
        return rows, columns

    def _weight(self, update: Update) -> Tensor:
        stored = self.model.get_parameter(weight_name(update))
        return stored if update.expert is None else stored[update.expert]


def reopen(
    folder: str | Path, device: str = "auto", split: str | None = None, max_samples: int | None = None
) -> Reopened:
    """Open the folder of a finished run.

    Args:
        folder: as `lorascope train` left it.
        device: as of a run's config.
        split: of a packaged set or a hub dataset, other texts to hold out than the run's own, such as "test".
        max_samples: the first so many of them, in an order that does not depend on the run's seed.

    Raises:
        InputError: the folder holds no finished run, its model or data cannot be had, or what it trained is no change
            of weights, as a soft prompt is not, or not of weights alone, as (IA)³ on layers with a bias.
    """
    folder = Path(folder)
    config = finished_config(folder)
    check_config(folder / "adapter")
    here = World(pick_device(device))
    tokenizer = models.load_tokenizer(config.model)
    train, held_out = data.load(config.data, config.model.task_type, tokenizer, config.training.seed_of_data)
    if split is not None or max_samples is not None:
        held_out = other_texts(config, train, tokenizer, split or config.data.eval_split, max_samples)
    model = load_base(config, len(train.label_names), here.device)
    adapter = io.read(folder / "adapter")
    return with_adapter(Reopened(folder, config, adapter, model, train, held_out, tokenizer, here, {}))


def with_adapter(opened: Reopened) -> Reopened:
    """The same, its base model with the adapter in it.

    Raises:
        InputError: the adapter is not of this model, or is no change of weights alone.
    """
    folder, config, model = opened.folder, opened.config, opened.model
    adapter = in_model_layout(ModelParameters(model), opened.adapter)
    base = {name: _base_of(model, update) for name, update in adapter.updates.items()}
    merged = merge.merge(model, adapter, models.drawn(model))  # drawn by the seed of the run, as they were then
    if merged.biases:
        raise InputError(
            f"{folder} changed biases together with its weights, as (IA)³ does where a layer has a bias",
            found=preview(merged.biases, 2),
            hint="leave this run out: what is evaluated here is a change of weights alone",
        )
    model.eval().requires_grad_(False)
    notes = (ROUNDED.format(folder),) if config.training.bf16 and adapter.updates else ()
    return replace(opened, adapter=adapter, _base=base, notes=(*opened.notes, *notes))


def finished_config(folder: Path) -> RunConfig:
    """The config of a run's folder. InputError where there is no run, it is damaged, or it did not end well."""
    for name in ("config.yaml", SUMMARY):
        if not os.path.lexists(folder / name):
            raise InputError(
                f"{folder} is not the folder of a finished run",
                found=f"no {name}",
                hint="name a folder that `lorascope train` wrote",
            )
    if diverged := read_summary(folder).get("diverged"):
        raise InputError(f"{folder} holds no adapter", found=diverged)
    return configs.parse(read_config(folder), str(folder / "config.yaml"))


def other_texts(config: RunConfig, train: Encoded, tokenizer: Any, split: str, most: int | None) -> Encoded:
    """The first `most` texts of another split, of the classes that were trained on, in an order without the seed.

    Where the run's own seed draws what is held out, those texts stay out: another draw would hold training texts.

    Raises:
        InputError: the data have no such split.
    """
    there = has_split(config.data, split)
    if not there and split != config.data.eval_split:
        raise InputError(
            f"{config.data.path} has no split {split!r}", hint="name a set that has, or take the run's own"
        )
    other = replace(config.data, eval_split=split, max_eval_samples=most)
    seed = 0 if there else config.training.seed_of_data
    if config.model.task_type == "CAUSAL_LM":
        return data.load(other, "CAUSAL_LM", tokenizer, seed)[1]
    return data.held_out_classes(other, train.label_names, tokenizer, seed)


@torch.no_grad()
def _base_of(model: nn.Module, update: Update) -> Tensor:
    """A copy of the weight before the update."""
    name = weight_name(update)
    try:
        stored = model.get_parameter(name)
    except AttributeError:
        raise InputError("the adapter is not of this model", found=f"an update for {name}") from None
    return (stored if update.expert is None else stored[update.expert]).detach().clone()


def _as_map(update: Update, weight: Tensor) -> Tensor:
    """A weight in the layout of the update's map, (d_out, d_in)."""
    by_output = weight.t() if update.transposed else weight
    try:
        return by_output.reshape(update.shape)
    except InputError:  # a scaling, whose shape W alone says
        return by_output.flatten(1)
