"""Which attention kernel serves where torch's own choice is far from the fastest."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

SHORT = 256  # tokens: up to here matrix products are faster (torch 2.13 on a Xeon with AMX)


@contextmanager
def short_on_cpu(device: torch.device, half: bool, length: int) -> Iterator[None]:
    """Inside, attention over at most `SHORT` tokens in bfloat16 on a CPU is plain matrix products.

    There torch takes a flash kernel whose backward pass costs 20 to 80 ms a layer at 64 tokens, where matrix products
    need 3; in float32, or on longer texts, its choice is good, and so it is where no gradient is needed.
    """
    if device.type != "cpu" or not half or length > SHORT or not torch.is_grad_enabled():
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel(SDPBackend.MATH):
        yield
