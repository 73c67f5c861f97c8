"""VB-LoRA in PEFT's files: pieces of A's rows and B's columns are mixtures of the vectors of one bank for all modules.

Li, Han and Ji 2024, "VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks", arXiv 2405.15179, §3, as PEFT
computes it (tuners/vblora/layer.py): each piece of length v is the mixture of the k vectors with the largest logits, by
the softmax of these. With `save_only_topk_weights` the file holds their indices and all mixing weights but the last.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.peft.config import Config, ScaleFields
from lorascope.weights.formats.peft.family import Context, Family, Group, families
from lorascope.weights.formats.peft.lora import is_transposed
from lorascope.weights.formats.peft.places import whole_numbers
from lorascope.weights.support import Support
from lorascope.weights.tensors import Combined, Recent, Slice

BANK = "vblora_vector_bank"
_TOP = ("_topk_indices", "_topk_weights")


class VBLoRA(Family):
    peft_types = {"VBLORA": frozenset({"low_rank"})}
    roles = (BANK, *(f"vblora_logits_{side}{end}" for side in "AB" for end in ("", *_TOP)))
    marks = frozenset(roles)
    fields = """
        num_vectors vector_length topk save_only_topk_weights vblora_dropout init_vector_bank_bound init_logits_std
    """
    scales = ScaleFields(default_rank=4)

    def method_name(self, update: Update, config: Config) -> str:
        return "VB-LoRA"

    def waits(self, group: Group, context: Context) -> bool:
        return True

    def read_together(self, groups: Sequence[Group], context: Context) -> Iterator[tuple[Group, list[Update] | str]]:
        banks = [group for group in groups if BANK in group]
        modules = [group for group in groups if BANK not in group]
        if not banks or not modules:
            raise InputError(
                "VB-LoRA needs its vector bank and the logits of its modules", found=", ".join(groups[0].stored)
            )
        bank = banks[0].stored[BANK]
        if len(bank.shape) != 2:
            raise InputError("VB-LoRA's vector bank is not a matrix", found=tuple(bank.shape))
        recent = Recent()
        for group in modules:
            yield group, [_update(group, bank, context, recent)]
        for group in banks:
            yield group, [] if group is banks[0] else "VB-LoRA's vector bank, of which one copy is enough"


families.register("vblora")(VBLoRA())


def _update(group: Group, bank: Stored, context: Context, recent: Recent) -> Update:
    a, b = (_mixtures(group, f"vblora_logits_{side}", bank, context.config, recent) for side in "AB")
    (rank, tiles_in), (tiles_out, other), length = a.shape[:2], b.shape[:2], bank.shape[1]
    if rank != other:
        raise InputError(f"the logits of {group.module} do not fit together", found=f"{a.shape} and {b.shape}")
    d_in, d_out = tiles_in * length, tiles_out * length
    roles = {
        "A": Combined(a.sources, (rank, d_in), lambda *parts: a.function(*parts).reshape(rank, d_in)),
        "B": Combined(
            b.sources, (d_out, rank), lambda *parts: b.function(*parts).transpose(0, 2, 1).reshape(d_out, rank)
        ),
    }
    transposed = is_transposed(group.module, (d_out, d_in), context.config, context.base)
    return Update(group.module, "low_rank", roles, transposed=transposed)


def _mixtures(group: Group, role: str, bank: Stored, config: Config, recent: Recent) -> Combined:
    """The mixed vectors (·, ·, v) of one side."""
    length = bank.shape[1]
    shared = Slice(bank, tuple(bank.shape), lambda values: values, recent)
    if role in group:
        logits = group.stored[role]
        top = config.raw.get("topk", 2)
        if not config.given:
            raise InputError("VB-LoRA mixes the topk largest, a field of the adapter_config.json that is missing")
        if len(logits.shape) != 3 or logits.shape[2] != bank.shape[0] or type(top) is not int:
            raise InputError(
                f"{group.keys[role].text} does not fit the vector bank", found=group.shape(role), expected=bank.shape
            )
        if not 0 < top <= bank.shape[0]:
            raise InputError("adapter_config.json: topk is not a count of the bank's vectors", found=top)
        return Combined((logits, shared), (*logits.shape[:2], length), _of_logits(top))
    indices, weights = (f"{role}{end}" for end in _TOP)
    group.need(indices, weights)
    stored, mixing = group.stored[indices], group.stored[weights]
    fits = len(stored.shape) == len(mixing.shape) == 3 and tuple(stored.shape[:2]) == tuple(mixing.shape[:2])
    if not fits or mixing.shape[2] != stored.shape[2] - 1:
        raise InputError(
            f"the indices and weights of {group.module} do not fit together",
            found=f"{group.shape(indices)} and {group.shape(weights)}",
            expected="(·, ·, k) and (·, ·, k − 1)",
        )
    return Combined((stored, mixing, shared), (*stored.shape[:2], length), _of_top(group.keys[indices].text))


def _of_logits(top: int) -> Callable[..., np.ndarray]:
    def mix(logits: np.ndarray, bank: np.ndarray) -> np.ndarray:
        order = np.argpartition(-logits, top - 1, axis=-1)
        indices, others = order[..., :top], np.take_along_axis(logits, order[..., top:], axis=-1)
        largest = np.take_along_axis(logits, indices, axis=-1)
        if others.size and np.any(largest.min(axis=-1) == others.max(axis=-1)):
            indices = _as_torch_takes(logits, top)
            largest = np.take_along_axis(logits, indices, axis=-1)
        weights = np.exp(largest - largest.max(axis=-1, keepdims=True))
        return _mixed(weights / weights.sum(axis=-1, keepdims=True), indices, bank)

    return mix


def _as_torch_takes(logits: np.ndarray, top: int) -> np.ndarray:
    """Of equal logits, which bfloat16 often has, those that torch's topk takes on a CPU: what PEFT computes with."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(logits)).topk(top, dim=-1).indices.numpy()


def _of_top(key: str) -> Callable[..., np.ndarray]:
    def mix(indices: np.ndarray, weights: np.ndarray, bank: np.ndarray) -> np.ndarray:
        last = 1 - weights.sum(axis=-1, keepdims=True)
        places = whole_numbers(indices, len(bank), key)
        return _mixed(np.concatenate([weights, last], axis=-1), places, bank)

    return mix


def _mixed(weights: np.ndarray, indices: np.ndarray, bank: np.ndarray) -> np.ndarray:
    """Σ_k weights[..., k]·bank[indices[..., k]], one k at a time."""
    mixed = np.zeros((*indices.shape[:-1], bank.shape[1]))
    for k in range(indices.shape[-1]):
        mixed += weights[..., k, None] * bank[indices[..., k]]
    return mixed


SUPPORT = (Support("VB-LoRA", "PEFT's merge in float64", peft="VBLORA"),)
