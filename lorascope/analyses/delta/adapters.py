"""What trained adapters add to the base's parameters: what ΔW is compared with."""

from collections.abc import Sequence
from dataclasses import replace

from lorascope.analyses.adapter_updates import selected
from lorascope.analyses.toolkit import short_path
from lorascope.architectures import TIED, ends_with
from lorascope.linalg.factored import Factored
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Skipped
from lorascope.weights.checkpoint import Checkpoint
from lorascope.weights.delta import Pair

Key = tuple[str, int | None]  # a parameter of the base, and an expert of it
Part = tuple[Update, slice]  # an update, and the rows of its ΔW that are one parameter's


class Adapters:
    """The adapters to compare with ΔW, their updates by the base's parameters: with them what they store whole, of
    which ΔW is T − W, and trained rows of embeddings.

    Attributes:
        labels: the adapters by the names that the result gives them.
    """

    def __init__(self, base: Checkpoint, adapters: Sequence[Adapter]):
        self.base = base
        self.labels: dict[str, Adapter] = {}
        self._parts: dict[str, dict[Key, list[Part]]] = {}
        self._without: list[Skipped] = []  # updates of nothing that the base has
        for adapter in adapters:
            name = short_path(adapter.source.path) or adapter.source.format
            number = sum(label.split(" #")[0] == name for label in self.labels)
            label = f"{name} #{number + 1}" if number else name
            self.labels[label], self._parts[label] = adapter, {}
            updates, skipped = selected(adapter, base, None)
            for update in updates:
                self._add(label, update)
            self._without += [replace(item, adapter=label) for item in skipped if _is_matrix(item.name, adapter)]

    def _add(self, label: str, update: Update) -> None:
        places = self.base.places(update)
        for key, rows in places.items():
            self._parts[label].setdefault(key, []).append((update, rows))
        if not places:
            why = self.base.lookup(update)
            reason = why if isinstance(why, str) else "a part of a weight that the base has in one with others"
            self._without.append(Skipped(update.name, reason, adapter=label))

    def of(self, pair: Pair) -> tuple[dict[str, Matrix], tuple[str, ...]]:
        """What each adapter adds to this parameter, by label; and why one that names it could not be used."""
        deltas, notes = {}, []
        for label, parts in self._parts.items():
            of_pair = parts.get((pair.parameter, pair.expert), [])
            if len(of_pair) > 1:
                count = f"{len(of_pair)} updates of this weight ({_why(of_pair)})"
                notes.append(f"{label} has {count}: it has no single ΔW")
            if len(of_pair) != 1:
                continue
            update, rows = of_pair[0]
            weight = self.base.lookup(update) if update.needs_base else None
            if isinstance(weight, str):
                notes.append(f"{label}: {weight}")
                continue
            delta = _rows(update.delta(weight.read() if weight is not None else None), rows)
            if update.transposed != pair.transposed and delta.shape[::-1] == tuple(pair.shape):
                delta = delta.T  # a weight saved whole is as stored; a tied output is an embedding's transpose
            if tuple(delta.shape) == tuple(pair.shape):
                deltas[label] = delta
            else:
                notes.append(f"{label} has another shape here, {tuple(delta.shape)}")
        return deltas, tuple(notes)

    def skipped(self, pairs: Sequence[Pair]) -> list[Skipped]:
        """Modules of the adapters that no pair is about, and those with several updates of one weight."""
        there = {(pair.parameter, pair.expert) for pair in pairs}
        absent, several = [], []
        for label, parts in self._parts.items():
            for key, of_pair in parts.items():
                if key not in there:
                    reason = "the two models have no such weight in common"
                    absent += [Skipped(update.name, reason, adapter=label) for update, _ in of_pair]
                elif len(of_pair) > 1:
                    reason = f"one of several updates of one weight ({_why(of_pair)})"
                    several += [Skipped(update.name, reason, adapter=label) for update, _ in of_pair]
        return list(dict.fromkeys([*self._without, *absent, *several]))


def _is_matrix(name: str, adapter: Adapter) -> bool:
    """Whether what was skipped changes a matrix of the base: one stored whole, or rows of one."""
    stored = adapter.saved.get(name)
    whole = stored is not None and len(stored.shape) > 1 and name not in adapter.non_weight_tensors
    return whole or name in adapter.rows


def _why(parts: Sequence[Part]) -> str:
    """Why there are several updates of one weight."""
    tied = all(ends_with(update.name, TIED) for update, _ in parts)
    return "modules that are tied share it" if tied else "layer_replication"


def _rows(delta: Matrix, rows: slice) -> Matrix:
    """Some rows of ΔW, a product where it is one."""
    if rows == slice(None):
        return delta
    factors = delta.factors()
    return Dense(delta.rows(rows.start, rows.stop)) if factors is None else Factored(factors.left[rows], factors.right)
