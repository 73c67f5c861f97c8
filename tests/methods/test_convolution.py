"""LoRA on convolutions against PEFT's: output, gradients, merged weights, files."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import lorascope as ls
from lorascope.errors import InputError

CASES = {
    "conv1d": (nn.Conv1d, (4, 9), {"kernel_size": 3, "padding": 1}),
    "conv2d": (nn.Conv2d, (4, 9, 8), {"kernel_size": (3, 2), "stride": 2, "padding": 1}),
    "point": (nn.Conv2d, (4, 9, 8), {"kernel_size": 1}),
    "conv3d": (nn.Conv3d, (4, 5, 6, 4), {"kernel_size": 2}),
}


class Net(nn.Module):
    """Two convolutions, the second of which does not see the input itself."""

    def __init__(self, case: str):
        super().__init__()
        sort, self.shape, options = CASES[case]
        torch.manual_seed(0)
        self.first = sort(self.shape[0], 6, **options)
        self.second = sort(6, 5, kernel_size=2 if case == "conv3d" else 1)  # PEFT cannot merge one point in 3-D

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def images(net: Net, rows: int = 2) -> torch.Tensor:
    return torch.randn(rows, *net.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
def test_it_is_pefts(case, tmp_path):
    base = Net(case).double()
    theirs = get_peft_model(copy.deepcopy(base), LoraConfig(r=3, lora_alpha=6, target_modules=["first", "second"]))
    theirs = theirs.double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    model = copy.deepcopy(base)
    injected = ls.load(model, ls.read(theirs))
    x = images(base)
    expected, found = theirs(x), model(x)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)  # float64, sums in another order
    (expected**2).sum().backward()
    (found**2).sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    for name, layer in injected.layers.items():
        for role in "AB":
            peft = gradients[f"base_model.model.{name}.lora_{role}.default.weight"].flatten(1)
            torch.testing.assert_close(getattr(layer.delta, role).grad, peft, rtol=1e-10, atol=1e-10)
    ls.save(injected, tmp_path)
    again = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path).double()
    torch.testing.assert_close(again(x), expected, rtol=1e-11, atol=1e-11)
    injected.merge()
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-11)
    merged = theirs.merge_and_unload()
    torch.testing.assert_close(model.first.weight, merged.first.weight, rtol=1e-12, atol=1e-12)
    injected.unmerge()
    torch.testing.assert_close(model.first.weight, base.first.weight, rtol=0, atol=0)


def test_dilation_and_padding_are_the_bases_own():
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=2, dilation=2, padding_mode="circular")).double()
    x = torch.randn(1, 3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    injected = ls.inject(net, "lora", r=2, target_modules=["0"])
    with torch.no_grad():
        injected.layers["0"].delta.B.normal_()
    adapted = net(x)
    injected.merge()
    torch.testing.assert_close(net(x), adapted, rtol=1e-12, atol=1e-12)


def test_what_cannot_be_adapted_is_said():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Linear(3, 3))
    with pytest.raises(InputError, match="without groups"):
        ls.inject(net, "lora", target_modules=["0"])
    with pytest.raises(InputError, match="cannot adapt"):
        ls.inject(Net("conv2d"), "vera", target_modules=["first"])
    with pytest.raises(InputError, match="directions from a matrix"):
        ls.inject(Net("conv2d"), "lora", r=2, init="pissa", target_modules=["first"])


def test_words_choose_no_convolution():
    net = nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(3, 3))
    assert list(ls.inject(net, "lora", r=2).layers) == ["1"]
