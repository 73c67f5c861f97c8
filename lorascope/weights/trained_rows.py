"""Trained rows of embeddings as updates: with the base their ΔW is known, and has no more rank than there are rows."""

from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Rows, Skipped
from lorascope.weights.checkpoint import Checkpoint
from lorascope.weights.quantised import Unreadable
from lorascope.weights.tensors import Gathered, OneHot


def row_updates(adapter: Adapter, base: Checkpoint) -> list[Update | Skipped]:
    """The update of every embedding of which the adapter has trained rows; or a line that says why there is none."""
    return [_row_update(name, rows, base, adapter) for name, rows in adapter.rows.items()]


def _row_update(name: str, rows: Rows, base: Checkpoint, adapter: Adapter) -> Update | Skipped:
    """Trained rows of an embedding as an update of it; or a line that says why they are none."""
    weight, module = base.find(name), name.removesuffix(".weight")
    if weight is None or isinstance(weight, Unreadable):
        return Skipped(name, weight.reason if isinstance(weight, Unreadable) else "the base has no such embedding")
    if (
        len(weight.shape) != 2
        or weight.shape[1:] != tuple(rows.stored.shape[1:])
        or max(rows.indices) >= weight.shape[0]
    ):
        sizes = f"rows up to {max(rows.indices)} of width {rows.stored.shape[-1]}, W {list(weight.shape)}"
        return Skipped(name, f"the rows of trainable tokens do not fit the base's embedding: {sizes}")
    roles = {"T": rows.stored, "before": Gathered(weight, rows.indices), "E": OneHot(rows.indices, weight.shape[0])}
    notes = (f"trainable tokens: {len(rows.indices)} rows of {weight.shape[0]} were trained",)
    unique = f"{module}.trainable_tokens" if module in adapter.updates else module
    return Update(unique, "replaced_rows", roles, transposed=True, base_weight=name, embedding=True, notes=notes)
