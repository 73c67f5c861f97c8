"""VeRA: the fused sums against the formula, PEFT itself both ways, one pair for all layers, and its variants."""

import copy

import numpy as np
import pytest
import torch
from peft import PeftModel, VeraConfig, get_peft_model
from peft.tuners.vera.layer import VeraLayer
from torch import Tensor, nn

from lorascope.adapt import fused_vera
from lorascope.adapt.inject import Injected, inject
from lorascope.adapt.method import methods
from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights import io
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.drawn import Drawn
from tests.methods import models
from tests.methods.plain_lora import to_low_rank

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
RANK = 12
CASES = {
    "linear": (models.llama, ["q_proj", "k_proj", "down_proj"]),  # (32, 32), (16, 32) and (32, 48)
    "conv1d": (models.gpt2, ["c_attn", "c_fc"]),
    "encoder": (models.bert, ["query", "dense"]),
}
NODES = {"through the bottleneck": fused_vera._ThroughBottleneck, "by weight": fused_vera._ByWeight}


def tensors(dtype=torch.float64, n=(3, 5), d_in=6, d_out=4, r=3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": (*n, d_in), "d": (r,), "b": (d_out,), "a": (r, d_in), "up": (d_out, r)}
    shapes |= {"weight": (d_out, d_in), "bias": (d_out,)}
    made = {k: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for k, s in shapes.items()}
    for name in ("x", "d", "b"):
        made[name].requires_grad_(True)
    return made


def written_out(x, d, b, a, up, weight=None, bias=None) -> Tensor:
    update = ((x @ a.T) * d @ up.T) * b
    return update if weight is None else x @ weight.T + bias + update


@pytest.mark.parametrize("rank", [2, 3])  # h is kept, and x
@pytest.mark.parametrize("with_base", [True, False])
@pytest.mark.parametrize("node", NODES)
def test_both_ways_are_the_formula(node, with_base, rank):
    t = tensors(r=rank)
    frozen = [t["a"], t["up"], *((t["weight"], t["bias"]) if with_base else (None, None))]
    apply = NODES[node].apply
    out = apply(t["x"], t["d"], t["b"], *frozen)
    # float64 rounding
    torch.testing.assert_close(out, written_out(t["x"], t["d"], t["b"], *frozen), rtol=1e-13, atol=1e-13)
    assert torch.autograd.gradcheck(lambda x, d, b: apply(x, d, b, *frozen), (t["x"], t["d"], t["b"]))


@pytest.mark.parametrize("trained", [("d",), ("b",), ("x",), ("x", "d"), ("x", "b"), ("d", "b")])
@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("node", NODES)
def test_any_part_may_be_frozen(node, rank, trained):
    t = tensors(r=rank)
    for name in ("x", "d", "b"):
        t[name].requires_grad_(name in trained)
    arguments = list(t.values())
    wanted = torch.autograd.grad(written_out(*arguments).square().sum(), [t[k] for k in trained])
    found = torch.autograd.grad(NODES[node].apply(*arguments).square().sum(), [t[k] for k in trained])
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)  # float64 rounding


@pytest.mark.parametrize("rank", [8, 40])
@pytest.mark.parametrize("node", NODES)
def test_a_narrow_input_does_not_lose_a_small_update(node, rank):
    """In bfloat16 W + ΔW would round most of an update of 10⁻³ of W away; the gradients are those of the formula."""
    t = tensors(n=(64,), d_in=32, d_out=24, r=rank)
    with torch.no_grad():
        t["b"].mul_(1e-3)
    narrow = {k: t[k].detach().to(torch.bfloat16) for k in ("x", "weight", "bias")}
    masters = {k: t[k].detach().float().requires_grad_(True) for k in ("d", "b")}
    narrow["x"].requires_grad_(True)
    apply = NODES[node].apply
    update = apply(narrow["x"], masters["d"], masters["b"], t["a"].float(), t["up"].float(), None, None)
    exact = written_out(narrow["x"].detach().double(), t["d"], t["b"], t["a"], t["up"])
    assert float((update.double() - exact).norm() / exact.norm()) < 1e-2  # a few roundings to bfloat16, 2⁻⁹ each
    rest = (t["a"].float(), t["up"].float(), narrow["weight"], narrow["bias"])
    out = apply(narrow["x"], masters["d"], masters["b"], *rest)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    exact.sum().backward()
    for name, master in masters.items():
        assert master.grad.dtype == torch.float32
        assert float((master.grad - t[name].grad).norm() / t[name].grad.norm()) < 2e-2  # the same roundings
    maps = fused_vera._maps(torch.bfloat16, masters["d"], masters["b"], *rest[:3])
    assert len(maps) == 2  # W and ΔW apart
    assert torch.equal(maps[0], narrow["weight"])


