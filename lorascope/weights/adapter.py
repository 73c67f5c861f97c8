"""An adapter in memory: one update per module, the settings it was written with, and where it came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lorascope.errors import printable
from lorascope.inputs import sha256_of
from lorascope.updates.base import Stored, Update


@dataclass(frozen=True)
class Source:
    """Where an adapter came from.

    Attributes:
        digest: SHA-256 of the weights, where it is known without reading `files`.
        adapter: the name by which it was chosen, of a file that holds several.
        files: the weights file, or all shards in index order.
    """

    path: str = ""
    digest: str | None = None
    format: str = ""
    method: str = ""
    adapter: str | None = None
    files: tuple[Path, ...] = ()

    @cached_property
    def sha256(self) -> str | None:
        """The hash of the bytes of all files, read when it is first needed; None of an adapter in memory.

        Raises:
            InputError: a file is no longer there, or cannot be read.
        """
        return sha256_of(self.files) if self.files and self.digest is None else self.digest

    def record(self) -> dict[str, str | None]:
        """For JSON."""
        named = {"format": self.format, "method": self.method, "adapter": self.adapter}
        return {"path": self.path, "sha256": self.sha256, **named}


@dataclass(frozen=True)
class Skipped:
    """A key, or a module's key, that was recognised and yields no update, and why.

    Attributes:
        stage: which part of the work skipped it, where there are several, such as "extract".
        adapter: the label of the adapter it is of, where there are several.
    """

    name: str
    reason: str
    stage: str = ""
    adapter: str = ""

    def record(self) -> dict[str, str]:
        """For JSON: what is empty is left out."""
        return {key: text for key, text in vars(self).items() if text or key in ("name", "reason")}


@dataclass(frozen=True)
class Rows:
    """Rows of an embedding that were trained: `stored` (n, width) takes the place of the rows `indices`."""

    indices: tuple[int, ...]
    stored: Stored


@dataclass(frozen=True, repr=False)
class Adapter:
    """A frozen mapping from module to update.

    Attributes:
        updates: by module path in the base model, in file order.
        settings: what the writer's config said, resolved: rank, alpha, patterns, flags. JSON types only.
        source: path, hash, format, method.
        saved: full tensors stored next to the updates (`modules_to_save`, trained biases), by parameter name.
        skipped: everything recognised that is not an update, with the reason. With `updates` and `saved` this
            accounts for every key in the file.
        notes: what the reader wants said about the whole, such as projections redrawn from a seed.
        non_weight_tensors: of `saved`, the tensors that are known to be no weight update (a soft prompt, a bottleneck
            between two layers): the reason by the tensor's name.
        rows: trained rows of embeddings, by the embedding's parameter.
        training: what the file says of its training: base model, trigger words, tool, steps (`weights/metadata.py`).
        base: weights of the base that the file also holds, by parameter: what the updates are added to.
    """

    updates: Mapping[str, Update]
    settings: Mapping[str, Any] = field(default_factory=dict)
    source: Source = Source()
    saved: Mapping[str, Stored] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()
    non_weight_tensors: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, Rows] = field(default_factory=dict)
    base: Mapping[str, Stored] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("updates", "settings", "saved", "non_weight_tensors", "rows", "base", "training"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        if unknown := self.non_weight_tensors.keys() - self.saved.keys():
            raise ValueError(f"non_weight_tensors name saved tensors, and {sorted(unknown)} are not saved")

    def __repr__(self) -> str:
        """One line: where it is from, its method, how many modules, their ranks, and what else is in it."""
        ranks = sorted({update.rank for update in self.updates.values() if update.rank is not None})
        facts = [self.source.method or self.source.format, _counted(len(self.updates), "module")]
        facts.append(f"rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "") if ranks else "")
        facts.append(f"{_counted(len(self.saved), 'tensor')} stored whole" if self.saved else "")
        facts.append(f"{len(self.skipped)} skipped" if self.skipped else "")
        return f"<Adapter {printable(self.source.path or 'in memory')}: {', '.join(filter(None, facts))}>"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
