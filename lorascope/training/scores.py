"""Held-out loss and accuracy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lorascope.models.bf16_products import fast_on_cpu
from lorascope.models.masks import known
from lorascope.training.batches import IGNORE, Encoded
from lorascope.training.cross_entropy import losses_of_rows
from lorascope.training.parallel import World


@dataclass(frozen=True)
class Score:
    """Held-out results: mean cross-entropy in nats, the share of targets hit by the largest logit, their number."""

    loss: float
    accuracy: float
    targets: int


@dataclass(frozen=True)
class TextScores:
    """Held-out results of each text, in the order of the data: (n,) each.

    Attributes:
        loss: summed cross-entropy in nats.
        hits: targets that the largest logit hit.
        targets: predictions that the text is scored on: one of a class, one per token after the first of a language.
    """

    loss: np.ndarray
    hits: np.ndarray
    targets: np.ndarray

    @property
    def score(self) -> Score:
        """The means over all targets."""
        total = int(self.targets.sum())
        return Score(float(self.loss.sum(dtype=float)) / total, float(self.hits.sum()) / total, total)


def cross_entropy(logits: Tensor, labels: Tensor, length: int) -> Tensor:
    """Summed cross-entropy, in float32 or wider.

    Args:
        logits: (b, classes), or (b, t, vocabulary) of a language model, of whose positions the first `length` count.
        labels: (b,), or (b, t).
    """
    if labels.ndim == 2 and logits.device.type == "cpu":
        return losses_of_rows(logits.flatten(0, 1), _shifted(labels, length).flatten()).sum()
    logits, labels = _scored(logits, labels, length)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(wide, labels, ignore_index=IGNORE, reduction="sum")


def _scored(logits: Tensor, labels: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """One row of logits a label: of a language model, position t is scored on token t + 1."""
    if labels.ndim == 1:
        return logits, labels
    return logits[:, : length - 1].flatten(0, 1), labels[:, 1:length].flatten()


def _shifted(labels: Tensor, length: int) -> Tensor:
    """(b, t): the token that each position predicts; IGNORE for the last of `length` and after it."""
    shifted = torch.full_like(labels, IGNORE)
    shifted[:, : length - 1] = labels[:, 1:length]
    return shifted


def cross_entropy_of_texts(logits: Tensor, labels: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """`cross_entropy` of each text by itself: (b,) sums in float64, and (b,) hits."""
    if labels.ndim == 2 and logits.device.type == "cpu":
        labels = _shifted(labels, length)
        losses = losses_of_rows(logits.flatten(0, 1), labels.flatten()).view_as(labels)
        return losses.double().sum(1), (logits.argmax(-1) == labels).sum(1)
    if labels.ndim == 1:
        logits, labels = logits[:, None], labels[:, None]
    else:
        logits, labels = logits[:, : length - 1], labels[:, 1:length]
    hits = (logits.argmax(-1) == labels).sum(1)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).transpose(1, 2)
    return F.cross_entropy(wide, labels, ignore_index=IGNORE, reduction="none").double().sum(1), hits


@torch.no_grad()
def evaluate(model: torch.nn.Module, data: Encoded, size: int, world: World) -> Score:
    """Score `data`, in batches of similar length dealt out to the processes. Leaves the model in the mode it was in."""
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)  # read once, at the end
    for _, counted, logits, labels, length in _passes(model, data, size, world):
        rows, targets = _scored(logits, labels, length)
        loss, hits = cross_entropy(rows, targets, length), (rows.argmax(-1) == targets).sum()
        if counted:
            sums += torch.stack([loss.double(), hits.double()])
    total = world.sum(sums).tolist()
    count = data.targets(range(len(data)))
    return Score(total[0] / count, total[1] / count, count)


@torch.no_grad()
def evaluate_texts(model: torch.nn.Module, data: Encoded, size: int, device: torch.device) -> TextScores:
    """Score each text of `data` by itself, in one process."""
    order: list[int] = []
    scored: list[Tensor] = []
    for indices, _, logits, labels, length in _passes(model, data, size, World(device)):
        order += indices
        scored.append(torch.stack([each.double() for each in cross_entropy_of_texts(logits, labels, length)]))
    values = np.empty((2, len(data)))
    values[:, order] = torch.cat(scored, dim=1).cpu().numpy()
    targets = np.array([data.targets([i]) for i in range(len(data))])
    return TextScores(values[0], values[1].astype(int), targets)


def _passes(
    model: torch.nn.Module, data: Encoded, size: int, world: World
) -> Iterator[tuple[Sequence[int], bool, Tensor, Tensor, int]]:
    """Forward passes over all texts: which they are, whether this process counts them, logits, labels, tokens."""
    training, batches = model.training, data.by_length(size)
    model.eval()
    for start in range(0, len(batches), world.size):
        index = min(start + world.rank, len(batches) - 1)  # with too few for all, some repeat the last one: under FSDP
        batch = data.batch(batches[index]).to(world.device)  # all must take part in each pass
        with known(batch.padded, world.device), fast_on_cpu(model):
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        yield batches[index], start + world.rank < len(batches), logits, batch.labels, batch.input_ids.shape[1]
    model.train(training)
