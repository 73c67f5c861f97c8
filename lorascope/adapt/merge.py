"""An adapter's tensors put into its base model's weights: by one function, whoever asks.

What is merged is what the trained model computes: every update by its own formula, in the layout of the module that it
finds; what an update adds to a bias; modules, biases and token rows that were trained whole; on the base that the
adapter was trained on. What cannot be merged is refused, and nothing is written then. The sum W + ΔW is formed in
float32 or wider and rounded once to the dtype the model is stored in. In a narrow dtype much of a small update
disappears in that rounding, so what was lost is measured for each weight.
"""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from lorascope.adapt import requantising
from lorascope.adapt.model_parameters import ModelParameters, in_fused, in_model_layout, weight_name
from lorascope.adapt.requantising import Requantised
from lorascope.adapt.weight_sum import MergedWeight, rounded_sum, widened
from lorascope.errors import InputError, LorascopeError, preview
from lorascope.models import loading as models
from lorascope.models.dequantised import is_quantised
from lorascope.outputs import staged, write_json
from lorascope.updates.base import Stored, Update, dense, kinds
from lorascope.weights.adapter import Adapter, Rows, Skipped
from lorascope.weights.caveats import fewer_layers, not_for_all_tokens, of_another_base
from lorascope.weights.checkpoint import Checkpoint
from lorascope.weights.formats.base import lost
from lorascope.weights.formats.peft.lora import B_BIAS
from lorascope.weights.formats.peft.tokens import TOKENS
from lorascope.weights.fused_experts import Place
from lorascope.weights.random_subspace import LAMBDA, THETA, subspace_of


@dataclass
class Merge:
    """What was merged, and what was left out because the base has it or nothing depends on it.

    Attributes:
        weights: one record for each update.
        biases: parameters to which an update added something that is not in its weight.
        whole: parameters that were trained and stored whole, now in place.
        rows: how many rows of an embedding were trained and put in, by parameter.
        base: parameters of the base that the file held itself, and that were used.
        untied: parameters that no longer share one tensor with another.
        grown: the rows of the vocabulary before and after, where the adapter has more tokens than the base.
        requantised: of a quantised base, what storing each sum in its codes again would lose; `requantising`: of all.
        skipped: the rest of the file, and why it is not needed.
        notes: what the reader of the adapter wants said, and whether this is its base.
    """

    weights: list[MergedWeight] = field(default_factory=list)
    biases: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)
    base: list[str] = field(default_factory=list)
    untied: list[str] = field(default_factory=list)
    grown: tuple[int, int] | None = None
    requantised: list[Requantised] = field(default_factory=list)
    requantising: dict[str, float] | None = None
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()


@torch.no_grad()
def merge(
    model: nn.Module, adapter: Adapter, seeded: Collection[str] = (), checkpoint: Checkpoint | None = None
) -> Merge:
    """Put an adapter into its base model for good.

    A weight that two modules share (tied embeddings) is untied where only one of them changes; where both do, or the
    adapter trained the shared parameter itself, it stays shared.

    Args:
        seeded: parameters that the base does not hold and that have the same random values as in training.
        checkpoint: the base's files: of those that hold codes, what coding the sums again would lose is measured.

    Raises:
        InputError: a parameter is missing or has another shape, the adapter is more than a change of weights or belongs
            to another base, something in the file would be lost, a merged number is NaN or infinite, or the model has
            random values in a place that the adapter does not fill.
    """
    refuse(adapter)
    unsure = fewer_layers(adapter, getattr(getattr(model, "config", None), "num_hidden_layers", None))
    done = Merge(skipped=adapter.skipped, notes=(*adapter.notes, *([unsure] if unsure else [])))
    _with_vocabulary(model, adapter, done)
    params = ModelParameters(model)
    _check_names(params, adapter)
    adapter = in_model_layout(params, adapter)
    for name, stored in adapter.base.items():
        _set(params, done.base, name, stored, keep_ties=True)
    keep_ties = adapter.settings.get("ties") == "kept"  # PEFT's tied adapters are in the file twice, one for each half
    saved = {name: stored for name, stored in adapter.saved.items() if not _makes_updates(name, adapter)}
    for name, stored in saved.items():
        _set(params, done.whole, name, stored, keep_ties or _all_alike(params, name, saved), done.untied)
    for name, rows in adapter.rows.items():  # before the updates: PEFT puts LoRA around what has the rows
        _set_rows(model, params, name, rows, len(adapter.rows) == 1, done)
    for update in adapter.updates.values():  # biases first: what is added to one may depend on W as it was
        _merge_bias(params, update, adapter.source.format, done)
    for update in adapter.updates.values():
        _merge_one(params, update, params.name(weight_name(update)) or "", keep_ties, done, checkpoint)
    _check_drawn(model, params, {*done.whole, *done.base, *seeded})
    if checkpoint is not None and is_quantised(checkpoint) and not done.requantised:
        done.notes += ("the base is quantised, none of the merged weights is: the model is written without codes",)
    if sums := requantising.total(done.requantised):
        done.requantising = dict(zip(("loss", "survives"), sums, strict=True))
    return done


