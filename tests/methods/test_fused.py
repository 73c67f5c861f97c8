"""The fused node against the formula written out, and what it keeps for backward."""

import pytest
import torch
from torch import Tensor

from lorascope.adapt.fused import low_rank
from lorascope.adapt.inject import inject
from lorascope.adapt.method import methods

SCALE = 0.7


def tensors(dtype=torch.float64, n=(3, 5), d_in=6, d_out=4, r=2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (*n, d_in), "a": (r, d_in), "b": (d_out, r), "weight": (d_out, d_in), "bias": (d_out,)}
    made = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for name, shape in shapes.items()
    }
    for name in ("x", "a", "b"):
        made[name].requires_grad_(True)
    return made


def written_out(x, a, b, weight=None, bias=None) -> Tensor:
    update = SCALE * (x @ a.T @ b.T)
    return update if weight is None else x @ weight.T + bias + update


@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("n", [(7,), (3, 5), (2, 3, 4)])
def test_equals_the_formula(with_base, n):
    t = tensors(n=n)
    base = (t["weight"], t["bias"]) if with_base else ()
    out = low_rank(t["x"], t["a"], t["b"], SCALE, *base)
    torch.testing.assert_close(
        out, written_out(t["x"], t["a"], t["b"], *base), rtol=1e-13, atol=1e-13
    )  # float64 rounding
    assert torch.autograd.gradcheck(lambda x, a, b: low_rank(x, a, b, SCALE, *base), (t["x"], t["a"], t["b"]))


@pytest.mark.parametrize("trained", [("a",), ("b",), ("x",), ("a", "b"), ("x", "b"), ("x", "a")])
def test_any_part_may_be_frozen(trained):
    t = tensors()
    for name in ("x", "a", "b"):
        t[name].requires_grad_(name in trained)
    wanted = torch.autograd.grad(
        written_out(t["x"], t["a"], t["b"], t["weight"], t["bias"]).square().sum(), [t[k] for k in trained]
    )
    out = low_rank(t["x"], t["a"], t["b"], SCALE, t["weight"], t["bias"])
    found = torch.autograd.grad(out.square().sum(), [t[k] for k in trained])
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)  # float64 rounding


def test_takes_inputs_and_gradients_of_any_layout():
    t = tensors()
    x = t["x"].detach().transpose(0, 1).requires_grad_(True)
    out = low_rank(x, t["a"], t["b"], SCALE, t["weight"], t["bias"])
    out.backward(torch.ones(1, dtype=out.dtype).expand_as(out))
    other = t["x"].detach().clone().transpose(0, 1).contiguous().requires_grad_(True)
    written_out(other, t["a"], t["b"], t["weight"], t["bias"]).sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-12, atol=1e-12)  # float64 rounding


def test_an_empty_batch():
    t = tensors(n=(0,))
    low_rank(t["x"], t["a"], t["b"], SCALE, t["weight"], t["bias"]).sum().backward()
    assert t["x"].grad.shape == (0, 6)
    assert not t["a"].grad.any()


def test_narrow_input_wide_masters():
    t = tensors(n=(64,), d_in=32, d_out=24, r=4)
    narrow = {name: t[name].detach().to(torch.bfloat16) for name in ("x", "weight", "bias")}
    narrow["x"].requires_grad_(True)
    masters = {name: t[name].detach().float().requires_grad_(True) for name in ("a", "b")}
    out = low_rank(narrow["x"], masters["a"], masters["b"], SCALE, narrow["weight"], narrow["bias"])
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    written_out(
        narrow["x"].detach().double(), t["a"], t["b"], narrow["weight"].double(), narrow["bias"].double()
    ).sum().backward()
    for name in ("a", "b"):
        assert masters[name].grad.dtype == torch.float32
        error = (masters[name].grad - t[name].grad).norm() / t[name].grad.norm()
        assert error < 2e-2  # a few roundings to bfloat16, 2⁻⁹ each
    assert narrow["x"].grad.dtype == torch.bfloat16


def kept(make) -> int:
    """Numbers that autograd keeps, each storage once."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = make()
    del out
    return sum(sizes.values())


def test_keeps_x_and_h_and_without_a_to_train_only_h():
    n, d_in, d_out, r = 50, 40, 30, 3
    t = tensors(n=(n,), d_in=d_in, d_out=d_out, r=r)
    parameters = sum(t[name].numel() for name in ("a", "b", "weight"))

    def call():
        return low_rank(t["x"], t["a"], t["b"], SCALE, t["weight"], t["bias"])

    assert kept(call) == parameters + n * d_in + n * r
    t["a"].requires_grad_(False)
    assert kept(call) == parameters + n * r


def test_a_second_derivative_is_refused():
    t = tensors()
    out = low_rank(t["x"], t["a"], t["b"], SCALE).square().sum()
    (gradient,) = torch.autograd.grad(out, t["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


class InPlace(torch.nn.Module):
    """Divides what its layer gives, in place or not: Longformer's attention does that to its query."""

    def __init__(self, in_place: bool):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.in_place = torch.nn.Linear(6, 5), in_place

    def forward(self, x):
        y = self.query(x)
        if self.in_place:
            y /= 3.0
        else:
            y = y / 3.0
        return y.square().sum()


@pytest.mark.parametrize("name", [name for name in methods.names() if "linear" in methods.get(name).layer_kinds])
def test_what_a_layer_gives_may_be_changed_in_place(name):
    cls = methods.get(name)
    gradients = []
    for in_place in (True, False):
        config = cls.Config(**({"rank": 2} if name == "lora_xs" else {}))
        injected = inject(InPlace(in_place), cls(config), targets=["query"], seed=1)
        generator = torch.Generator().manual_seed(2)
        for parameter in injected.trainable().values():
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        x = torch.randn(3, 4, 6, generator=generator)
        if name == "dora" and in_place:  # it keeps the output itself for the gradient of its lengths
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                injected.model(x).backward()
            return
        injected.model(x).backward()
        gradients.append([parameter.grad for parameter in injected.trainable().values()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
