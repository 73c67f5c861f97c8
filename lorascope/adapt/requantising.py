"""What would be left of ΔW if W + ΔW were stored in the codes of the quantised base again."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lorascope.updates.base import Stored
from lorascope.weights.checkpoint import Stacked
from lorascope.weights.codes.requantise import requantised
from lorascope.weights.quantised import Decoded
from lorascope.weights.tensors import Mapped, slot


@dataclass(frozen=True)
class Requantised:
    """One weight, quantised again by the scheme of the base. W is the base's, as it is read.

    Attributes:
        name: the parameter's.
        scheme: the quantisation's name.
        loss: ‖Q(W + ΔW) − (W + ΔW)‖_F / ‖ΔW‖_F; None of a scheme that is not computed, or a ΔW that is zero.
        survives: ⟨Q(W + ΔW) − W, ΔW⟩ / ‖ΔW‖_F², the share of ΔW that is still there; None as `loss`.
        delta_norm: ‖ΔW‖_F.
    """

    name: str
    scheme: str
    loss: float | None
    survives: float | None
    delta_norm: float


def measure(name: str, stored: Stored | None, delta: Tensor, expert: int | None = None) -> Requantised | None:
    """What requantising does to one weight, or to one expert of it; None where it is not in codes.

    Memory is that of four such weights in float32.

    Args:
        delta: ΔW in the layout of the weight.
    """
    parts = _in_codes(stored, expert)
    if not parts:
        return None
    change = np.ascontiguousarray(delta.detach().float().cpu().numpy())
    size = float(np.linalg.norm(change))
    nothing = Requantised(name, ", ".join(dict.fromkeys(part.scheme for part in parts)), None, None, size)
    if size == 0 or sum(math.prod(part.shape) for part in parts) != change.size:
        return nothing
    error = kept = 0.0
    for part, moves in zip(parts, _split(change, parts), strict=True):
        weight = np.empty(part.shape, np.float32)
        part.into(weight)
        coded = requantised(part, weight + moves)
        if coded is None:
            return nothing
        moved = coded - weight
        error += float(np.linalg.norm(moved - moves)) ** 2
        kept += float(np.vdot(moved, moves))
    return Requantised(name, nothing.scheme, math.sqrt(error) / size, kept / size**2, size)


def _in_codes(stored: Stored | None, expert: int | None) -> list[Decoded]:
    """The weight, or one expert of it, as what it was coded in: one, or several below each other. Empty of others."""
    parts: tuple[Stored | None, ...] = (stored,)
    if expert is not None and stored is not None and len(stored.shape) == 3:
        parts = stored.experts[expert] if isinstance(stored, Stacked) else (slot(stored, expert),)
    coded = [part.source if isinstance(part, Mapped) else part for part in parts]
    return [part for part in coded if isinstance(part, Decoded)] if all(isinstance(p, Decoded) for p in coded) else []


def _split(change: np.ndarray, parts: list[Decoded]) -> list[np.ndarray]:
    """ΔW in the shapes of the parts, which lie below each other."""
    ends = np.cumsum([math.prod(part.shape) for part in parts])[:-1]
    return [values.reshape(part.shape) for values, part in zip(np.split(change.reshape(-1), ends), parts, strict=True)]


def total(weights: Iterable[Requantised]) -> tuple[float, float] | None:
    """`loss` and `survives` of all weights that have them, as of one long vector; None where none has."""
    known = [(one.loss, one.survives, one.delta_norm**2) for one in weights if one.loss is not None]
    energy = sum(square for *_, square in known)
    if not energy:
        return None
    lost = sum((loss or 0.0) ** 2 * square for loss, _, square in known)
    return math.sqrt(lost / energy), sum((share or 0.0) * square for _, share, square in known) / energy
