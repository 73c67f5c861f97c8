"""What every registered method promises. A new method is covered by its registration alone."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorascope.adapt.inject import Injected, inject
from lorascope.adapt.layer import Site
from lorascope.adapt.method import methods
from lorascope.adapt.targets import find_sites
from lorascope.errors import InputError
from lorascope.updates.base import dense, kinds
from lorascope.weights import io

D_IN, D_OUT = 12, 20
MAX_RANK = 8  # VeRA's default is 256, and finite differences go number by number
LAYERS = {
    "linear": lambda: nn.Linear(D_IN, D_OUT),
    "linear without bias": lambda: nn.Linear(D_IN, D_OUT, bias=False),
    "conv1d": lambda: Conv1D(D_OUT, D_IN),
    "embedding": lambda: nn.Embedding(D_IN, D_OUT),
}
EVERY = [
    pytest.param(name, layer, id=f"{name}-{layer}")
    for name, method in methods.items()
    for layer in LAYERS
    if method.uses_targets and layer.split()[0] in method.layer_kinds
]
# Methods that do not work layer by layer: test_whole_methods.py
every_method = pytest.mark.parametrize("name", [name for name, method in methods.items() if method.uses_targets])
every_layer = pytest.mark.parametrize(("name", "layer"), EVERY)


class Block(nn.Module):
    """Two layers of one sort, so that what a method shares between layers is seen to be shared."""

    def __init__(self, layer: str, dtype: torch.dtype):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = LAYERS[layer]().to(dtype), LAYERS[layer]().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) * self.second(x)


def adapted(name: str, layer: str, dtype=torch.float64, seed: int = 0) -> Injected:
    method = methods.get(name)
    config = method.Config()
    if getattr(config, "rank", 0) > MAX_RANK:
        config = dataclasses.replace(config, rank=MAX_RANK)
    return inject(Block(layer, dtype).train(), method(config), targets=["first", "second"], seed=seed)


def trained(name: str, layer: str, dtype=torch.float64) -> Injected:
    """As after some training: every trained number has moved."""
    injected, generator = adapted(name, layer, dtype), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in injected.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1)
    return injected


def inputs(layer: str, dtype=torch.float64) -> Tensor:
    if layer == "embedding":
        return torch.tensor([[1, 5, 2], [0, 11, 5]])
    return torch.randn(2, 3, D_IN, generator=torch.Generator().manual_seed(2)).to(dtype)


@every_method
def test_it_describes_itself(name):
    method = methods.get(name)
    assert method.name == name
    assert method.kind in kinds.names()
    assert method.__doc__
    assert "arXiv" in method.paper or "doi" in method.paper.lower()
    assert dataclasses.is_dataclass(method.Config)
    assert dataclasses.replace(method.Config()) == method.Config()
    config = method.Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.anything = None
    assert method(method.Config()).settings().get("peft_type") or method.format != "peft"


@every_layer
def test_a_fresh_adapter_changes_nothing(name, layer):
    base, x = Block(layer, torch.float64), inputs(layer)
    wanted = base(x)
    found = adapted(name, layer).model(x)
    if methods.get(name).not_identity:
        assert not torch.equal(found, wanted)
    else:
        # a float64 rounding at most: a fused sum may take its terms in another order
        torch.testing.assert_close(found, wanted, rtol=1e-14, atol=1e-14)


@every_layer
def test_forward_is_x_times_delta(name, layer):
    """The delta's own output, and the layer's, against ΔW from the kind's formula in numpy."""
    injected, x = trained(name, layer), inputs(layer)
    adapter, base = injected.export(), Block(layer, torch.float64)
    for path, wrapped in injected.layers.items():
        weight = wrapped.weight.detach().numpy()
        update = dense(adapter.updates[path].delta(weight.T if wrapped.transposed else weight))
        assert np.linalg.norm(update) > 0
        wanted = torch.from_numpy(update.T)[x] if layer == "embedding" else x @ torch.from_numpy(update.T)
        wrapped.eval()
        torch.testing.assert_close(wrapped.delta(x), wanted, rtol=1e-12, atol=1e-12)  # float64 rounding
        if getattr(wrapped, "bias", None) is not None:
            roles = {role: torch.from_numpy(array) for role, array in adapter.updates[path].read().items()}
            change = kinds.get(wrapped.delta.kind).bias_change(roles, wrapped.delta.scale, wrapped.bias)
            wanted = wanted if change is None else wanted + change
        torch.testing.assert_close(wrapped(x), base.get_submodule(path)(x) + wanted, rtol=1e-12, atol=1e-12)


