"""DoRA against its formula: values, gradients with the norm held constant and not, norms, dropout, what is kept."""

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorascope.adapt.dropout import draw_seed, inflation, keep
from lorascope.adapt.fused_dora import apart, folded, row_norms
from lorascope.adapt.inject import Injected, inject
from lorascope.adapt.targets import find_sites
from lorascope.errors import InputError
from lorascope.methods.dora import DoRA, DoRAConfig
from tests.methods import models

SCALE, D_IN, D_OUT, RANK = 0.7, 9, 6, 3


def tensors(dtype=torch.float64, n=(4, 5)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "x": (*n, D_IN), "a": (RANK, D_IN), "b": (D_OUT, RANK), "m": (D_OUT,), "weight": (D_OUT, D_IN), "bias": (D_OUT,)
    }  # fmt: skip
    made = {k: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for k, s in shapes.items()}
    return {k: t.requires_grad_(k in ("x", "a", "b", "m")) for k, t in made.items()}


def written_out(x, a, b, m, weight, bias, detach: bool = True) -> Tensor:
    turned = weight + SCALE * b @ a
    norm = turned.norm(dim=1)
    norm = norm.detach() if detach else norm
    return x @ (turned * (m / norm)[:, None]).t() + (0 if bias is None else bias)


def by_parts(x, a, b, m, weight, bias, detach: bool = True) -> Tensor:
    norms = row_norms(weight.square().sum(1), weight, a, b, SCALE)
    return apart(x, x @ a.t(), b, m, norms.detach() if detach else norms, SCALE, weight, bias)


def whole(x, a, b, m, weight, bias) -> Tensor:
    return folded(x, a, b, m, SCALE, weight, bias)


def one_layer(layer: nn.Module, **config) -> Injected:
    """As after some training."""
    injected = inject(nn.Sequential(layer), DoRA(DoRAConfig(**config)), targets=["0"])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in injected.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3)
    return injected


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("way", [whole, by_parts])
@pytest.mark.parametrize("n", [(7,), (4, 5), (0,)])
def test_values_and_gradients_are_the_formulas(way, with_bias, n):
    t = tensors(n=n)
    t["bias"] = t["bias"] if with_bias else None
    out, wanted = way(**t), written_out(**t)
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)  # float64 rounding
    names = ["x", "a", "b", "m"]
    found = torch.autograd.grad(out.square().sum(), [t[k] for k in names])
    for name, mine, theirs in zip(
        names, found, torch.autograd.grad(wanted.square().sum(), [t[k] for k in names]), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12, msg=name)  # m's divides by lengths near 0.1


def test_the_exact_gradient_passes_through_the_norm():
    t = tensors()
    names = ["x", "a", "b", "m"]
    found = torch.autograd.grad(by_parts(**t, detach=False).square().sum(), [t[k] for k in names])
    wanted = torch.autograd.grad(written_out(**t, detach=False).square().sum(), [t[k] for k in names])
    held = torch.autograd.grad(written_out(**t).square().sum(), [t[k] for k in names])
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)  # float64 rounding
    assert not torch.allclose(wanted[1], held[1], rtol=0.01)  # the two are not the same thing


@pytest.mark.parametrize("trained", [("x",), ("a",), ("b",), ("m",), ("a", "m"), ("x", "b")])
@pytest.mark.parametrize("way", [whole, by_parts])
def test_any_part_may_be_frozen(way, trained):
    t = {k: v.requires_grad_(k in trained) if v.is_leaf else v for k, v in tensors().items()}
    found = torch.autograd.grad(way(**t).square().sum(), [t[k] for k in trained])
    wanted = torch.autograd.grad(written_out(**t).square().sum(), [t[k] for k in trained])
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)  # float64 rounding


