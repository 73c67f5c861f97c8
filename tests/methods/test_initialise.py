"""How A and B start: the closed forms, what a start taken from W leaves alone, and PEFT's own PiSSA and OLoRA."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorascope.adapt.inject import Injected, inject
from lorascope.adapt.method import methods
from lorascope.adapt.targets import find_sites
from lorascope.errors import InputError
from lorascope.methods.initialise import INITIALISATIONS, initialisation
from lorascope.methods.lora import LoRA, LoRAConfig
from lorascope.weights import io
from tests.methods import models
from tests.methods.test_peft import factors, loss_of

FROM_BASE = ["pissa", "pissa_niter_4", "olora"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def one_layer(layer: nn.Module, seed: int = 0, **config):
    injected = inject(nn.Sequential(layer), LoRA(LoRAConfig(**config)), targets=["0"], seed=seed)
    return injected, injected.layers["0"].delta


def moved(injected: Injected, size: float = 0.05) -> Injected:
    """As after some training."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in injected.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * size)
    return injected


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(((found - wanted).norm() / wanted.norm()).detach())


def test_names():
    assert {*INITIALISATIONS} >= {"kaiming", "gaussian", "orthogonal", "pissa", "olora", "a-zero", "zero-both"}
    assert initialisation("pissa_niter_16").iterations == 16
    with pytest.raises(InputError, match=r"did you mean 'orthogonal'"):
        initialisation("orthogonl")


def test_a_zero_draws_b_within_its_own_bound():
    for layer in (nn.Linear(40, 400), nn.Embedding(40, 400)):
        _, delta = one_layer(layer, rank=16, init="a-zero")
        assert not delta.A.any()
        assert delta.B.detach().abs().max() <= 16**-0.5
        # 6400 draws of U(−c, c): their standard deviation c/√3 is known to 0.6 %, so 4 % is six of its own
        assert float(delta.B.detach().std()) == pytest.approx(16**-0.5 / 3**0.5, rel=0.04)


def test_a_zero_learns_from_a_first():
    injected, delta = one_layer(nn.Linear(6, 5), rank=2, init="a-zero")
    injected.model(torch.randn(4, 6)).square().sum().backward()
    assert delta.A.grad.any()
    assert not delta.B.grad.any()


def test_one_factor_is_orthonormal_and_the_other_zero():
    for init, sizes in (("a-orthonormal", (40, 30)), ("b-orthonormal", (30, 40))):
        _, delta = one_layer(nn.Linear(*sizes), rank=8, init=init)
        frozen, other = (delta.A, delta.B) if init[0] == "a" else (delta.B.t(), delta.A)
        assert not other.any()
        torch.testing.assert_close(frozen @ frozen.t(), torch.eye(8), atol=1e-5, rtol=0)  # QR in float32
        with pytest.raises(InputError, match="no 41 orthonormal vectors"):
            one_layer(nn.Linear(*sizes), rank=41, init=init)


def test_orthonormal_directions_prefer_no_sign():
    """QR alone gives the first column a fixed sign: over 64 draws all of A's first entries would agree in it."""
    signs = [float(one_layer(nn.Linear(1, 3), seed, rank=1, init="a-orthonormal")[1].A) for seed in range(64)]
    assert abs(sum(signs)) <= 40  # fair signs: a standard deviation of 8


def test_orthogonal_has_no_product_and_no_zero_factor():
    _, delta = one_layer(nn.Linear(40, 30).double(), rank=8, init="orthogonal")
    a, b = delta.A.detach(), delta.B.detach()
    assert a.norm() > 1
    assert b.norm() > 1
    assert (b @ a).norm() < 1e-6 * b.norm() * a.norm()  # drawn in float32
    # entries are sums of 4 products N(0, 1)·q over rows of an orthogonal matrix, over 10: variance (4/8)/100
    assert float(a.std()) == pytest.approx((0.5**0.5) / 10, rel=0.25)  # 160 independent draws: 6 % each
    with pytest.raises(InputError, match="even rank"):
        one_layer(nn.Linear(40, 30), rank=7, init="orthogonal")


