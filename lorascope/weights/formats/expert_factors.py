"""Factors of all experts of a layer in one array: A (E, r, d_in) and B (E, d_out, r), one update for each expert.

A factor that all experts share has one of them, (1, r, d_in) or (1, d_out, r). No format lives here.
"""

from collections.abc import Iterator

from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.tensors import reshaped, slot

SHARED = "factors of a shape (1, ...) are one for all experts of their layer"


def per_expert(path: str, a: Stored, b: Stored, scale: float, keys: tuple[str, str]) -> Iterator[Update]:
    """One update for each expert, `path[e]`, of the base's parameter `path`.

    Args:
        a: (E, r, d_in), or (1, r, d_in) of all experts, or (E·r, d_in).
        b: (E, d_out, r), or (1, d_out, r) of all experts.
        keys: of a and b, to name.

    Raises:
        InputError: the two do not fit together.
    """
    a, b = _with_three_axes(a, b), b
    count = max(a.shape[0], b.shape[0]) if len(a.shape) == len(b.shape) == 3 else 0
    fits = (
        count and {a.shape[0], b.shape[0]} <= {1, count} and a.shape[1] == b.shape[2] and 0 not in (*a.shape, *b.shape)
    )
    if not fits:
        raise InputError(
            f"the factors of the experts of {path} do not fit together",
            found=f"{keys[0]} {tuple(a.shape)} and {keys[1]} {tuple(b.shape)}",
            expected="A (experts, r, d_in) and B (experts, d_out, r), or one of the two shared by all experts",
        )
    for expert in range(count):
        roles = {"A": slot(a, expert % a.shape[0]), "B": slot(b, expert % b.shape[0])}
        yield Update(f"{path}[{expert}]", "low_rank", roles, scale, base_weight=path, expert=expert)


def is_shared(a: Stored, b: Stored) -> bool:
    """Whether all experts share one of the two factors."""
    return len(a.shape) == len(b.shape) == 3 and min(a.shape[0], b.shape[0]) == 1 < max(a.shape[0], b.shape[0])


def _with_three_axes(a: Stored, b: Stored) -> Stored:
    """A (E·r, d_in) as (E, r, d_in), by the number of experts in B."""
    if len(a.shape) == 2 and len(b.shape) == 3 and b.shape[0] * b.shape[2] == a.shape[0]:
        return reshaped(a, b.shape[0], b.shape[2], a.shape[1])
    return a