@pytest.mark.parametrize("way", [whole, by_parts])
def test_takes_inputs_and_gradients_of_any_layout(way):
    t = tensors()
    t["x"] = t["x"].detach().transpose(0, 1).requires_grad_(True)
    t["weight"] = t["weight"].t().contiguous().t()  # as of a Conv1D
    out, wanted = way(**t), written_out(**t)
    gradient = torch.ones(1, dtype=out.dtype).expand_as(out)
    for mine, theirs in zip(
        torch.autograd.grad(out, [t["x"], t["m"]], gradient),
        torch.autograd.grad(wanted, [t["x"], t["m"]], gradient),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("way", [whole, by_parts])
def test_a_length_of_zero_gets_no_gradient(way):
    t = tensors()
    with torch.no_grad():
        t["m"][2] = 0.0
    (found,) = torch.autograd.grad(way(**t).square().sum(), [t["m"]])
    (wanted,) = torch.autograd.grad(written_out(**t).square().sum(), [t["m"]])
    assert found[2] == 0
    rest = torch.arange(D_OUT) != 2
    torch.testing.assert_close(found[rest], wanted[rest], rtol=1e-10, atol=1e-12)


def test_norms_without_the_product():
    """In float32, against float64: to a few roundings where nothing cancels, and as said where almost all does."""
    generator = torch.Generator().manual_seed(0)
    w, a, b = (torch.randn(s, generator=generator) for s in ((50, 80), (4, 80), (50, 4)))
    for size in (1e-3, 1e-1, 10.0):
        exact = (w.double() + size * b.double() @ a.double()).norm(dim=1)
        found = row_norms(w.norm(dim=1).square(), w, a, b, size)
        assert ((found - exact) / exact).abs().max() < 1e-6
    undone = (-b @ a) * (1 - 1e-2)  # ‖W + B·A‖ is 1 % of ‖W‖, so 1e-7 of ‖W‖² is 1e-3 of it
    exact = (undone.double() + b.double() @ a.double()).norm(dim=1)
    found = row_norms(undone.double().square().sum(1).float(), undone, a, b, 1.0)
    assert ((found - exact) / exact).abs().max() < 2e-2


@pytest.mark.parametrize("make", [lambda: nn.Linear(D_IN, D_OUT), lambda: Conv1D(D_OUT, D_IN)])
def test_lengths_start_at_the_rows_of_the_map(make):
    layer = make()
    weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.t()
    injected = inject(nn.Sequential(layer), DoRA(), targets=["0"])
    torch.testing.assert_close(injected.layers["0"].delta.m, weight.norm(dim=1))
    assert injected.parameter_count() == 8 * (D_IN + D_OUT) + D_OUT


def test_a_row_without_direction_is_refused():
    layer = nn.Linear(D_IN, D_OUT)
    with torch.no_grad():
        layer.weight[3] = 0
    with pytest.raises(InputError, match=r"row of zeros.*row 3 of 6"):
        inject(nn.Sequential(layer), DoRA(), targets=["0"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lengths_are_not_rounded_to_the_base_dtype(dtype):
    """g = 1.01 would be 1.0078 in bfloat16; kept in float32 it moves the outputs by 1 %, on average."""
    layer = nn.Linear(256, 64, bias=False).to(dtype)
    x = torch.randn(500, 256).to(dtype)
    injected = inject(nn.Sequential(layer), DoRA(), targets=["0"])
    before = layer(x).double()
    with torch.no_grad():
        injected.layers["0"].delta.m.mul_(1.01)
    after = injected.model(x).detach().double()
    grown = float((after * before).sum() / before.square().sum())
    assert grown == pytest.approx(1.01, abs=1e-3)  # 32000 roundings of at most 2⁻⁹, most of which average out


def test_autocast_is_narrow_and_near():
    model, ids = models.llama(), models.tokens()
    injected = inject(model, DoRA(DoRAConfig(rank=4)), targets="all-linear")
    for layer in injected.layers.values():
        nn.init.normal_(layer.delta.B, std=0.02)
    exact = model(ids).logits.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = model(ids, labels=ids)
    narrow.loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in injected.trainable().values())
    # bfloat16 products through two blocks
    assert 0 < float((narrow.logits - exact).detach().norm() / exact.norm()) < 0.05


def test_dropout_acts_on_the_input_of_a_alone():
    layer = nn.Linear(200, D_OUT)
    injected = one_layer(layer, rank=RANK, dropout=0.25, alpha=2.0)
    delta, x = injected.layers["0"].delta, torch.randn(3, 200)
    torch.manual_seed(5)
    found = injected.model.train()(x)
    torch.manual_seed(5)
    dropped = keep(x, 0.25, draw_seed()) * inflation(0.25)
    gain = (delta.m / (layer.weight + delta.scale * delta.B @ delta.A).norm(dim=1)).detach()
    wanted = gain * (x @ layer.weight.t() + delta.scale * dropped @ delta.A.t() @ delta.B.t()) + layer.bias
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)  # float32
    assert not torch.allclose(found, injected.model.eval()(x))


def test_dropout_averages_to_the_output_without_it():
    layer = nn.Linear(64, 3)
    injected = one_layer(layer, rank=RANK, dropout=0.5)
    x = torch.randn(1, 64).expand(20000, 64)
    torch.manual_seed(0)
    draws = injected.model.train()(x).detach()
    exact = injected.model.eval()(x[:1]).detach()
    assert ((draws.mean(0) - exact).abs() < 5 * draws.std(0) / 20000**0.5).all()  # five standard errors


def test_a_layer_that_is_not_plain_goes_the_long_way_to_the_same():
    layer = nn.Linear(D_IN, D_OUT).double()
    injected, x = one_layer(layer, rank=RANK), torch.randn(4, D_IN, dtype=torch.float64)
    wanted = injected.model(x)
    seen = []
    layer.register_forward_hook(lambda *_: seen.append(True))
    torch.testing.assert_close(injected.model(x), wanted, rtol=1e-12, atol=1e-12)  # float64 rounding
    assert seen


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


def test_keeps_its_input_and_its_output():
    n, d_in, d_out, r = 50, 40, 30, 3
    layer = nn.Linear(d_in, d_out)
    injected, x = one_layer(layer, rank=r), torch.randn(n, d_in, requires_grad=True)
    parameters = d_in * d_out + d_out + r * (d_in + d_out) + d_out + d_out  # W, bias, A, B, m, and g
    assert kept(lambda: injected.model(x)) == parameters + n * (d_in + d_out)
    injected.layers["0"].delta.dropout = 0.5  # neither a mask nor a dropped input, only h
    assert kept(lambda: injected.model(x)) == parameters + n * (d_in + d_out + r)


def test_a_change_of_its_output_in_place_is_told():
    injected, x = one_layer(nn.Linear(D_IN, D_OUT), rank=RANK), torch.randn(4, D_IN)
    with pytest.raises(RuntimeError, match="inplace"):
        nn.functional.relu(injected.model(x), inplace=True).sum().backward()


def test_the_exact_gradient_is_an_option():
    injected = one_layer(nn.Linear(D_IN, D_OUT).double(), rank=RANK, detach_norm=False)
    x = torch.randn(4, D_IN, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *_: injected.model(x), [x, *injected.trainable().values()])
    embedding = one_layer(nn.Embedding(D_IN, D_OUT).double(), rank=RANK, detach_norm=False)
    ids = torch.tensor([1, 4, 1])
    assert torch.autograd.gradcheck(lambda *_: embedding.model(ids), list(embedding.trainable().values()))


def test_lengths_alone_are_another_methods_file():
    injected = one_layer(nn.Linear(D_IN, D_OUT), rank=RANK)
    delta = injected.layers["0"].delta
    with pytest.raises(InputError, match="method: magnitude"):
        delta.load_roles({"m": delta.m}, 1.0)
    with pytest.raises(InputError, match="m does not fit"):
        delta.load_roles({**delta.roles(), "m": torch.ones(3)}, 1.0)


def test_the_parameter_count_of_the_paper():
    """Liu et al. 2024, table 1: LLaMA-7B, r = 16 on q, k, v, up and down, is 0.43 % of 6738 M; r = 32 is 0.84 %."""
    shapes = [(4096, 4096)] * 3 + [(4096, 11008), (11008, 4096)]
    for rank, share in ((16, 0.43), (32, 0.84)):
        sites = [find_sites(nn.Sequential(nn.Linear(*s, device="meta")), ["0"])[0] for s in shapes]
        count = 32 * sum(DoRA(DoRAConfig(rank=rank)).parameter_count(site) for site in sites)
        assert round(100 * count / (6738.4e6 + count), 2) == share
