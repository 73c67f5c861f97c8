"""What is compared: adapters and full checkpoints, their modules brought under common names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorascope.analyses.adapter_updates import selected
from lorascope.analyses.compare.image_modules import Known, flat_name, in_one_scheme
from lorascope.analyses.toolkit import choose
from lorascope.errors import InputError, preview
from lorascope.linalg.rounding import UNIT_ROUNDOFF
from lorascope.updates.base import Update
from lorascope.weights import names as naming
from lorascope.weights.adapter import Adapter, Skipped
from lorascope.weights.checkpoint import ABSENT, Checkpoint

MATCHING = "matching"  # the stage of what is skipped because not all adapters have it, or not in one shape


@dataclass(frozen=True)
class Modules:
    """The modules to compare.

    Attributes:
        names: module to its update by the index of the adapter, in the order of first appearance.
        skipped: by the index of the adapter, what is not a weight update, and why.
    """

    names: Mapping[str, Mapping[int, Update]]
    skipped: Mapping[int, tuple[Skipped, ...]] = field(default_factory=dict)


def labels(inputs: Sequence[Adapter | Checkpoint]) -> list[str]:
    """The shortest ends of the paths that tell them apart, without the parts that all end in; of a file that holds
    several, with the adapter's name; numbered where one is given twice."""
    paths = [Path(source_path(one)).parts for one in inputs]
    while len(set(paths)) > 1 and min(map(len, paths)) > 1 and len({parts[-1] for parts in paths}) == 1:
        paths = [parts[:-1] for parts in paths]
    for length in range(1, max((len(parts) for parts in paths), default=1) + 1):
        ends = ["/".join(parts[-length:]) or f"adapter {index + 1}" for index, parts in enumerate(paths)]
        if len(set(ends)) == len(set(paths)):
            break
    names = [one.source.adapter if isinstance(one, Adapter) else None for one in inputs]
    ends = [f"{end} ({name})" if name else end for end, name in zip(ends, names, strict=True)]
    seen = [ends[: k + 1].count(end) for k, end in enumerate(ends)]
    return [end if count == 1 else f"{end} ({count})" for end, count in zip(ends, seen, strict=True)]


def source_path(one: Adapter | Checkpoint) -> str:
    return str(one.path) if isinstance(one, Checkpoint) else one.source.path


def source(one: Adapter | Checkpoint) -> dict[str, Any]:
    """Path, hash, format and method."""
    if isinstance(one, Checkpoint):
        return {"path": str(one.path), "sha256": one.sha256(), "format": "checkpoint", "method": "full fine-tuning"}
    return {**one.source.record(), "notes": list(one.notes)}


def align(inputs: Sequence[Adapter | Checkpoint], base: Checkpoint | None, pattern: str | None) -> Modules:
    """Modules under the first adapter's names. Dots and underscores are one, leading components may differ, and so may
    the schemes of image models, where fused projections are cut apart as far as adapters differ in that.

    Raises:
        InputError: a checkpoint without the base, a base that holds no weight of any adapter, or `pattern` is not a
            regular expression or matches nothing.
    """
    if base is None and any(isinstance(one, Checkpoint) for one in inputs):
        raise InputError("a full model is compared by ΔW = W' − W", hint="pass the base model with --base")
    names: dict[str, dict[int, Update]] = {}
    skipped: dict[int, tuple[Skipped, ...]] = {}
    updates: dict[int, list[Update]] = {}
    index = _Names(base)
    for number, one in enumerate(inputs):
        if isinstance(one, Checkpoint):
            continue
        updates[number], others = selected(one, base, pattern)
        skipped[number] = tuple(others)
    if base is not None:
        _check_base(base, [update for of_one in updates.values() for update in of_one])
    for number, known in in_one_scheme(updates).items():
        for name, update in index.place(known).items():
            names.setdefault(name, {})[number] = update
    full = {number: one for number, one in enumerate(inputs) if isinstance(one, Checkpoint)}
    if full and not names:
        names = _matrices_of(full, base, pattern)
    else:
        for number, checkpoint in full.items():
            for updates_of in names.values():
                if (difference := _difference(checkpoint, next(iter(updates_of.values())))) is not None:
                    updates_of[number] = difference
    return Modules(names, skipped)


def _check_base(base: Checkpoint, updates: Sequence[Update]) -> None:
    if updates and all(base.lookup(update) == ABSENT for update in updates):
        raise InputError(
            f"{base.path} is not the base of these adapters: it holds none of the weights that they change",
            found=f"weights such as {preview(base.names(), 1)}",
            expected=updates[0].name,
            hint="give the base model that they were trained on",
        )


