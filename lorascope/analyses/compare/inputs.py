"""What is compared: adapters and full checkpoints, their modules brought under common names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorascope.analyses.adapter_updates import selected
from lorascope.errors import InputError, preview
from lorascope.linalg.rounding import UNIT_ROUNDOFF
from lorascope.patterns import Pattern
from lorascope.updates.base import Update
from lorascope.weights import names as naming
from lorascope.weights.adapter import Adapter, Skipped
from lorascope.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class Modules:
    """The modules to compare.

    Attributes:
        names: module to its update by the index of the adapter, in the order of first appearance.
        skipped: by the index of the adapter, what yields no update, and why.
    """

    names: Mapping[str, Mapping[int, Update]]
    skipped: Mapping[int, tuple[Skipped, ...]] = field(default_factory=dict)


def labels(inputs: Sequence[Adapter | Checkpoint]) -> list[str]:
    """The shortest tails of the paths that tell them apart, without the endings that all have; a number where the same
    path stands twice."""
    paths = [Path(source_path(one)).parts for one in inputs]
    while len(set(paths)) > 1 and min(map(len, paths)) > 1 and len({parts[-1] for parts in paths}) == 1:
        paths = [parts[:-1] for parts in paths]
    most = max((len(parts) for parts in paths), default=1)
    for length in range(1, most + 1):
        tails = ["/".join(parts[-length:]) or f"adapter {index + 1}" for index, parts in enumerate(paths)]
        if len(set(tails)) == len(set(paths)):
            break
    seen: dict[str, int] = {}
    made = []
    for tail in tails:
        seen[tail] = seen.get(tail, 0) + 1
        made.append(tail if seen[tail] == 1 else f"{tail} ({seen[tail]})")
    return made


def source_path(one: Adapter | Checkpoint) -> str:
    return str(one.path) if isinstance(one, Checkpoint) else one.source.path


def source(one: Adapter | Checkpoint) -> dict[str, Any]:
    """Path, hash, format and method."""
    if isinstance(one, Checkpoint):
        return {"path": str(one.path), "sha256": one.sha256(), "format": "checkpoint", "method": "full fine-tuning"}
    return {**vars(one.source), "notes": list(one.notes)}


def align(inputs: Sequence[Adapter | Checkpoint], base: Checkpoint | None, pattern: str | None) -> Modules:
    """Modules under the first adapter's names. Dots and underscores are one, leading components may differ.

    Raises:
        InputError: a checkpoint without the base, or `pattern` is not a regular expression or finds nothing.
    """
    if base is None and any(isinstance(one, Checkpoint) for one in inputs):
        raise InputError("a full model is compared by ΔW = W' − W", hint="pass the base model with --base")
    names: dict[str, dict[int, Update]] = {}
    skipped: dict[int, tuple[Skipped, ...]] = {}
    index = _Names(base)
    for number, one in enumerate(inputs):
        if isinstance(one, Checkpoint):
            continue
        updates, aside = selected(one, base, pattern)
        skipped[number] = tuple(aside)
        for name, update in index.place(updates).items():
            names.setdefault(name, {})[number] = update
    full = {number: one for number, one in enumerate(inputs) if isinstance(one, Checkpoint)}
    if full and not names:
        names = _whole(full, base, pattern)
    else:
        for number, checkpoint in full.items():
            for updates_of in names.values():
                if (update := _difference(checkpoint, next(iter(updates_of.values())))) is not None:
                    updates_of[number] = update
    return Modules(names, skipped)


class _Names:
    """Common names of modules, as they come to be known."""

    def __init__(self, base: Checkpoint | None):
        self.base = base
        self.known: dict[str, str] = {}  # the flat form to the name
        self.shorter: dict[str, set[str]] = {}  # the flat forms without their roots to names

    def place(self, updates: Sequence[Update]) -> dict[str, Update]:
        """One adapter's updates under the common names."""
        own = {update.name: self._flat(update) for update in updates}
        taken = {self.known[flat] for flat in own.values() if flat in self.known}
        placed: dict[str, Update] = {}
        fresh = []
        for update in updates:
            name = self.known.get(own[update.name]) or self._similar(update, taken | placed.keys())
            if name is None:
                fresh.append(update)
            else:
                placed[name] = update
        for update in fresh:
            self._learn(update, own[update.name])
            placed[update.name] = update
        return placed

    def _flat(self, update: Update) -> str:
        if _is_replica(update):  # named by its own place, and told from the layer that another base has there
            return f"{_flat(naming.plain(update.name))}_of_{_flat(update.base_weight or '')}"
        resolved = self.base.resolve(update.base_weight or update.name) if self.base is not None else None
        expert = "" if update.expert is None else f"_{update.expert}"
        return _flat((resolved or update.name).removesuffix(".weight")) + expert

    def _learn(self, update: Update, flat: str) -> None:
        self.known[flat] = update.name
        if _is_replica(update):
            return
        self.known.setdefault(_flat(naming.plain(update.name)), update.name)
        for shorter in _shorter(update.name):
            self.shorter.setdefault(shorter, set()).add(update.name)

    def _similar(self, update: Update, taken: set[str]) -> str | None:
        """The known name that differs by a root on one side only: `model.encoder` is never `model.decoder`."""
        if _is_replica(update):
            return None
        own = _flat(naming.plain(update.name))
        for flat in (own, *_shorter(update.name)):
            if (name := self.known.get(flat)) is not None and name not in taken:
                return name
        found = self.shorter.get(own, set())
        return next(iter(found - taken), None) if len(found) == 1 else None


def _is_replica(update: Update) -> bool:
    """Whether the update is of a layer that PEFT made of another one of the base (`layer_replication`)."""
    return any(note.startswith("a replica of") for note in update.notes)


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _shorter(name: str) -> list[str]:
    """The flat forms of a name without leading components that name no part of a model, or without the pipeline's."""
    plain = naming.plain(name)
    inside = naming.without_component(plain, "")
    return [_flat(one) for one in (*naming.within(plain), *([inside] if inside else []))]


def _difference(checkpoint: Checkpoint, like: Update) -> Update | None:
    """ΔW of a full model at the module of `like`; None where it has no such weight, or one of another shape."""
    tuned = checkpoint.lookup(like)
    if isinstance(tuned, str):
        return None
    note = ("W' − W of a full model",)
    return replace(like, kind="tuned", roles={"tuned": tuned}, scale=1.0, notes=note)


def _whole(
    full: Mapping[int, Checkpoint], base: Checkpoint | None, pattern: str | None
) -> dict[str, dict[int, Update]]:
    """Every matrix of the base, where only full models are compared."""
    assert base is not None
    wanted = Pattern(pattern or "", "--modules")
    names: dict[str, dict[int, Update]] = {}
    for stored_name in base.names():
        module = stored_name.removesuffix(".weight")
        stored = base.stored[stored_name]
        if len(stored.shape) != 2 or stored.dtype not in UNIT_ROUNDOFF or not wanted.search(module):
            continue
        like = Update(module, "tuned", {"tuned": stored}, base_weight=stored_name)
        found = {number: update for number, one in full.items() if (update := _difference(one, like)) is not None}
        if found:
            names[module] = found
    if not names:
        raise InputError("the full models have no matrix in common with the base", found=preview(base.names(), 3))
    return names
