"""Parameters of the base itself: what each method picks, masters, ties, files, merging and analysis."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lorascope.adapt import merge as merging
from lorascope.adapt.inject import inject
from lorascope.adapt.method import methods
from lorascope.analyses import spectrum
from lorascope.errors import InputError
from lorascope.weights import io
from lorascope.weights.checkpoint import open_checkpoint
from tests.methods.models import bert, gpt2, llama, tokens


def put(name: str, model: nn.Module, seed: int = 0, **options):
    method = methods.get(name)
    return inject(model, method(method.Config(**options)), seed=seed)


def shake(injected, size: float = 0.05):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in injected.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * size)
    return injected


def names(name: str, model: nn.Module, **options) -> set[str]:
    return set(put(name, model, **options).trainable())


def test_bitfit_trains_every_bias_and_nothing_else():
    wanted = {name for name, _ in bert().named_parameters() if name.endswith("bias")}
    assert names("bitfit", bert()) == wanted
    smaller = names("bitfit", bert(), biases="query-and-intermediate")
    assert smaller == {n for n in wanted if "query" in n or "intermediate" in n}
    assert len(smaller) == 4  # two layers


def test_bitfit_on_a_model_without_biases_says_so():
    with pytest.raises(InputError, match="has none"):
        put("bitfit", llama())
    with pytest.raises(InputError, match="no query bias of its own"):
        put("bitfit", gpt2(), biases="query-and-intermediate")


def test_layernorm_trains_every_gain_and_offset():
    assert names("layernorm", llama()) == {n for n, _ in llama().named_parameters() if "norm" in n}
    assert names("layernorm", bert()) == {n for n, _ in bert().named_parameters() if "LayerNorm" in n}
    assert names("layernorm", gpt2()) == {n for n, _ in gpt2().named_parameters() if "ln_" in n}
    assert all(n.endswith("weight") for n in names("layernorm", bert(), bias=False))


def test_full_trains_what_train_and_freeze_leave():
    everything = {n for n, _ in llama().named_parameters()}
    assert names("full", llama()) == everything
    assert names("full", llama(), freeze=("norm", r"layers\.0")) == {
        n for n in everything if "norm" not in n and "layers.0" not in n
    }
    assert names("full", llama(), train=(r"q_proj",)) == {n for n in everything if "q_proj" in n}
    assert names("full", llama(), embeddings=False) == {n for n in everything if "embed_tokens" not in n}
    with pytest.raises(InputError, match=r"found in no parameter's name.*did you mean 'q_proj'"):
        put("full", llama(), train=("q_prj",))
    with pytest.raises(InputError, match="nothing to train"):
        put("full", llama(), train=("q_proj",), freeze=("self_attn",))


def loss_of(model: nn.Module) -> torch.Tensor:
    ids = tokens()
    out = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return F.cross_entropy(out.flatten(0, -2).float(), tokens(1, out[..., 0].numel())[0] % out.shape[-1])


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_full_fine_tuning_is_what_torch_does(make):
    """Three AdamW steps on the masters against three on the plain model's own parameters, ties and all."""
    plain, injected = make().double(), put("full", make().double())
    for model, parameters in ((plain, plain.parameters()), (injected.model, injected.trainable().values())):
        optimiser = torch.optim.AdamW(list(parameters), lr=1e-2, weight_decay=0.1)
        for _ in range(3):
            loss_of(model).backward()
            optimiser.step()
            optimiser.zero_grad()
    injected.merge_and_unload()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(injected.model.get_parameter(name), parameter, rtol=1e-12, atol=1e-12)


def test_a_tied_weight_is_one_and_stays_one():
    injected = put("full", gpt2())
    assert injected.parameter_count() == sum(p.numel() for p in gpt2().parameters())
    shake(injected)
    injected.merge()
    model = injected.model
    assert model.lm_head.weight is model.transformer.wte.weight
    injected.unmerge()
    injected.remove()
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not hasattr(model.lm_head, "parametrizations")


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointed in (False, True):
        for name in ("full", "random_subspace"):
            options = {"d": 50} if name == "random_subspace" else {}
            injected = shake(put(name, llama().double(), **options))
            injected.model.train()
            if checkpointed:
                injected.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            loss_of(injected.model).backward()
            loss_of(injected.model).backward()  # accumulated over two passes
            gradients.append([p.grad for p in injected.trainable().values()])
    for plain, other in ((gradients[0], gradients[2]), (gradients[1], gradients[3])):
        for a, b in zip(plain, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_bfloat16_base_has_float32_masters_that_move_by_less_than_it_can_hold():
    injected = put("full", llama().bfloat16())
    before = loss_of(injected.model).item()
    with torch.no_grad():
        for parameter in injected.trainable().values():
            parameter.mul_(1 + 2.0**-12)  # a sixteenth of bfloat16's spacing
    assert loss_of(injected.model).item() == before
    with torch.no_grad():
        for parameter in injected.trainable().values():
            parameter.mul_(1 + 2.0**-7)
    assert loss_of(injected.model).item() != before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "make"), [("full", gpt2), ("full", bert), ("bitfit", bert)])