def refuse(adapter: Adapter) -> None:
    """InputError where the adapter cannot be put into a base's weights without losing or changing what it does."""
    where = adapter.source.path or "the adapter"
    if why := not_for_all_tokens(adapter):
        raise InputError(f"{where} cannot be merged", found=why, hint="a merged model would apply it to all tokens")
    if why := of_another_base(adapter):
        raise InputError(
            f"{where} cannot be merged into the original base",
            found=why,
            hint="save it with PEFT's path_initial_model_for_weight_conversion first",
        )
    if adapter.settings.get("layer_replication"):
        raise InputError(
            f"{where} cannot be merged: it was trained on a model whose layers are replicas of the base's",
            found=f"layer_replication {adapter.settings['layer_replication']}",
            hint="merge it with PEFT, into the replicated model",
        )
    if parts := [name for name in adapter.saved if name in adapter.non_weight_tensors]:
        apart = [name for name in parts if not _makes_updates(name, adapter)]
        if apart:
            raise InputError(
                f"{apart[0]} cannot be merged into the weights", found=adapter.non_weight_tensors[apart[0]]
            )
    if gone := lost(adapter, kept=(B_BIAS, TOKENS)):
        raise InputError(
            f"merging {where} would lose what lorascope does not understand or cannot compute",
            found=f"{preview((item.name for item in gone), 3)}: {gone[0].reason}",
        )


def _with_vocabulary(model: nn.Module, adapter: Adapter, done: Merge) -> None:
    """Give the model as many tokens as the adapter's, where that has more. InputError where the adapter does not hold
    the rows that the base lacks."""
    params = ModelParameters(model)
    stored_whole = {**adapter.base, **adapter.saved}
    sizes = {}
    for name, stored in stored_whole.items():
        target = params.name(name)
        if target is not None and _is_vocabulary(model, target):
            sizes[target] = (params.parameters[target].shape[0], stored.shape[0])
    grown = {before_after for before_after in sizes.values() if before_after[0] < before_after[1]}
    if not grown:
        return
    ((before, after), *others) = grown
    tables = [n for n in params.parameters if n.endswith(".weight") and _is_vocabulary(model, n) and n not in sizes]
    shared = {other for name in adapter.base if (target := params.name(name)) for other in params.sharers(target)}
    apart = adapter.settings.get("modules_to_save") or ()
    shared |= {o for n in sizes if n.split(".")[-2] not in apart for o in params.sharers(n)}
    missing = [name for name in tables if name not in shared]
    if others or missing:
        raise InputError(
            f"the adapter has {after} tokens, and this base {before}",
            found=f"no new rows for {preview(missing)}" if missing else "several sizes",
            hint="resize the base's vocabulary as it was resized before training, save it, and pass that folder",
        )
    cast(Any, model).resize_token_embeddings(after, mean_resizing=False)
    done.grown = (before, after)


