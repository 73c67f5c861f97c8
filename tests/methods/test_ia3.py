"""(IA)³ against PEFT itself, both ways, with biases, and merged."""

import numpy as np
import pytest
import torch
from peft import IA3Config as PeftIA3
from peft import PeftModel, get_peft_model
from peft.tuners.ia3 import IA3Layer
from torch import Tensor, nn

from lorascope.adapt.inject import Injected, inject
from lorascope.adapt.merge import merge
from lorascope.errors import InputError
from lorascope.methods.ia3 import IA3, IA3Config
from lorascope.updates.base import Update
from lorascope.weights import io
from lorascope.weights.adapter import Adapter
from lorascope.weights.tensors import InMemory
from tests.methods import models

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
CASES = {
    "linear": (models.llama, ["k_proj", "v_proj", "down_proj"], ["down_proj"]),
    "conv1d": (models.gpt2, ["c_attn", "mlp.c_proj"], ["mlp.c_proj"]),  # with biases
    "encoder": (models.bert, ["key", "value", "output.dense"], ["output.dense"]),  # with biases
}


def factors(model: PeftModel) -> dict[str, nn.Parameter]:
    layers = model.base_model.model.named_modules()
    return {f"{name}.l": layer.ia3_l["default"] for name, layer in layers if isinstance(layer, IA3Layer)}


def pair(case) -> tuple[Injected, PeftModel]:
    """The two with the same factors, as after some training."""
    make, targets, inward = CASES[case]
    mine = inject(make(), IA3(), targets=targets)
    other = get_peft_model(make(), PeftIA3(target_modules=targets, feedforward_modules=inward))
    generator = torch.Generator().manual_seed(3)
    own, copies = mine.trainable(), factors(other)
    assert own.keys() == copies.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            assert torch.equal(parameter, copies[name].flatten()), name  # both start at one
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
            copies[name].copy_(parameter.view_as(copies[name]))
    return mine, other


def logits(model: nn.Module) -> Tensor:
    return model(input_ids=models.tokens()).logits


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).detach().norm() / wanted.detach().norm())


@pytest.mark.parametrize("case", CASES)
def test_same_logits_and_gradients(case):
    mine, other = pair(case)
    found, wanted = logits(mine.model), logits(other)
    assert distance(found, wanted) < 1e-6  # float32: the same products in the same order
    found.square().mean().backward()
    wanted.square().mean().backward()
    for name, parameter in mine.trainable().items():
        assert distance(parameter.grad, factors(other)[name].grad.flatten()) < 1e-5, name  # float32 sums over tokens


@pytest.mark.parametrize("case", CASES)
def test_our_file_loads_in_peft(case, tmp_path):
    mine, _ = pair(case)
    io.write(mine.export(), tmp_path)
    loaded = PeftModel.from_pretrained(CASES[case][0](), tmp_path)
    wanted = logits(mine.model.eval())
    assert distance(logits(loaded.eval()), wanted) < 1e-6
    assert distance(logits(CASES[case][0]().eval()), wanted) > 1e-3  # the adapter does something


@pytest.mark.parametrize("case", CASES)
def test_pefts_file_loads_here(case, tmp_path):
    make, targets, _ = CASES[case]
    _, other = pair(case)
    other.save_pretrained(tmp_path)
    # which side is scaled comes from the file, whatever the config said
    mine = inject(make(), IA3(IA3Config(feedforward_modules=())), targets=targets)
    mine.load(io.read(tmp_path))
    assert distance(logits(mine.model.eval()), logits(other.eval())) < 1e-6


@pytest.mark.parametrize("case", CASES)
def test_merging_takes_the_bias_along_and_gives_it_back(case):
    mine, _ = pair(case)
    wanted = logits(mine.model.eval())
    before = {n: p for n, p in mine.model.named_parameters() if ".base." in n}
    mine.merge()
    assert distance(logits(mine.model), wanted) < 2e-6  # float32: each weight rounded once
    mine.unmerge()
    after = {n: p for n, p in mine.model.named_parameters() if ".base." in n}
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    mine.merge_and_unload()
    assert distance(logits(mine.model), wanted) < 2e-6


@pytest.mark.parametrize("case", CASES)
def test_a_file_is_merged_with_its_biases(case, tmp_path):
    mine, _ = pair(case)
    io.write(mine.export(), tmp_path)
    model = CASES[case][0]().eval()
    merge(model, io.read(tmp_path))
    assert distance(logits(model), logits(mine.model.eval())) < 2e-6


def test_a_scaling_of_half_a_percent_survives_bfloat16():
    """l itself in bfloat16 would be 1; the product is taken in float32 and only then rounded."""
    layer = nn.Linear(64, 64, bias=False).to(torch.bfloat16)
    injected = inject(nn.Sequential(layer), IA3(), targets=["0"])
    with torch.no_grad():
        injected.layers["0"].delta.l.fill_(1.003)
    x = torch.randn(512, 64, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    ratio = (injected.model(x).double() * layer(x).double()).sum() / layer(x).double().square().sum()
    assert float(ratio) == pytest.approx(1.003, abs=5e-4)  # 32768 roundings of 2⁻⁹ average out to 1e-5


@pytest.mark.parametrize("size", [4, 16])
def test_what_does_not_fit_is_refused(size):
    injected = inject(nn.Sequential(nn.Linear(4, 8)), IA3(), targets=["0"])
    wrong = Update("0", "scaling", {"out_scale": InMemory(np.ones(size, np.float32))})
    with pytest.raises(InputError, match="does not fit"):
        injected.load(Adapter({"0": wrong}))
