"""A full model on disk, sharded or not, read lazily tensor by tensor."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorascope.updates.base import Stored


@dataclass(frozen=True)
class Checkpoint:
    """A full model's parameters by name; nothing is read before `weight(...).read()`."""

    path: Path
    stored: Mapping[str, Stored]

    def find(self, name: str) -> Stored | None:
        return self.stored.get(name) or self.stored.get(f"{name}.weight")
