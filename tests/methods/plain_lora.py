"""An adapter in another form: as a plain LoRA, which every program reads."""

import numpy as np

from lorascope.errors import InputError, preview
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.tensors import InMemory

KEPT = ("base_model_name_or_path", "task_type", "modules_to_save", "target_modules", "bias")


def to_low_rank(adapter: Adapter) -> Adapter:
    """The same ΔW as LoRA: A and B in float32 with scale 1 (α = r), for kinds whose ΔW is a product of two factors.

    Of VeRA, whose layers need not share a pair here, A' = diag(d) A and B' = diag(b) B; of LoRA-XS, B' = B R; of
    AdaLoRA, A' = diag(E) A. What d, b, R and E were is lost.

    Raises:
        InputError: an update depends on the base, or is no product.
    """
    wrong = [update.name for update in adapter.updates.values() if update.needs_base]
    updates = {} if wrong else {name: _low_rank(update) for name, update in adapter.updates.items()}
    wrong += [name for name, update in updates.items() if update is None]
    if wrong:
        raise InputError("not every update is a product of two factors", found=preview(wrong, 3))
    settings = {key: adapter.settings[key] for key in KEPT if key in adapter.settings}
    made = {name: update for name, update in updates.items() if update is not None}
    return Adapter(
        made, settings, adapter.source, adapter.saved, adapter.skipped, adapter.notes, adapter.non_weight_tensors
    )


def _low_rank(update: Update) -> Update | None:
    delta = update.delta().factors()
    if delta is None:
        return None
    roles = {"A": InMemory(delta.right.astype(np.float32)), "B": InMemory(delta.left.astype(np.float32))}
    return Update(
        update.name,
        "low_rank",
        roles,
        1.0,
        update.transposed,
        update.kernel,
        update.base_weight,
        update.expert,
        update.notes,
        update.embedding,
    )
