"""Learning rates by role: LoRA+'s rule, which any method with a B can take.

Hayou, Ghosh, Yu 2024, "LoRA+: Efficient Low Rank Adaptation of Large Models", arXiv 2402.12354: B learns λ times faster
than A, η_B = λ·η_A; the paper's practical choice is λ = 2⁴, with η_A at half of LoRA's rate or less. The authors' code
gives updates of embeddings a small rate of their own, 1e-6.

Whatever else trains (a head, DoRA's lengths) keeps the base rate: the paper's argument is about the width that B
and A meet at, and says nothing of these. The authors' code, and PEFT's, go by names and axes instead: a head's bias
gets λ times the rate and its weight does not. Weight decay is the one that was asked for, in every group; PEFT's
`create_loraplus_optimizer` silently drops `weight_decay` (it listens to `loraplus_weight_decay`).
"""

from typing import Any

from lorascope.adapt.protocols import AdaptedModel


def loraplus_groups(
    injected: AdaptedModel, lr: float, weight_decay: float, ratio: float, embedding_lr: float
) -> list[dict[str, Any]]:
    """Groups for a torch optimiser: everything else at `lr`, roles named B at `ratio`·`lr`, embeddings' at their own.

    Groups without members are left out.
    """
    embeddings = {f"{name}.{role}" for name, layer in injected.layers.items() if layer.embedding for role in "AB"}
    bs = {f"{name}.B" for name in (*injected.layers, *injected.parts)} - embeddings
    trainable = injected.trainable()
    members = (
        ([p for name, p in trainable.items() if name not in bs | embeddings], lr),
        ([p for name, p in trainable.items() if name in bs], lr * ratio),
        ([p for name, p in trainable.items() if name in embeddings], embedding_lr),
    )
    return [{"params": params, "lr": rate, "weight_decay": weight_decay} for params, rate in members if params]
