"""Which array library an array belongs to, and how shapes are annotated.

`Float[Array, "m k"]` is jaxtyping's when jaxtyping is already imported (the test suite's import hook does that, and
then checks every call) and a plain placeholder otherwise: importing jaxtyping costs as much as analysing an adapter.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

Array = Any  # a numpy array or a torch tensor

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Float as Float
else:

    class Float:
        """Stands in for `jaxtyping.Float`: `Float[Array, "m k"]` is `Array`."""

        def __class_getitem__(cls, item: tuple) -> Any:
            return item[0]


def namespace(*arrays: Array) -> ModuleType:
    """The array namespace of the arrays: numpy for numpy's, the array API's view of torch for tensors."""
    if all(isinstance(a, np.ndarray) for a in arrays):
        return np
    from array_api_compat import array_namespace

    return array_namespace(*arrays)


def to_numpy(array: Array) -> np.ndarray:
    """The array on the host, as numpy, its dtype kept."""
    if isinstance(array, np.ndarray):
        return array
    return array.detach().cpu().numpy()
