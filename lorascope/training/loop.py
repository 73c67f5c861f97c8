"""The training loop: the only one.

It is short because everything is a function of the step. The texts of step t are positions in a stream that (seed,
epoch) fixes; the learning rate is a formula of t; and the random numbers of step t, dropout among them, come from a
generator seeded by (seed, t, process). A run that is killed and resumed therefore needs the adapter, the optimiser's
state and t, and nothing else, to end in the same bytes; evaluating more or less often changes nothing either.

The loss of a step is the mean over all its targets, whatever passes and processes they are spread over: every pass adds
its sum divided by the step's count of targets, and gradients are summed.

Several adapters can train at once on one base (`sweep:` in the YAML). Each is a `Member` with its own order of the
data, random numbers, loss, clipping, optimiser, held-out scores and end; they share nothing but the pass through the
base (`adapt/stacked.py`), so that a member's numbers are those of its own run up to rounding, whatever the others do.
"""

import io
import math
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from lorascope.adapt.hooks import attended
from lorascope.adapt.inject import Injected
from lorascope.adapt.stacked import Layout, Stream, joinable, stack
from lorascope.errors import InputError, LorascopeError
from lorascope.outputs import write_bytes
from lorascope.training.config import OptimConfig, RunConfig
from lorascope.training.data import IGNORE, Batch, Encoded, Order, joined
from lorascope.training.parallel import World
from lorascope.training.record import Record


@dataclass(frozen=True)
class Score:
    """Held-out results: mean cross-entropy in nats, the share of targets hit by the largest logit, their number."""

    loss: float
    accuracy: float
    targets: int


