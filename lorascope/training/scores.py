"""Held-out loss and accuracy."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lorascope.models.masks import known
from lorascope.training.batches import IGNORE, Encoded
from lorascope.training.parallel import World


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
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)  # read once, at the end
    for start in range(0, len(batches), world.size):
        index = min(start + world.rank, len(batches) - 1)  # with too few for all, some repeat the last one: under FSDP
        batch = data.batch(batches[index]).to(world.device)  # all must take part in each pass
        with known(batch.padded, world.device):
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        loss, hits = cross_entropy(logits, batch.labels, batch.input_ids.shape[1])
        if start + world.rank < len(batches):
            sums += torch.stack([loss.double(), hits.double()])
    model.train(training)
    total = world.sum(sums).tolist()
    targets = data.targets(range(len(data)))
    return Score(total[0] / targets, total[1] / targets, targets)
