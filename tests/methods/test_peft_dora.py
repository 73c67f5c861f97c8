"""DoRA and lengths alone against PEFT's DoRA: logits, gradients, and files both ways."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from lorascope.adapt.inject import Injected, inject
from lorascope.adapt.method import methods
from lorascope.errors import InputError
from lorascope.weights import io
from tests.methods import models
from tests.methods.test_peft import factors, loss_of

RANK, ALPHA = 4, 12.0
CASES = {
    "linear": (models.llama, "all-linear"),
    "conv1d": (models.gpt2, ["c_attn", "c_proj", "c_fc"]),
    "embedding": (models.llama, ["embed_tokens", "q_proj"]),
    "encoder": (models.bert, ["query", "value", "dense"]),
}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def ours(make, targets, method: str = "dora", **config) -> Injected:
    chosen = methods.get(method)
    return inject(make(), chosen(chosen.Config(**config)), targets=targets)


def theirs(make, targets, **options) -> PeftModel:
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, use_dora=True, **options)
    return get_peft_model(make(), config)


def parameters(model: PeftModel) -> dict[str, nn.Parameter]:
    """PEFT's A, B and m by our names."""
    found = factors(model)
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            found[f"{name}.m"] = layer.lora_magnitude_vector["default"].weight
    return found


def pair(make, targets, **options) -> tuple[Injected, PeftModel]:
    """The two with the same A, B and m, as after some training."""
    rslora = options.get("use_rslora", False)
    mine = ours(make, targets, rank=RANK, alpha=ALPHA, use_rslora=rslora)
    other = theirs(make, targets, **options)
    generator = torch.Generator().manual_seed(3)
    own, copies = mine.trainable(), parameters(other)
    assert own.keys() == copies.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            if name.endswith(".m"):
                torch.testing.assert_close(parameter, copies[name])  # both start at ‖W‖, summed in float32
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            copies[name].copy_(parameter)
    mine.model.train(), other.train()
    return mine, other


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(((found - wanted).norm() / wanted.norm()).detach())


def assert_equal(mine: Injected, other: PeftModel) -> None:
    """Logits to a relative 1e-6, gradients to 6e-6, as of LoRA in `test_peft.py`: float32 sums in another order."""
    (logits, loss), (their_logits, their_loss) = loss_of(mine.model), loss_of(other)
    assert relative(logits, their_logits) < 1e-6
    loss.backward(), their_loss.backward()
    gradients = parameters(other)
    for name, parameter in mine.trainable().items():
        assert gradients[name].grad.norm() > 0, name
        assert relative(parameter.grad, gradients[name].grad) < 6e-6, name


@pytest.mark.parametrize("case", CASES)
def test_same_logits_and_gradients(case):
    assert_equal(*pair(*CASES[case]))


def test_with_rslora():
    mine, other = pair(*CASES["linear"], use_rslora=True)
    assert next(iter(mine.layers.values())).delta.scale == ALPHA / RANK**0.5
    assert_equal(mine, other)


def test_with_gradient_checkpointing():
    mine, other = pair(*CASES["linear"])
    for model in (mine.model, other.base_model.model):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert_equal(mine, other)


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_our_file_loads_in_peft(case, use_rslora, tmp_path):
    make, targets = CASES[case]
    mine, _ = pair(make, targets, use_rslora=use_rslora)
    io.write(mine.export(), tmp_path)
    wanted = loss_of(mine.model.eval())[0]
    assert relative(loss_of(PeftModel.from_pretrained(make(), tmp_path).eval())[0], wanted) < 1e-6
    assert relative(loss_of(make().eval())[0], wanted) > 1e-3  # the adapter does something


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_pefts_file_loads_here(case, use_rslora, tmp_path):
    make, targets = CASES[case]
    _, other = pair(make, targets, use_rslora=use_rslora)
    other.save_pretrained(tmp_path)
    mine = ours(make, targets, rank=2)
    mine.load(io.read(tmp_path))
    own = mine.trainable()
    assert all(torch.equal(own[name], value) for name, value in parameters(other).items())
    assert relative(loss_of(mine.model.eval())[0], loss_of(other.eval())[0]) < 1e-6


def test_merging_gives_what_peft_merges(tmp_path):
    mine, other = pair(*CASES["conv1d"])
    mine.merge()
    merged = other.merge_and_unload()
    for name, layer in mine.layers.items():
        assert relative(layer.weight, merged.get_submodule(name).weight) < 1e-6, name  # one float32 rounding each


@pytest.mark.parametrize("case", ["linear", "conv1d", "encoder"])
def test_lengths_alone_are_a_dora_that_peft_loads(case, tmp_path):
    make, targets = CASES[case]
    mine = ours(make, targets, "magnitude")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in mine.trainable().values():
            parameter.mul_(1 + 0.2 * torch.randn(parameter.shape, generator=generator))
    io.write(mine.export(), tmp_path)
    wanted = loss_of(mine.model.eval())[0]
    assert relative(loss_of(PeftModel.from_pretrained(make(), tmp_path).eval())[0], wanted) < 1e-6
    assert relative(loss_of(make().eval())[0], wanted) > 1e-3
    again = ours(make, targets, "magnitude")
    again.load(io.read(tmp_path))
    assert torch.equal(loss_of(again.model.eval())[0], wanted)
    whole = ours(make, targets, rank=2)
    whole.load(io.read(tmp_path))
    assert relative(loss_of(whole.model.eval())[0], wanted) < 1e-6


def test_a_file_that_turns_rows_is_no_lengths_alone(tmp_path):
    make, targets = CASES["linear"]
    mine, _ = pair(make, targets)
    io.write(mine.export(), tmp_path)
    with pytest.raises(InputError, match="method: dora"):
        ours(make, targets, "magnitude").load(io.read(tmp_path))