@pytest.mark.parametrize("rank", [3, 20])
@pytest.mark.parametrize("by_weight", [True, False])
def test_only_x_is_kept_or_where_that_is_little_h(by_weight, rank, monkeypatch):
    """Beside the pair and W: x, n·d_in numbers; or, with 3·r ≤ d_in, n·r, whichever way the sums go."""
    monkeypatch.setattr(fused_vera, "cheaper_by_weight", lambda *_, **__: by_weight)
    arguments = list(tensors(n=(50,), d_in=40, d_out=30, r=rank).values())
    x = arguments[0].untyped_storage().data_ptr()
    known = {tensor.untyped_storage().data_ptr() for tensor in arguments}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda s: kept.append(s) or s, lambda s: s):
        fused_vera.vera(*arguments)
    found = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() // 8 for tensor in kept}
    assert (x in found) == (rank == 20)
    assert [size for where, size in found.items() if where not in known] == ([] if rank == 20 else [50 * rank])


def test_the_cheaper_way_is_taken():
    """Multiply-adds counted by hand: 1024 tokens, 512 × 512, r = 1024 and 16; few tokens."""
    assert fused_vera.cheaper_by_weight(1024, 1024, 512, 512, narrow=False)
    assert fused_vera.cheaper_by_weight(1024, 256, 512, 512, narrow=False)
    assert not fused_vera.cheaper_by_weight(1024, 16, 512, 512, narrow=False)
    assert not fused_vera.cheaper_by_weight(8, 1024, 512, 512, narrow=False)  # 25.2e6 against 807e6


def ours(make, targets, method="vera", **settings) -> Injected:
    chosen = methods.get(method)
    return inject(make(), chosen(chosen.Config(rank=RANK, **settings)), targets=targets)


def theirs(make, targets, **options) -> PeftModel:
    return get_peft_model(make(), VeraConfig(r=RANK, target_modules=targets, **options))


def vectors(model: PeftModel) -> dict[str, nn.Parameter]:
    found = {}
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, VeraLayer):
            found[f"{name}.d"], found[f"{name}.b"] = layer.vera_lambda_d["default"], layer.vera_lambda_b["default"]
    return found


def pair(case, **options) -> tuple[Injected, PeftModel]:
    """The two with the same d and b, as after some training."""
    mine, other = ours(*CASES[case], **options), theirs(*CASES[case], **options)
    generator = torch.Generator().manual_seed(3)
    own, copies = mine.trainable(), vectors(other)
    assert own.keys() == copies.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            copies[name].copy_(parameter)
    return mine, other


def logits(model: nn.Module) -> Tensor:
    return model(input_ids=models.tokens()).logits


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).detach().norm() / wanted.detach().norm())


@pytest.mark.parametrize("case", CASES)
def test_the_pair_is_pefts_to_the_bit(case):
    mine, other = ours(*CASES[case], projection_prng_key=7), theirs(*CASES[case], projection_prng_key=7)
    assert torch.equal(mine.method.pair.A, other.base_model.vera_A["default"])
    assert torch.equal(mine.method.pair.B, other.base_model.vera_B["default"])
    assert mine.parameter_count() == sum(p.numel() for p in vectors(other).values())
    for name, parameter in mine.trainable().items():
        assert torch.equal(parameter, vectors(other)[name]), name


@pytest.mark.parametrize("case", CASES)
def test_same_logits_and_gradients(case):
    mine, other = pair(case)
    found, wanted = logits(mine.model), logits(other)
    assert distance(found, wanted) < 2e-6  # float32: sums of at most 128 products in another order, twice
    found.square().mean().backward()
    wanted.square().mean().backward()
    for name, parameter in mine.trainable().items():
        assert distance(parameter.grad, vectors(other)[name].grad) < 2e-5, name  # through two layers of such


