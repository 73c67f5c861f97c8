"""What a family of PEFT's methods says about itself: one file of this folder, registered in `families`.

A family names its PEFT types, the roles in its keys and the fields of its config, reads its modules and writes them.
`recognise.py` asks all families what a key or a config is; `format.py` and `write.py` do what they share.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lorascope.errors import InputError, preview
from lorascope.registry import Registry
from lorascope.updates.base import Stored, Update
from lorascope.weights.adapter import Adapter, Rows
from lorascope.weights.formats.base import Ledger
from lorascope.weights.formats.peft.config import Config, ScaleFields
from lorascope.weights.formats.peft.keys import Key
from lorascope.weights.tensors import Recent

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

families: Registry["Family"] = Registry("PEFT family", "lorascope.weights.formats.peft")


@dataclass(frozen=True)
class Group:
    """The keys of one adapted module, by role (`lora_A`, `lora_B.bias`, ...), and their stored arrays."""

    module: str
    wrapped: int
    keys: Mapping[str, Key]
    stored: Mapping[str, Stored]

    def __contains__(self, role: str) -> bool:
        return role in self.stored

    @property
    def owner(self) -> str:
        """The module that PEFT's patterns of rank and alpha are for: of out_proj in torch's attention the attention."""
        inside = self.wrapped == 1 and all(".base_layer.out_proj." in key.text for key in self.keys.values())
        return self.module.removesuffix(".out_proj") if inside else self.module

    def shape(self, role: str) -> tuple[int, ...]:
        return tuple(self.stored[role].shape)

    def size(self, role: str, axis: int) -> int:
        """How long an array is along one of its axes. InputError where it has not as many."""
        shape = self.shape(role)
        if axis >= len(shape):
            raise InputError(f"{self.keys[role].text} has too few axes", found=shape, expected=f"{axis + 1} at least")
        return shape[axis]

    def need(self, *roles: str) -> None:
        """InputError where a role's partner is absent."""
        missing = [role for role in roles if role not in self]
        if missing:
            raise InputError(
                f"{self.module} has {preview(key.text for key in self.keys.values())} without its partner",
                found=", ".join(self.stored),
                expected=", ".join(roles),
            )


@dataclass(frozen=True)
class Context:
    """What a family reads its modules with. It adds to `notes` what the user should know about the whole file."""

    config: Config
    base: "Checkpoint | None"
    notes: list[str]
    metadata: Mapping[str, str] = field(default_factory=dict)
    recent: Recent = field(default_factory=Recent)


@dataclass(frozen=True)
class Rest:
    """What a family makes of keys that stand under no module's roles; `methods` name it."""

    updates: Mapping[str, Update] = field(default_factory=dict)
    saved: Mapping[str, Stored] = field(default_factory=dict)
    non_weight_tensors: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, Rows] = field(default_factory=dict)
    methods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Written:
    """What a family writes: tensors by PEFT's keys, fields of the config, entries of the safetensors header."""

    tensors: Mapping[str, Stored]
    fields: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)


class Family:
    """One family of methods. Stateless: one instance is registered under its name.

    Attributes:
        peft_types: PEFT's types, each with the kinds of update that its files may hold; empty where they hold none.
        methods: the method's name by kind of update.
        roles: the last segments of its keys.
        marks: of these, the roles by which a module is known to be this family's.
        with_tail: of these, the roles that are modules, whose parameter is `.weight`.
        rest_keys: how the segment of a key begins that `read_rest` takes, as in `recognise.NOT_READ`.
        fields: of adapter_config.json that this family has and not every method has, with spaces between.
        scales: the fields that say rank and scale; None where ΔW has no scale.
        kinds_written: the kinds of update that `write` has a place for.
    """

    peft_types: ClassVar[Mapping[str, frozenset[str]]] = {}
    methods: ClassVar[Mapping[str, str]] = {}
    roles: ClassVar[tuple[str, ...]] = ()
    marks: ClassVar[frozenset[str]] = frozenset()
    with_tail: ClassVar[frozenset[str]] = frozenset()
    rest_keys: ClassVar[frozenset[str]] = frozenset()
    fields: ClassVar[str] = ""
    scales: ClassVar[ScaleFields | None] = None
    kinds_written: ClassVar[frozenset[str]] = frozenset()
    bias_reason: ClassVar[str] = "a bias, which is not an update of the weight"

    def read(self, group: Group, context: Context) -> Update:
        """The update of one module. InputError where its tensors contradict each other or the config."""
        raise NotImplementedError

    def waits(self, group: Group, context: Context) -> bool:
        """Whether this module is read with others of the family, by `read_together`, after all that are not."""
        return False

    def read_together(self, groups: Sequence[Group], context: Context) -> Iterator[tuple[Group, list[Update] | str]]:
        """For each module that waited, its updates, or the reason why it has none."""
        raise NotImplementedError

    def read_rest(self, ledger: Ledger, context: Context) -> Rest:
        """What keys are that stand under no module's roles, each taken or skipped."""
        return Rest()

    def claims_key(self, key: str) -> bool:
        """Whether a key alone, without a config and without PEFT's prefix and roles, is this family's."""
        return False

    def method_name(self, update: Update, config: Config) -> str:
        return self.methods.get(update.kind, update.kind)

    def unreadable(self, config: Config) -> str | None:
        """Why a config of this family's type makes the tensors mean something else; None where it does not."""
        return None

    def notes(self, config: Config) -> list[str]:
        """What a config of this family's type says that a reader of the numbers should know."""
        return []

    def other_base(self, adapter: Adapter) -> str | None:
        """Why ΔW belongs to a base that is not the original one, by the adapter's settings; None where it does not."""
        return None

    def not_for_all_tokens(self, settings: Mapping[str, Any]) -> str | None:
        """Why the update is not a fixed change of a weight, by the adapter's settings; None where it is one."""
        return None

    def can_write(self, adapter: Adapter) -> bool:
        kinds = {update.kind for update in adapter.updates.values()}
        return bool(kinds) and kinds <= self.kinds_written

    def write(self, adapter: Adapter) -> Written:
        """Tensors and fields of the updates; what is saved besides is added. InputError where PEFT has no place."""
        raise NotImplementedError

    def write_files(self, adapter: Adapter, folder: Path) -> list[Path] | None:
        """All files of an adapter, for a family whose layout is not that of adapted modules; else None."""
        return None


def check_rank(group: Group, config: Config, rank: int, role: str) -> int:
    """The rank the config gives this module; InputError where the tensor has another."""
    if rank == 0:
        raise InputError(
            f"{group.keys[role].text} has no rows",
            found=group.shape(role),
            hint="a sharded model (DeepSpeed ZeRO-3, FSDP) was saved without gathering; save it again",
        )
    if config.given and rank != config.rank_of(group.owner):
        raise contradiction(group, role, rank, f"rank {config.rank_of(group.owner)}")
    return rank


def contradiction(group: Group, role: str, rank: int, expected: str) -> InputError:
    return InputError(
        f"adapter_config.json contradicts the tensors: {group.keys[role].text} has rank {rank}",
        found=group.shape(role),
        expected=expected,
        hint="give the config that was saved with these weights",
    )


def refuse(update: Update, wrong: bool, why: str) -> None:
    """InputError naming the module where PEFT has no place for its update."""
    if wrong:
        raise InputError(f"{update.name}: {why}")
