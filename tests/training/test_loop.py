import json
import math
import shutil
from dataclasses import asdict

import numpy as np
import pytest
import torch

from lorascope.errors import LorascopeError
from lorascope.training import run
from lorascope.training.config import OptimConfig
from lorascope.training.loop import Loop
from lorascope.training.member import learning_rate_factor
from lorascope.training.parallel import World
from lorascope.training.run_folder import Record, read_summary
from lorascope.training.scores import TextScores, evaluate

HERE = World(torch.device("cpu"))


def trained(config):
    """The adapter's state after the run, and the score."""
    prepared = run.prepare(config, HERE.device)
    score = Loop(prepared.injected, prepared.train, prepared.held_out, config, HERE).run()
    return {name: tensor.clone() for name, tensor in prepared.injected.state_dict().items()}, score


def difference(one, other):
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_accumulation_weighs_every_token_the_same(language_model):
    """Texts of unequal length: a mean of means would differ. Dropout is off, so the split into passes is all."""
    whole, _ = trained(language_model("training.per_device_train_batch_size=8"))
    parts, _ = trained(
        language_model("training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=4")
    )
    assert difference(whole, parts) < 1e-5  # float32 sums in another order, through 4 steps of Adam at 1e-2


def test_a_step_follows_the_gradient_of_the_mean_loss(classifier, tiny_bert, tmp_path):
    """Against autograd on the plain mean over the step's texts, with the base's dropout off.

    In the base's own config: attention's is a module in transformers 5, and a plain number in 4.
    """
    base = shutil.copytree(tiny_bert, tmp_path / "bert")
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (base / "config.json").write_text(json.dumps(json.loads((base / "config.json").read_text()) | off))
    more = ("method.dropout=0.0", "training.max_steps=1", "optim.max_grad_norm=null")
    config = classifier(f"model.name={base}", *more)
    prepared = run.prepare(config, HERE.device)
    loop = Loop(prepared.injected, prepared.train, prepared.held_out, config, HERE)
    (indices,) = loop.members[0].order.micro_batches(0, 4, 1)
    batch = prepared.train.batch(indices)
    logits = prepared.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    parameters = prepared.injected.trainable()
    expected = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, batch.labels), list(parameters.values()))
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    loop.run()
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        moved = before[name] - parameter.detach()
        step = 1e-2 * gradient / (gradient.abs() + 1e-8)  # Adam's first step is lr · g / (|g| + ε)
        torch.testing.assert_close(moved, step, atol=1e-6, rtol=1e-3, msg=name)


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant"])
def test_the_schedule_is_its_formula(kind):
    config = OptimConfig(lr_scheduler_type=kind, warmup_ratio=0.2)
    factors = [learning_rate_factor(step, 10, config) for step in range(10)]
    assert factors[:2] == [0.5, 1.0]
    after = {
        "linear": [1 - k / 8 for k in range(8)],
        "cosine": [0.5 + 0.5 * math.cos(math.pi * k / 8) for k in range(8)],
        "constant": [1.0] * 8,
    }
    assert factors[2:] == pytest.approx(after[kind])


def test_evaluation_is_the_mean_over_targets_and_leaves_the_mode(language_model):
    prepared = run.prepare(language_model(), HERE.device)
    prepared.model.train()
    score = evaluate(prepared.model, prepared.held_out, 3, HERE)
    assert prepared.model.training
    prepared.model.eval()
    losses = []
    with torch.no_grad():
        for tokens in prepared.held_out.tokens:  # one text at a time: no padding anywhere
            ids = torch.tensor([tokens])
            logits = prepared.model(input_ids=ids).logits[0, :-1]
            losses += (-logits.log_softmax(-1)[range(len(tokens) - 1), ids[0, 1:]]).tolist()
    assert score.targets == len(losses)
    assert score.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)  # float32


def test_evaluating_more_often_changes_nothing(classifier):
    seldom, _ = trained(classifier())
    often, _ = trained(classifier("training.eval_steps=1"))
    assert difference(seldom, often) == 0.0  # dropout is on: its random numbers belong to the step


def test_gradient_checkpointing_changes_nothing(classifier, language_model):
    for make in (classifier, language_model):
        plain, _ = trained(make())
        checkpointed, _ = trained(make("training.gradient_checkpointing=true"))
        assert difference(plain, checkpointed) < 1e-6  # the same numbers, dropout masks included, recomputed


def test_seeds_differ_and_repeat(classifier):
    one, _ = trained(classifier("training.seed=1"))
    again, _ = trained(classifier("training.seed=1"))
    other, _ = trained(classifier("training.seed=2"))
    assert difference(one, again) == 0.0
    assert difference(one, other) > 0.01


def test_bf16_trains_float32_masters_on_a_bfloat16_base(classifier, language_model):
    for make in (classifier, language_model):
        config = make("training.bf16=true", "training.max_steps=20")
        prepared = run.prepare(config, HERE.device)
        base = {n: p for n, p in prepared.model.named_parameters() if not p.requires_grad}
        before = {name: parameter.clone() for name, parameter in base.items()}
        loop = Loop(prepared.injected, prepared.train, prepared.held_out, config, HERE)
        first = evaluate(prepared.model, prepared.train, 8, HERE).loss
        loop.run()
        assert {p.dtype for p in prepared.injected.trainable().values()} == {torch.float32}
        assert torch.bfloat16 in {p.dtype for p in base.values()}
        assert all(torch.equal(before[name], parameter) for name, parameter in base.items())  # the base is frozen
        assert evaluate(prepared.model, prepared.train, 8, HERE).loss < first


