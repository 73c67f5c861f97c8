"""The updates of an adapter that an analysis looks at: those that `--modules` matches, full weights among them."""

from typing import TYPE_CHECKING, Any

from lorascope.analyses.toolkit import choose
from lorascope.architectures import is_vocabulary
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Skipped
from lorascope.weights.formats.peft.tokens import TOKENS
from lorascope.weights.tensors import first_rows
from lorascope.weights.trained_rows import row_updates

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

PARTIAL = "the part s·B·A only: the rest needs the base"  # the note of an update that is not whole without the base


def selected(adapter: Adapter, base: "Checkpoint | None", pattern: str | None) -> tuple[list[Update], list[Skipped]]:
    """The updates that `pattern` matches, with those of full weights saved next to them; and the skipped tensors.

    Raises:
        InputError: `pattern` is not a regular expression, or matches nothing.
    """
    updates, skipped = list(adapter.updates.values()), list(adapter.skipped)
    extra = adapter.non_weight_tensors
    for name in sorted(adapter.saved, key=lambda name: name not in extra):  # what the method is about, first
        stored, what = adapter.saved[name], extra.get(name)
        tuned = Skipped(name, what) if what else _saved_update(name, stored, base)
        if isinstance(tuned, Update):
            updates.append(tuned)
        else:
            skipped.append(tuned)
    if base is not None and adapter.rows:
        skipped = [item for item in skipped if item.reason != TOKENS]
        for made in row_updates(adapter, base):
            (updates if isinstance(made, Update) else skipped).append(made)  # type: ignore[arg-type]
    return choose(updates, pattern, lambda update: update.name), skipped


def _saved_update(name: str, stored: Any, base: "Checkpoint | None") -> Update | Skipped:
    """A full tensor stored next to the updates: W' − W where the base has W, else a line that says why not."""
    if len(stored.shape) != 2:
        axes = "1 axis" if len(stored.shape) == 1 else f"{len(stored.shape)} axes"
        return Skipped(name, f"a full tensor of {axes}, saved whole: it has no spectrum")
    if base is None:
        return Skipped(name, "a full weight, saved whole: ΔW = W' − W needs W: pass --base")
    if (weight := base.find(name)) is None:
        return Skipped(name, "a full weight, saved whole, and the base has none of that name (a new head?)")
    module = name.removesuffix(".weight")
    notes: tuple[str, ...] = ("saved whole (modules_to_save)",)
    shapes = tuple(stored.shape), tuple(weight.shape)
    if shapes[0] != shapes[1] and len(shapes[1]) == 2 and shapes[0][1] == shapes[1][1] and is_vocabulary(module):
        both = min(shapes[0][0], shapes[1][0])
        sizes = f"{shapes[0][0]} rows in the adapter, {shapes[1][0]} in the base"
        notes += (f"the vocabulary was resized: {sizes}; the first {both} are compared",)
        stored = first_rows(stored, both)
    elif shapes[0] != shapes[1]:
        sizes = f"{list(shapes[0])} in the adapter, {list(shapes[1])} in the base"
        return Skipped(name, f"a full weight, saved whole, and of another shape: {sizes}")
    return Update(module, "tuned", {"tuned": stored}, base_weight=name, notes=notes)
