"""SHiRA and Supertuning in PEFT's files: trained entries of the weight and where they are, and Supertuning's A and B.

SHiRA (Bhardwaj et al. 2024, arXiv 2406.13175; PEFT's tuners/shira/layer.py) stores rows and columns, Supertuning (2026,
arXiv 2607.09287; tuners/supertuning/layer.py) places in the flattened weight. Values at one place are added up.
"""

import math
from collections.abc import Callable

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.family import Context, Family, Group, families
from lorascope.weights.formats.peft.places import Filled, place_of, refuse_unseen, whole_numbers
from lorascope.weights.support import Support


class SHiRA(Family):
    peft_types = {"SHIRA": frozenset({"dense"})}
    roles = ("shira_weight", "shira_indices")
    marks = frozenset(roles)
    fields = "mask_type random_seed init_weights"

    def method_name(self, update: Update, config: Config) -> str:
        return "SHiRA"

    def read(self, group: Group, context: Context) -> Update:
        group.need(*self.roles)
        values, indices = (group.stored[role] for role in self.roles)
        key, count = group.keys["shira_indices"].text, values.shape[0] if len(values.shape) == 1 else -1
        if tuple(indices.shape) != (2, count):
            raise InputError(f"{key} does not fit the weights", found=indices.shape, expected=f"(2, {max(count, 0)})")
        notes: tuple[str, ...] = ()
        sources: tuple[Stored, ...] = values, indices
        if context.base is not None:
            place = place_of(group.module, context)
            shape, sources = place.shape, (*sources, place.weight)
        else:
            shape, notes = _reach(group.module, indices, key), (REACHED,)

        def places() -> np.ndarray:
            rows, columns = indices.read()
            return whole_numbers(rows, shape[0], key) * shape[1] + whole_numbers(columns, shape[1], key)

        role = Filled(sources, shape, lambda: scattered(places(), values.read(), shape), count)
        return Update(group.module, "dense", {"delta": role}, notes=notes)


REACHED = (
    "the layer's shape is not in the file: it was taken to be as far as the trained entries reach; --base tells it"
)


def _reach(module: str, indices: Stored, key: str) -> tuple[int, int]:
    """The smallest shape that has all indices (2, n)."""
    found = indices.read()
    rows, columns = (int(whole_numbers(each, 1 << 32, key).max(initial=0)) + 1 for each in found)
    refuse_unseen(module, (rows, columns))
    return rows, columns


def scattered(places: np.ndarray, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A matrix of zeros but for the values at these places of it, flattened."""
    flat = np.zeros(shape[0] * shape[1])
    np.add.at(flat, places, values)
    return flat.reshape(shape)


class Supertuning(Family):
    """Sparse entries; and in the hybrid ("Supra"), with `r`, LoRA's A and B besides."""

    peft_types = {"SUPERTUNING": frozenset({"dense"})}
    roles = ("supertuning_values", "supertuning_indices", "supertuning_lora_A", "supertuning_lora_B")
    marks = frozenset(roles)
    with_tail = frozenset({"supertuning_lora_A", "supertuning_lora_B"})
    fields = "sparsity select_top save_precomputed_indices lora_dropout init_weights"

    def method_name(self, update: Update, config: Config) -> str:
        return "Supertuning"

    def read(self, group: Group, context: Context) -> Update:
        group.need("supertuning_values")
        values, indices = group.stored["supertuning_values"], group.stored.get("supertuning_indices")
        if len(values.shape) != 1 or (indices is not None and tuple(indices.shape) != tuple(values.shape)):
            raise InputError(f"{group.module}: the values do not fit their indices", found=values.shape)
        sources = tuple(group.stored.values())
        low_rank = _low_rank(group, context.config)
        if context.base is None and low_rank is not None and indices is not None:
            shape, weight = low_rank[0], None
        else:
            place = place_of(group.module, context)
            shape, weight, sources = place.shape, place.weight, (*sources, place.weight)
        if low_rank is not None and low_rank[0] != shape:
            raise InputError(f"{group.module}: A and B do not fit the base weight", found=low_rank[0], expected=shape)
        if indices is None:
            assert weight is not None
            places = _largest(weight, values.shape[0], context)
        else:
            key = group.keys["supertuning_indices"].text
            places = lambda: whole_numbers(indices.read(), shape[0] * shape[1], key)  # noqa: E731

        def filled() -> np.ndarray:
            sparse = scattered(places(), values.read(), shape)
            return sparse if low_rank is None else sparse + low_rank[1]()

        numbers = sum(math.prod(stored.shape) for role, stored in group.stored.items() if role != "supertuning_indices")
        return Update(group.module, "dense", {"delta": Filled(sources, shape, filled, numbers)})


def _low_rank(group: Group, config: Config) -> tuple[tuple[int, int], Callable[[], np.ndarray]] | None:
    """(d_out, d_in) of α/r·B·A, and what computes it; None without A and B. α is 2r where the config does not say."""
    if "supertuning_lora_A" not in group and "supertuning_lora_B" not in group:
        return None
    group.need("supertuning_lora_A", "supertuning_lora_B")
    a, b = group.stored["supertuning_lora_A"], group.stored["supertuning_lora_B"]
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise InputError(f"the factors of {group.module} do not fit together", found=f"{a.shape} and {b.shape}")
    rank, alpha = a.shape[0], config.raw.get("lora_alpha")
    if config.given and config.raw.get("r") != rank:
        raise InputError(f"adapter_config.json contradicts the tensors of {group.module}", found=config.raw.get("r"))
    alpha = 2 * rank if alpha is None else alpha
    if type(alpha) not in (int, float):
        raise InputError("adapter_config.json: lora_alpha is not a number", found=alpha)
    return (b.shape[0], a.shape[1]), lambda: (b.read() * (alpha / rank)) @ a.read()


def _largest(weight: Stored, count: int, context: Context) -> Callable[[], np.ndarray]:
    """The places of W's largest entries, or with `select_top: false` smallest ones, as PEFT finds them again."""
    note = (
        "Supertuning: the indices are not in the file; they were found again as those of the base's entries that are "
        f"{'largest' if (largest := context.config.raw.get('select_top', True)) else 'smallest'} in size, by torch.topk"
    )
    if note not in context.notes:
        context.notes.append(note)

    def places() -> np.ndarray:
        import torch

        sizes = torch.from_numpy(np.abs(weight.read()).reshape(-1))
        return torch.topk(sizes, count, largest=bool(largest)).indices.numpy()

    return places


families.register("shira")(SHiRA())
families.register("supertuning")(Supertuning())

SUPPORT = (
    Support("SHiRA", "PEFT's merge in float64", base="for shapes", peft="SHIRA"),
    Support("Supertuning", "PEFT's merge in float64", base="for shapes", peft="SUPERTUNING"),
)
