"""Several adapters in one model against PEFT's, and the base alone, against the base before."""

import copy

import pytest
import torch
from peft import PeftModel
from torch import nn

import lorascope as ls
from lorascope.errors import InputError
from tests.methods.models import llama, tokens

TARGETS = ["q_proj", "down_proj"]


def randomised(injected, seed: int):
    """The adapter with random factors in place of its start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in injected.trainable().values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
    return injected


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(tokens()).logits


@pytest.fixture
def folders(tmp_path):
    """Two adapters of equal targets and rank, and one of other targets and rank, on one base."""
    for name, seed, rank, targets in (("a", 1, 3, TARGETS), ("b", 2, 3, TARGETS), ("c", 3, 2, ["q_proj", "k_proj"])):
        injected = ls.inject(llama().double(), "lora", r=rank, lora_alpha=2 * rank, target_modules=targets)
        ls.save(randomised(injected, seed), tmp_path / name)
    return tmp_path


def both(folders, names):
    """Our model and PEFT's with these adapters, on float64 bases."""
    ours, base = llama().double(), llama().double()
    for name in names:
        ls.load(ours, folders / name, adapter_name=name)
    theirs = PeftModel.from_pretrained(base, folders / names[0], names[0])
    for name in names[1:]:
        theirs.load_adapter(folders / name, name)
    return ours, theirs.double()


def test_adapters_are_switched_as_pefts(folders):
    ours, theirs = both(folders, ["a", "b", "c"])
    adapters, outputs = ls.adapters(ours), []
    for name in ("a", "c", "b", "a"):
        adapters.set_adapter(name)
        theirs.set_adapter(name)
        outputs.append(logits(ours))
        torch.testing.assert_close(
            outputs[-1], logits(theirs), rtol=1e-10, atol=1e-12
        )  # float64, sums in another order
    torch.testing.assert_close(outputs[0], outputs[-1], rtol=0, atol=0)
    assert not torch.allclose(outputs[0], outputs[1])
    trained = {id(p) for p in ours.parameters() if p.requires_grad}
    assert trained == {id(p) for p in adapters["a"].trainable().values()}, "an optimizer sees the active one alone"
    assert (adapters.active, adapters.names) == ("a", ("a", "b", "c"))
    with adapters.disabled():
        torch.testing.assert_close(logits(ours), logits(llama().double()), rtol=0, atol=0)
    adapters.delete_adapter("b")
    torch.testing.assert_close(logits(ours), outputs[0], rtol=0, atol=0)
    adapters.delete_adapter("a")
    torch.testing.assert_close(logits(ours), logits(llama().double()), rtol=0, atol=0)
    assert adapters.active is None
    adapters.set_adapter("c")
    torch.testing.assert_close(logits(ours), outputs[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("how", "names", "weights"),
    [("cat", ["a", "c"], [0.7, -0.2]), ("svd", ["a", "c"], [0.7, 0.3]), ("linear", ["a", "b"], [0.5, -1.5])],
)
def test_weighted_adapters_are_pefts(folders, how, names, weights):
    ours, theirs = both(folders, names)
    combined = ls.adapters(ours).add_weighted_adapter(names, weights, "sum", combination_type=how)
    theirs.add_weighted_adapter(names, weights, "sum", combination_type=how)
    theirs.set_adapter("sum")
    close = 1e-10 if how == "cat" else 1e-6  # the others round to float32 in PEFT
    torch.testing.assert_close(logits(ours), logits(theirs), rtol=close, atol=close)
    assert ls.adapters(ours).active == "sum"
    assert combined.layers["model.layers.0.self_attn.q_proj"].delta.A.shape[0] == {"cat": 5, "svd": 3, "linear": 3}[how]


def test_what_cannot_be_combined_is_said(folders):
    ours, _ = both(folders, ["a", "c"])
    adapters = ls.adapters(ours)
    with pytest.raises(InputError, match="ranks"):
        adapters.add_weighted_adapter(["a", "c"], [1, 1], "sum", combination_type="linear")
    with pytest.raises(InputError, match="one weight for each"):
        adapters.add_weighted_adapter(["a", "c"], [1], "sum")
    with pytest.raises(InputError, match="no adapter 'd'"):
        adapters.add_weighted_adapter(["a", "d"], [1, 1], "sum")
    with pytest.raises(InputError, match="already"):
        adapters.add_weighted_adapter(["a", "c"], [1, 1], "a")
    with pytest.raises(InputError, match="combination_type"):
        adapters.add_weighted_adapter(["a", "c"], [1, 1], "sum", combination_type="ties")
    assert adapters.names == ("a", "c")


def test_a_further_adapter_needs_a_name_and_a_failure_leaves_the_first(folders):
    model = llama().double()
    first = randomised(ls.inject(model, "lora", r=2, target_modules=TARGETS), 5)
    before = logits(model)
    with pytest.raises(InputError, match="adapter_name"):
        ls.inject(model, "lora")
    with pytest.raises(InputError, match="already"):
        ls.inject(model, "lora", adapter_name="default")
    with pytest.raises(InputError, match="no layer"):
        ls.inject(model, "lora", adapter_name="second", target_modules=["nothing"])
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    second = ls.inject(model, "vera", r=2, target_modules=TARGETS, adapter_name="second")
    assert (first.enabled, second.enabled) == (False, True)
    with pytest.raises(InputError, match="'second' is active"):
        first.enable()
    second.merge()
    with pytest.raises(InputError, match="unmerge"):
        ls.adapters(model).set_adapter("default")
    second.unmerge()
    ls.adapters(model).set_adapter("default")
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["lora", "bitfit", "layernorm", "houlsby", "full"])
def test_disabled_is_the_base_with_its_own_head(method):
    model = llama().double()
    base = logits(model)
    more = {"target_modules": TARGETS} if method == "lora" else {}
    if method == "bitfit":
        model, more = llama(attention_bias=True).double(), {}
        base = logits(model)
    saved = ["lm_head"] if method != "full" else None
    injected = randomised(ls.inject(model, method, modules_to_save=saved, **more), 3)
    tuned = logits(model)
    assert not torch.allclose(tuned, base)
    with injected.disabled():
        torch.testing.assert_close(logits(model), base, rtol=0, atol=0)
        assert not [p for p in model.parameters() if p.requires_grad]
    torch.testing.assert_close(logits(model), tuned, rtol=0, atol=0)
    injected.remove()
    torch.testing.assert_close(logits(model), base, rtol=0, atol=0)
    with pytest.raises(InputError, match="carries no adapter"):
        ls.adapters(model)


def test_a_copy_of_the_model_has_adapters_of_its_own(tmp_path):
    model = llama()
    randomised(ls.inject(model, "lora", r=2, target_modules=TARGETS), 1)  # nobody keeps what inject gave
    twin = copy.deepcopy(model)
    randomised(ls.adapters(twin)["default"], 2)
    model.save_pretrained(tmp_path / "a")
    twin.save_pretrained(tmp_path / "b")
    for folder, of in (("a", model), ("b", twin)):
        read, there = ls.read(tmp_path / folder), ls.read(of)
        for name, update in there.updates.items():
            assert (read.updates[name].delta().dense() == update.delta().dense()).all()
    assert (tmp_path / "a" / "adapter_model.safetensors").read_bytes() != (
        tmp_path / "b" / "adapter_model.safetensors"
    ).read_bytes()
