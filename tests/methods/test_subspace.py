"""Training in a random subspace against torch's own gradients through a dense P, and its files."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lorascope.adapt.inject import inject
from lorascope.adapt.method import methods
from lorascope.analyses import spectrum
from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights import io
from tests.methods.models import bert, llama, tokens

D = 40


def put(model: nn.Module, seed: int = 0, **options):
    method = methods.get("random_subspace")
    return inject(model, method(method.Config(**{"d": D, **options})), seed=seed)


def moved(injected):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in injected.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1)
    return injected


def loss_of(model: nn.Module, weights: dict[str, Tensor] | None = None) -> Tensor:
    ids = tokens()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    out = (functional_call(model, weights, kwargs=inputs) if weights else model(**inputs)).logits
    return F.cross_entropy(out.flatten(0, -2), tokens(1, out[..., 0].numel())[0] % out.shape[-1])


def dense_projection(part) -> Tensor:
    """(D, d) for all parameters in order, column by column."""
    return torch.stack([torch.cat(part.directions(column)) for column in torch.eye(len(part.theta)).double()], dim=1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"projection": "fastfood-whole"},
        {"projection": "dense"},
        {"projection": "orthonormal"},
        {"projection": "sparse"},
        {"said": "layer"},
        {"said": "tensor", "scope": "per-tensor", "d": 60},
        {"scope": "per-tensor", "projection": "fastfood-whole"},
        {"freeze": ("LayerNorm",), "embeddings": False},
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_a_dense_projection(options):
    injected = moved(put(bert().double(), **options))
    part, base = injected.parts["subspace"], bert().double()
    p = dense_projection(part)
    theta, lam = part.theta.detach().clone().requires_grad_(True), None
    delta = (p @ theta).split(part.plan.sizes)
    if part.lam is not None:
        lam = part.lam.detach().clone().requires_grad_(True)
        delta = [lam[group] * piece for group, piece in zip(part.plan.groups, delta, strict=True)]
    weights = {
        own.name: base.get_parameter(own.name).detach() + piece.view(own.parameter.shape)
        for own, piece in zip(part.base_params, delta, strict=True)
    }
    wanted = loss_of(base, weights)
    wanted.backward()
    found = loss_of(injected.model)
    found.backward()
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    torch.testing.assert_close(part.theta.grad, theta.grad, rtol=1e-10, atol=1e-14)  # float64 sums of 35,000 terms
    if lam is not None:
        torch.testing.assert_close(part.lam.grad, lam.grad, rtol=1e-10, atol=1e-14)


def test_the_budget_is_d_with_the_lambdas_in_it():
    part = put(bert(), said="layer").parts["subspace"]
    assert len(part.lam) == 3  # two blocks, and one for embeddings, pooler and head
    assert len(part.theta) == D - 3
    tensors = put(bert(), said="tensor", d=60).parts["subspace"]
    assert len(tensors.lam) == len(list(bert().parameters()))
    with pytest.raises(InputError, match="SAID needs more than its"):
        put(bert(), said="tensor", d=20)


def test_the_published_gradient_weighs_each_tensor_by_one_over_its_length():
    options = {"scope": "per-tensor", "projection": "fastfood-whole"}
    ratios = {}
    for path in ("bert.encoder.layer.0.output.dense.bias", "bert.encoder.layer.0.intermediate.dense.weight"):
        gradients = []
        for adjoint in ("exact", "as-published"):
            injected = moved(put(bert().double(), adjoint=adjoint, train=(path,), **options, d=20))
            loss_of(injected.model).backward()
            gradients.append(injected.parts["subspace"].theta.grad)
        ratios[path] = gradients[1] / gradients[0]
    bias, weight = ratios.values()
    torch.testing.assert_close(bias, torch.full_like(bias, 1 / 32))  # 32 numbers
    torch.testing.assert_close(weight, torch.full_like(weight, 1 / 2048))  # 48 × 32, up to the next power of two


def test_a_file_is_small_and_gives_every_update(tmp_path):
    injected = moved(put(llama(), said="layer"))
    io.write(injected.export(), tmp_path, "lorascope")
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 1000  # 40 numbers and a header
    adapter = io.read(tmp_path)
    base = llama()
    values = injected.parts["subspace"].values()
    assert {u.base_weight for u in adapter.updates.values()} == {name for name, _ in base.named_parameters()}
    for update in adapter.updates.values():
        delta = torch.from_numpy(dense(update.delta()))
        native = delta.t() if update.transposed else delta
        change = values[update.base_weight] - base.get_parameter(update.base_weight)
        # a float32 transform, and W + ΔW rounded to float32 against |W| up to 4
        torch.testing.assert_close(native.reshape(change.shape).float(), change, rtol=0, atol=2e-6)
    result = spectrum.run(adapter)
    assert {m.name for m in result.rows} == set(adapter.updates)
    assert {item.name for item in result.skipped} == {"subspace.theta", "subspace.lambda"}


@pytest.mark.parametrize(
    "options", [{"scope": "per-tensor"}, {"projection": "sparse"}, {"projection": "fastfood-whole"}]
)
def test_every_plan_is_read_as_it_was_trained(tmp_path, options):
    injected = moved(put(bert().double(), **options))
    io.write(injected.export(), tmp_path, "lorascope")
    values, base = injected.parts["subspace"].values(), bert().double()
    for update in io.read(tmp_path).updates.values():
        change = (values[update.base_weight] - base.get_parameter(update.base_weight)).detach().numpy()
        native = dense(update.delta().T if update.transposed else update.delta())
        np.testing.assert_allclose(native.reshape(change.shape), change, rtol=0, atol=1e-12)


def test_a_file_of_another_subspace_is_refused(tmp_path):
    io.write(moved(put(llama())).export(), tmp_path, "lorascope")
    for options in ({"projection": "sparse"}, {"said": "layer"}, {"embeddings": False}):
        with pytest.raises(InputError, match=r"another one|not the model's"):
            put(llama(), **options).load(io.read(tmp_path))


def test_a_numpy_that_draws_otherwise_is_refused(tmp_path):
    io.write(moved(put(llama())).export(), tmp_path, "lorascope")
    path = tmp_path / "adapter_config.json"
    record = json.loads(path.read_text())
    record["subspace"]["fingerprint"] = "0" * 16
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="draws other random numbers"):
        io.read(tmp_path)


def test_a_damaged_plan_is_one_sentence(tmp_path):
    io.write(moved(put(llama())).export(), tmp_path, "lorascope")
    path = tmp_path / "adapter_config.json"
    whole = json.loads(path.read_text())
    damages = (
        lambda r: r["subspace"].update(columns="many"),
        lambda r: r["subspace"].update(parameters=[["a", [-3]]]),
        lambda r: r["subspace"].update(columns=7),
        lambda r: r["subspace"].update(projection="fourier"),
        lambda r: r["modules"]["lm_head"]["projected"]["delta"].update(index=10**6),
        lambda r: r["modules"]["lm_head"]["projected"]["delta"].update(shape=[3, 5]),
        lambda r: r.pop("subspace"),
    )
    for damage in damages:
        record = json.loads(json.dumps(whole))
        damage(record)
        path.write_text(json.dumps(record))
        with pytest.raises(InputError):
            io.read(tmp_path)


def test_the_projection_is_worked_out_once_a_pass_and_never_kept_too_long(monkeypatch):
    injected = put(bert())
    part, model = injected.parts["subspace"], injected.model.eval()
    calls, apply = [], part.directions
    monkeypatch.setattr(part, "directions", lambda theta: calls.append(1) or apply(theta))
    with torch.no_grad():
        loss_of(model), loss_of(model)
    assert len(calls) == 1
    loss_of(model).backward()
    assert len(calls) == 2
    # torch's fused optimisers change θ_d without counting it as a change
    before = loss_of(model).item()
    loss_of(model).backward()
    torch.optim.AdamW([part.theta], lr=0.1, fused=True).step()
    changed = loss_of(model).item()
    with torch.no_grad():
        part.theta.mul_(1.0)  # counts as one
    assert loss_of(model).item() == changed != before


def test_settings_that_make_no_sense_are_refused():
    config = methods.get("random_subspace").Config
    for options in ({"d": 0}, {"adjoint": "as-published"}):
        with pytest.raises(InputError):
            config(**options)
    with pytest.raises(InputError, match="has no place in"):
        put(bert(), d=1_000_000)