@every_layer
def test_written_and_read_it_is_the_same_update(name, layer, tmp_path):
    injected = trained(name, layer, torch.float32)
    io.write(injected.export(), tmp_path, methods.get(name).format)
    read = io.read(tmp_path)
    other = adapted(name, layer, torch.float32, seed=5)
    other.load(read)
    assert other.export().updates.keys() == read.updates.keys() == injected.layers.keys()
    for path, wrapped in injected.layers.items():
        weight = wrapped.weight.detach().double().numpy()
        weight = weight.T if wrapped.transposed else weight
        wanted = dense(injected.export().updates[path].delta(weight))
        for update in (read.updates[path], other.export().updates[path]):
            # the same stored numbers; a scale that went through α and back may differ in its last bit
            np.testing.assert_allclose(dense(update.delta(weight)), wanted, rtol=1e-14, atol=1e-16)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merge_then_unmerge_gives_the_weights_back(name, layer, dtype):
    injected, x = trained(name, layer, dtype), inputs(layer, dtype)
    injected.model.eval()
    before = {path: wrapped.weight.detach().clone() for path, wrapped in injected.layers.items()}
    unmerged = injected.model(x).detach().float()
    reports = injected.merge()
    assert all(report.relative_size > 0 for report in reports)
    assert all(not torch.equal(before[path], wrapped.weight) for path, wrapped in injected.layers.items())
    # float32 rounding; in bfloat16 the merged weight and each output are rounded to 2⁻⁹
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert float((injected.model(x).detach().float() - unmerged).norm() / unmerged.norm()) < tolerance
    injected.unmerge()
    assert all(torch.equal(before[path], wrapped.weight) for path, wrapped in injected.layers.items())
    assert torch.equal(injected.model(x).detach().float(), unmerged)


@every_layer
def test_only_what_it_declares_gets_gradients(name, layer):
    injected, x = trained(name, layer), inputs(layer)
    injected.model(x).square().sum().backward()
    declared = {id(p) for p in injected.trainable().values()}
    assert declared
    for path, parameter in injected.model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in declared), path


@every_layer
def test_gradients_are_those_of_the_formula(name, layer):
    """By finite differences in float64, so that a hand-written backward has nothing to hide behind."""
    injected, x = trained(name, layer), inputs(layer)
    injected.model.eval()
    x = x if layer == "embedding" else x.requires_grad_(True)
    own = list(injected.trainable().values())
    varied = own if layer == "embedding" else [x, *own]
    exact = methods.get(name).detached_terms is None  # what is left out by design must show
    assert torch.autograd.gradcheck(lambda *_: injected.model(x), varied, raise_exception=exact) == exact


@every_layer
def test_the_parameter_count_is_its_formula(name, layer):
    sites = find_sites(Block(layer, torch.float32), ["first", "second"])
    injected = adapted(name, layer)
    assert injected.parameter_count() == sum(injected.method.parameter_count(site) for site in sites)


@every_layer
def test_bfloat16_in_bfloat16_out(name, layer):
    injected, x = trained(name, layer, torch.bfloat16), inputs(layer, torch.bfloat16)
    for wrapped in injected.layers.values():
        assert wrapped(x).dtype == wrapped.delta(x).dtype == torch.bfloat16
    assert {p.dtype for p in injected.trainable().values()} == {torch.float32}
    injected.model(x).float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in injected.trainable().values())


@every_layer
def test_its_state_is_all_that_a_resume_needs(name, layer):
    injected, x = trained(name, layer), inputs(layer)
    state = copy.deepcopy(injected.state_dict())
    other = adapted(name, layer, seed=5)
    other.load_state_dict(state)
    other.method.load_state_dict(injected.method.state_dict())
    injected.model.eval(), other.model.eval()
    assert torch.equal(other.model(x), injected.model(x))


@every_layer
def test_its_groups_hold_every_trained_parameter_once(name, layer):
    injected = adapted(name, layer)
    groups = injected.method.parameter_groups(injected, lr=1e-3, weight_decay=0.1)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in injected.trainable().values())
    optimiser = torch.optim.AdamW(groups)
    assert {group["weight_decay"] for group in optimiser.param_groups} <= {0.0, 0.1}


@every_method
def test_a_layer_it_cannot_adapt_is_refused(name):
    method = methods.get(name)
    for layer in {layer.split()[0] for layer in LAYERS} - set(method.layer_kinds):
        with pytest.raises(InputError, match="cannot adapt"):
            adapted(name, layer)


def test_a_site_speaks_of_the_map():
    for layer, make in LAYERS.items():
        (site,) = find_sites(nn.Sequential(make()), ["0"])
        assert isinstance(site, Site)
        assert (site.d_in, site.d_out) == (D_IN, D_OUT)
        assert site.weight.shape == ((D_IN, D_OUT) if site.transposed else (D_OUT, D_IN)), layer
