"""What every method promises that does not work layer by layer, on a tiny Llama and a tiny BERT.

Such a method says `uses_targets = False`. As with the others, its registration alone brings it here.
"""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lorascope.adapt.inject import Injected, inject
from lorascope.adapt.method import methods
from lorascope.errors import InputError
from lorascope.updates.base import kinds
from lorascope.weights import io
from tests.methods.models import bert, llama, tokens

MODELS = {"llama": llama, "bert": bert}
WHOLE = [name for name, method in methods.items() if not method.uses_targets]
# What a model must have for a method to make sense; everything else runs on both.
NEEDS = {"bitfit": "bert"}
SMALLER = {"random_subspace": {"d": 50}}  # defaults that are made for real models
CASES = [pytest.param(n, m, id=f"{n}-{m}") for n in WHOLE for m in MODELS if NEEDS.get(n, m) == m]
every_method = pytest.mark.parametrize("name", WHOLE)
every_case = pytest.mark.parametrize(("name", "model"), CASES)


def adapted(name: str, model: str, dtype=torch.float64, seed: int = 0, **options) -> Injected:
    method = methods.get(name)
    config = dataclasses.replace(method.Config(), **SMALLER.get(name, {}))
    try:
        return inject(MODELS[model]().to(dtype), method(config), seed=seed, **options)
    except InputError as error:
        if "classif" in str(error) or "language model" in str(error):
            pytest.skip(str(error))  # made for the other task
        raise


def trained(name: str, model: str, dtype=torch.float64, **options) -> Injected:
    """As after some training: every trained number has moved."""
    injected, generator = adapted(name, model, dtype, **options), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in injected.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1)
    return injected


def logits(model: nn.Module) -> Tensor:
    was, ids = model.training, tokens()
    model.eval()
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    model.train(was)
    return out


@every_method
def test_it_describes_itself(name):
    method = methods.get(name)
    assert method.name == name
    assert not method.kind or method.kind in kinds.names()
    assert method.__doc__
    assert "arXiv" in method.paper or "doi" in method.paper.lower()
    assert dataclasses.is_dataclass(method.Config)
    assert dataclasses.replace(method.Config()) == method.Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(method.Config(), dataclasses.fields(method.Config)[0].name, None)


@every_case
def test_a_fresh_adapter_changes_nothing(name, model):
    wanted, found = logits(MODELS[model]().double()), logits(adapted(name, model).model)
    if methods.get(name).not_identity:
        assert not torch.equal(found, wanted)
    else:
        # float64 rounding at most: a fresh part that adds zero may change the order of a sum
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@every_case
def test_only_what_it_declares_gets_gradients(name, model):
    injected = trained(name, model)
    logits(injected.model).square().sum().backward()
    declared = injected.trainable()
    assert declared
    assert [path for path, parameter in declared.items() if parameter.grad is None] == []
    own = {id(parameter) for parameter in declared.values()}
    assert [path for path, p in injected.model.named_parameters() if p.grad is not None and id(p) not in own] == []


@every_method
def test_gradients_are_those_of_the_forward_pass(name):
    """Along a random direction, by central differences in float64, which Llama's norms leave: a hand-written backward
    has nothing to hide behind."""
    injected, generator = trained(name, "bert"), torch.Generator().manual_seed(3)
    own = list(injected.trainable().values())
    logits(injected.model).square().sum().backward()
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in own]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(own, directions, strict=True))

    def at(step: float) -> float:
        with torch.no_grad():
            for p, d in zip(own, directions, strict=True):
                p.add_(d, alpha=step)
            value = float(logits(injected.model).square().sum())
            for p, d in zip(own, directions, strict=True):
                p.sub_(d, alpha=step)
        return value

    h = 1e-6
    measured = (at(h) - at(-h)) / (2 * h)
    assert abs(measured - slope) <= 1e-6 * max(1.0, abs(slope))  # h² from the formula, ε/h from rounding: 1e-10 each