def cross_entropy(logits: Tensor, labels: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy, in float32 or wider, and how many targets the largest logit hits.

    Args:
        logits: (b, classes), or (b, t, vocabulary) of a language model, of whose positions the first `length` count.
        labels: (b,), or (b, t).
    """
    if labels.ndim == 2:  # next-token prediction: position t is scored on token t + 1
        logits, labels = logits[:, : length - 1].flatten(0, 1), labels[:, 1:length].flatten()
    hits = (logits.detach().argmax(-1) == labels).sum()
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, labels, ignore_index=IGNORE, reduction="sum"), hits


@torch.no_grad()
def evaluate(model: torch.nn.Module, data: Encoded, size: int, world: World) -> Score:
    """Score `data`, in batches of similar length dealt out to the processes. Leaves the model in the mode it was in."""
    training, batches = model.training, data.by_length(size)
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(batches), world.size):
        mine = min(start + world.rank, len(batches) - 1)  # with too few for all, some repeat the last one: under FSDP
        batch = data.batch(batches[mine]).to(world.device)  # all must take part in each pass
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        loss, hits = cross_entropy(logits, batch.labels, batch.input_ids.shape[1])
        if start + world.rank < len(batches):
            sums += torch.stack([loss.double().cpu(), hits.double().cpu()])
    model.train(training)
    total = world.sum(sums.to(world.device)).tolist()
    targets = data.targets(range(len(data)))
    return Score(total[0] / targets, total[1] / targets, targets)


def learning_rate_factor(step: int, total: int, config: OptimConfig) -> float:
    """The share of the peak learning rate in step `step` (from 0) of `total`."""
    warmup = config.warmup_steps if config.warmup_steps is not None else math.ceil(config.warmup_ratio * total)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if config.lr_scheduler_type == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress)) if config.lr_scheduler_type == "cosine" else 1.0


def total_steps(config: RunConfig, length: int, world: World) -> int:
    """max_steps, or as many as num_train_epochs passes over `length` texts take."""
    training = config.training
    size = training.per_device_train_batch_size * training.gradient_accumulation_steps * world.size
    return training.max_steps or math.ceil(training.num_train_epochs * length / size)


class Member:
    """One adapter in training: its part of the model, its data and their order, its optimiser, and where it stands.

    Attributes:
        total: how many steps it is to take.
        step: how many it has taken, once it has `ended`.
        ended: None while it trains; then "finished", "stopped" (early) or "diverged".
        error: why it diverged.
        score: the last held-out score; at the end, that of the adapter that is kept.
        best: the lowest held-out loss, its step, and the adapter then; kept with `load_best_model_at_end`.
        record: where its metrics go, if anywhere.
    """

    def __init__(
        self,
        injected: Injected,
        train: Encoded,
        held_out: Encoded,
        config: RunConfig,
        world: World,
        record: Record | None = None,
    ):
        self.injected, self.method = injected, injected.method
        attended(injected)  # every hook of the method is called here
        self.train, self.held_out, self.config, self.world, self.record = train, held_out, config, world, record
        self.total = total_steps(config, len(train), world)
        settings = config.training
        lengths = list(map(len, train.tokens)) if settings.group_by_length else None
        self.order = Order(len(train), settings.seed, lengths, settings.per_device_train_batch_size)
        self.parameters = list(injected.trainable().values())
        self.optimizer = _adamw(injected, config.optim)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.stream = Stream(world.device)
        self.step, self.ended, self.error = 0, None, None
        self.score: Score | None = None
        self.best: dict[str, Any] | None = None
        self.lowest, self.worse = math.inf, 0  # held-out loss so far, and evaluations since that were no better
        self.bad = torch.zeros(3, dtype=torch.float64, device=world.device)  # the first bad step, its loss and its norm

    def begin(self, step: int) -> list[list[int]]:
        """Set what depends on the step: random numbers, by (seed, step, process) alone, and the learning rate.

        The texts of the step, in the passes of all processes.
        """
        settings = self.config.training
        entropy = [settings.seed, step, self.world.rank]
        self.stream.restart(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))
        factor = learning_rate_factor(step, self.total, self.config.optim)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        return self.passes(step)

    def passes(self, step: int) -> list[list[int]]:
        settings = self.config.training
        count = settings.gradient_accumulation_steps * self.world.size
        return self.order.micro_batches(step, settings.per_device_train_batch_size, count)

    def penalise(self) -> None:
        """Add the gradient of the method's own penalty."""
        with self.stream:
            penalty = self.method.penalty()
            if penalty is not None:
                (penalty / self.world.size).backward()

    def update(self, step: int, loss: Tensor) -> tuple[Tensor, Tensor, float]:
        """The optimiser's step, on complete gradients: the step's loss, summed over the processes, the gradients' norm
        before clipping, and the learning rate.

        Where the loss or the norm is no number, and after that, nothing is stepped: `diverged` says so.
        """
        limit = self.config.optim.max_grad_norm
        with self.stream:
            loss = self.world.sum(loss)
            self.world.sum_gradients(self.parameters)
            self.method.before_step(step, self.total)
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, math.inf if limit is None else limit)
            self._watch(step + 1, loss, norm)
            if self.bad.is_cuda or not self.bad[0]:
                self.optimizer.step()
                self.method.after_step(step, self.total)
            self.optimizer.zero_grad(set_to_none=True)
        return loss, norm, self.optimizer.param_groups[0]["lr"]

    def _watch(self, number: int, loss: Tensor, norm: Tensor) -> None:
        """Note on the device whether this is the first step whose loss or norm is no number. On a GPU the host is not
        waited for: the optimiser's kernel reads the flag, and skips its step where it is set.
        """
        now = torch.stack([torch.full_like(loss.double(), number), loss.double(), norm.double()])
        fine = torch.isfinite(now).all()
        self.bad = torch.where((self.bad[0] > 0) | fine, self.bad, now)
        if self.bad.is_cuda:
            self.optimizer.grad_scale, self.optimizer.found_inf = None, (self.bad[0] > 0).float()

    def diverged(self) -> bool:
        """Whether a step up to now had a loss or a gradient that is no number: then the member ends, at that step."""
        number, loss, norm = self.bad.tolist()
        if number:
            self._diverge(int(number), f"a loss of {loss:g} and a gradient norm of {norm:g}")
        return bool(number)

    def _diverge(self, step: int, found: str) -> None:
        self.ended, self.step = "diverged", step
        hint = "lower optim.learning_rate or set optim.max_grad_norm"
        self.error = LorascopeError(f"training diverged at step {step}", found=found, hint=hint)

    def log(self, step: int, loss: Tensor, norm: Tensor, rate: float, seconds: float) -> float:
        """Write the step's loss and norm."""
        value = loss.item()
        if self.record:
            line = {"step": step, "train_loss": value, "learning_rate": rate, "grad_norm": norm.item()}
            self.record.log({**line, "seconds": round(seconds, 4)})
        return value

    def judge(self, step: int, score: Score) -> None:
        """Take a held-out score: write it, keep the adapter where it is the best, stop where patience is at its end."""
        settings = self.config.training
        if not math.isfinite(score.loss):
            self._diverge(step, f"a held-out loss of {score.loss:g}")
            return
        self.score = score
        if self.record:
            self.record.log({"step": step, "eval_loss": score.loss, "eval_accuracy": score.accuracy})
        if settings.load_best_model_at_end and (self.best is None or score.loss < self.best["score"]["loss"]):
            adapter = {key: tensor.detach().clone() for key, tensor in self.injected.state_dict().items()}
            self.best = {"score": vars(score).copy(), "step": step, "adapter": adapter}
        self.worse = 0 if score.loss < self.lowest else self.worse + 1
        self.lowest = min(score.loss, self.lowest)
        if settings.early_stopping_patience is not None and self.worse >= settings.early_stopping_patience:
            self.ended, self.step = "stopped", step

    def keep_best(self) -> None:
        """Put the best adapter in place of the last one, where the config asks for it."""
        if self.best is not None and self.ended != "diverged":
            self.injected.load_state_dict(self.best["adapter"])
            self.score = Score(**self.best["score"])

    def state_dict(self) -> dict[str, Any]:
        """All that an exact resume needs; never the base."""
        return {
            "total": self.total,
            "step": self.step,
            "ended": self.ended,
            "error": self.error and vars(self.error).copy(),
            "score": self.score and vars(self.score).copy(),
            "patience": [self.lowest, self.worse],
            "adapter": self.injected.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "method": self.method.state_dict(),
            "best": self.best,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave. InputError where it is of other data."""
        if state["total"] != self.total:
            raise InputError(
                "the checkpoint is of another run: its steps in all differ", found=state["total"], expected=self.total
            )
        self.injected.load_state_dict(state["adapter"])
        groups = self.optimizer.state_dict()["param_groups"]  # the config's; the file's are not needed
        self.optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        try:
            self.method.load_state_dict(state["method"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError("the checkpoint's state of the method is damaged", found=repr(error)) from None
        self.step, self.ended, self.best = state["step"], state["ended"], state["best"]
        self.lowest, self.worse = state["patience"]
        self.score = state["score"] and Score(**state["score"])
        error = dict(state["error"] or {})
        self.error = LorascopeError(error.pop("what"), **error) if error else None


def _adamw(injected: Injected, optim: OptimConfig) -> torch.optim.AdamW:
    groups = injected.method.parameter_groups(injected, optim.learning_rate, optim.weight_decay)
    if optim.head_learning_rate is not None:
        groups = _with_head_rate(groups, injected, optim.head_learning_rate)
    betas = (optim.adam_beta1, optim.adam_beta2)
    return torch.optim.AdamW(groups, lr=optim.learning_rate, betas=betas, eps=optim.adam_epsilon, fused=True)


def _with_head_rate(groups: list[dict[str, Any]], injected: Injected, rate: float) -> list[dict[str, Any]]:
    """The groups with what belongs to modules trained as a whole split off, at a rate of its own."""
    head = {id(parameter) for module in injected.saved.values() for parameter in module.parameters()}
    split = []
    for group in groups:
        for own, lr in ((False, group["lr"]), (True, rate)):
            if parameters := [each for each in group["params"] if (id(each) in head) == own]:
                split.append({**group, "params": parameters, "lr": lr})
    return split


class Pass:
    """Members that go through the model together: one alone in its own model, or several in a joint one."""

    def __init__(self, members: Sequence[Member]):
        self.members = list(members)
        self.layout = Layout([member.stream for member in members])
        alone = len(self.members) == 1
        self.model = members[0].injected.model if alone else stack([m.injected for m in members], self.layout)

    def losses(self, indices: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
        """Each member's summed loss on its texts, and its hits."""
        parts = [member.train.batch(own) for member, own in zip(self.members, indices, strict=True)]
        return self._losses(parts)

    def _losses(self, parts: Sequence[Batch]) -> list[tuple[Tensor, Tensor]]:
        device = self.members[0].world.device
        lengths = [part.input_ids.shape[1] for part in parts]
        batch = joined(parts, self.members[0].train.pad).to(device)
        self.layout.set(len(parts[0].input_ids), lengths)
        with self.members[0].stream if len(self.members) == 1 else nullcontext():
            logits = self.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        rows = zip(logits.chunk(len(parts)), batch.labels.chunk(len(parts)), lengths, strict=True)
        return [cross_entropy(each, labels, length) for each, labels, length in rows]


def arrange(members: Sequence[Member]) -> list[Pass]:
    """The members in as few passes as their methods allow; those of one method are neighbours."""
    groups: list[list[Member]] = []
    for member in sorted(members, key=lambda member: member.config.method.name):
        for group in groups:
            if joinable(group[0].injected, member.injected):
                group.append(member)
                break
        else:
            groups.append([member])
    return [Pass(group) for group in groups]


class Loop:
    """Adapters in training on one base, each as if it were alone; a run is one of them.

    Attributes:
        members: the adapters.
        step: how many optimiser steps are done.
    """

    def __init__(self, injected: Injected, train: Encoded, held_out: Encoded, config: RunConfig, world: World):
        self._of([Member(injected, train, held_out, config, world)])

    @classmethod
    def together(cls, members: Sequence[Member]) -> "Loop":
        """A loop over several members, whose models hold the same base (`run.prepare_together`)."""
        loop = cls.__new__(cls)
        loop._of(list(members))
        return loop

    def _of(self, members: list[Member]) -> None:
        self.members, self.world = members, members[0].world
        self.step = 0
        self._passes: list[Pass] = []

    @property
    def active(self) -> list[Member]:
        return [member for member in self.members if member.ended is None]

    @property
    def best(self) -> dict[str, Any] | None:
        """The only member's; see `Member.best`."""
        return self.members[0].best

    def run(self, record: Record | None = None) -> Score:
        """Train one member to the end; the held-out score of the adapter that is kept.

        Raises:
            LorascopeError: the loss is no longer a number, or the record cannot be written.
        """
        (member,) = self.members
        member.record = record
        self.run_all(record.checkpoint if record else None)
        if member.error:
            raise member.error
        return member.score

    def run_all(self, checkpoint: Path | None = None, *, progress: bool = True) -> None:
        """Train every member to its end, which it then says itself (`ended`, `score`). One that diverges just leaves.

        Raises:
            LorascopeError: a record or the checkpoint cannot be written.
        """
        settings, total = self.members[0].config.training, max(member.total for member in self.members)
        for member in self.members:
            member.injected.model.train()
        bar = tqdm(
            total=total, initial=self.step, desc="training", unit="step", disable=not (progress and self.world.first)
        )
        with bar:
            while self.active:
                started = time.perf_counter()
                results = self._step()
                self.step += 1
                bar.update()
                seconds = time.perf_counter() - started
                self._end_diverged()
                self._log(results, bar, seconds)
                self._evaluate(bar)
                sound = any(member.ended != "diverged" for member in self.members)
                if checkpoint and self.world.first and sound and self._due(settings.save_steps):
                    self.save(checkpoint)
        for member in self.members:
            member.keep_best()
            member.injected.model.eval()
            if member.score is None and member.ended != "diverged":
                member.score = self._score(member)

    def passes(self) -> list[Pass]:
        """The active members in joint passes, arranged anew whenever one has left."""
        active = self.active
        if sum(len(each.members) for each in self._passes) != len(active):
            self._passes = arrange(active)
            for each in self._passes:
                each.model.train()
        return self._passes

    def _step(self) -> list[tuple[Member, Tensor, Tensor, float]]:
        """One optimiser step of every active member: its loss, gradient norm before clipping, and learning rate."""
        for member in self.active:
            member.begin(self.step)
        losses = self._backward()
        return [(member, *member.update(self.step, losses[member])) for member in self.active]

    def _backward(self) -> dict[Member, Tensor]:
        """Gradients of each member's mean loss; that loss, summed over this process's share of the step's passes."""
        world, shares = self.world, {}
        for joint in self.passes():
            texts = [member.passes(self.step) for member in joint.members]
            targets = [sum(map(m.train.targets, own)) for m, own in zip(joint.members, texts, strict=True)]
            shares |= {member: torch.zeros((), device=world.device) for member in joint.members}
            for indices in zip(*(own[world.rank :: world.size] for own in texts), strict=True):
                sums = joint.losses(indices)
                losses = [loss / count for (loss, _), count in zip(sums, targets, strict=True)]
                torch.autograd.backward(losses)  # each from its own 1: no sum over members
                for member, loss in zip(joint.members, losses, strict=True):
                    shares[member] += loss.detach()
            for member in joint.members:
                member.penalise()
        return shares

    def _due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    def _end_diverged(self) -> None:
        """End the members that diverged: on a CPU at each step, on a GPU where the host waits for the device anyway."""
        for member in self.active:
            settings = member.config.training
            looks = [settings.logging_steps, settings.eval_steps, self.members[0].config.training.save_steps]
            if not member.bad.is_cuda or self.step == member.total or any(map(self._due, looks)):
                member.diverged()

    def _log(self, results: Sequence[tuple[Member, Tensor, Tensor, float]], bar: Any, seconds: float) -> None:
        shown = []
        for member, loss, norm, rate in results:
            due = self._due(member.config.training.logging_steps) or self.step == member.total
            if due and member.ended is None:
                shown.append(member.log(self.step, loss, norm, rate, seconds))
        if shown:
            bar.set_postfix_str(self._shown("loss", shown))

    def _evaluate(self, bar: Any) -> None:
        due = [m for m in self.active if self._due(m.config.training.eval_steps) or self.step == m.total]
        for member in due:
            member.judge(self.step, self._score(member))
            if self.step == member.total and member.ended != "diverged":
                member.ended, member.step = "finished", self.step
        due = [member for member in due if member.score is not None]
        if due:
            bar.set_postfix_str(self._shown("held-out loss", [member.score.loss for member in due]))

    def _score(self, member: Member) -> Score:
        size = member.config.training.per_device_eval_batch_size
        return evaluate(member.injected.model, member.held_out, size, self.world)

    def _shown(self, what: str, values: Sequence[float]) -> str:
        if len(self.members) == 1:
            return f"{what} {values[0]:.3f}"
        return f"{what} {min(values):.3f} to {max(values):.3f}, {len(self.active)} of {len(self.members)} adapters"

    def save(self, path: Path) -> None:
        """Write the checkpoint of all members, whole or not at all."""
        members = [member.state_dict() for member in self.members]
        buffer = io.BytesIO()
        torch.save({"step": self.step, "world": self.world.size, "members": members}, buffer)
        write_bytes(path, buffer.getvalue())

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint. InputError where it was made with other data or another number of processes."""
        counts = {"processes": (state["world"], self.world.size)}
        counts["adapters"] = (len(state["members"]), len(self.members))
        for what, (found, expected) in counts.items():
            if found != expected:
                raise InputError(f"the checkpoint is of another run: its {what} differ", found=found, expected=expected)
        for member, own in zip(self.members, state["members"], strict=True):
            member.load_state_dict(own)
        self.step = state["step"]
