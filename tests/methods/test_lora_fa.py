"""LoRA-FA: what trains, what is kept for backward, and the second version's gradient."""

import pytest
import torch
from torch import nn

from lorascope.adapt.inject import Injected, inject
from lorascope.adapt.method import Method
from lorascope.errors import InputError
from lorascope.methods.lora import LoRA, LoRAConfig
from lorascope.methods.lora_fa import LoRAFA, LoRAFAConfig
from tests.methods import models

TOKENS, D_IN, D_OUT, RANK = 200, 96, 80, 4


def one_layer(method: Method, seed: int = 0) -> Injected:
    torch.manual_seed(0)
    return inject(nn.Sequential(nn.Linear(D_IN, D_OUT)), method, targets=["0"], seed=seed)


def saved_numbers(injected: Injected, x: torch.Tensor) -> int:
    """Numbers that one forward keeps for backward: each storage once, parameters not counted."""
    own = {p.untyped_storage().data_ptr() for p in injected.model.parameters()}
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = injected.model(x)
    del out
    return sum(sizes.values())


def test_b_trains_and_a_stays():
    injected = one_layer(LoRAFA(LoRAFAConfig(rank=RANK)))
    assert list(injected.trainable()) == ["0.B"]
    assert injected.parameter_count() == RANK * D_OUT
    delta = injected.layers["0"].delta
    before = delta.A.detach().clone()
    assert before.any()
    assert not delta.B.any()
    optimiser = torch.optim.AdamW(injected.method.parameter_groups(injected, 1e-2, 0.1))
    for _ in range(3):
        injected.model(torch.randn(5, D_IN)).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert torch.equal(delta.A, before)
    assert delta.B.any()


def test_activations_kept_fall_from_the_width_to_the_rank():
    """Per adapted layer, measured: n·d_in + n·r numbers with A trained, n·r with A frozen, whatever d_in."""
    x = torch.randn(TOKENS, D_IN, requires_grad=True)
    assert saved_numbers(one_layer(LoRA(LoRAConfig(rank=RANK))), x) == TOKENS * (D_IN + RANK)
    assert saved_numbers(one_layer(LoRAFA(LoRAFAConfig(rank=RANK))), x) == TOKENS * RANK
    injected = one_layer(LoRAFA(LoRAFAConfig(rank=2 * RANK)))
    assert saved_numbers(injected, x) == TOKENS * 2 * RANK


@pytest.mark.parametrize("alpha", [4.0, 10.0])
def test_the_corrected_gradient_is_the_second_versions_formula(alpha):
    injected = one_layer(LoRAFA(LoRAFAConfig(rank=RANK, alpha=alpha, gradient_correction=True)))
    delta, x = injected.layers["0"].delta, torch.randn(7, D_IN)
    injected.model(x).square().sum().backward()
    raw = delta.B.grad.double()
    injected.method.before_step(0, 1)
    a, s = delta.A.detach().double(), alpha / RANK
    wanted = raw @ torch.linalg.inv(a @ a.t() + 1e-8 * torch.eye(RANK, dtype=torch.float64)) / s**2
    torch.testing.assert_close(delta.B.grad.double(), wanted, rtol=1e-6, atol=1e-7)  # stored in float32


def test_the_corrected_gradient_comes_nearest_to_full_fine_tunings():
    """s·g_B·A is then the projection of the weight's own gradient on the rows of A: no other B comes nearer."""
    injected = one_layer(LoRAFA(LoRAFAConfig(rank=RANK, alpha=10.0, gradient_correction=True)))
    layer, x = injected.layers["0"], torch.randn(7, D_IN)
    full = torch.autograd.grad(
        (x @ (weight := layer.weight.detach().clone().requires_grad_()).t() + layer.bias).square().sum(), weight
    )[0]
    injected.model(x).square().sum().backward()
    injected.method.before_step(0, 1)
    a = layer.delta.A.detach()
    found = layer.delta.scale * layer.delta.B.grad @ a
    nearest = full @ torch.linalg.pinv(a) @ a
    assert float((found - nearest).norm() / nearest.norm()) < 1e-5  # float32


def test_without_the_option_the_gradient_is_left_alone():
    injected = one_layer(LoRAFA(LoRAFAConfig(rank=RANK)))
    injected.model(torch.randn(7, D_IN)).square().sum().backward()
    before = injected.layers["0"].delta.B.grad.clone()
    injected.method.before_step(0, 1)
    assert torch.equal(injected.layers["0"].delta.B.grad, before)


def test_another_a_is_factored_anew():
    """As after loading a file: of another rank a new parameter, of the same rank changed in place."""
    for rank in (2, RANK):
        injected = one_layer(LoRAFA(LoRAFAConfig(rank=RANK, gradient_correction=True)))
        x = torch.randn(7, D_IN)
        injected.model(x).square().sum().backward()
        injected.method.before_step(0, 1)
        injected.load(one_layer(LoRA(LoRAConfig(rank=rank)), seed=9).export())
        delta = injected.layers["0"].delta
        assert delta.A.shape == (rank, D_IN)
        assert not delta.A.requires_grad
        delta.B.grad = None
        injected.model(x).square().sum().backward()
        raw, a = delta.B.grad.clone(), delta.A.detach()
        injected.method.before_step(1, 2)
        wanted = raw @ torch.linalg.inv(a @ a.t()) / delta.scale**2
        torch.testing.assert_close(delta.B.grad, wanted, rtol=1e-4, atol=1e-5)  # float32


def test_what_cannot_learn_is_refused():
    for init in ("a-zero", "zero-both", "b-orthonormal"):
        with pytest.raises(InputError, match="nothing can learn"):
            LoRAFAConfig(init=init)
    with pytest.raises(InputError, match="cannot adapt"):
        inject(models.llama(), LoRAFA(), targets=["embed_tokens"])
