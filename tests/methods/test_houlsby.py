"""Houlsby adapters against their formula, put into the base's own modules by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lorascope.adapt.inject import Injected, inject
from lorascope.adapt.method import methods
from lorascope.adapt.sublayers import sublayer_outputs
from lorascope.errors import InputError
from lorascope.weights import io
from tests.methods import models

M, WIDTH, LAYERS = 5, 32, 2
MAKERS = {"llama": models.llama, "gpt2": models.gpt2, "bert": models.bert}
PLACES = {
    "llama": ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj"),
    "gpt2": ("transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj"),
    "bert": ("bert.encoder.layer.{}.attention.output.dense", "bert.encoder.layer.{}.output.dense"),
}
every_model = pytest.mark.parametrize("name", MAKERS)


def adapted(name: str, moved: float = 0.3, layer_norms: bool = False, **options) -> Injected:
    method = methods.get("houlsby")
    config = method.Config(bottleneck=M, layer_norms=layer_norms, **options)
    injected = inject(MAKERS[name](), method(config), seed=1)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in injected.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * moved)
    injected.model.eval()
    return injected


class ByHand(nn.Module):
    """The base's layer, and behind it the paper's formula."""

    def __init__(self, layer: nn.Module, part: nn.Module):
        super().__init__()
        self.layer, self.part = layer, part

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(x)
        down, b1, up, b2 = (self.part.state_dict()[key] for key in ("down", "down_bias", "up", "up_bias"))
        return h + F.gelu(h @ down.T + b1) @ up.T + b2


@every_model
@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer"])
def test_it_is_its_formula_behind_both_sublayers(name, placement):
    injected, model = adapted(name, placement=placement), MAKERS[name]().eval()
    base = model(input_ids=models.tokens()).logits
    used = PLACES[name][placement == "pfeiffer" :]
    places = [place.format(i) for i in range(LAYERS) for place in used]
    assert list(injected.parts) == [f"{place}.adapter" for place in places]
    for place in places:
        parent, _, child = place.rpartition(".")
        wrapped = ByHand(model.get_submodule(place), injected.parts[f"{place}.adapter"])
        setattr(model.get_submodule(parent), child, wrapped)
    found, wanted = injected.model(input_ids=models.tokens()).logits, model(input_ids=models.tokens()).logits
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)  # float32: the bias is added in another order
    assert float((found - base).norm() / base.norm()) > 1e-3


@every_model
def test_fresh_it_is_nearly_the_identity(name):
    base = MAKERS[name]().eval()(input_ids=models.tokens()).logits
    near, same = adapted(name, moved=0.0), adapted(name, moved=0.0, init_std=0.0)
    found = near.model(input_ids=models.tokens()).logits
    assert 0 < float((found - base).norm() / base.norm()) < 1e-2
    assert torch.equal(same.model(input_ids=models.tokens()).logits, base)
    part = next(iter(near.parts.values()))
    assert float(part.down.abs().max()) <= 2e-2  # cut at two standard deviations
    assert not part.down_bias.any()


@every_model
def test_parameter_count(name):
    """Of the paper, and with the LayerNorms as LoRA's paper counts it (Llama's norms have no offset)."""
    adapters = LAYERS * 2 * (2 * M * WIDTH + WIDTH + M)
    norms = {"llama": (2 * LAYERS + 1) * WIDTH}.get(name, (2 * LAYERS + 1) * 2 * WIDTH)
    for layer_norms, wanted in ((False, adapters), (True, adapters + norms)):
        injected = adapted(name, layer_norms=layer_norms)
        assert injected.method.total_parameter_count(MAKERS[name](), []) == wanted
        assert injected.parameter_count() == wanted


@pytest.mark.parametrize("reentrant", [False, True])
def test_with_gradient_checkpointing(reentrant):
    def gradients(checkpointing: bool) -> list[Tensor]:
        injected = adapted("llama")
        if checkpointing:
            injected.model.enable_input_require_grads()
            injected.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        injected.model.train()
        injected.model(input_ids=models.tokens()).logits.square().mean().backward()
        return [parameter.grad for parameter in injected.trainable().values()]

    for wanted, found in zip(gradients(False), gradients(True), strict=True):
        assert wanted.norm() > 0
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)  # float32 sums in another order


def test_written_and_read_it_gives_the_same_outputs(tmp_path):
    injected, other = adapted("gpt2", layer_norms=True), adapted("gpt2", moved=1.0, layer_norms=True)
    io.write(injected.export(), tmp_path, injected.method.format)
    adapter = io.read(tmp_path)
    assert all("ln_" in name for name in adapter.updates)
    assert set(adapter.non_weight_tensors.values()) == {
        "a bottleneck between two layers: a nonlinear map, and no change of a weight"
    }
    other.load(adapter)
    ids = models.tokens()
    assert torch.equal(other.model(input_ids=ids).logits, injected.model(input_ids=ids).logits)


def test_a_bfloat16_base_computes_in_bfloat16():
    method = methods.get("houlsby")
    injected = inject(models.llama().bfloat16(), method(method.Config(bottleneck=M)))
    logits = injected.model(input_ids=models.tokens()).logits
    assert logits.dtype == torch.bfloat16
    assert {p.dtype for p in injected.trainable().values()} == {torch.float32}
    logits.float().sum().backward()
    assert all(p.grad is not None for p in injected.trainable().values())


def test_models_built_otherwise_are_refused_in_words():
    with pytest.raises(InputError, match="no repeated blocks"):
        sublayer_outputs(nn.Linear(3, 3))
    model = models.llama()
    for block in model.model.layers:
        block.mlp.down_proj = nn.Linear(48, 16)
    with pytest.raises(InputError, match=r"model\.layers\.0 is not a block that this method supports"):
        sublayer_outputs(model)


def test_a_bottleneck_cannot_be_merged():
    with pytest.raises(InputError, match="cannot be merged"):
        adapted("bert").merge()