def test_a_file_gives_the_change_exactly(tmp_path, name, make, dtype):
    """Against master − base taken here, also where the base on disk is the float32 one that was rounded to train."""
    base = make()
    base.save_pretrained(tmp_path / "base")
    injected = shake(put(name, make().to(dtype)))
    io.write(injected.export(task_type="SEQ_CLS"), tmp_path / "adapter", "lorascope")
    checkpoint, adapter = open_checkpoint(tmp_path / "base"), io.read(tmp_path / "adapter")
    rounded = make().to(dtype).state_dict()
    wanted = {key: p.detach().double() - rounded[key].double() for key, p in injected.trainable().items()}
    assert {update.base_weight for update in adapter.updates.values()} == wanted.keys()
    for update in adapter.updates.values():
        delta = update.delta(checkpoint.of(update).read() if update.needs_base else None)
        truth = wanted[update.base_weight].numpy()
        truth = truth.T if update.transposed else truth.reshape(delta.shape)
        # T − W in float32, of a bfloat16 base; else the float64 difference of two float32 numbers
        np.testing.assert_allclose(delta, truth, rtol=2**-23 if dtype == torch.bfloat16 else 0, atol=0)
    result = spectrum.run(adapter, base=checkpoint)
    assert {module.name for module in result.rows} == set(adapter.updates)
    vector = next(m for m in result.rows if m.name.endswith("bias"))
    assert vector.shape[1] == 1
    assert vector.stable_rank == pytest.approx(1)


@pytest.mark.parametrize("name", ["full", "bitfit", "random_subspace"])
def test_the_merge_command_gives_the_tuned_model(tmp_path, name):
    make = bert if name == "bitfit" else gpt2
    injected = shake(put(name, make(), **({"d": 50} if name == "random_subspace" else {})))
    io.write(injected.export(), tmp_path, "lorascope")
    model = make()
    merging.merge(model, io.read(tmp_path))
    injected.merge_and_unload()
    for key, tensor in injected.model.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], tensor, rtol=0, atol=2e-7)  # one rounding of float32 each
    if make is gpt2:
        assert model.lm_head.weight is model.transformer.wte.weight


def test_what_fsdp_cannot_do_is_refused():
    from lorascope.training.parallel import World, shard_base

    with pytest.raises(InputError, match="cannot train with fsdp"):
        shard_base(put("full", llama()), World(torch.device("cpu"), 0, 2))


def test_modules_trained_as_a_whole_are_left_to_themselves():
    method = methods.get("full")
    injected = inject(bert(), method(method.Config()), modules_to_save=["classifier"])
    assert set(injected.trainable()) == {n for n, _ in bert().named_parameters()}
    assert set(injected.saved) == {"classifier"}
    assert not any("classifier" in name for name in injected.parts)


def pefts_layernorm(make, targets: list[str]):
    from peft import LNTuningConfig, get_peft_model

    task = "SEQ_CLS" if make is bert else "CAUSAL_LM"
    return get_peft_model(make(), LNTuningConfig(target_modules=targets, task_type=task))


NORMS = [(bert, ["LayerNorm"]), (llama, ["input_layernorm", "post_attention_layernorm", "norm"])]


@pytest.mark.parametrize(("make", "targets"), NORMS)
def test_layernorm_tuning_goes_to_peft(make, targets, tmp_path):
    from peft import PeftModel

    method = methods.get("layernorm")
    # PEFT asks for a classifier's head in the file
    injected = shake(inject(make(), method(method.Config()), modules_to_save=["classifier"] if make is bert else []))
    io.write(injected.export(task_type="SEQ_CLS" if make is bert else "CAUSAL_LM"), tmp_path)
    other = PeftModel.from_pretrained(make(), tmp_path)
    other.eval(), injected.model.eval()
    assert torch.equal(other(tokens()).logits, injected.model(tokens()).logits)


@pytest.mark.parametrize(("make", "targets"), NORMS)
def test_layernorm_tuning_comes_from_peft(make, targets, tmp_path):
    other = pefts_layernorm(make, targets)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "ln_tuning_layers" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    other.save_pretrained(tmp_path)
    method = methods.get("layernorm")
    # PEFT trains a new head of a classifier besides
    injected = inject(make(), method(method.Config()), modules_to_save=["classifier"] if make is bert else [], seed=3)
    injected.load(io.read(tmp_path))
    other.eval(), injected.model.eval()
    assert torch.equal(other(tokens()).logits, injected.model(tokens()).logits)


@pytest.mark.parametrize(("make", "targets"), NORMS)
def test_layernorms_gradients_are_pefts(make, targets):
    other, injected = pefts_layernorm(make, targets), put("layernorm", make())
    loss_of(injected.model).backward()
    loss_of(other).backward()
    theirs = {
        name.removeprefix("base_model.model.").replace(".ln_tuning_layers.default", ""): parameter.grad
        for name, parameter in other.named_parameters()
        if "ln_tuning_layers" in name
    }
    assert theirs.keys() == injected.trainable().keys()
    for name, parameter in injected.trainable().items():
        torch.testing.assert_close(parameter.grad, theirs[name], rtol=1e-6, atol=1e-9)  # the same float32 operations


def test_weights_that_are_no_norms_do_not_go_to_peft(tmp_path):
    with pytest.raises(InputError, match="norms only"):
        io.write(put("full", llama()).export(), tmp_path)
    assert not list(tmp_path.iterdir())
