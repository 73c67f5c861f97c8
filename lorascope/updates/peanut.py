"""A small network of W: ΔW = s·up·N(down·W), N some layers with a nonlinearity f and skip connections.

"PEANuT: Parameter-Efficient Adaptation with Weight-aware Neural Tweakers", arXiv 2410.01870; PEFT 0.21.2,
tuners/peanut/layer.py. h₀ = f(down·W), then hᵢ = f(Eᵢ·hᵢ₋₁) through the encoders, then h ← f(Dᵢ·h) + hⱼ through the
decoders, j going back from the last encoder's input. There is one kind for each f; ΔW has rank r at most.
"""

import math
from collections.abc import Callable, Mapping
from typing import ClassVar

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array, namespace
from lorascope.linalg.factored import Factored
from lorascope.updates.base import Kind, Role, kinds, needed


def _relu(x: Array) -> Array:
    return namespace(x).where(x > 0, x, 0.0)


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + namespace(x).tanh(x / 2))


def _gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + namespace(x).tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))


def _gelu(x: Array) -> Array:
    if type(x).__module__.startswith("torch"):
        import torch

        return 0.5 * x * (1 + torch.special.erf(x / 2**0.5))
    from scipy.special import erf

    return 0.5 * x * (1 + erf(x / 2**0.5))


NONLINEARITIES: Mapping[str, Callable[[Array], Array]] = {
    "relu": _relu,
    "silu": lambda x: x * _sigmoid(x),
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "tanh": lambda x: namespace(x).tanh(x),
    "sigmoid": _sigmoid,
    "linear": lambda x: x,
}


class Peanut(Kind):
    needs_base = True
    nonlinearity: ClassVar[str]
    roles = {
        "down": Role(("r", "d_out"), "first layer, over W's outputs"),
        "up": Role(("d_out", "r"), "last layer"),
        "encoders": Role(("depth", "r", "r"), "layers before the middle", optional=True),
        "decoders": Role(("depth", "r", "r"), "layers after it", optional=True),
    }

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        if ("encoders" in shapes) != ("decoders" in shapes):
            raise InputError("there are as many encoders as decoders, or none", found=", ".join(shapes))
        return super().dimensions(shapes)

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Factored:
        """ΔW as a product of inner size r. InputError without `base`, or where it has another shape."""
        f = NONLINEARITIES[self.nonlinearity]
        hidden = f(roles["down"] @ needed(self, roles, base))
        before = []
        for layer in roles.get("encoders", ()):
            before.append(hidden)
            hidden = f(layer @ hidden)
        for layer in roles.get("decoders", ()):
            hidden = f(layer @ hidden) + before.pop()
        return Factored(roles["up"] * scale, hidden)


for _f in NONLINEARITIES:
    _said = {"name": f"peanut_{_f}", "nonlinearity": _f, "formula": f"ΔW = s·up·N(down·W), N with {_f}"}
    kinds.register(_said["name"])(type(f"Peanut_{_f}", (Peanut,), _said)())
