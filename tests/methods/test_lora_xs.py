"""LoRA-XS: bases from the weight's SVD, the core between them, and the way to a plain LoRA."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorascope.adapt.inject import inject
from lorascope.errors import InputError
from lorascope.methods.lora_xs import LoRAXS, LoRAXSConfig
from lorascope.weights import io
from tests.methods import models
from tests.methods.plain_lora import to_low_rank

R = 4


def made(layer: nn.Module, seed: int = 0, **settings):
    return inject(nn.Sequential(layer), LoRAXS(LoRAXSConfig(rank=R, **settings)), targets=["0"], seed=seed)


@pytest.mark.parametrize("make", [lambda: nn.Linear(12, 20), lambda: nn.Linear(20, 12), lambda: Conv1D(20, 12)])
@pytest.mark.parametrize("basis", ["top", "bottom"])
def test_the_bases_are_singular_vectors_of_the_weight(make, basis):
    layer = make().double()
    delta = made(layer, basis=basis).layers["0"].delta
    weight = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    sigma = np.linalg.svd(weight.detach().numpy(), compute_uv=False)
    sigma = sigma[:R] if basis == "top" else sigma[-R:]
    b, a = delta.B.numpy(), delta.A.numpy()
    # float64: singular values of size one, and the vectors belong to them: W Aᵀ = B Σ²
    np.testing.assert_allclose(b.T @ b, np.eye(R), rtol=0, atol=1e-12)
    np.testing.assert_allclose(a @ a.T, np.diag(sigma**2), rtol=0, atol=1e-12)
    np.testing.assert_allclose(weight.detach().numpy() @ a.T, b * sigma**2, rtol=0, atol=1e-12)
    assert (b[np.abs(b).argmax(0), np.arange(R)] > 0).all()  # the sign that is ours to choose


def test_with_the_identity_as_core_it_is_the_truncated_weight():
    layer = nn.Linear(12, 20).double()
    injected = made(layer, alpha=float(R))
    with torch.no_grad():
        injected.layers["0"].delta.R.copy_(torch.eye(R))
    u, sigma, vh = np.linalg.svd(layer.weight.detach().numpy())
    best = (u[:, :R] * sigma[:R]) @ vh[:R]
    np.testing.assert_allclose(
        injected.layers["0"].delta.weight().numpy(), best, rtol=0, atol=1e-12
    )  # float64 rounding


def test_the_bases_depend_on_no_seed_and_the_core_does():
    layer = nn.Linear(12, 20)
    first, second = (made(layer, seed).layers["0"].delta for seed in (0, 1))
    assert torch.equal(first.A, second.A)
    assert torch.equal(first.B, second.B)
    assert not torch.equal(first.R, second.R)
    assert 0 < float(first.R.detach().abs().max()) < 5e-5  # 16 draws of N(0, 1e-5²)


def test_without_a_start_it_is_the_base_model():
    layer, x = nn.Linear(12, 20), torch.randn(3, 12)
    wanted = layer(x)
    assert torch.equal(made(layer, init_std=0.0).model(x), wanted)


def test_only_the_core_trains_and_keeps_little():
    injected = made(nn.Linear(12, 20))
    assert list(injected.trainable()) == ["0.R"]
    assert injected.parameter_count() == R * R


def test_its_file_needs_no_base_and_as_lora_peft_loads_it(tmp_path):
    targets = ["q_proj", "down_proj"]
    method = LoRAXS(LoRAXSConfig(rank=R))
    injected = inject(models.llama(), method, targets=targets)
    with torch.no_grad():
        for parameter in injected.trainable().values():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    io.write(injected.export(), tmp_path / "own", "lorascope")
    read = io.read(tmp_path / "own")
    assert {update.kind for update in read.updates.values()} == {"core"}
    other = inject(models.llama(), LoRAXS(LoRAXSConfig(rank=2)), targets=targets)  # takes the file's rank
    other.load(read)
    wanted = injected.model.eval()(input_ids=models.tokens()).logits
    assert torch.equal(other.model.eval()(input_ids=models.tokens()).logits, wanted)
    io.write(to_low_rank(read), tmp_path / "lora")
    loaded = PeftModel.from_pretrained(models.llama(), tmp_path / "lora").eval()
    found = loaded(input_ids=models.tokens()).logits
    assert float((found - wanted).detach().norm() / wanted.detach().norm()) < 2e-6  # float32 sums in another order


def test_random_bases_are_kaiming_uniform():
    delta = made(nn.Linear(12, 20), basis="random").layers["0"].delta
    assert float(delta.A.abs().max()) <= 12**-0.5
    assert float(delta.B.abs().max()) <= R**-0.5
    assert float(delta.A.std()) == pytest.approx((3 * 12) ** -0.5, rel=0.35)  # 48 draws


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"dropout": 1.0}, {"init_std": -1.0}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(InputError):
        LoRAXSConfig(**wrong)


def test_a_rank_above_the_weights_own():
    with pytest.raises(InputError, match="no 16 singular vectors"):
        inject(nn.Sequential(nn.Linear(12, 20)), LoRAXS(), targets=["0"])
