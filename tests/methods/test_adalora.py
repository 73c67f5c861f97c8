"""AdaLoRA against PEFT's own allocator, its schedule, and files with cut ranks both ways."""

import pytest
import torch
from peft import AdaLoraConfig, PeftModel, get_peft_model
from torch import nn

from lorascope.adapt.inject import Injected, inject
from lorascope.errors import InputError
from lorascope.methods.adalora import AdaLoRA, AdaLoRAConfig
from lorascope.weights import io
from tests.methods import models

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
TARGETS = ["query", "value", "dense"]
LABELS = torch.tensor([0, 2])
SCHEDULE = {"init_r": 4, "target_r": 2, "tinit": 3, "tfinal": 4, "deltaT": 2, "orth_reg_weight": 0.3}
STEPS = 20


def ours(make=models.bert, targets=TARGETS, **options) -> Injected:
    config = AdaLoRAConfig(**{**SCHEDULE, "alpha": 6.0, "orth_reg": "mean-norm", **options})
    return inject(make(), AdaLoRA(config), targets=targets)


def theirs(make=models.bert, targets=TARGETS, **options) -> PeftModel:
    config = {**SCHEDULE, "lora_alpha": 6, "total_step": STEPS, **options}
    return get_peft_model(make(), AdaLoraConfig(target_modules=targets, **config))


def copied(mine: Injected, other: PeftModel, roles: str = "ABE") -> None:
    """PEFT's numbers become ours."""
    with torch.no_grad():
        for name, layer in mine.layers.items():
            module = other.base_model.model.get_submodule(name)
            module.ranknum.requires_grad_(False)  # PEFT 0.21.2 trains it where the base is not float32
            for role in roles:
                getattr(module, f"lora_{role}")["default"].copy_(getattr(layer.delta, role))


def trained(mine: Injected, steps: int, total: int = STEPS, seed: int = 0) -> None:
    """Steps with gradients that are random but for E's own, which are proportional to E's position."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(steps):
        mine.method.before_step(step, total)
        with torch.no_grad():
            for p in mine.trainable().values():
                p.grad = torch.randn(p.shape, generator=generator)
                p.sub_(0.01 * p.grad.sign())
        mine.method.after_step(step, total)


def double() -> nn.Module:
    return models.bert().double()


def test_every_step_is_that_of_pefts_allocator():
    """In float64, over a whole schedule: budgets, scores, masks and weights. PEFT is called with the steps done."""
    mine, other = ours(double), theirs(double)
    copied(mine, other)
    allocator = other.base_model.rankallocator
    # ε is large, or Adam would divide rounding by rounding where a gradient is 0
    both = [[p for p in model.parameters() if p.requires_grad] for model in (mine.model, other)]
    optimisers = [torch.optim.AdamW(parameters, 0.01, eps=1e-4) for parameters in both]
    ids = models.tokens()
    cuts = []
    for step in range(STEPS):
        other.base_model(input_ids=ids, labels=LABELS).loss.backward()  # PeftModel itself would leave the penalty out
        (mine.model(input_ids=ids, labels=LABELS).loss + mine.method.penalty()).backward()
        mine.method.before_step(step, STEPS)
        for optimiser in optimisers:
            optimiser.step()
        before = other.peft_config["default"].rank_pattern
        other.base_model.update_and_allocate(step + 1)
        mine.method.after_step(step, STEPS)
        for optimiser in optimisers:
            optimiser.zero_grad()
        assert mine.method.budget(step + 1, STEPS) == allocator.budget_schedule(step + 1)[0]
        pattern = other.peft_config["default"].rank_pattern
        cuts.append(pattern is not before)
        for name, layer in mine.layers.items():
            module, delta = other.base_model.model.get_submodule(name), layer.delta
            for role in "ABE":
                wanted = getattr(module, f"lora_{role}")["default"]
                # gradients agree to 1e-15; 20 steps of Adam divide that by ε at worst
                torch.testing.assert_close(getattr(delta, role), wanted, rtol=1e-9, atol=1e-10)
            key = f"{name}.lora_{{}}.default"
            if mine.method.sensitivity:
                for role in "ABE":
                    wanted = allocator._element_score(key.format(role))
                    found = mine.method.sensitivity[f"{name}.{role}"] * mine.method.uncertainty[f"{name}.{role}"]
                    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-15)
            if pattern:
                assert delta.mask.flatten().tolist() == pattern[f"{name}.lora_E.default"], (step, name)
    assert [step + 1 for step, cut in enumerate(cuts) if cut] == [4, 6, 8, 10, 12, 14, 16]
    ranks = mine.method.ranks()
    assert sum(ranks.values()) == 2 * len(mine.layers)
    assert len(set(ranks.values())) > 1  # the budget was moved between layers, or nothing was tested


@pytest.mark.parametrize(
    "schedule",
    [{}, {"tfinal": 0}, {"tinit": 0, "tfinal": 0, "deltaT": 7}, {"init_r": 2}, {"target_r": 3, "deltaT": 100}],
)
def test_the_final_rank_is_the_budget(schedule):
    """Whatever the schedule; with init_r equal to target_r too, where PEFT fails."""
    mine = ours(**schedule)
    trained(mine, STEPS)
    budget = mine.method.config.target_r * len(mine.layers)
    assert sum(mine.method.ranks().values()) == budget
    assert sum(update.rank for update in mine.export().updates.values()) == budget
    assert mine.method.summary() == {"total_rank": budget, "ranks": mine.method.ranks()}


def test_ties_leave_the_budget_exact():
    """All scores equal: the first layers and rows stay. PEFT's threshold would leave none."""
    mine = ours()
    trained(mine, 1)
    for kept in (mine.method.sensitivity, mine.method.uncertainty):
        for values in kept.values():
            values.fill_(1.0)
    mine.method.keep(6)
    assert list(mine.method.ranks().values())[:3] == [4, 2, 0]
    assert sum(mine.method.ranks().values()) == 6