@pytest.mark.parametrize("save_projection", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_our_file_loads_in_peft(case, save_projection, tmp_path):
    mine, _ = pair(case, save_projection=save_projection, projection_prng_key=3)
    files = io.write(mine.export(), tmp_path)
    stored = {key for key in io._open(tmp_path)[0].tensors if "lambda" not in key}
    assert stored == ({"base_model.vera_A", "base_model.vera_B"} if save_projection else set()), files
    loaded = PeftModel.from_pretrained(CASES[case][0](), tmp_path)
    wanted = logits(mine.model.eval())
    assert distance(logits(loaded.eval()), wanted) < 2e-6
    assert distance(logits(CASES[case][0]().eval()), wanted) > 1e-3  # the adapter does something
    assert io.read(tmp_path).updates.keys() == mine.layers.keys()  # without the base: our file tells the widths


@pytest.mark.parametrize("save_projection", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_pefts_file_loads_here(case, save_projection, tmp_path):
    _, other = pair(case, save_projection=save_projection, projection_prng_key=5)
    other.save_pretrained(tmp_path / "adapter")
    CASES[case][0]().save_pretrained(tmp_path / "base")
    mine = ours(*CASES[case])  # another key: the pair must come from the file
    mine.load(io.read(tmp_path / "adapter", open_checkpoint(tmp_path / "base")))
    wanted = logits(other.eval())
    assert distance(logits(mine.model.eval()), wanted) < 2e-6
    io.write(mine.export(), tmp_path / "again")
    again = PeftModel.from_pretrained(CASES[case][0](), tmp_path / "again")
    assert distance(logits(again.eval()), wanted) < 2e-6
    resumed = ours(*CASES[case])
    resumed.load_state_dict(mine.state_dict())
    resumed.method.load_state_dict(mine.method.state_dict())
    assert torch.equal(logits(resumed.model.eval()), logits(mine.model))


def test_the_pair_is_held_once_and_saved_nowhere():
    mine = ours(*CASES["linear"])
    shares = [layer.delta.projections() for layer in mine.layers.values()]
    assert len({a.untyped_storage().data_ptr() for a, _ in shares}) == 1
    assert len({b.untyped_storage().data_ptr() for _, b in shares}) == 1
    assert sum(t.numel() for t in mine.state_dict().values()) == mine.parameter_count()
    roles = [update.roles["A"].values for update in mine.export().updates.values()]
    assert all(np.shares_memory(roles[0], other) for other in roles)
    twin = copy.deepcopy(mine.model)
    copies = {id(m.pair) for m in twin.modules() if hasattr(m, "pair")}
    assert len(copies) == 1


def test_two_pairs_in_a_file_are_refused(tmp_path):
    other = ours(models.llama, ["q_proj", "k_proj"], "vera_unshared")
    io.write(other.export(), tmp_path, "lorascope")
    with pytest.raises(InputError, match=r"shares one pair.*vera_unshared"):
        ours(models.llama, ["q_proj", "k_proj"]).load(io.read(tmp_path))


def test_a_file_of_another_rank(tmp_path):
    make, targets = CASES["linear"]
    other = get_peft_model(make(), VeraConfig(r=5, target_modules=targets))
    with torch.no_grad():
        for parameter in vectors(other).values():
            parameter.normal_(std=0.3)
    other.save_pretrained(tmp_path / "adapter")
    make().save_pretrained(tmp_path / "base")
    mine = ours(make, targets)
    mine.load(io.read(tmp_path / "adapter", open_checkpoint(tmp_path / "base")))
    assert distance(logits(mine.model.eval()), logits(other.eval())) < 2e-6
    assert mine.method.settings()["r"] == 5


@pytest.mark.parametrize(
    ("name", "trained", "d", "b"), [("vera_only_b", "b", 0.1, 0.0), ("vera_only_d", "d", 0.0, 1.0)]
)
def test_one_vector_alone(name, trained, d, b, tmp_path):
    mine = ours(*CASES["linear"], name)
    assert {key.rpartition(".")[2] for key in mine.trainable()} == {trained}
    delta = next(iter(mine.layers.values())).delta
    assert (delta.d == d).all()
    assert (delta.b == b).all()
    assert distance(logits(mine.model.eval()), logits(CASES["linear"][0]().eval())) < 1e-6
    logits(mine.model).square().mean().backward()
    assert all(parameter.grad.norm() > 0 for parameter in mine.trainable().values())  # it learns from where it starts
    with torch.no_grad():
        for parameter in mine.trainable().values():
            parameter.add_(0.2)
    io.write(mine.export(), tmp_path)
    loaded = PeftModel.from_pretrained(models.llama(), tmp_path)
    assert distance(logits(loaded.eval()), logits(mine.model)) < 2e-6


def test_unshared_pairs_differ_and_are_stored_as_their_draws(tmp_path):
    make, targets = CASES["linear"]
    mine = ours(make, targets, "vera_unshared")
    with torch.no_grad():
        for parameter in mine.trainable().values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    io.write(mine.export(), tmp_path, "lorascope")
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 4 * mine.parameter_count() + 4000
    updates = list(io.read(tmp_path).updates.values())
    assert all(isinstance(update.roles[role], Drawn) for update in updates for role in "AB")
    assert len({update.roles[role].seed for update in updates for role in "AB"}) == 2 * len(updates)
    for update in updates:  # Kaiming uniform with gain √2, of the layer's own widths
        a, b = update.roles["A"].read(), update.roles["B"].read()
        assert np.abs(a).max() <= (6 / a.shape[1]) ** 0.5
        assert np.abs(b).max() <= (6 / RANK) ** 0.5
        assert np.abs(a).mean() == pytest.approx((6 / a.shape[1]) ** 0.5 / 2, rel=0.15)  # ≥ 384 draws: ±3 % each, 5 σ
    other = inject(make(), mine.method.__class__(mine.method.config), targets=targets, seed=9)
    other.load(io.read(tmp_path))
    assert torch.equal(logits(other.model.eval()), logits(mine.model.eval()))
    assert all(isinstance(u.roles["A"], Drawn) for u in other.export().updates.values())  # still draws


def test_unshared_as_lora_loads_in_peft(tmp_path):
    make, targets = CASES["conv1d"]
    mine = ours(make, targets, "vera_unshared")
    with torch.no_grad():
        for parameter in mine.trainable().values():
            parameter.add_(0.3)
    plain = to_low_rank(mine.export())
    for name, update in plain.updates.items():
        np.testing.assert_allclose(
            dense(update.delta()),
            dense(mine.export().updates[name].delta()),
            rtol=0,
            atol=1e-6,  # A' and B' rounded to float32
        )
    io.write(plain, tmp_path)
    loaded = PeftModel.from_pretrained(make(), tmp_path)
    assert distance(logits(loaded.eval()), logits(mine.model.eval())) < 2e-6


def test_unshared_numbers_may_be_stored(tmp_path):
    mine = ours(*CASES["linear"], "vera_unshared", save_projection=True)
    io.write(mine.export(), tmp_path, "lorascope")
    read = io.read(tmp_path)
    assert not any(isinstance(update.roles["A"], Drawn) for update in read.updates.values())
    other = ours(*CASES["linear"], "vera_unshared")
    other.load(read)
    third = ours(*CASES["linear"], "vera_unshared")
    third.load(read)
    third.load_state_dict(other.state_dict())
    assert torch.equal(logits(third.model.eval()), logits(mine.model.eval()))


def test_dropout_acts_on_the_update_alone():
    torch.manual_seed(0)
    mine = ours(*CASES["linear"], dropout=0.5)
    base = logits(CASES["linear"][0]())
    assert distance(logits(mine.model.train()), base) < 1e-6  # b is 0: nothing of the base is dropped
    with torch.no_grad():
        for layer in mine.layers.values():
            layer.delta.b.fill_(0.3)
    assert distance(logits(mine.model), logits(mine.model)) > 1e-3
    assert torch.equal(logits(mine.model.eval()), logits(mine.model))


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"dropout": 1.0}, {"projection_prng_key": -1}])
def test_settings_that_make_no_sense(wrong):
    with pytest.raises(InputError):
        methods.get("vera").Config(**wrong)


def test_a_pair_that_the_key_does_not_give_is_saved_whatever_the_setting(tmp_path):
    """PEFT would draw another pair from the key: the file of an adapter that took one from elsewhere has to hold it."""
    source = ours(*CASES["linear"], projection_prng_key=5)
    with torch.no_grad():
        for parameter in source.trainable().values():
            parameter.add_(0.1)
    mine = ours(*CASES["linear"], save_projection=False, projection_prng_key=3)
    mine.load(source.export())
    assert mine.method.settings()["save_projection"] is True
    io.write(mine.export(), tmp_path)
    loaded = PeftModel.from_pretrained(CASES["linear"][0](), tmp_path)
    assert distance(logits(loaded.eval()), logits(source.model.eval())) < 2e-6
