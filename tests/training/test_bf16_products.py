"""Products of bfloat16 matrices on a processor without instructions for them, pretended where there are some."""

import pytest
import torch
from torch import Tensor, nn

from lorascope.models import bf16_products
from lorascope.models.bf16_products import fast_on_cpu

HALF_STEP = 2**-8  # of a number rounded to bfloat16, relative
SUMS = 2**-18  # of float32 sums of 64 products, relative to the sum of their sizes


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bf16_products, "is_slow", lambda: True)


def _drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which products were widened, as they come."""
    seen: list[str] = []
    table = {
        func: lambda *args, _func=func, _product=product, **factors: (
            seen.append(_func._opname) or _product(*args, **factors)
        )
        for func, product in bf16_products._PRODUCTS.items()
    }
    monkeypatch.setattr(bf16_products, "_PRODUCTS", table)
    return seen


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("op", ["mm", "bmm", "addmm", "baddbmm", "addmm_", "baddbmm_"])
def test_every_product_is_the_exact_one_rounded_once(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    several = (3,) if "b" in op.removeprefix("add") else ()
    x, y, start = (_drawn(*several, *s, seed=n) for n, s in enumerate([(5, 64), (64, 7), (5, 7)]))
    added, factors = "add" in op, {"beta": 0.5, "alpha": -2.0}
    seen = _counted(monkeypatch)
    with fast_on_cpu(nn.Linear(1, 1).bfloat16()):
        out = getattr(start.clone(), op)(x, y, **factors) if added else getattr(x, op)(y)
    exact, sizes = x.double() @ y.double(), x.double().abs() @ y.double().abs()
    if added:
        exact, sizes = 0.5 * start.double() - 2.0 * exact, 0.5 * start.double().abs() + 2.0 * sizes
    assert seen == [op]
    assert out.dtype == torch.bfloat16
    assert ((out.double() - exact).abs() <= HALF_STEP * exact.abs() + SUMS * sizes).all()


@pytest.mark.usefixtures("slow")
def test_backward_passes_go_through_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _counted(monkeypatch)
    layer = nn.Linear(64, 8, bias=False).bfloat16()
    x = _drawn(5, 64, seed=0).requires_grad_()
    with fast_on_cpu(layer):
        layer(x).backward(_drawn(5, 8, seed=1))
    assert seen == ["mm"] * 3  # x Wᵀ, gᵀ x, g W
    exact = _drawn(5, 8, seed=1).double() @ layer.weight.detach().double()
    sizes = _drawn(5, 8, seed=1).double().abs() @ layer.weight.detach().double().abs()
    assert ((x.grad.double() - exact).abs() <= HALF_STEP * exact.abs() + SUMS * sizes).all()


@pytest.mark.usefixtures("slow")
def test_other_types_keep_their_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _counted(monkeypatch)
    with fast_on_cpu(nn.Linear(1, 1).bfloat16()):
        x, y = torch.ones(2, 3), torch.ones(3, 2)
        assert torch.equal(x @ y, torch.full((2, 2), 3.0))
        assert torch.equal(torch.addmm(torch.ones(2, 2), x, y, beta=2.0), torch.full((2, 2), 5.0))
    with fast_on_cpu(nn.Linear(1, 1)):  # a float32 model
        _ = _drawn(2, 3, seed=0) @ _drawn(3, 2, seed=1)
    assert seen == []


def test_a_processor_with_the_instructions_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _counted(monkeypatch)
    monkeypatch.setattr(bf16_products, "is_slow", lambda: False)
    with fast_on_cpu(nn.Linear(1, 1).bfloat16()):
        _ = _drawn(2, 3, seed=0) @ _drawn(3, 2, seed=1)
    assert seen == []


@pytest.mark.parametrize(("machine", "capability", "slow"), [
    ("x86_64", "AVX2", True), ("AMD64", "DEFAULT", True), ("x86_64", "AVX512", False), ("aarch64", "DEFAULT", False),
])  # fmt: skip
def test_slow_are_x86_processors_without_avx512(
    machine: str, capability: str, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bf16_products.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert bf16_products.is_slow.__wrapped__() is slow