def test_what_is_cut_stays_cut_in_the_final_phase():
    mine = ours()
    trained(mine, STEPS - 4)
    masks = {name: layer.delta.mask.clone() for name, layer in mine.layers.items()}
    for layer in mine.layers.values():
        layer.delta.E.data.add_(1.0)  # an optimiser's momentum
    assert any((layer.delta.E != 0)[~masks[name]].any() for name, layer in mine.layers.items())
    mine.method.after_step(STEPS - 4, STEPS)
    for name, layer in mine.layers.items():
        assert torch.equal(layer.delta.E != 0, masks[name])
        assert torch.equal(layer.delta.mask, masks[name])
    assert not mine.method.sensitivity


def test_between_two_cuts_a_file_has_what_the_layer_does():
    """A triplet that was cut and grows again is in the file, though its rank may be taken away once more."""
    mine = ours()
    trained(mine, 8)
    x = torch.randn(2, 32)
    for name, layer in mine.layers.items():
        layer.delta.E.data.add_(0.1)
        update = mine.export().updates[name]
        assert update.rank == 4
        if layer.delta.A.shape[1] == 32:
            wanted = x.double().numpy() @ update.delta().dense().T
            torch.testing.assert_close(layer.delta(x).detach().double(), torch.from_numpy(wanted), rtol=1e-4, atol=1e-6)


def test_a_schedule_without_room_to_cut_is_refused():
    mine = ours(tinit=10, tfinal=10)
    with pytest.raises(InputError, match="leave no step to cut ranks in; found 20 steps in all"):
        mine.method.before_step(0, STEPS)
    with pytest.raises(InputError, match="do not shrink"):
        AdaLoRAConfig(init_r=2, target_r=3)


@pytest.mark.parametrize("form", ["squared", "mean-norm"])
def test_the_penalty_is_its_formula(form):
    mine = ours(orth_reg=form)
    norms = []
    for layer in mine.layers.values():
        a, b = layer.delta.A.detach().double(), layer.delta.B.detach().double()
        norms += [torch.linalg.norm(gram - torch.eye(4)) for gram in (a @ a.T, b.T @ b)]
    stacked = torch.stack(norms)
    wanted = 0.3 * (stacked.square().sum() if form == "squared" else stacked.mean())
    assert float(mine.method.penalty()) == pytest.approx(float(wanted), rel=1e-5)  # float32
    for layer in mine.layers.values():
        nn.init.orthogonal_(layer.delta.A), nn.init.orthogonal_(layer.delta.B)
    mine.method.penalty().backward()
    gradients = torch.cat([p.grad.flatten() for p in mine.trainable().values() if p.grad is not None])
    assert gradients.isfinite().all()  # the slope of a norm at 0
    assert ours(orth_reg_weight=0.0).method.penalty() is None


@pytest.mark.parametrize("case", [(models.bert, TARGETS), (models.gpt2, ["c_attn", "c_fc"])])
def test_our_cut_file_loads_in_peft(case, tmp_path):
    make, targets = case
    mine = ours(make, targets)
    trained(mine, STEPS)
    empty = next(iter(mine.layers.values())).delta  # PEFT's layers may have rank 0, so ours must be able to
    empty.mask.fill_(False)
    empty.cut()
    io.write(mine.export(), tmp_path)
    loaded = PeftModel.from_pretrained(make(), tmp_path).eval()
    ids = models.tokens()
    wanted, found = mine.model.eval()(input_ids=ids).logits, loaded(input_ids=ids).logits
    base = make().eval()(input_ids=ids).logits
    # float32 products in another order; the update itself is far larger than that
    assert float((found - wanted).detach().norm()) < 1e-5 * float((base - wanted).detach().norm()) + 1e-6
    assert float((base - wanted).detach().norm() / base.detach().norm()) > 1e-3
    again = ours(make, targets)
    again.load(io.read(tmp_path))
    assert torch.equal(again.model.eval()(input_ids=ids).logits, wanted) or torch.allclose(
        again.model.eval()(input_ids=ids).logits, wanted, rtol=1e-5, atol=1e-6
    )
    assert again.method.ranks() == {name: update.rank for name, update in mine.export().updates.items()}