@pytest.mark.parametrize("make", [lambda: nn.Linear(24, 16), lambda: Conv1D(16, 24), lambda: nn.Embedding(24, 16)])
def test_pissa_is_the_best_approximation_of_the_map(make):
    layer = make().double()
    with torch.no_grad():
        layer.weight.normal_()  # Conv1D starts at 0.02
    _, delta = one_layer(layer, rank=4, alpha=8.0, init="pissa")
    weight = layer.weight.detach() if isinstance(layer, nn.Linear) else layer.weight.detach().t()
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    a, b = delta.A.detach(), delta.B.detach()
    torch.testing.assert_close(2.0 * b @ a, u[:, :4] * s[:4] @ vh[:4], rtol=1e-10, atol=1e-10)  # float64 rounding
    # shared evenly: AAᵀ = BᵀB = S/s
    torch.testing.assert_close(a @ a.t(), torch.diag(s[:4] / 2), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(b.t() @ b, torch.diag(s[:4] / 2), rtol=1e-10, atol=1e-10)


def test_randomised_pissa_comes_as_near():
    """On a spectrum that falls by 0.8 a step, 16 power iterations leave directions 0.8³³ < 1e-3 off the best ones."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 20, generator=generator, dtype=torch.float64))[0] for n in (40, 30))
    layer = nn.Linear(30, 40).double()
    with torch.no_grad():
        layer.weight.copy_(u * 0.8 ** torch.arange(20) @ v.t())
    _, delta = one_layer(layer, rank=4, alpha=4.0, init="pissa_niter_16")
    best = float((0.8 ** torch.arange(4.0, 20)).norm())
    found = float((layer.weight - delta.B @ delta.A).detach().norm())
    assert best <= found < 1.001 * best
    other = one_layer(layer, seed=1, rank=4, alpha=4.0, init="pissa_niter_16")[1]
    assert not torch.equal(other.A, delta.A)  # it draws from the layer's own stream


def test_olora_is_the_thin_qr():
    layer = nn.Linear(24, 16).double()
    _, delta = one_layer(layer, rank=4, init="olora")
    a, b = delta.A.detach(), delta.B.detach()
    torch.testing.assert_close(b.t() @ b, torch.eye(4, dtype=b.dtype), rtol=0, atol=1e-12)  # float64 rounding
    # the first columns of W are those of Q_r R_r: R is upper triangular
    torch.testing.assert_close((b @ a)[:, :4], layer.weight.detach()[:, :4], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("init", FROM_BASE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_start_taken_from_the_base_changes_nothing_at_all(init, dtype):
    for layer, x in ((nn.Linear(24, 16), torch.randn(3, 24)), (nn.Embedding(24, 16), torch.tensor([1, 2]))):
        layer = layer.to(dtype)
        x = x.to(dtype) if x.is_floating_point() else x
        wanted, weight = layer(x), layer.weight.detach().clone()
        injected, _ = one_layer(layer, rank=4, init=init)
        assert torch.equal(injected.model(x), wanted)
        assert torch.equal(layer.weight, weight)


@pytest.mark.parametrize("init", FROM_BASE)
def test_its_update_is_measured_from_the_original_weight(init):
    layer = nn.Linear(24, 16).double()
    weight, x = layer.weight.detach().clone(), torch.randn(5, 24, dtype=torch.float64)
    injected, delta = one_layer(layer, rank=4, alpha=6.0, init=init)
    a0, b0 = delta.A.detach().clone(), delta.B.detach().clone()
    moved(injected)
    wanted = 1.5 * (delta.B @ delta.A - b0 @ a0).detach()
    torch.testing.assert_close(delta.weight(), wanted, rtol=1e-10, atol=1e-12)  # float64 rounding
    out = x @ (weight + wanted).t() + layer.bias
    torch.testing.assert_close(injected.model(x), out, rtol=1e-10, atol=1e-12)
    injected.merge()
    torch.testing.assert_close(layer.weight, weight + wanted, rtol=1e-10, atol=1e-12)
    injected.unmerge()
    assert torch.equal(layer.weight, weight)
    assert torch.equal(injected.remove()[0].weight, weight)


@pytest.mark.parametrize("init", FROM_BASE)
def test_its_state_holds_the_start(init):
    injected, _ = one_layer(nn.Linear(24, 16), rank=4, init=init)
    moved(injected)
    torch.manual_seed(1)
    other, _ = one_layer(nn.Linear(24, 16), seed=7, rank=4, init=init)  # another base: another start
    other.load_state_dict(injected.state_dict())
    assert torch.equal(other.layers["0"].delta.weight(), injected.layers["0"].delta.weight())
    assert injected.parameter_count() == 4 * (24 + 16)


def test_too_many_directions_and_no_scale_are_refused():
    for init in FROM_BASE:
        with pytest.raises(InputError, match="cannot take 17 directions"):
            one_layer(nn.Linear(24, 16), rank=17, init=init)
    with pytest.raises(InputError, match="positive scale"):
        one_layer(nn.Linear(24, 16), rank=4, alpha=-1.0, init="pissa")


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("use_rslora", [False, True])
def test_logits_and_gradients_are_pefts(init, use_rslora):
    """PEFT puts the residual in the base's place: the same function of A and B, rounded elsewhere."""
    targets = ["q_proj", "up_proj", "down_proj"]
    options = {"lora_alpha": 6, "use_rslora": use_rslora}
    other = get_peft_model(models.llama(), LoraConfig(r=4, target_modules=targets, init_lora_weights=init, **options))
    config = LoRAConfig(rank=4, alpha=6.0, init=init, use_rslora=use_rslora)
    mine = inject(models.llama(), LoRA(config), targets=targets)
    copies = factors(other)
    for name, parameter in mine.trainable().items():
        # singular vectors of one weight by one LAPACK: equal to rounding, signs included
        assert relative(copies[name], parameter) < 1e-4, name
    moved(mine)
    with torch.no_grad():
        for name, parameter in mine.trainable().items():
            copies[name].copy_(parameter)
    (logits, loss), (their_logits, their_loss) = loss_of(mine.model), loss_of(other)
    # W − s·B₀A₀ + s·B₀A₀ is W to a float32 rounding in their model
    assert relative(logits, their_logits) < 1e-5
    loss.backward(), their_loss.backward()
    for name, parameter in mine.trainable().items():
        assert relative(parameter.grad, copies[name].grad) < 1e-4, name


@pytest.mark.parametrize("init", FROM_BASE)
@pytest.mark.parametrize("use_rslora", [False, True])
def test_the_file_is_a_plain_lora_of_twice_the_rank(init, use_rslora, tmp_path):
    """It loads on the clean base, in PEFT and here."""
    config = LoRAConfig(rank=4, alpha=6.0, init=init, use_rslora=use_rslora)
    mine = moved(inject(models.gpt2(), LoRA(config), targets=["c_attn", "c_proj", "wte"]))
    io.write(mine.export(), tmp_path)
    read = io.read(tmp_path)
    assert {update.rank for update in read.updates.values()} == {8}
    wanted = loss_of(mine.model.eval())[0]
    loaded = PeftModel.from_pretrained(models.gpt2(), tmp_path).eval()
    assert relative(loss_of(loaded)[0], wanted) < 1e-6  # float32: the order of sums
    plain = inject(models.gpt2(), LoRA(LoRAConfig(rank=4)), targets=["c_attn", "c_proj", "wte"])
    plain.load(read)
    assert relative(loss_of(plain.model.eval())[0], wanted) < 1e-6
    mine.load(read)
    assert relative(loss_of(mine.model.eval())[0], wanted) < 1e-6


def test_a_tiny_change_survives_the_file(tmp_path):
    """[A; A₀] and [B, −B₀] in float32 would lose a change of 1e-7 of the start to cancellation; the differences do not.

    A and B are of order 1, and 2⁻²⁰ is exact in their sums with the start.
    """
    layer = nn.Linear(24, 16)
    with torch.no_grad():
        layer.weight.normal_()
    injected, delta = one_layer(layer, rank=4, alpha=4.0, init="pissa")
    with torch.no_grad():
        delta.B.copy_(delta.B0 + 2.0**-20)
    io.write(injected.export(), tmp_path)
    found = io.read(tmp_path).updates["0"].delta().dense()
    wanted = ((delta.B.double() - delta.B0.double()) @ delta.A.double()).detach().numpy()
    assert abs(found - wanted).max() < 1e-6 * abs(wanted).max()


@pytest.mark.parametrize("name", ["rslora", "lora_plus", "lora_fa", "dora"])
def test_relatives_take_it(name):
    method = methods.get(name)
    base, x = models.llama(), models.tokens()
    wanted, sites = base(x).logits, find_sites(base, "all-linear")
    injected = inject(base, method(method.Config(rank=4, init="pissa")), targets="all-linear")
    torch.testing.assert_close(injected.model(x).logits, wanted, rtol=1e-6, atol=1e-6)  # float32 rounding
    assert injected.parameter_count() == sum(method(method.Config(rank=4)).parameter_count(site) for site in sites)


@pytest.mark.parametrize("rank", [4, 16])
def test_gaussian_has_the_width_1_over_r(rank):
    """N(0, 1/r²), PEFT's. 4000·r draws know a standard deviation to 1/√(8000 r) < 0.6 %, so 4 % is six of its own."""
    _, delta = one_layer(nn.Linear(4000, 5), rank=rank, init="gaussian")
    assert not delta.B.any()
    assert float(delta.A.detach().std()) == pytest.approx(1 / rank, rel=0.04)
