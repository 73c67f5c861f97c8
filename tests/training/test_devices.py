"""Training on a device that is not the CPU, by the simulated one of `tests/cuda.py`: every tensor is where it must be,
the numbers are the CPU's, and between two lines of the log the host never waits.
"""

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM

from lorascope.adapt.inject import inject
from lorascope.adapt.method import methods
from lorascope.adapt.stacked import skeleton
from lorascope.training.batches import Encoded
from lorascope.training.config import parse, resolved
from lorascope.training.loop import Loop
from lorascope.training.member import Member
from lorascope.training.parallel import World
from lorascope.training.run import inject_method
from lorascope.training.scores import evaluate
from tests.cuda import CUDA, simulated

CPU = torch.device("cpu")
SIZES = {"hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 32}
STEPS = 3


def bert():
    torch.manual_seed(0)
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(BertConfig(**SIZES, **quiet, num_labels=3, max_position_embeddings=32))


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2, use_cache=False))


def texts(model) -> Encoded:
    """12 texts of 2 to 7 tokens, so that some passes are padded."""
    generator = torch.Generator().manual_seed(1)
    tokens = [torch.randint(1, 32, (2 + i % 6,), generator=generator).tolist() for i in range(12)]
    return Encoded(tokens, None if isinstance(model, LlamaForCausalLM) else [i % 3 for i in range(12)], pad=0)


def settings(task: str, method: dict, seed: int = 0, **training):
    known = {"rank": 2, "d": 20, "init_r": 3, "target_r": 2} | method
    fields = {*methods.get(method["name"]).Config.__dataclass_fields__, "name", "targets", "modules_to_save"}
    section = {key: value for key, value in known.items() if key in fields}
    if methods.get(method["name"]).uses_targets:
        section |= {"targets": method.get("targets", "all-linear")}
    plain = {"per_device_train_batch_size": 2, "max_steps": STEPS, "logging_steps": 100, "seed": seed, "device": "cpu"}
    return parse(
        {
            "model": {"name": "-", "task_type": task},
            "data": {"path": "-"},
            "method": section,
            "optim": {"learning_rate": 1e-2, "warmup_steps": 2},
            "training": plain | training,
        }
    )


def members(base, configs, device) -> list[Member]:
    data, here = texts(base), World(device)
    return [Member(inject_method(skeleton(base), config), data, data, config, here) for config in configs]


def trained(make, configs, place, device=None) -> tuple[list[dict[str, torch.Tensor]], list[float]]:
    """Each member's adapter after STEPS steps, on the CPU, and its held-out loss; on a `device` without a wait."""
    loop = Loop.together(members(make().to(place), configs, place))
    for member in loop.members:
        member.injected.model.train()
    for step in range(STEPS):
        if step == 1 and device:  # what is sent once, a shared pair of matrices say, is sent in the first step
            device.waits.clear()
        loop._step()
        loop._end_diverged()
        loop.step += 1
    assert not (device and device.waits), device.waits
    adapters = [{k: v.detach().cpu().clone() for k, v in m.injected.trainable().items()} for m in loop.members]
    losses = [evaluate(m.injected.model.eval(), m.held_out, 4, m.world).loss for m in loop.members]
    return adapters, losses


def same(found, wanted) -> None:
    for ours, theirs in zip(found[0], wanted[0], strict=True):
        assert ours.keys() == theirs.keys()
        # The sums differ in order (`products.py`): float32 rounding. Where a gradient is rounding alone, as that of a
        # key's bias, AdamW still moves by the learning rate in any direction, so single entries are not compared.
        error = sum(float((ours[k] - theirs[k]).square().sum()) for k in theirs if not k.endswith("key.bias"))
        assert error**0.5 < 1e-3 * sum(float(v.square().sum()) for v in theirs.values()) ** 0.5
    assert found[1] == pytest.approx(wanted[1], rel=1e-5)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_trains_on_a_device_as_on_the_cpu_and_never_waits(name):
    make, task = (llama, "CAUSAL_LM") if name in ("prompt", "prefix") else (bert, "SEQ_CLS")
    config = settings(task, {"name": name})
    wanted = trained(make, [config], CPU)
    with simulated() as device:
        found = trained(make, [config], CUDA, device)
    same(found, wanted)


def test_the_simulated_device_refuses_what_cuda_refuses_and_sees_each_wait():
    with simulated() as device:
        x, on_host = torch.ones(2, 3, device="cuda"), torch.ones(2, 3)
        for wrong in (lambda: x + on_host, lambda: x @ on_host.t(), lambda: torch.cat([x, on_host])):
            with pytest.raises(RuntimeError, match="same device"):
                wrong()
        with pytest.raises(RuntimeError, match="generator"):
            torch.randn(3, generator=torch.Generator(), device="cuda")
        assert (x + torch.tensor(1.0)).device == CUDA  # a number may come from the host
        torch.randn(3, generator=torch.Generator("cuda"), device="cuda")
        x.copy_(on_host, non_blocking=True)
        on_host.to("cuda", non_blocking=True)
        assert device.waits == []
        for waiting in (
            lambda: x.sum().item(), lambda: bool(x[0, 0] > 0), x.cpu, x.tolist, lambda: on_host.to("cuda"),
            lambda: torch.tensor([1.0], device="cuda"), lambda: x[x > 0], lambda: (x > 0).nonzero(),
        ):  # fmt: skip
            device.waits.clear()
            waiting()
            assert len(device.waits) == 1
            assert __file__ in device.waits[0]


def mixed():
    """Ranks that differ, a method that goes by its own code, dropout, and a member that leaves early."""
    ranks = [{"name": "lora", "rank": 2}, {"name": "lora", "rank": 4}, {"name": "lora", "rank": 2, "dropout": 0.2}]
    return [settings("CAUSAL_LM", method, seed) for seed, method in enumerate([*ranks, {"name": "dora", "rank": 3}])]


