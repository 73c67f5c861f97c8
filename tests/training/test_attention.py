"""Which attention kernel training takes on a CPU."""

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention

from lorascope.models.attention import SHORT, short_on_cpu

CPU = torch.device("cpu")


def _kernel_taken(length: int, half: bool, device: torch.device = CPU) -> SDPBackend:
    q = torch.zeros(1, 1, length, 8, dtype=torch.bfloat16 if half else torch.float32, requires_grad=True)
    with short_on_cpu(device, half, length):
        return SDPBackend(torch._fused_sdp_choice(q, q, q, is_causal=True))


@pytest.mark.parametrize(
    ("length", "half", "expected"),
    [
        (SHORT, True, SDPBackend.MATH),
        (SHORT + 1, True, SDPBackend.FLASH_ATTENTION),
        (SHORT, False, SDPBackend.FLASH_ATTENTION),
    ],
)
def test_short_bfloat16_texts_alone_leave_the_flash_kernel(length: int, half: bool, expected: SDPBackend) -> None:
    assert _kernel_taken(length, half) == expected
    with torch.no_grad():
        assert _kernel_taken(length, half) == SDPBackend.FLASH_ATTENTION  # its forward pass is the faster one
    assert _kernel_taken(length, half, torch.device("cuda")) == SDPBackend.FLASH_ATTENTION


def test_the_gradients_are_attentions() -> None:
    q, k, v = (torch.randn(2, 3, 16, 8, generator=torch.Generator().manual_seed(n)) for n in range(3))
    given = [each.bfloat16().requires_grad_() for each in (q, k, v)]
    exact = [each.detach().double().requires_grad_() for each in given]
    with short_on_cpu(CPU, True, 16):
        scaled_dot_product_attention(*given, is_causal=True).square().sum().backward()
    scores = exact[0] @ exact[1].mT / 8**0.5
    weights = scores.masked_fill(torch.ones(16, 16).triu(1).bool(), -torch.inf).softmax(-1)
    (weights @ exact[2]).square().sum().backward()
    for rounded, true in zip(given, exact, strict=True):
        error = (rounded.grad.double() - true.grad).norm() / true.grad.norm()
        assert error < 4 * 2**-8  # a handful of roundings to 8 bits
