"""Against PEFT itself: the same A and B give the same logits and gradients, and files go both ways."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from lorascope.adapt.inject import Injected, inject
from lorascope.adapt.method import methods
from lorascope.errors import InputError
from lorascope.weights import io
from tests.methods import models

RANK, ALPHA = 4, 12.0
CASES = {
    "linear": (models.llama, "all-linear"),
    "conv1d": (models.gpt2, ["c_attn", "c_proj", "c_fc"]),
    "embedding": (models.llama, ["embed_tokens", "q_proj"]),
    "tied embedding": (models.gpt2, ["wte", "c_attn"]),
    "encoder": (models.bert, ["query", "value", "dense"]),
}
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def ours(make, targets, method: str = "lora", **options) -> Injected:
    chosen = methods.get(method)
    return inject(make(), chosen(chosen.Config(rank=RANK, alpha=ALPHA)), targets=targets, **options)


def theirs(make, targets, **options) -> PeftModel:
    return get_peft_model(make(), LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, **options))


def factors(model: PeftModel) -> dict[str, nn.Parameter]:
    """PEFT's A and B by our names."""
    found = {}
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            embedding = "default" in layer.lora_embedding_A
            found[f"{name}.A"] = layer.lora_embedding_A["default"] if embedding else layer.lora_A["default"].weight
            found[f"{name}.B"] = layer.lora_embedding_B["default"] if embedding else layer.lora_B["default"].weight
    return found


def pair(make, targets, method: str = "lora", **options) -> tuple[Injected, PeftModel]:
    """The two with the same random A and B, as after some training."""
    mine, other = ours(make, targets, method), theirs(make, targets, **options)
    generator = torch.Generator().manual_seed(3)
    own, copies = mine.trainable(), factors(other)
    assert own.keys() == copies.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
            copies[name].copy_(parameter)
    mine.model.train()
    other.train()
    return mine, other


def loss_of(model: nn.Module) -> tuple[Tensor, Tensor]:
    ids = models.tokens()
    labels = torch.tensor([0, 2]) if hasattr(model, "classifier") or hasattr(model, "bert") else ids
    out = model(input_ids=ids, labels=labels)
    return out.logits, out.loss


def assert_equal(mine: Injected, other: PeftModel) -> None:
    """Logits to a relative 1e-6 in float32: sums of at most 128 products in another order. Gradients to 6e-6: those of
    the formula in plain modules are up to 2.7e-6 away from float64 (12 seeds), ours no further, and here two such meet.
    """
    (logits, loss), (their_logits, their_loss) = loss_of(mine.model), loss_of(other)
    assert float((logits - their_logits).detach().norm() / their_logits.detach().norm()) < 1e-6
    loss.backward()
    their_loss.backward()
    gradients = factors(other)
    for name, parameter in mine.trainable().items():
        wanted = gradients[name].grad
        assert wanted.norm() > 0, name
        assert float((parameter.grad - wanted).norm() / wanted.norm()) < 6e-6, name


@pytest.mark.parametrize("case", CASES)
def test_same_logits_and_gradients(case):
    assert_equal(*pair(*CASES[case]))


def test_rslora():
    mine, other = pair(*CASES["linear"], method="rslora", use_rslora=True)
    assert next(iter(mine.layers.values())).delta.scale == ALPHA / RANK**0.5
    assert_equal(mine, other)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("case", ["linear", "conv1d"])
def test_with_gradient_checkpointing(case, reentrant):
    mine, other = pair(*CASES[case])
    mine.model.enable_input_require_grads()
    other.enable_input_require_grads()
    for model in (mine.model, other.base_model.model):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert_equal(mine, other)