def test_members_of_a_sweep_train_on_a_device_as_on_the_cpu_and_never_wait():
    configs = mixed()
    wanted = trained(llama, configs, CPU)
    with simulated() as device:
        found = trained(llama, configs, CUDA, device)
    same(found, wanted)


def test_a_member_that_diverges_on_a_device_leaves_the_others_alone():
    good = settings("CAUSAL_LM", {"name": "lora"})
    bad = parse({**resolved(good), "optim": {"learning_rate": 1e30}})
    wanted = trained(llama, [good], CPU)
    with simulated() as device:
        loop = Loop.together(members(llama().to(CUDA), [good, bad], CUDA))
        for _ in range(STEPS):
            loop._step()
            loop.step += 1
            loop._end_diverged()  # looks only where the host waits anyway: here at the end
        first, second = loop.members
        assert sum("member.py" in wait for wait in device.waits) == 2
        found = {key: value.detach().cpu() for key, value in first.injected.trainable().items()}
        loss = evaluate(first.injected.model.eval(), first.held_out, 4, first.world).loss
    assert (first.ended, second.ended) == (None, "diverged")
    assert second.step == 2
    same(([found], [loss]), wanted)


def test_merging_and_reading_back_on_a_device():
    with simulated():
        injected = inject(llama().to(CUDA), methods.get("lora")(), targets="all-linear")
        with torch.no_grad():
            for parameter in injected.trainable().values():
                parameter.add_(0.01)
        ids = torch.arange(12, device="cuda").view(2, 6)
        wanted = injected.model(ids).logits.cpu()
        other = inject(llama().to(CUDA), methods.get("lora")(), targets="all-linear", seed=5)
        other.load(injected.export())
        torch.testing.assert_close(other.model(ids).logits.cpu(), wanted)  # the same numbers: float32 rounding
        injected.merge()
        torch.testing.assert_close(injected.model(ids).logits.cpu(), wanted, rtol=1e-4, atol=1e-5)  # W is rounded
        injected.unmerge()


def test_gradient_accumulation_and_checkpointing_on_a_device():
    config = settings("CAUSAL_LM", {"name": "lora", "dropout": 0.2}, gradient_accumulation_steps=2)
    make = checkpointed
    wanted = trained(make, [config], CPU)
    with simulated() as device:
        found = trained(make, [config], CUDA, device)
    same(found, wanted)


def checkpointed():
    model = llama()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


@pytest.mark.gpu
def test_a_step_on_a_gpu_never_waits():
    loop = Loop.together(members(llama().cuda(), mixed(), torch.device("cuda", 0)))
    for step in range(STEPS):
        torch.cuda.set_sync_debug_mode("default" if step == 0 else "error")
        try:
            loop._step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        loop.step += 1


def test_members_of_different_ranks_are_padded_by_one_copy_a_pass():
    """And not by one for each factor and layer: copies are counted in the step after the first."""
    counts = {}
    for ranks in ((2, 2), (2, 3)):
        configs = [settings("CAUSAL_LM", {"name": "lora", "rank": rank}) for rank in ranks]
        with simulated() as device:
            loop = Loop.together(members(llama().to(CUDA), configs, CUDA))
            for _ in range(2):
                device.launched.clear()
                loop._step()
                loop.step += 1
            counts[ranks] = sum(n for name, n in device.launched.items() if "copy" in name or "stack" in name)
            copies = device.launched["aten._foreach_copy_.default"]
        assert copies == (ranks[0] != ranks[1])
    layers = 7  # of each, autograd puts the gradient of the smaller B, cut to its rank, in order
    assert counts[2, 3] == counts[2, 2] + 1 + layers


ALONE, TOGETHER = [{"name": "lora"}], [{"name": "lora", "rank": 2}, {"name": "lora", "rank": 3}]


@pytest.mark.slow  # seconds of tracing
@pytest.mark.parametrize("configs", [ALONE, TOGETHER])
def test_a_compiled_pass_gives_the_same(configs, monkeypatch):
    traced = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **_: traced(model, backend="eager", dynamic=False))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain = [settings("CAUSAL_LM", each, i) for i, each in enumerate(configs)]
    compiled = [settings("CAUSAL_LM", each, i, compile=True) for i, each in enumerate(configs)]
    same(trained(llama, compiled, CPU), trained(llama, plain, CPU))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2  # one length, up to the multiple; no breaks
    assert not torch._dynamo.utils.counters["graph_break"]


def test_where_compiling_fails_training_goes_on_and_says_so(monkeypatch):
    def failing(model, **_):
        def call(**__):
            raise RuntimeError("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", failing)
    config = settings("CAUSAL_LM", {"name": "lora"}, compile=True)
    with pytest.warns(UserWarning, match=r"goes on without training\.compile.*no C\+\+ compiler"):
        found = trained(llama, [config], CPU)
    same(found, trained(llama, [settings("CAUSAL_LM", {"name": "lora"})], CPU))
    config = settings("CAUSAL_LM", {"name": "lora", "dropout": 0.1}, compile=True)
    with pytest.warns(UserWarning, match="skipped: adapters with dropout share a pass"):
        trained(llama, [config, config], CPU)


def test_evaluating_waits_once():
    with simulated() as device:
        model = bert().to(CUDA)
        device.waits.clear()
        score = evaluate(model, texts(model), 4, World(CUDA))
        assert len(device.waits) == 1
    plain = bert()
    assert score.loss == pytest.approx(evaluate(plain, texts(plain), 4, World(CPU)).loss, rel=1e-6)  # float32
