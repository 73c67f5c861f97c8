"""UniLoRA in PEFT's files: one vector θ for all modules; every entry of A and B is one of its entries, times a scale.

"Uni-LoRA: One Vector is All You Need", 2025, arXiv 2506.00799, as PEFT computes it (tuners/unilora). Which entry is
told by the file with `save_indices`; else by the seed: numpy's shuffle of all places of θ, dealt out to A and B of the
modules in the model's order. The scale is 1/√(how often the entry is used), in float32 and then in the base's dtype.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from lorascope.errors import InputError
from lorascope.linalg.rounding import round_to
from lorascope.updates.base import MAX_DRAWN, Stored, Update
from lorascope.weights.formats.peft.config import ScaleFields
from lorascope.weights.formats.peft.draws import seed_of
from lorascope.weights.formats.peft.family import Context, Family, Group, check_rank, families
from lorascope.weights.formats.peft.lora import is_transposed
from lorascope.weights.formats.peft.order import modules_of, targeted
from lorascope.weights.formats.peft.places import Place, place_of, whole_numbers
from lorascope.weights.support import Support
from lorascope.weights.tensors import Combined, InMemory

THETA = "unilora_theta_d"
_SAVED = ("unilora_indices_A", "unilora_indices_B", "unilora_scales_A", "unilora_scales_B")


class UniLoRA(Family):
    peft_types = {"UNILORA": frozenset({"low_rank"})}
    roles = (THETA, *_SAVED)
    marks = frozenset(roles)
    fields = "proj_seed theta_d_length unilora_dropout init_theta_d_bound save_indices init_weights"
    scales = ScaleFields(default_rank=4, patterns=False)

    def method_name(self, update: Update, config) -> str:
        return "UniLoRA"

    def waits(self, group: Group, context: Context) -> bool:
        return True

    def read_together(self, groups: Sequence[Group], context: Context) -> Iterator[tuple[Group, list[Update] | str]]:
        vectors = [group for group in groups if THETA in group]
        modules = [group for group in groups if THETA not in group]
        if not vectors or len(vectors[0].shape(THETA)) != 1:
            raise InputError("UniLoRA needs its vector θ (d,)", found=", ".join(groups[0].stored))
        theta = vectors[0].stored[THETA]
        for group in modules:
            yield group, [_update(group, theta, context)]
        yield vectors[0], [] if modules else _drawn(theta, context)
        for group in vectors[1:]:
            yield group, "UniLoRA's vector, of which one copy is enough"


families.register("unilora")(UniLoRA())


def _update(group: Group, theta: Stored, context: Context) -> Update:
    """By the indices and scales of the file."""
    group.need(*_SAVED)
    (rank, d_in), (d_out, other) = (
        group.shape(role) if len(group.shape(role)) == 2 else (0, -1) for role in _SAVED[:2]
    )
    if rank != other or any(group.shape(_SAVED[k]) != group.shape(_SAVED[k + 2]) for k in (0, 1)):
        raise InputError(f"UniLoRA's tensors of {group.module} do not fit together", found=group.shape(_SAVED[0]))
    check_rank(group, context.config, rank, _SAVED[0])
    roles = {
        "A": _gathered(theta, group.stored[_SAVED[0]], group.stored[_SAVED[2]], group.keys[_SAVED[0]].text),
        "B": _gathered(theta, group.stored[_SAVED[1]], group.stored[_SAVED[3]], group.keys[_SAVED[1]].text),
    }
    transposed = is_transposed(group.module, (d_out, d_in), context.config, context.base)
    return Update(group.module, "low_rank", roles, transposed=transposed)


def _gathered(theta: Stored, indices: Stored, scales: Stored, key: str) -> Combined:
    def gather(values: np.ndarray, at: np.ndarray, by: np.ndarray) -> np.ndarray:
        return values[whole_numbers(at, len(values), key)] * by

    return Combined((theta, indices, scales), tuple(indices.shape), gather)


def _drawn(theta: Stored, context: Context) -> list[Update]:
    """By the seed: nothing but θ is in the file, so the base says which modules there are."""
    config = context.config
    if not config.given:
        raise InputError("UniLoRA needs the seed and the modules of its adapter_config.json, which is missing")
    names = targeted(config, modules_of(context.base))
    if not names:
        raise InputError("the base has none of the modules that target_modules names")
    places, rank = [place_of(name, context) for name in names], config.rank
    (length,) = theta.shape
    counts = [rank * (place.d_in + place.d_out) for place in places]
    if sum(counts) > MAX_DRAWN:
        raise InputError("UniLoRA's indices are too many to draw", found=sum(counts), expected=f"at most {MAX_DRAWN:,}")
    seed = seed_of(config, "proj_seed", 42)
    context.notes.append(
        f"UniLoRA: the indices are not in the file; they were drawn again from proj_seed {seed} with numpy "
        f"{np.__version__}, as PEFT does, for {len(names)} modules in the model's order"
    )
    indices = shuffled(sum(counts), length, seed)
    used = np.bincount(indices, minlength=length).astype(np.float32)
    scales = np.float32(1) / np.sqrt(np.maximum(used, 1))  # of an entry that is never used any would do
    updates, start = [], 0
    for name, place, count in zip(names, places, counts, strict=True):
        updates.append(_of_indices(name, place, theta, indices[start : start + count], scales, rank))
        start += count
    return updates


def shuffled(count: int, length: int, seed: int) -> np.ndarray:
    """`count` places of θ, each as often as another or once more, in a random order (`generate_index` of PEFT)."""
    rng = np.random.default_rng(seed)
    places = np.repeat(np.arange(length), count // length)
    if rest := count % length:
        places = np.concatenate([places, rng.choice(length, size=rest, replace=False)])
    rng.shuffle(places)
    return places


def _of_indices(name: str, place: Place, theta: Stored, indices: np.ndarray, scales: np.ndarray, rank: int) -> Update:
    """A module's share of the indices: first A's, then B's."""
    by = round_to(scales.astype(np.float64), place.weight.dtype if place.weight.dtype in ("BF16", "F16") else "F32")
    split = rank * place.d_in
    shapes = {"A": (rank, place.d_in), "B": (place.d_out, rank)}
    roles = {
        role: Combined((theta, InMemory(part, "I64")), shape, lambda values, _, part=part: values[part] * by[part])
        for (role, shape), part in zip(
            shapes.items(),
            (indices[:split].reshape(shapes["A"]), indices[split:].reshape(shapes["B"])),
            strict=True,
        )
    }
    return Update(name, "low_rank", roles, transposed=place.transposed)


SUPPORT = (Support("UniLoRA", "PEFT's merge in float64", base="where the indices are not stored", peft="UNILORA"),)
