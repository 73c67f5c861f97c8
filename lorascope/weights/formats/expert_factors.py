"""Factors of all experts of a layer in one array: A (E, r, d_in) and B (E, d_out, r), one update for each expert.

A factor that all experts share has one of them, (1, r, d_in) or (1, d_out, r). Writers disagree on the order of the
last two axes: where A (E, d_in, r) and B (E, r, d_out) is the only way in which the two fit, or the rank says so, they
are transposed. No format lives here.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.support import Support
from lorascope.weights.tensors import reshaped, slot, transposed

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

SHARED = "experts share a factor: one A or one B of a layer is that of all its experts"
SWAPPED = "the experts' factors are stored as A (experts, d_in, r) and B (experts, r, d_out), and were transposed"
# How Mixtral's files, Tinker's and vLLM's own code call an expert's projections.
W_NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}
PROJECTIONS = {w: name for name, w in W_NAMES.items()}


def per_expert(
    path: str, a: Stored, b: Stored, scale: float, keys: tuple[str, str], rank: int | None = None
) -> Iterator[Update]:
    """One update for each expert, `path[e]`, of the base's parameter `path`.

    Args:
        a: (E, r, d_in), or (1, r, d_in) of all experts, or (E·r, d_in).
        b: (E, d_out, r), or (1, d_out, r) of all experts.
        scale: of all.
        keys: of a and b, to name.
        rank: as the config says it, where there is one.

    Raises:
        InputError: the two do not fit together.
    """
    a = _with_three_axes(a, b)
    swapped = axes_swapped(a, b, rank)
    if swapped is None:
        raise InputError(
            f"the factors of the experts of {path} do not fit together",
            found=f"{keys[0]} {tuple(a.shape)} and {keys[1]} {tuple(b.shape)}",
            expected="A (experts, r, d_in) and B (experts, d_out, r), or one of the two shared by all experts",
        )
    notes = (*([SWAPPED] if swapped else []), *([SHARED] if is_shared(a, b) else []))
    for expert in range(max(a.shape[0], b.shape[0])):
        one, other = slot(a, expert % a.shape[0]), slot(b, expert % b.shape[0])
        roles = {"A": transposed(one), "B": transposed(other)} if swapped else {"A": one, "B": other}
        yield Update(f"{path}[{expert}]", "low_rank", roles, scale, base_weight=path, expert=expert, notes=notes)


def axes_swapped(a: Stored, b: Stored, rank: int | None = None) -> bool | None:
    """Whether A and B of experts are stored with their last two axes the other way round; None where they do not fit
    in either way."""
    if len(a.shape) != 3 or len(b.shape) != 3 or 0 in (*a.shape, *b.shape):
        return None
    if not {a.shape[0], b.shape[0]} <= {1, max(a.shape[0], b.shape[0])}:
        return None
    upright, swapped = a.shape[1] == b.shape[2], a.shape[2] == b.shape[1]
    if upright and swapped and rank is not None and a.shape[1] != rank:
        return a.shape[2] == rank
    return False if upright else True if swapped else None


def is_shared(a: Stored, b: Stored) -> bool:
    """Whether all experts share one of the two factors."""
    return len(a.shape) == len(b.shape) == 3 and min(a.shape[0], b.shape[0]) == 1 < max(a.shape[0], b.shape[0])


def in_base(update: Update, base: "Checkpoint | None") -> Update:
    """An expert's update under the name that its weight has in the base, where the base keeps experts apart."""
    path = update.base_weight or ""
    if base is None or update.expert is None or base.find(path) is not None:
        return update
    owner, _, part = path.rpartition(".")
    owner = owner.removesuffix(".switch_mlp").removesuffix(".experts") + f".experts.{update.expert}"
    name = next((f"{owner}.{one}" for one in (part, W_NAMES.get(part, part)) if base.find(f"{owner}.{one}")), None)
    return update if name is None else replace(update, name=name, base_weight=None, expert=None)


def _with_three_axes(a: Stored, b: Stored) -> Stored:
    """A (E·r, d_in) as (E, r, d_in), by the number of experts in B."""
    if len(a.shape) == 2 and len(b.shape) == 3 and b.shape[0] * b.shape[2] == a.shape[0]:
        return reshaped(a, b.shape[0], b.shape[2], a.shape[1])
    return a


SUPPORT = (
    Support("experts of PEFT in one matrix, target_parameters missing", "PEFT's merge in float64"),
    Support("experts in three axes (vLLM, SkyRL, Megatron exports)", "the writer's formula in float64"),
    Support("Tinker: linear maps, and experts with shared factors", "the writer's formula in float64"),
)