class _Names:
    """Common names of modules, added adapter by adapter."""

    def __init__(self, base: Checkpoint | None):
        self.base = base
        self.by_flat: dict[str, str] = {}  # name by its flat form
        self.by_key: dict[str, str] = {}  # name by what tells the module in any scheme
        self.by_shorter: dict[str, set[str]] = {}  # names by their flat form without leading components

    def place(self, known: Sequence[Known]) -> dict[str, Update]:
        """One adapter's updates under the common names."""
        updates = [each.update for each in known]
        keys = {each.update.name: each.key for each in known}
        flat = {update.name: self._flat(update) for update in updates}
        taken = {self.by_flat[each] for each in flat.values() if each in self.by_flat}
        placed: dict[str, Update] = {}
        fresh = []
        for update in updates:
            name = self.by_flat.get(flat[update.name])
            name = name or self._by_key(keys[update.name], taken | placed.keys())
            name = name or self._similar(update, taken | placed.keys())
            if name is None:
                fresh.append(update)
            else:
                placed[name] = update
        for update in fresh:
            self._add(update, flat[update.name], keys[update.name])
            placed[update.name] = update
        return placed

    def _flat(self, update: Update) -> str:
        if _is_replica(update):  # named by its own place, and told from the layer that another base has there
            return f"{flat_name(naming.plain(update.name))}_of_{flat_name(update.base_weight or '')}"
        resolved = self.base.resolve(update.base_weight or update.name) if self.base is not None else None
        expert = "" if update.expert is None else f"_{update.expert}"
        return flat_name((resolved or update.name).removesuffix(".weight")) + expert

    def _by_key(self, key: str, taken: set[str]) -> str | None:
        """The common name of the module of this key, if it is free."""
        name = self.by_key.get(key)
        return None if name is None or name in taken else name

    def _add(self, update: Update, flat: str, key: str) -> None:
        self.by_flat[flat] = update.name
        if _is_replica(update):
            return
        self.by_key.setdefault(key, update.name)
        self.by_flat.setdefault(flat_name(naming.plain(update.name)), update.name)
        for shorter in _shorter(update.name):
            self.by_shorter.setdefault(shorter, set()).add(update.name)

    def _similar(self, update: Update, taken: set[str]) -> str | None:
        """The common name that differs by a root on one side only: `model.encoder` is never `model.decoder`."""
        if _is_replica(update):
            return None
        plain = flat_name(naming.plain(update.name))
        for flat in (plain, *_shorter(update.name)):
            if (name := self.by_flat.get(flat)) is not None and name not in taken:
                return name
        longer = self.by_shorter.get(plain, set())
        return next(iter(longer - taken), None) if len(longer) == 1 else None


def _is_replica(update: Update) -> bool:
    """Whether the update is of a layer that PEFT made of another one of the base (`layer_replication`)."""
    return any(note.startswith("a replica of") for note in update.notes)


def _shorter(name: str) -> list[str]:
    """The flat forms of a name without leading components that name no part of a model, or of the pipeline."""
    plain = naming.plain(name)
    inside = naming.without_component(plain, "")
    return [flat_name(one) for one in (*naming.within(plain), *([inside] if inside else []))]


def _difference(checkpoint: Checkpoint, like: Update) -> Update | None:
    """ΔW of a full model at the module of `like`; None where it has no such weight, or one of another shape."""
    tuned = checkpoint.lookup(like)
    if isinstance(tuned, str):
        return None
    note = ("W' − W of a full model",)
    return replace(like, kind="tuned", roles={"tuned": tuned}, scale=1.0, notes=note)


def _matrices_of(
    full: Mapping[int, Checkpoint], base: Checkpoint | None, pattern: str | None
) -> dict[str, dict[int, Update]]:
    """Every matrix of the base, where only full models are compared."""
    assert base is not None
    names: dict[str, dict[int, Update]] = {}
    for stored_name in base.names():
        module, stored = stored_name.removesuffix(".weight"), base.stored[stored_name]
        if len(stored.shape) != 2 or stored.dtype not in UNIT_ROUNDOFF:
            continue
        like = Update(module, "tuned", {"tuned": stored}, base_weight=stored_name)
        updates = {number: update for number, one in full.items() if (update := _difference(one, like)) is not None}
        if updates:
            names[module] = updates
    if not names:
        raise InputError("the full models have no matrix in common with the base", found=preview(base.names(), 3))
    return {module: names[module] for module in choose(names, pattern)}
