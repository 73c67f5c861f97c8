"""What one kind has to say of itself: the subject it is given, and the part it gives back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.architectures import depth
from lorascope.blocks import Block, Definition, Finding
from lorascope.registry import Registry
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What a particular looks at.

    Attributes:
        adapter: the whole file, for its settings and notes.
        updates: the updates asked about, all of one kind; of a member named after a setting, all updates.
        types: the type of each module, by name.
        base: the base model, where one was given.
    """

    adapter: Adapter
    updates: tuple[Update, ...]
    types: Mapping[str, str]
    base: "Checkpoint | None" = None

    def setting(self, *names: str) -> Any:
        """The first of these settings that the file has; None where it has none of them."""
        return next((self.adapter.settings[name] for name in names if name in self.adapter.settings), None)

    def weight(self, update: Update) -> np.ndarray | None:
        """W as (d_out, d_in) in float64; None where there is no base, or it cannot give that weight."""
        found = self.base.lookup(update) if self.base is not None else None
        return None if found is None or isinstance(found, str) else found.read()

    def row(self, update: Update) -> Row:
        """The columns that every row begins with."""
        return self.named(update.name)

    def named(self, name: str) -> Row:
        return {"name": name, "type": self.types.get(name, name), "depth": depth(name)}


@dataclass(frozen=True)
class Part:
    """What one kind has to say.

    Attributes:
        title: of the method, as people write it.
        rows: one for each module, JSON types only; each begins with name, type and depth.
        summary: the few numbers that answer the question, each beside its null; JSON types only.
        findings: the same in words.
        blocks: tables and figures, in reading order.
        definitions: of what the tables and figures show.
    """

    title: str
    rows: tuple[Row, ...]
    summary: Row
    findings: tuple[Finding, ...]
    blocks: tuple[Block, ...] = ()
    definitions: tuple[Definition, ...] = field(default=())


# A member is registered under the kind of update that it speaks of, or under the setting that holds what it shows.
particulars: Registry[Callable[[Subject], Part]] = Registry("particular", "lorascope.analyses.method_specific")
