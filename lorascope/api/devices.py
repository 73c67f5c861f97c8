"""Where is computed what numpy computes by default."""

from collections.abc import Callable
from typing import Any


def placer(device: str) -> Callable[[Any], Any]:
    """What puts a numpy array on that device; on the CPU it stays what it is, and no torch is imported.

    Raises:
        InputError: there is no such device.
    """
    if device == "cpu":
        return lambda matrix: matrix
    import torch

    from lorascope.errors import InputError

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {device!r} cannot be used", found=str(error).splitlines()[0]) from None
    return lambda matrix: torch.from_numpy(matrix).to(device)
