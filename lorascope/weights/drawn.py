"""An array that is stored as its draw: uniform in ±bound, from torch's generator on the CPU, by a seed of its own.

A frozen random projection has as many numbers as the weights it serves, and says no more than its seed. torch does not
promise the same stream in every version; its CPU generator (Mersenne Twister) has kept it so far, and a test pins it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import MAX_DRAWN


@dataclass(frozen=True)
class Drawn:
    """Uniform numbers in (−bound, bound), float32, in the native shape; drawn anew at every `read`."""

    shape: tuple[int, ...]
    bound: float
    seed: int
    dtype: str = "F32"

    def read(self) -> np.ndarray:
        """The values in float64."""
        return self.tensor().double().numpy()

    def tensor(self) -> Any:
        """The values as a float32 tensor on the CPU."""
        import torch

        generator = torch.Generator("cpu").manual_seed(self.seed)
        return torch.empty(self.shape).uniform_(-self.bound, self.bound, generator=generator)

    def to_json(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "bound": self.bound, "seed": self.seed}

    @staticmethod
    def of_json(values: Any, where: str) -> "Drawn":
        """The draw that `to_json` described. InputError, naming `where`, for anything else."""
        try:
            shape, bound, seed = values["shape"], values["bound"], values["seed"]
            valid = set(values) == {"shape", "bound", "seed"} and isinstance(shape, list)
            valid = valid and all(type(size) is int and size >= 0 for size in shape) and math.prod(shape) <= MAX_DRAWN
            valid = valid and type(bound) in (int, float) and 0 < bound < math.inf and type(seed) is int
            valid = valid and 0 <= seed < 1 << 63 and bound <= np.finfo(np.float32).max
        except (TypeError, KeyError, IndexError, OverflowError):
            valid = False
        if not valid:
            raise InputError(
                f"adapter_config.json: {where} is not a draw", found=repr(values)[:200], expected="shape, bound, seed"
            )
        return Drawn(tuple(shape), float(bound), seed)
