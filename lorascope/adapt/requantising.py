"""What would be left of ΔW if W + ΔW were stored in the codes of the quantised base again."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from lorascope.weights.codes.requantise import requantised
from lorascope.weights.quantised import Decoded


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


def measure(name: str, stored: Decoded, delta: Tensor) -> Requantised:
    """What requantising does to one weight. `delta` is ΔW in the layout of the weight.

    Memory is that of four such weights in float32.
    """
    change = np.ascontiguousarray(delta.detach().float().cpu().numpy())
    size = float(np.linalg.norm(change))
    nothing = Requantised(name, stored.scheme, None, None, size)
    if tuple(change.shape) != tuple(stored.shape) or size == 0:
        return nothing
    weight = np.empty(stored.shape, np.float32)
    stored.into(weight)
    coded = requantised(stored, weight + change)
    if coded is None:
        return nothing
    moved = coded - weight
    survives = float(np.vdot(moved, change)) / size**2
    return Requantised(name, stored.scheme, float(np.linalg.norm(moved - change)) / size, survives, size)


def total(weights: Iterable[Requantised]) -> tuple[float, float] | None:
    """`loss` and `survives` of all weights that have them, as of one long vector; None where none has."""
    known = [(one.loss, one.survives, one.delta_norm**2) for one in weights if one.loss is not None]
    energy = sum(square for *_, square in known)
    if not energy:
        return None
    lost = sum((loss or 0.0) ** 2 * square for loss, _, square in known)
    return math.sqrt(lost / energy), sum((share or 0.0) * square for _, share, square in known) / energy