def test_the_best_adapter_is_kept(language_model):
    """At a learning rate that soon overshoots, the last adapter is worse than the best one."""
    overrides = ("optim.learning_rate=0.5", "training.max_steps=12", "training.eval_steps=1")
    _, last = trained(language_model(*overrides))
    config = language_model(*overrides, "training.load_best_model_at_end=true")
    prepared = run.prepare(config, HERE.device)
    loop = Loop(prepared.injected, prepared.train, prepared.held_out, config, HERE)
    best = loop.run()
    assert best.loss < last.loss
    assert loop.best["step"] < 12
    again = evaluate(prepared.model, prepared.held_out, 64, HERE)
    assert again.loss == pytest.approx(best.loss, rel=1e-6)  # what is in the model is what was scored, text by text


def test_a_loss_that_is_no_number_stops_the_run(language_model):
    config = language_model()
    prepared = run.prepare(config, HERE.device)
    next(iter(prepared.injected.trainable().values())).data.fill_(math.nan)
    with pytest.raises(LorascopeError, match="diverged at step 1; found a loss of nan"):
        Loop(prepared.injected, prepared.train, prepared.held_out, config, HERE).run()


def test_divergence_is_seen_at_its_step_and_nothing_is_written_after_it(language_model, tmp_path):
    """The third gradient is made infinite. The log comes every hundred steps and a checkpoint is due at each."""
    config = language_model("training.logging_steps=100", "training.max_steps=6", "training.save_steps=1")
    prepared = run.prepare(config, HERE.device)
    loop = Loop(prepared.injected, prepared.train, prepared.held_out, config, HERE)
    (member,) = loop.members
    steps, states = [], []

    def before(step, total):
        states.append({name: tensor.clone() for name, tensor in prepared.injected.state_dict().items()})
        if step == 2:
            member.parameters[0].grad.fill_(math.inf)

    member.method.before_step = before
    member.method.after_step = lambda step, _: steps.append(step)
    with pytest.raises(LorascopeError, match=r"diverged at step 3; found a loss of \d.* and a gradient norm of inf"):
        loop.run(Record(tmp_path, config))
    assert steps == [0, 1]  # the third was not stepped
    assert difference(states[2], prepared.injected.state_dict()) == 0.0
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 2


def test_a_fused_optimiser_skips_the_step_that_the_flag_forbids():
    """What a GPU relies on: `found_inf` is torch's own, of its gradient scaler."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, fused=True)
    for flag, moved in ((0.0, True), (1.0, False)):
        before = parameter.detach().clone()
        parameter.grad = torch.full((3,), math.nan if flag else 1.0)
        optimizer.grad_scale, optimizer.found_inf = None, torch.tensor(flag)
        optimizer.step()
        assert torch.equal(before, parameter.detach()) != moved


def test_a_held_out_loss_that_is_no_number_is_divergence(language_model, monkeypatch):
    config = language_model("training.eval_steps=2")
    prepared = run.prepare(config, HERE.device)
    scores = TextScores(np.array([math.nan]), np.array([0]), np.array([1]))
    monkeypatch.setattr("lorascope.training.loop.evaluate_texts", lambda *_: scores)
    with pytest.raises(LorascopeError, match="diverged at step 2; found a held-out loss of nan"):
        Loop(prepared.injected, prepared.train, prepared.held_out, config, HERE).run()


def test_the_base_is_measured_first_and_an_adapter_worse_than_it_is_said_to_be(classifier, tmp_path):
    statuses = {}
    for name, rate in (("good", 1e-2), ("bad", 1e4)):
        config = classifier(f"optim.learning_rate={rate}", "optim.max_grad_norm=null", "training.max_steps=20")
        finished = run.train(config, tmp_path / name)
        summary = run.summary_of(finished)
        base = run.load_base(config, 2, HERE.device)  # with the head that the run began with
        held_out = run.prepare(config, HERE.device).held_out
        assert summary["base"] == asdict(evaluate(base, held_out, 64, HERE))
        statuses[name] = summary["status"]
        assert (summary["held_out"]["loss"] > summary["base"]["loss"]) == (name == "bad")
    assert statuses == {"good": "finished", "bad": "worse_than_base"}


def test_runs_that_share_base_and_texts_measure_it_once(language_model, tmp_path, monkeypatch):
    count = []
    monkeypatch.setattr(run, "evaluate", lambda *args: count.append(1) or evaluate(*args))
    monkeypatch.setattr(run, "_measured", {})
    for name, override in (("a", "method.rank=2"), ("b", "method.rank=3"), ("c", "data.max_length=6")):
        run.train(language_model(override, "training.max_steps=1", "training.measure_cost=false"), tmp_path / name)
    assert len(count) == 2  # one for each length of the texts


def test_gradients_are_clipped_to_the_norm(classifier, tmp_path):
    config = classifier("optim.max_grad_norm=1e-3", "training.max_steps=1")
    prepared = run.prepare(config, HERE.device)
    loop = Loop(prepared.injected, prepared.train, prepared.held_out, config, HERE)
    norms = []
    loop.members[0].method.after_step = lambda *_: norms.append(
        torch.cat([p.grad.flatten() for p in prepared.injected.trainable().values()]).norm().item()
    )
    loop.run()
    assert norms == [pytest.approx(1e-3, rel=1e-2)]  # clip_grad_norm_ adds 1e-6 to the norm it divides by


def test_no_steps_score_the_base_as_it_is(language_model, tmp_path):
    config = language_model("training.max_steps=0", "training.measure_cost=false")
    finished = run.train(config, tmp_path / "run")
    summary = read_summary(tmp_path / "run")
    assert finished.steps == summary["steps"] == 0
    assert summary["status"] == "finished"
    assert summary["held_out"]["loss"] == pytest.approx(summary["base"]["loss"], rel=1e-6)  # another way to sum
