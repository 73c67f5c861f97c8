"""LoRA and rsLoRA: scales, initialisation, dropout, counts."""

import pytest
import torch
from torch import nn

from lorascope.adapt.dropout import draw_seed, inflation, keep
from lorascope.adapt.inject import inject
from lorascope.adapt.method import methods
from lorascope.adapt.targets import find_sites
from lorascope.errors import InputError
from lorascope.methods.lora import LoRA, LoRAConfig, RsLoRA, RsLoRAConfig
from tests.methods import models


def one_layer(layer: nn.Module, **config):
    injected = inject(nn.Sequential(layer), LoRA(LoRAConfig(**config)), targets=["0"])
    return injected, injected.layers["0"].delta


def test_scales():
    assert LoRAConfig(rank=16, alpha=32.0).scale == 2.0
    assert RsLoRAConfig(rank=16, alpha=32.0).scale == 8.0
    assert LoRAConfig(rank=16, alpha=32.0, use_rslora=True).scale == 8.0
    assert methods.get("rslora") is RsLoRA


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"dropout": 1.0}, {"dropout": -0.1}, {"init": "xavier"}], ids=lambda w: next(iter(w))
)
def test_settings_out_of_range(wrong):
    (name, value), *_ = wrong.items()
    with pytest.raises((InputError, TypeError), match=name) as raised:  # TypeError: a checker of types spoke first
        LoRAConfig(**wrong)
    assert str(value) in str(raised.value)


def test_rslora_without_its_scale_is_refused():
    with pytest.raises(InputError, match="method: lora"):
        RsLoRAConfig(use_rslora=False)


def test_kaiming_is_uniform_with_the_bound_of_the_codes():
    _, delta = one_layer(nn.Linear(400, 50), rank=64)
    a = delta.A.detach()
    assert not delta.B.any()
    assert a.abs().max() <= 400**-0.5
    # 25600 draws of U(−c, c): the standard deviation c/√3 is known to 0.3 %, so 2 % is six of its own
    assert float(a.std()) == pytest.approx(400**-0.5 / 3**0.5, rel=0.02)


def test_gaussian_has_pefts_width():
    _, delta = one_layer(nn.Linear(400, 50), rank=16, init="gaussian")
    assert not delta.B.any()
    assert float(delta.A.detach().std()) == pytest.approx(1 / 16, rel=0.05)  # 6400 draws: 0.9 % each


def test_an_embedding_is_the_other_way_round():
    _, delta = one_layer(nn.Embedding(50, 400), rank=16)
    assert delta.A.shape == (16, 50)
    assert not delta.A.any()
    assert float(delta.B.detach().std()) == pytest.approx(1.0, rel=0.05)  # 6400 draws: 0.9 % each


def test_zero_both_never_learns():
    for layer, x in ((nn.Linear(6, 5), torch.randn(4, 6)), (nn.Embedding(6, 5), torch.tensor([1, 2]))):
        injected, delta = one_layer(layer, rank=2, init="zero-both")
        injected.model(x).square().sum().backward()
        assert not delta.A.grad.any()
        assert not delta.B.grad.any()


def test_the_padding_token_gets_no_gradient():
    injected, delta = one_layer(nn.Embedding(6, 5, padding_idx=0), rank=2)
    injected.model(torch.tensor([0, 1])).sum().backward()
    assert delta.A.grad.abs().sum(0).nonzero().flatten().tolist() == [1]


def test_dropout_acts_on_the_updates_input_and_follows_torchs_seed():
    layer = nn.Linear(200, 5)
    injected, delta = one_layer(layer, rank=2, dropout=0.25, alpha=4.0)
    nn.init.normal_(delta.B)
    x = torch.randn(3, 200)

    def run(seed: int):
        torch.manual_seed(seed)
        return injected.model(x)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    torch.manual_seed(1)
    dropped = keep(x, 0.25, draw_seed()) * inflation(0.25)
    wanted = layer(x) + 2.0 * dropped @ delta.A.T @ delta.B.T
    torch.testing.assert_close(run(1), wanted, rtol=1e-5, atol=1e-5)  # float32 rounding
    injected.model.eval()
    torch.testing.assert_close(run(1), layer(x) + 2.0 * x @ delta.A.T @ delta.B.T, rtol=1e-5, atol=1e-5)  # float32


def test_parameter_counts_of_the_paper():
    """Hu et al. 2021, table 15: GPT-3's 96 layers of 12288², r_v = 2 and r_q = r_v = 4."""
    layer = nn.Linear(12288, 12288, device="meta")
    (site,) = find_sites(nn.Sequential(layer), ["0"])
    assert 96 * LoRA(LoRAConfig(rank=2)).parameter_count(site) == 4_718_592
    assert 96 * 2 * LoRA(LoRAConfig(rank=4)).parameter_count(site) == 18_874_368


def test_masters_are_float32_or_wider():
    for dtype, wanted in (
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ):
        _, delta = one_layer(nn.Linear(4, 4, dtype=dtype))
        assert delta.A.dtype == delta.B.dtype == wanted


def test_autocast_computes_narrow_and_trains_wide():
    model = models.llama()
    injected = inject(model, LoRA(LoRAConfig(rank=4)), targets="all-linear")
    for layer in injected.layers.values():
        nn.init.normal_(layer.delta.B, std=0.02)
    ids = models.tokens()
    exact = model(ids).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = model(ids, labels=ids)
    assert injected.layers["model.layers.0.mlp.up_proj"](torch.randn(2, 32)).dtype == torch.float32
    narrow.loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in injected.trainable().values())
    assert (
        float((narrow.logits - exact).detach().norm() / exact.detach().norm()) < 0.05
    )  # bfloat16 products through two blocks
    assert not torch.equal(narrow.logits, exact)
