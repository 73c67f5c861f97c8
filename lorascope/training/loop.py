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
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from lorascope.adapt.inject import Injected
from lorascope.adapt.stacked import Layout, joinable, stack
from lorascope.errors import InputError
from lorascope.models.attention import short_on_cpu
from lorascope.models.bf16_products import fast_on_cpu
from lorascope.models.masks import known
from lorascope.outputs import write_bytes
from lorascope.training.batches import Batch, Encoded, joined
from lorascope.training.capture import MULTIPLE, Captured, may_compile
from lorascope.training.config import RunConfig
from lorascope.training.member import Member
from lorascope.training.parallel import World
from lorascope.training.run_folder import Record
from lorascope.training.scores import Score, cross_entropy, evaluate, evaluate_texts


class Pass:
    """Members that go through the model together: one alone in its own model, or several in a joint one."""

    def __init__(self, members: Sequence[Member]):
        self.members = list(members)
        self.layout = Layout([member.stream for member in members])
        alone, first = len(self.members) == 1, members[0]
        model = first.injected.model if alone else stack([m.injected for m in members], self.layout)
        self.compiled = first.config.training.compile and may_compile([m.injected for m in members], first.world)
        self.model = Captured(model, first.world.device) if self.compiled else model

    def losses(self, indices: Sequence[Sequence[int]]) -> list[Tensor]:
        """Each member's summed loss on its texts."""
        multiple = MULTIPLE if self.compiled else 1
        parts = [member.train.batch(texts, multiple) for member, texts in zip(self.members, indices, strict=True)]
        return self._losses(parts)

    def _losses(self, parts: Sequence[Batch]) -> list[Tensor]:
        device = self.members[0].world.device
        lengths = [part.input_ids.shape[1] for part in parts]
        batch = joined(parts, self.members[0].train.pad).to(device)
        self.layout.set(len(parts[0].input_ids), lengths)
        stream = self.members[0].stream if len(self.members) == 1 else nullcontext()
        padding = nullcontext() if self.compiled else known(batch.padded, device)  # compiled, nothing looks at the mask
        with stream, padding, short_on_cpu(device, self.members[0].config.training.bf16, batch.input_ids.shape[1]):
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
        self._in_lines = False

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
        assert member.score is not None  # of a member that did not diverge
        return member.score

    def run_all(
        self,
        checkpoint: Path | None = None,
        *,
        progress: bool = True,
        snapshot: Callable[[Member, int], None] | None = None,
    ) -> None:
        """Train every member to its end, which it then says itself (`ended`, `score`). One that diverges just leaves.

        Args:
            checkpoint: where all that a resume needs is written every `save_steps`.
            progress: show a bar on a terminal, and a line at each log and evaluation elsewhere.
            snapshot: keeps a member's adapter as it is after a step, every `snapshot_steps` of its config.

        Raises:
            LorascopeError: a record or the checkpoint cannot be written.
        """
        settings, total = self.members[0].config.training, max(member.total for member in self.members)
        for member in self.members:
            member.injected.model.train()
        shown = progress and self.world.first and "TQDM_DISABLE" not in os.environ
        self._in_lines = shown and not sys.stderr.isatty()
        bar = tqdm(
            total=total,
            initial=self.step,
            desc="training",
            unit="step",
            disable=None if progress and self.world.first else True,  # None: a bar on a terminal alone
        )
        with bar:
            if self.step == 0:
                self._evaluate(bar, self._untrained())
            while self.active:
                started = time.perf_counter()
                results = self._step()
                self.step += 1
                bar.update()
                seconds = time.perf_counter() - started
                self._end_diverged()
                self._log(results, bar, seconds)
                for member in self.active if snapshot else ():
                    if snapshot and self._due(member.config.training.snapshot_steps):
                        snapshot(member, self.step)
                self._evaluate(bar)
                sound = any(member.ended != "diverged" for member in self.members)
                if checkpoint and self.world.first and sound and self._due(settings.save_steps):
                    self.save(checkpoint)
        self._settle()

    def _settle(self) -> None:
        """Leave every member with the adapter that is kept, and its score."""
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
        if self.members[0].config.training.compile:
            torch.compiler.cudagraph_mark_step_begin()  # what the last step's graphs gave is used up
        for member in self.active:
            member.begin(self.step)
        losses = self._backward()
        return [(member, *member.update(self.step, losses[member])) for member in self.active]

    def _backward(self) -> dict[Member, Tensor]:
        """Gradients of each member's mean loss; that loss, summed over this process's share of the step's passes."""
        world = self.world
        shares: dict[Member, Tensor] = {}
        for joint in self.passes():
            texts = [member.passes(self.step) for member in joint.members]
            targets = [sum(map(m.train.targets, batches)) for m, batches in zip(joint.members, texts, strict=True)]
            shares |= {member: torch.zeros((), device=world.device) for member in joint.members}
            for indices in zip(*(batches[world.rank :: world.size] for batches in texts), strict=True):
                with nullcontext() if joint.compiled else fast_on_cpu(joint.members[0].injected.model):
                    losses = [loss / count for loss, count in zip(joint.losses(indices), targets, strict=True)]
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
            self._tell(bar, self._shown("loss", shown))

    def _untrained(self) -> list[Member]:
        """Members that take no step at all."""
        return [member for member in self.active if member.total == 0]

    def _evaluate(self, bar: Any, due: Sequence[Member] | None = None) -> None:
        """Score the members that are due after this step, or these."""
        if due is None:
            due = [m for m in self.active if self._due(m.config.training.eval_steps) or self.step == m.total]
        for member in due:
            member.judge(self.step, self._score(member))
            if self.step == member.total and member.ended != "diverged":
                member.ended, member.step = "finished", self.step
        losses = [member.score.loss for member in due if member.score is not None]
        if losses:
            self._tell(bar, self._shown("held-out loss", losses))

    def _tell(self, bar: Any, text: str) -> None:
        """On the bar; in a log, which has none, as a line of its own."""
        if not bar.disable:
            bar.set_postfix_str(text)
        elif self._in_lines:
            print(f"step {self.step} of {max(member.total for member in self.members)}: {text}", file=sys.stderr)

    def _score(self, member: Member) -> Score:
        size, model = member.config.training.per_device_eval_batch_size, member.injected.model
        if self.world.size > 1:
            return evaluate(model, member.held_out, size, self.world)
        member.texts = evaluate_texts(model, member.held_out, size, self.world.device)
        return member.texts.score

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
        for member, member_state in zip(self.members, state["members"], strict=True):
            member.load_state_dict(member_state)
        self.step = state["step"]
