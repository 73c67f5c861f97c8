"""Token batches, and the order in which training takes its texts.

The order is a function of (seed, epoch) and the position in it a function of the step, so that a run can start again at
any step without having kept an iterator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

IGNORE = -100  # torch's label for "no target here"


@dataclass(frozen=True)
class Batch:
    """Tensors of one pass: `input_ids` and `attention_mask` (b, t); `labels` (b,), or (b, t) with IGNORE.

    `padded` says whether the mask hides anything.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    padded: bool = True

    def to(self, device: torch.device) -> "Batch":
        """On the device; the host does not wait for the copies, which start from pinned memory."""
        ids, mask, labels = (_sent(each, device) for each in (self.input_ids, self.attention_mask, self.labels))
        return Batch(ids, mask, labels, self.padded)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cpu":
        return tensor.to(device)
    return (tensor.pin_memory() if torch.cuda.is_available() else tensor).to(device, non_blocking=True)


@dataclass(frozen=True)
class Encoded:
    """Tokenised text.

    Attributes:
        tokens: ids of each text, or of each packed block.
        labels: class of each text; None for a language model, whose targets are the next tokens.
        pad: the id that fills a batch up to its longest text.
        label_names: the classes, by number.
    """

    tokens: Sequence[Sequence[int]]
    labels: Sequence[int] | None
    pad: int
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return max(map(len, self.tokens))

    def targets(self, indices: Sequence[int]) -> int:
        """How many predictions these texts are scored on: one each, or one per token after the first."""
        return len(indices) if self.labels is not None else sum(len(self.tokens[i]) - 1 for i in indices)

    def batch(self, indices: Sequence[int], multiple: int = 1) -> Batch:
        """These texts, padded on the right to the longest of them, or to the `multiple` of tokens above that: no
        further than the longest of all texts is."""
        longest = max(len(self.tokens[i]) for i in indices)
        if multiple > 1:
            longest = min(-(-longest // multiple) * multiple, self.longest)
        ids = np.full((len(indices), longest), self.pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, i in enumerate(indices):
            ids[row, : len(self.tokens[i])] = self.tokens[i]
            mask[row, : len(self.tokens[i])] = 1
        labels = np.where(mask, ids, IGNORE) if self.labels is None else np.array([self.labels[i] for i in indices])
        padded = any(len(self.tokens[i]) < longest for i in indices)
        return Batch(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(labels), padded)

    def by_length(self, size: int) -> list[list[int]]:
        """All texts in batches of similar length, longest first: for evaluation, where order does not matter."""
        order = sorted(range(len(self)), key=lambda i: -len(self.tokens[i]))
        return [order[start : start + size] for start in range(0, len(order), size)]


def joined(batches: Sequence[Batch], pad: int) -> Batch:
    """Batches one after another, all padded on the right to the longest of them."""
    if len(batches) == 1:
        return batches[0]
    longest = max(batch.input_ids.shape[1] for batch in batches)

    def wide(tensor: Tensor, value: int) -> Tensor:
        return F.pad(tensor, (0, longest - tensor.shape[1]), value=value)

    return Batch(
        torch.cat([wide(batch.input_ids, pad) for batch in batches]),
        torch.cat([wide(batch.attention_mask, 0) for batch in batches]),
        torch.cat([wide(b.labels, IGNORE) if b.labels.ndim == 2 else b.labels for b in batches]),
        any(batch.padded or batch.input_ids.shape[1] < longest for batch in batches),
    )


class Order:
    """The endless stream of training texts: epoch after epoch, each in an order of its own.

    Args:
        length: how many texts there are.
        seed: of the run.
        lengths: tokens of each text. Where given, texts of similar length come together: each window of 50 passes is
            sorted by length and cut into passes, whose order is then drawn anew. Far less is padding then.
        size: texts in one pass.
    """

    WINDOW = 50

    def __init__(self, length: int, seed: int, lengths: Sequence[int] | None = None, size: int = 1):
        self.length, self.seed, self.size = length, seed, size
        self.lengths = None if lengths is None else np.asarray(lengths)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._of(epoch)
        return int(self._order[place])

    def _of(self, epoch: int) -> np.ndarray:
        order = permutation(self.length, self.seed, epoch)
        if self.lengths is None:
            return order
        window = self.WINDOW * self.size
        for start in range(0, self.length, window):
            piece = order[start : start + window]
            order[start : start + window] = piece[np.argsort(self.lengths[piece], kind="stable")]
        passes = [order[start : start + self.size] for start in range(0, self.length, self.size)]
        full_passes = self.length // self.size  # an incomplete pass stays last, so that the others stay whole
        drawn = [passes[i] for i in permutation(full_passes, self.seed, epoch)]
        return np.concatenate([*drawn, *passes[full_passes:]])

    def micro_batches(self, step: int, size: int, count: int) -> list[list[int]]:
        """Step `step`'s texts as `count` passes of `size`. No text is used twice in an epoch, and none is left out."""
        start = step * size * count
        return [[self[start + k * size + i] for i in range(size)] for k in range(count)]


def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: randperm of a generator seeded by (seed, epoch)."""
    state = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
    return torch.randperm(length, generator=torch.Generator().manual_seed(state)).numpy()