def _is_vocabulary(model: nn.Module, name: str) -> bool:
    """Whether the parameter is the input or the output embedding's."""
    module = model.get_submodule(name.rpartition(".")[0])
    return any(module is table for which in ("input", "output") if (table := _table(model, which)) is not None)


def _table(model: nn.Module, which: str) -> nn.Module | None:
    """The input or the output embedding; None of a model that has none."""
    try:
        return getattr(model, f"get_{which}_embeddings", lambda: None)()
    except NotImplementedError:
        return None


def _check_names(params: ModelParameters, adapter: Adapter) -> None:
    wanted = [weight_name(update) for update in adapter.updates.values() if in_fused(params, update) is None]
    wanted += [name for name in adapter.saved if not _makes_updates(name, adapter)]
    wanted += [*adapter.rows, *adapter.base]
    missing = [name for name in wanted if params.name(name) is None and params.buffer(name) is None]
    if missing and all(n.endswith(".bias") and params.name(f"{n.removesuffix('bias')}weight") for n in missing):
        raise InputError(
            "the adapter adds biases to layers of the base that have none, so it cannot be merged",
            found=preview(missing, 3),
            hint="load it with PEFT, which does not merge it either",
        )
    if missing:
        raise InputError(
            "the adapter is not of this model",
            found=f"{len(missing)} of its {len(wanted)} parameters are not there: {preview(missing, 3)}",
            expected=preview(params.parameters, 3),
        )


def _makes_updates(name: str, adapter: Adapter) -> bool:
    """Whether this stored tensor is in the updates already: coordinates of the subspace that they come from."""
    return name in (THETA, LAMBDA) and subspace_of(adapter.updates) is not None


# --- one parameter ----------------------------------------------------------------------------------------------------


def _merge_one(
    params: ModelParameters, update: Update, name: str, keep_ties: bool, done: Merge, checkpoint: Checkpoint | None
) -> None:
    if (there := None if name else in_fused(params, update)) is not None:
        _merge_part(params, update, there, done, checkpoint)
        return
    parameter = params.current(name)
    fused = update.expert is not None and parameter.ndim == 3
    if fused and update.expert >= parameter.shape[0]:  # type: ignore[operator]
        raise InputError(f"{name} has {parameter.shape[0]} experts", found=update.name)
    weight = parameter[update.expert] if fused else parameter
    label = f"{name}[{update.expert}]" if fused else name
    delta = _delta(update, weight)
    coded = None if checkpoint is None else checkpoint.find(name)
    if again := requantising.measure(label, coded, delta, update.expert if fused else None):
        done.requantised.append(again)
    stored, what_it_did = rounded_sum(label, weight, delta)
    done.weights.append(what_it_did)
    if fused or keep_ties:
        weight.copy_(stored)
    elif params.put(name, stored):
        done.untied.append(name)


def _merge_part(
    params: ModelParameters, update: Update, there: Place, done: Merge, checkpoint: Checkpoint | None
) -> None:
    """One expert's projection in a parameter that fuses it."""
    name = params.name(there.parameter) or ""
    matrix = params.current(name)[there.expert]
    weight = there.view(matrix)
    label = f"{update.name} in {name}"
    delta = _delta(replace(update, expert=None, transposed=False), weight)
    whole = torch.zeros_like(matrix, dtype=delta.dtype)
    there.view(whole).copy_(delta)
    if again := requantising.measure(label, checkpoint.find(name) if checkpoint else None, whole, there.expert):
        done.requantised.append(again)
    stored, what_it_did = rounded_sum(label, weight, delta)
    done.weights.append(what_it_did)
    weight.copy_(stored)