@every_case
def test_the_parameter_count_is_its_formula(name, model):
    injected = adapted(name, model)
    fresh = adapted(name, model).method  # a method serves one model, and the formula looks at the bare base
    assert injected.parameter_count() == fresh.total_parameter_count(MODELS[model](), [])


@every_case
def test_its_state_is_all_that_a_resume_needs(name, model):
    injected = trained(name, model)
    state = copy.deepcopy(injected.state_dict())
    other = adapted(name, model, seed=5)
    logits(other.model)  # what it keeps from before must not outlive the new state
    other.load_state_dict(state)
    other.method.load_state_dict(injected.method.state_dict())
    assert torch.equal(logits(other.model), logits(injected.model))


@every_case
def test_its_groups_hold_every_trained_parameter_once(name, model):
    injected = adapted(name, model)
    groups = injected.method.parameter_groups(injected, lr=1e-3, weight_decay=0.1)
    found = [id(p) for group in groups for p in group["params"]]
    assert sorted(found) == sorted(id(p) for p in injected.trainable().values())


@every_case
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_written_and_read_it_is_the_same(name, model, dtype, tmp_path):
    injected = trained(name, model, dtype)
    io.write(injected.export(), tmp_path, injected.method.format)
    other = adapted(name, model, dtype, seed=5)
    other.load(io.read(tmp_path))
    # The numbers are stored as they are trained. Of a bfloat16 base the change is stored in place of the tuned value,
    # and adding it again may round once, in float32.
    one = 2**-23 if dtype == torch.bfloat16 else 0.0
    mine, theirs = injected.export(), other.export()
    assert mine.saved.keys() == theirs.saved.keys()
    assert mine.updates.keys() == theirs.updates.keys()
    assert mine.saved or mine.updates
    for name, stored in mine.saved.items():
        np.testing.assert_array_equal(theirs.saved[name].read(), stored.read())
    for name, update in mine.updates.items():
        for role, values in update.read().items():
            np.testing.assert_allclose(theirs.updates[name].read()[role], values, rtol=one, atol=one)
    # a prefix is stored as what its network makes of it, in a product that the file's reader need not repeat
    torch.testing.assert_close(logits(other.model), logits(injected.model), rtol=0, atol=2e-2 if one else 1e-6)


@every_case
def test_remove_gives_the_base_back(name, model):
    base = MODELS[model]().bfloat16()
    before = {key: tensor.clone() for key, tensor in base.state_dict().items()}
    wanted, paths = logits(base), [path for path, _ in base.named_modules()]
    injected = trained(name, model, torch.bfloat16)
    logits(injected.model)
    found = injected.remove()
    assert [path for path, _ in found.named_modules()] == paths
    assert found.state_dict().keys() == before.keys()
    assert all(torch.equal(found.state_dict()[key], before[key]) for key in before)
    assert torch.equal(logits(found), wanted)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in found.modules())


@every_case
def test_bfloat16_in_bfloat16_out(name, model):
    injected = trained(name, model, torch.bfloat16)
    out = logits(injected.model)
    assert out.dtype == torch.bfloat16
    assert {p.dtype for p in injected.trainable().values()} == {torch.float32}
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in injected.trainable().values())


@every_case
def test_a_second_adapter_is_refused(name, model):
    injected = adapted(name, model)
    method = methods.get("lora")
    with pytest.raises(InputError, match="adapter already"):
        inject(injected.model, method(method.Config()))


@every_case
def test_merged_it_is_an_ordinary_model_or_it_says_why_not(name, model):
    injected = trained(name, model)
    wanted = logits(injected.model).detach()
    if methods.get(name).kind == "":
        with pytest.raises(InputError, match="cannot be merged"):
            injected.merge_and_unload()
        return
    injected.merge_and_unload()
    plain = MODELS[model]().double()
    plain.load_state_dict(injected.model.state_dict())
    torch.testing.assert_close(logits(plain), wanted, rtol=1e-12, atol=1e-12)  # the same values, summed the same way
