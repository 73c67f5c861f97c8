"""An adapter's updates added to its base model's weights.

Any adapter that `weights` can read can be merged: the sum W + ΔW is formed in float32 or wider from each update's own
formula, and rounded once to the dtype the model is stored in. In a narrow dtype much of a small update disappears in
that rounding, so what was lost is measured for each weight.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lorascope.errors import InputError, some
from lorascope.training import models
from lorascope.training.assets import staged
from lorascope.training.config import ModelConfig
from lorascope.training.record import write_json
from lorascope.training.run import CARD
from lorascope.updates.base import Update, dense, kinds
from lorascope.weights.adapter import Adapter
from lorascope.weights.subspace import LAMBDA, THETA, subspace_of

TASKS = ("SEQ_CLS", "CAUSAL_LM")


@dataclass(frozen=True)
class MergedWeight:
    """What merging did to one weight.

    Attributes:
        name: the parameter's name in the model.
        relative_size: ‖ΔW‖_F / ‖W‖_F.
        rounding_loss: ‖(stored − W) − ΔW‖_F / ‖ΔW‖_F, the share of the update that the dtype could not hold.
        unchanged: the share of the entries that ΔW changes and the stored weight does not.
    """

    name: str
    relative_size: float
    rounding_loss: float
    unchanged: float


def load_base(adapter: Adapter, folder: Path, base: str, dtype: torch.dtype | str = "auto") -> tuple[nn.Module, Any]:
    """The base model that the adapter belongs to, with its head, and the model's tokenizer where it has one.

    The card that `lorascope train` leaves beside the adapter says which head; of another writer's adapter, its task
    type does.

    Raises:
        InputError: the model cannot be loaded, or the adapter does not say what kind it needs.
    """
    task, head, layers = adapter.settings.get("task_type"), "native", None
    card = (folder if folder.is_dir() else folder.parent) / CARD
    if card.is_file():
        said = json.loads(card.read_text(encoding="utf-8"))["model"]
        if said.get("random_init"):
            raise InputError(f"{folder} was trained on random weights, which only its run's seed gives again")
        task, head, layers = said["task_type"], said["head"], said.get("num_hidden_layers")
    if task not in TASKS:
        raise InputError(
            "the adapter does not say what kind of model it belongs to",
            found=f"the task type {task!r}",
            expected=" or ".join(TASKS),
            hint="set task_type in its adapter_config.json",
        )
    labels = [
        stored.shape[0]
        for name, stored in adapter.saved.items()
        if name.endswith(("classifier.weight", "score.weight"))
    ]
    config = ModelConfig(base, task, head, num_hidden_layers=layers)
    model = models.load_model(config, labels[0] if labels else 2, dtype)
    try:
        return model, models.load_tokenizer(config)
    except InputError:  # some models come without one; they are merged all the same
        return model, None


@torch.no_grad()
def merge(model: nn.Module, adapter: Adapter) -> list[MergedWeight]:
    """Add every update to its weight and put the saved modules in place; what rounding did to each weight.

    A weight that two modules share (tied embeddings) is untied: only the adapted one changes. Where the adapter trained
    the shared parameter itself, it stays shared.

    Raises:
        InputError: a weight is missing, has another shape, or the update is more than a change of it.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    missing = [name for update in adapter.updates.values() if (name := weight_name(update)) not in parameters]
    saved = {name: stored for name, stored in adapter.saved.items() if not _makes_updates(name, adapter)}
    missing += [name for name in saved if name not in parameters and name not in adapter.parts]
    if missing:
        raise InputError(
            "the adapter is not of this model", found=f"updates for {some(missing, 3)}", expected=some(parameters, 3)
        )
    if apart := [name for name in saved if name in adapter.parts]:
        raise InputError(f"{apart[0]} cannot be merged into the weights", found=adapter.parts[apart[0]])
    tied = adapter.settings.get("ties") == "kept"
    reports = [_merge_one(model, parameters, update, tied) for update in adapter.updates.values()]
    if adapter.source.format != "lycoris":  # whose scaling is of the weight alone
        for update in adapter.updates.values():
            _merge_bias(model, parameters, update)
    for name, stored in saved.items():
        values = torch.from_numpy(stored.read())
        if values.shape != parameters[name].shape:
            raise InputError(
                f"{name} has another shape", found=tuple(values.shape), expected=tuple(parameters[name].shape)
            )
        parameters[name].copy_(values)
    return reports