def _delta(update: Update, weight: Tensor) -> Tensor:
    """ΔW in the layout the model stores `weight` in, float32 or wider."""
    base = _native(update, weight) if update.needs_base else None
    try:
        values = torch.from_numpy(np.ascontiguousarray(dense(update.delta(base)), dtype=np.float64))
    except InputError as error:
        raise InputError(f"{update.name}: {error.what}", found=error.found, expected=error.expected) from None
    values = values.to(widened(weight))
    values = values.t() if update.transposed else values
    as_it_is = values.shape == weight.shape or (weight.ndim < 2 and values.shape == (weight.numel(), 1))
    as_it_is = as_it_is or (weight.ndim > 2 and values.shape[0] == weight.shape[0])  # a kernel, flattened
    if values.numel() != weight.numel() or not (update.kernel or as_it_is):
        raise InputError(
            f"{update.name} has another shape",
            found=tuple(values.shape),
            expected=tuple(weight.shape),
            hint="give the base model that this adapter was trained on",
        )
    return values.reshape(weight.shape)


def _native(update: Update, weight: Tensor) -> np.ndarray:
    """W (d_out, d_in) in float64, as the update has it."""
    native = weight.t() if update.transposed and weight.ndim == 2 else weight
    return native.reshape(native.shape[0] if native.ndim else 1, -1).double().cpu().numpy()


def _merge_bias(params: ModelParameters, update: Update, source: str, done: Merge) -> None:
    """What the update does to the bias: (IA)³ scales the output as a whole, and B may have a bias of its own."""
    name = params.name(weight_name(update).rpartition(".")[0] + ".bias")
    if update.bias is not None and name is None:
        raise InputError(
            f"{update.name} has no bias in the base", found="lora_bias: a bias of B, which would have to be added to it"
        )
    if name is None or (update.bias is None and not update.needs_base):  # what acts on the output depends on it
        return
    bias = params.current(name)
    change = torch.zeros_like(widened(bias))
    if update.bias is not None:
        change += torch.from_numpy(update.scale * update.bias.read()).to(change).reshape(change.shape)
    if update.needs_base and source != "lycoris":  # whose scaling is of the weight alone
        weight = _native(update, params.current(params.name(weight_name(update)) or ""))
        scaled = kinds.get(update.kind).bias_change(update.read(), update.scale, bias.double().cpu().numpy(), weight)
        change += 0 if scaled is None else torch.from_numpy(scaled).to(change)
    if bool(change.any()):
        params.put(name, rounded_sum(name, bias, change)[0])
        done.biases.append(name)


def _set(
    params: ModelParameters,
    record: list[str],
    name: str,
    stored: Stored,
    keep_ties: bool,
    untied: list[str] | None = None,
) -> None:
    """A parameter that the file holds whole, put in place."""
    target = params.name(name) or name
    buffer = params.buffer(name) if params.name(name) is None else None
    values, parameter = torch.from_numpy(stored.read()), params.current(target) if buffer is None else buffer
    if values.shape != parameter.shape:
        raise InputError(f"{name} has another shape", found=tuple(values.shape), expected=tuple(parameter.shape))
    rounded = values.to(parameter)
    if not bool(torch.isfinite(rounded).all()):
        raise InputError(
            f"merging would write NaN or infinity into {target}", found=f"such entries in the adapter's {name}"
        )
    if keep_ties or buffer is not None:
        parameter.copy_(rounded)
    elif params.put(target, rounded) and untied is not None:
        untied.append(target)
    record.append(target)


def _all_alike(params: ModelParameters, name: str, saved: Mapping[str, Stored]) -> bool:
    """Whether every module that shares this parameter was stored whole with the same numbers: then it stays shared."""
    target = params.name(name)
    sharers = params.sharers(target) if target else []
    theirs = {params.name(other): stored for other, stored in saved.items()}
    if len(sharers) < 2 or not all(other in theirs for other in sharers):
        return False
    values = [theirs[other].read() for other in sharers]
    return all(np.array_equal(values[0], other) for other in values[1:])


