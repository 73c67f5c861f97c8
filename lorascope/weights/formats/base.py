"""The contract of a format: recognise a file by its keys, and account for every one of them.

One format, one file in this folder. `weights/io.py` asks every registered format; exactly one may claim a file. A
format takes each key from the `Ledger` either as part of an update or skipped with a reason; a key left over is an
error that names it. Nothing is ever dropped in silence.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lorascope.errors import InputError, preview
from lorascope.registry import Registry
from lorascope.updates.base import Stored, Update
from lorascope.weights.adapter import Adapter, Rows, Skipped

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

formats: Registry["Format"] = Registry("format", "lorascope.weights.formats", "lorascope.formats")


@dataclass(frozen=True)
class Bundle:
    """What lies on disk, before anyone has said what it means: headers read, no tensor yet.

    Attributes:
        path: the file or folder as the user named it.
        tensors: stored arrays by key, in file order.
        metadata: the safetensors header's own metadata.
        config: `adapter_config.json`, where there is one.
        notes: what opening it has to say.
    """

    path: Path
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


class Ledger:
    """Every key of a bundle, each to be taken or skipped exactly once."""

    def __init__(self, tensors: Mapping[str, Stored]):
        self._tensors = dict(tensors)
        self._open = dict.fromkeys(tensors)
        self.taken: list[str] = []
        self.skipped: list[Skipped] = []

    def __contains__(self, key: str) -> bool:
        """Whether the key is there and not yet accounted for."""
        return key in self._open

    def everything(self) -> list[str]:
        """Every key of the bundle, accounted for or not, in file order."""
        return list(self._tensors)

    def peek(self, key: str) -> Stored:
        return self._tensors[key]

    def take(self, key: str) -> Stored:
        """The stored array of `key`, now accounted for."""
        del self._open[key]
        self.taken.append(key)
        return self._tensors[key]

    def skip(self, key: str, reason: str) -> None:
        """`key` is recognised and makes no update, for `reason`."""
        del self._open[key]
        self.skipped.append(Skipped(key, reason))

    def left(self) -> list[str]:
        """The keys nobody has accounted for, in file order."""
        return list(self._open)


@dataclass(frozen=True)
class Parsed:
    """What a format made of a bundle; `io.read` adds path and hash, and checks that the ledger is empty."""

    updates: Mapping[str, Update]
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    saved: Mapping[str, Stored] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    non_weight_tensors: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, Rows] = field(default_factory=dict)
    base: Mapping[str, Stored] = field(default_factory=dict)


# What may be in `skipped` without being lost: the base has it, or nothing but training reads it.
_REDUNDANT = (
    "copy of the base's weight",
    "the base's own copy",
    "original copy of a fully trained module",
    "one copy is enough",
    "a buffer of training alone",
)


def lost(adapter: Adapter, kept: tuple[str, ...] = ()) -> list[Skipped]:
    """What its reader skipped and the base does not have either. `kept`: reasons by which it is not lost."""
    not_lost = (*_REDUNDANT, *kept)
    return [item for item in adapter.skipped if not any(reason in item.reason for reason in not_lost)]


def refuse_loss(adapter: Adapter) -> None:
    """InputError where writing the adapter would lose what its reader skipped."""
    if gone := lost(adapter):
        raise InputError(
            "writing this adapter would lose what was not analysed", found=preview(item.name for item in gone)
        )


class Format(ABC):
    """One dialect. Stateless: one instance is registered under its name."""

    name: ClassVar[str]
    about: ClassVar[str]
    file_names: ClassVar[tuple[str, ...]] = ()  # by which its weights are found in a folder, besides the usual ones

    @abstractmethod
    def claims(self, bundle: Bundle) -> bool:
        """Whether this bundle is of this dialect, from keys, metadata and config alone."""

    @abstractmethod
    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        """Updates from the ledger's keys. `base` helps where names or shapes are lossy; it may be None.

        Raises:
            InputError: the keys claim to be this dialect and contradict themselves or the config.
        """

    def write(self, adapter: Adapter, folder: Path) -> list[Path]:
        """Write the adapter into `folder`; the files written. InputError where this format is only read."""
        raise InputError(
            f"lorascope reads {self.name} files and does not write them", hint="write PEFT's layout instead"
        )