def _makes_updates(name: str, adapter: Adapter) -> bool:
    """Whether this stored tensor is in the updates already: coordinates of the subspace that they come from."""
    return name in (THETA, LAMBDA) and subspace_of(adapter.updates) is not None


def weight_name(update: Update) -> str:
    """The name of the parameter that the update changes."""
    return update.base_weight or f"{update.name}.weight"


def _merge_one(model: nn.Module, parameters: Mapping[str, nn.Parameter], update: Update, tied: bool) -> MergedWeight:
    name = weight_name(update)
    path, _, attribute = name.rpartition(".")
    module = model.get_submodule(path)
    stored = getattr(module, attribute)
    whole = stored if update.expert is None else stored[update.expert]
    wide = whole.to(torch.promote_types(whole.dtype, torch.float32))
    delta = _delta(update, wide)
    merged = (wide + delta).to(whole.dtype)
    if tied:
        wide = wide.clone()  # of a float32 weight it is the weight itself
    if update.expert is None and not tied:
        _put(model, parameters, module, attribute, merged)
    else:
        whole.copy_(merged)
    return _report(name, wide, delta, merged)


def _merge_bias(model: nn.Module, parameters: Mapping[str, nn.Parameter], update: Update) -> None:
    """What the update does to the bias, where it acts on the output as a whole, as (IA)³ does."""
    module = model.get_submodule(weight_name(update).rpartition(".")[0])
    bias = getattr(module, "bias", None)
    if bias is None or not update.needs_base:  # what acts on the output depends on it
        return
    wide = bias.to(torch.promote_types(bias.dtype, torch.float32))
    change = kinds.get(update.kind).bias_change(update.read(), update.scale, wide.double().cpu().numpy())
    if change is not None:
        _put(model, parameters, module, "bias", (wide + torch.from_numpy(change).to(wide)).to(bias.dtype))


def _delta(update: Update, weight: Tensor) -> Tensor:
    """ΔW in the layout and dtype the model stores `weight` in."""
    native = weight.t() if update.transposed else weight
    base = (
        native.reshape(native.shape[0] if native.ndim else 1, -1).double().cpu().numpy() if update.needs_base else None
    )
    values = torch.from_numpy(np.ascontiguousarray(dense(update.delta(base)))).to(weight)
    values = values.t() if update.transposed else values
    as_it_is = values.shape == weight.shape or (weight.ndim < 2 and values.shape == (weight.numel(), 1))
    if values.numel() != weight.numel() or not (update.kernel or as_it_is):
        raise InputError(f"{update.name} has another shape", found=update.shape, expected=tuple(native.shape))
    return values.reshape(weight.shape)


def _put(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], module: nn.Module, attribute: str, merged: Tensor
) -> None:
    """The merged weight in the old one's place; a module that shared the old one keeps it."""
    old = getattr(module, attribute)
    shared = sum(parameter is old for parameter in parameters.values()) > 1
    setattr(module, attribute, nn.Parameter(merged, requires_grad=False))
    if shared and getattr(model.config, "tie_word_embeddings", False):
        model.config.tie_word_embeddings = False  # or saving and loading would tie them again


def _report(name: str, wide: Tensor, delta: Tensor, merged: Tensor) -> MergedWeight:
    size, base = float(delta.norm()), float(wide.norm())
    kept = merged.to(wide.dtype) - wide
    moved = delta != 0
    stuck = float(((kept == 0) & moved).sum() / moved.sum()) if bool(moved.any()) else 0.0
    loss = float((kept - delta).norm()) / size if size else 0.0
    return MergedWeight(name, size / base if base else 0.0, loss, stuck)


def dtype_of(model: nn.Module) -> str:
    """The dtype most of the model is stored in, by its short name."""
    sizes: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return str(max(sizes, key=lambda dtype: sizes[dtype])).removeprefix("torch.")


def save(model: nn.Module, tokenizer: Any, folder: Path, merged: list[MergedWeight], facts: Mapping[str, str]) -> None:
    """The model, its tokenizer and merge.json in a new folder, which appears whole or not at all."""
    with staged(folder) as stage:
        model.save_pretrained(stage)
        if tokenizer is not None:
            tokenizer.save_pretrained(stage)
        weights = [asdict(one) for one in merged]
        write_json(stage / "merge.json", {**facts, "dtype": dtype_of(model), "weights": weights})