def _set_rows(model: nn.Module, params: ModelParameters, name: str, rows: Rows, alone: bool, done: Merge) -> None:
    """Trained rows, in the place of the base's. Whatever is tied to the input embedding has them as well, unless the
    file has other rows for that: so PEFT's `trainable_token_indices`. Any other module's are its own."""
    target = params.name(name) or ""
    table, indices = params.current(target), rows.indices
    values = torch.from_numpy(rows.stored.read()).to(table)
    if max(indices, default=0) >= table.shape[0] or values.shape[1:] != table.shape[1:]:
        raise InputError(
            f"the trained rows do not fit {target}",
            found=f"rows up to {max(indices, default=0)} of width {values.shape[-1]}",
            expected=f"a table of {tuple(table.shape)}",
        )
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"merging would write NaN or infinity into {target}", found="such entries in the trained rows")
    for_all = alone and params.module(target)[0] is _table(model, "input")
    tied = [other for other in params.sharers(target) if other != target]
    biased = [other for other in tied if getattr(params.module(other)[0], "bias", None) is not None]
    if for_all and biased:
        raise InputError(
            f"the trained rows of {target} cannot be merged",
            found=f"{biased[0]} is tied to it and has a bias, which PEFT's layer of trained tokens leaves out",
        )
    changed = table.clone()
    changed[list(indices)] = values
    if for_all:
        table.copy_(changed)
    elif params.put(target, changed):
        done.untied.append(target)
    done.rows[target] = len(indices)


def _check_drawn(model: nn.Module, params: ModelParameters, filled: Collection[str]) -> None:
    """InputError where the base lacks a parameter, and the adapter does not bring it."""
    random = [name for name in models.drawn(model) if params.name(name) not in filled]
    if random:
        raise InputError(
            f"the base does not hold {preview(random, 3)}, and neither does the adapter",
            found="random values in their place",
            hint="give a base that holds them, or an adapter that was trained with them in modules_to_save",
        )


def dtype_of(model: nn.Module) -> str:
    """The dtype most of the model is stored in, by its short name."""
    sizes: dict[torch.dtype, int] = {}
    for parameter in model.parameters():
        sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return str(max(sizes, key=lambda dtype: sizes[dtype])).removeprefix("torch.")


def save(model: nn.Module, tokenizer: Any, folder: Path, merged: Merge, facts: Mapping[str, str]) -> None:
    """The model, its tokenizer and merge.json in a new folder, which appears whole or not at all."""
    with staged(folder) as stage:
        if merged.untied or merged.grown:
            _unshare(model)
        try:
            cast(Any, model).save_pretrained(stage)
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise LorascopeError(f"cannot write {folder}: {error}") from error
        if merged.untied or merged.grown:
            _check_reloaded(model, stage)
        if tokenizer is not None:
            tokenizer.save_pretrained(stage)
        skipped = [item.record() for item in merged.skipped]
        write_json(stage / "merge.json", {**facts, "dtype": dtype_of(model), **asdict(merged), "skipped": skipped})


def _unshare(model: nn.Module) -> None:
    """Give every module a copy of its own where the config no longer ties: what is stored once is not loaded twice."""
    if getattr(model.config, "tie_word_embeddings", False):
        return
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) in seen:
                setattr(module, name, nn.Parameter(parameter.detach().clone(), requires_grad=False))
            elif parameter is not None:
                seen.add(id(parameter))


def _check_reloaded(model: nn.Module, stage: Path) -> None:
    """InputError where transformers loads other weights from the folder than were merged: some models tie their
    embeddings whatever the config says, and cannot hold them apart."""
    if not hasattr(model, "from_pretrained"):
        return
    again = models.load_class(type(model), str(stage), "auto")
    theirs = dict(again.named_parameters(remove_duplicate=False))
    wrong = [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name not in theirs or not torch.equal(parameter, theirs[name].to(parameter))
    ]
    if wrong or models.drawn(again):
        raise InputError(
            "transformers cannot hold this merged model: loaded again, it has other weights",
            found=preview([*wrong, *models.drawn(again)], 3),
            hint="its embeddings are tied by its class; train an adapter that leaves them alone, or use it unmerged",
        )


__all__ = ["Merge", "MergedWeight", "dtype_of", "merge", "refuse", "save", "weight_name"]