def test_dropout_has_pefts_distribution_not_its_draws():
    """E[drop(x)] = x: the mean over many draws comes to the output without dropout, as in PEFT."""
    chosen = methods.get("lora")
    layer = nn.Linear(64, 3)
    injected = inject(nn.Sequential(layer), chosen(chosen.Config(rank=RANK, dropout=0.5)), targets=["0"])
    nn.init.normal_(injected.layers["0"].delta.B)
    x = torch.randn(1, 64).expand(20000, 64)
    torch.manual_seed(0)
    draws = injected.model(x).detach() - layer(x).detach()
    exact = injected.model.eval()(x[:1]).detach() - layer(x[:1]).detach()
    spread = draws.std(0) / 20000**0.5
    assert ((draws.mean(0) - exact).abs() < 5 * spread).all()  # five standard errors


@pytest.mark.parametrize("case", CASES)
def test_our_file_loads_in_peft(case, tmp_path):
    make, targets = CASES[case]
    mine, _ = pair(make, targets)
    io.write(mine.export(), tmp_path)
    loaded = PeftModel.from_pretrained(make(), tmp_path)
    wanted, found = loss_of(mine.model.eval())[0], loss_of(loaded.eval())[0]
    # the same float32 numbers: what is left is the order of sums, 1e-6 as above
    assert float((found - wanted).detach().norm() / wanted.detach().norm()) < 1e-6
    base = make().eval()
    assert (
        float((loss_of(base)[0] - wanted).detach().norm() / wanted.detach().norm()) > 1e-3
    )  # the adapter does something


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_pefts_file_loads_here(case, method, tmp_path):
    make, targets = CASES[case]
    _, other = pair(make, targets, method=method, use_rslora=method == "rslora")
    other.save_pretrained(tmp_path)
    mine = ours(make, targets, method)
    mine.load(io.read(tmp_path))
    own = mine.trainable()
    assert all(torch.equal(own[name], value) for name, value in factors(other).items())
    wanted, found = loss_of(other.eval())[0], loss_of(mine.model.eval())[0]
    assert float((found - wanted).detach().norm() / wanted.detach().norm()) < 1e-6


def test_a_head_goes_both_ways(tmp_path):
    make, targets = models.bert, ["query", "value"]
    options = {"modules_to_save": ["classifier"]}
    other = theirs(make, targets, task_type="SEQ_CLS")
    mine = ours(make, targets, **options)
    with torch.no_grad():
        for parameter in (*factors(other).values(), *other.base_model.model.classifier.modules_to_save.parameters()):
            parameter.normal_(std=0.1)
    other.save_pretrained(tmp_path / "theirs")
    mine.load(io.read(tmp_path / "theirs"))
    wanted = loss_of(other.eval())[0]
    torch.testing.assert_close(loss_of(mine.model.eval())[0], wanted, rtol=1e-5, atol=1e-6)  # float32 rounding
    io.write(mine.export(task_type="SEQ_CLS"), tmp_path / "ours")
    back = PeftModel.from_pretrained(make(), tmp_path / "ours").eval()
    torch.testing.assert_close(loss_of(back)[0], wanted, rtol=1e-5, atol=1e-6)  # float32 rounding


def test_what_would_be_lost_is_refused(tmp_path):
    make, targets = models.bert, ["query"]
    theirs(make, targets, lora_bias=True).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"would lose .*lora_B\.bias"):
        ours(make, targets).load(io.read(tmp_path))


def test_mixed_ranks_and_alphas_of_peft(tmp_path):
    make, targets = models.llama, ["q_proj", "up_proj"]
    other = theirs(make, targets, rank_pattern={"up_proj": 2}, alpha_pattern={"q_proj": 3.0})
    with torch.no_grad():
        for parameter in factors(other).values():
            parameter.normal_(std=0.1)
    other.save_pretrained(tmp_path)
    mine = ours(make, targets)
    mine.load(io.read(tmp_path))
    wanted, found = loss_of(other.eval())[0], loss_of(mine.model.eval())[0]
    assert float((found - wanted).detach().norm() / wanted.detach().norm()) < 1e-6