def test_pefts_cut_file_loads_here(tmp_path):
    other = theirs(tinit=0, tfinal=1, deltaT=1)
    optimiser = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], 0.05)
    ids = models.tokens()
    for step in range(STEPS):
        other.base_model(input_ids=ids, labels=LABELS).loss.backward()  # PeftModel itself would leave the penalty out
        optimiser.step()
        other.base_model.update_and_allocate(step + 1)
        optimiser.zero_grad()
    wanted = other.eval()(input_ids=ids).logits
    other.save_pretrained(tmp_path)
    mine = ours()
    mine.load(io.read(tmp_path))
    assert sum(mine.method.ranks().values()) == 2 * len(mine.layers)
    torch.testing.assert_close(mine.model.eval()(input_ids=ids).logits, wanted, rtol=1e-5, atol=1e-6)  # float32


def test_it_saves_no_more_for_backward_than_peft():
    mine, other = ours(models.llama, "all-linear"), theirs(models.llama, "all-linear")
    for model in (mine.model, other):
        model.enable_input_require_grads()  # every layer's input then wants its gradient
    ids = models.tokens(4, 32)
    assert saved_bytes(mine.model, ids) <= saved_bytes(other, ids)


def saved_bytes(model: nn.Module, ids: torch.Tensor) -> int:
    """Bytes kept for backward in distinct storages that are no parameter's."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.train()(input_ids=ids)
    return sum(storage.nbytes() for storage in kept.values())


def test_a_random_choice_keeps_the_budget_by_the_seed_alone():
    """Whatever the sensitivities say: opposite ones leave the same triplets, and another seed leaves others."""
    kept = []
    for seed, sign in ((0, 1.0), (0, -1.0), (1, 1.0)):
        config = AdaLoRAConfig(**{**SCHEDULE, "choice": "random"})
        injected = inject(models.bert(), AdaLoRA(config), targets=TARGETS, seed=seed)
        method = injected.method
        method.sensitivity = {
            f"{name}.{role}": sign * torch.arange(p.numel(), dtype=p.dtype).view_as(p)
            for name, layer in injected.layers.items()
            for role, p in (("A", layer.delta.A), ("B", layer.delta.B), ("E", layer.delta.E))
        }
        method.uncertainty = {name: torch.ones_like(p) for name, p in method.sensitivity.items()}
        method.keep(5)
        kept.append([layer.delta.mask.flatten().tolist() for layer in injected.layers.values()])
        assert sum(method.ranks().values()) == 5
    assert kept[0] == kept[1] != kept[2]


def test_importance_has_a_rate_for_each_of_its_two_means():
    """Two steps by hand: Ī ← β1·Ī + (1 − β1)·I, Ū ← β2·Ū + (1 − β2)·|I − Ī|, with I = |p·g|; β1 is not β2."""
    mine = ours(beta1=0.9, beta2=0.6)
    mean, spread = {}, {}
    generator = torch.Generator().manual_seed(1)
    for step in range(2):
        mine.method.before_step(step, STEPS)
        for parameter in mine.trainable().values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            with torch.no_grad():
                parameter.add_(0.1)
        for name, layer in mine.layers.items():
            for role in "ABE":
                p = getattr(layer.delta, role).detach().double()
                i = (p * getattr(layer.delta, role).grad).abs()
                key = f"{name}.{role}"
                mean[key] = 0.9 * mean.get(key, 0) + 0.1 * i
                spread[key] = 0.6 * spread.get(key, 0) + 0.4 * (i - mean[key]).abs()
        mine.method.after_step(step, STEPS)
    for found, wanted in ((mine.method.sensitivity, mean), (mine.method.uncertainty, spread)):
        for key, value in wanted.items():
            torch.testing.assert_close(found[key].double(), value, rtol=1e-5, atol=1e-9)  # float32


def test_a_single_step_is_observed_and_cut_at_once():
    """The schedule's end is its first step: nothing was observed before, and that step's importance chooses."""
    mine = ours(tinit=0, tfinal=0)
    trained(mine, 1, total=1)
    assert sum(mine.method.ranks().values()) == 2 * len(mine.layers)
    assert len(set(mine.method.ranks().values())) > 1  # by importance, not by the place in a list of equals
    assert not mine.method.sensitivity
