"""The training loop: the only one.

It is short because everything is a function of the step. The texts of step t are positions in a stream that (seed,
epoch) fixes; the learning rate is a formula of t; and the random numbers of step t, dropout among them, come from a
generator seeded by (seed, t, process). A run that is killed and resumed therefore needs the adapter, the optimiser's
state and t, and nothing else, to end in the same bytes; evaluating more or less often changes nothing either.

The loss of a step is the mean over all its targets, whatever passes and processes they are spread over: every pass adds
its sum divided by the step's count of targets, and gradients are summed.
"""

import io
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from lorascope.atomic import write_bytes
from lorascope.errors import InputError, LorascopeError
from lorascope.methods.inject import Injected
from lorascope.training.config import OptimConfig, RunConfig
from lorascope.training.data import IGNORE, Batch, Encoded, Order
from lorascope.training.parallel import World
from lorascope.training.record import Record


@dataclass(frozen=True)
class Score:
    """Held-out results: mean cross-entropy in nats, the share of targets hit by the largest logit, their number."""

    loss: float
    accuracy: float
    targets: int


def loss_sum(model: torch.nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of a batch, in float32, and how many targets the largest logit hits."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    labels = batch.labels
    if labels.ndim == 2:  # next-token prediction: position t is scored on token t + 1
        logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    hits = (logits.detach().argmax(-1) == labels).sum()
    return F.cross_entropy(logits.float(), labels, ignore_index=IGNORE, reduction="sum"), hits


@torch.no_grad()
def evaluate(model: torch.nn.Module, data: Encoded, size: int, world: World) -> Score:
    """Score `data`, in batches of similar length dealt out to the processes. Leaves the model in the mode it was in."""
    training, batches = model.training, data.by_length(size)
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    for start in range(0, len(batches), world.size):
        mine = min(start + world.rank, len(batches) - 1)  # with too few for all, some repeat the last one: under FSDP
        loss, hits = loss_sum(model, data.batch(batches[mine]).to(world.device))  # all must take part in each pass
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


class Loop:
    """One run: an injected model, its data, and where it stands.

    Attributes:
        step: how many optimiser steps are done.
        best: the lowest held-out loss, its step, and the adapter then; kept with `load_best_model_at_end`.
    """

    def __init__(self, injected: Injected, train: Encoded, held_out: Encoded, config: RunConfig, world: World):
        self.injected, self.model, self.method = injected, injected.model, injected.method
        self.train, self.held_out, self.config, self.world = train, held_out, config, world
        self.total = total_steps(config, len(train), world)
        settings = config.training
        lengths = list(map(len, train.tokens)) if settings.group_by_length else None
        self.order = Order(len(train), settings.seed, lengths, settings.per_device_train_batch_size)
        optim = config.optim
        groups = self.method.parameter_groups(injected, optim.learning_rate, optim.weight_decay)
        betas = (optim.adam_beta1, optim.adam_beta2)
        self.optimizer = torch.optim.AdamW(groups, lr=optim.learning_rate, betas=betas, eps=optim.adam_epsilon)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.step = 0
        self.best: dict[str, Any] | None = None

    def run(self, record: Record | None = None) -> Score:
        """Train to the end; the held-out score of the adapter that is kept.

        Raises:
            LorascopeError: the loss is no longer a number, or the record cannot be written.
        """
        settings, last = self.config.training, None
        self.model.train()
        bar = tqdm(total=self.total, initial=self.step, desc="training", unit="step", disable=not self.world.first)
        with bar:
            while self.step < self.total:
                started = time.perf_counter()
                loss, norm, rate = self._step()
                self.step += 1
                bar.update()
                if self.step % settings.logging_steps == 0 or self.step == self.total:
                    self._log(record, bar, loss, norm, rate, time.perf_counter() - started)
                if self._due(settings.eval_steps) or self.step == self.total:
                    last = self._evaluate(record, bar)
                if record and self._due(settings.save_steps):
                    self.save(record)
        if settings.load_best_model_at_end and self.best:
            self.injected.load_state_dict(self.best["adapter"])
            last = Score(**self.best["score"])
        self.model.eval()
        return last or evaluate(self.model, self.held_out, settings.per_device_eval_batch_size, self.world)

    def _step(self) -> tuple[Tensor, Tensor, float]:
        """One optimiser step: the loss (of all processes), the gradient's norm before clipping, the learning rate."""
        optim = self.config.optim
        self._seed()
        factor = learning_rate_factor(self.step, self.total, optim)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * factor
        loss = self._backward()
        parameters = list(self.injected.trainable().values())
        self.world.sum_gradients(parameters)
        self.method.before_step(self.step, self.total)
        limit = math.inf if optim.max_grad_norm is None else optim.max_grad_norm
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        self.optimizer.step()
        self.method.after_step(self.step, self.total)
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm, self.optimizer.param_groups[0]["lr"]

    def _backward(self) -> Tensor:
        """Gradients of the step's mean loss; that loss, summed over this process's share of it."""
        settings, world = self.config.training, self.world
        passes = self.order.micro_batches(
            self.step, settings.per_device_train_batch_size, settings.gradient_accumulation_steps * world.size
        )
        targets = sum(map(self.train.targets, passes))
        share = torch.zeros((), device=world.device)
        for indices in passes[world.rank :: world.size]:
            loss = loss_sum(self.model, self.train.batch(indices).to(world.device))[0] / targets
            loss.backward()
            share += loss.detach()
        penalty = self.method.penalty()
        if penalty is not None:
            (penalty / world.size).backward()
        return share

    def _seed(self) -> None:
        """Random numbers of this step depend on (seed, step, process) alone."""
        entropy = [self.config.training.seed, self.step, self.world.rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))

    def _due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    def _log(self, record: Record | None, bar: Any, loss: Tensor, norm: Tensor, rate: float, seconds: float) -> None:
        loss = self.world.sum(loss).item()
        if not (math.isfinite(loss) and math.isfinite(norm.item())):
            raise LorascopeError(
                f"training diverged at step {self.step}",
                found=f"a loss of {loss} and a gradient norm of {norm.item()}",
                hint="lower optim.learning_rate or set optim.max_grad_norm",
            )
        bar.set_postfix_str(self._shown(loss))
        if record:
            line = {"step": self.step, "train_loss": loss, "learning_rate": rate, "grad_norm": norm.item()}
            record.log({**line, "seconds": round(seconds, 4)})

    def _shown(self, loss: float) -> str:
        seen = self.__dict__.get("_held_out_loss")
        return f"loss {loss:.3f}" + ("" if seen is None else f", held-out loss {seen:.3f}")

    def _evaluate(self, record: Record | None, bar: Any) -> Score:
        score = evaluate(self.model, self.held_out, self.config.training.per_device_eval_batch_size, self.world)
        self._held_out_loss = score.loss
        bar.set_postfix_str(f"held-out loss {score.loss:.3f}")
        if record:
            record.log({"step": self.step, "eval_loss": score.loss, "eval_accuracy": score.accuracy})
        if self.config.training.load_best_model_at_end and (
            self.best is None or score.loss < self.best["score"]["loss"]
        ):
            adapter = {key: tensor.detach().clone() for key, tensor in self.injected.state_dict().items()}
            self.best = {"score": vars(score).copy(), "step": self.step, "adapter": adapter}
        return score

    def save(self, record: Record) -> None:
        """Write the checkpoint, whole or not at all: adapter, optimiser, method, best and step; never the base."""
        buffer = io.BytesIO()
        torch.save(
            {
                "step": self.step,
                "total": self.total,
                "world": self.world.size,
                "adapter": self.injected.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "method": self.method.state_dict(),
                "best": self.best,
            },
            buffer,
        )
        write_bytes(record.checkpoint, buffer.getvalue())

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint. InputError where it was made with other data or another number of processes."""
        for key, now in (("total", self.total), ("world", self.world.size)):
            if state[key] != now:
                what = {"total": "steps in all", "world": "processes"}[key]
                raise InputError(f"the checkpoint is of another run: its {what} differ", found=state[key], expected=now)
        self.injected.load_state_dict(state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.method.load_state_dict(state["method"])
        self.step, self.best = state["step"], state["best"]
