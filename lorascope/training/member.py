"""One adapter in training: its data and their order, its optimiser, its held-out scores and its end."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorascope.adapt.hooks import unwatch
from lorascope.adapt.inject import Injected
from lorascope.adapt.stacked import Stream
from lorascope.errors import InputError, LorascopeError
from lorascope.training.batches import Encoded, Order
from lorascope.training.config import OptimConfig, RunConfig
from lorascope.training.parallel import World
from lorascope.training.run_folder import Record
from lorascope.training.scores import Score, TextScores


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
    if training.max_steps is not None:
        return training.max_steps
    return math.ceil(training.num_train_epochs * length / size)


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
        unwatch(injected)  # every hook of the method is called here
        self.train, self.held_out, self.config, self.world, self.record = train, held_out, config, world, record
        self.total = total_steps(config, len(train), world)
        settings = config.training
        lengths = list(map(len, train.tokens)) if settings.group_by_length else None
        self.order = Order(len(train), settings.seed_of_data, lengths, settings.per_device_train_batch_size)
        self.parameters = list(injected.trainable().values())
        self.optimizer = _adamw(injected, config.optim)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.stream = Stream(world.device)
        self.step = 0
        self.ended: str | None = None
        self.error: LorascopeError | None = None
        self.score: Score | None = None
        self.texts: TextScores | None = None  # of the last evaluation in one process
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
            optimizer: Any = self.optimizer  # torch's fused AdamW reads these two, which its type does not declare
            optimizer.grad_scale, optimizer.found_inf = None, (self.bad[0] > 0).float()

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
            "error": self.error and {part: getattr(self.error, part) for part in ("what", "found", "expected", "hint")},
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
        parts = dict(state["error"] or {})
        self.error = LorascopeError(parts.pop("what"), **parts) if parts else None


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
        for in_head, lr in ((False, group["lr"]), (True, rate)):
            if parameters := [each for each in group["params"] if (id(each) in head) == in_head]:
                split.append({**group, "params": parameters, "lr": lr})
    return split
