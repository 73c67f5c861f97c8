"""LoRA and its relatives in PEFT's files: plain, rsLoRA, DoRA, AdaLoRA, embeddings, convolutions, fused experts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from lorascope.architectures import LINEAR_HEADS, is_conv1d
from lorascope.errors import InputError, preview
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.keys import Key
from lorascope.weights.tensors import Mapped, flattened, reshaped

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class Group:
    """The keys of one adapted module, by role (`lora_A`, `lora_B.bias`, ...), and their stored arrays."""

    module: str
    wrapped: int
    keys: Mapping[str, Key]
    stored: Mapping[str, Stored]

    def __contains__(self, role: str) -> bool:
        return role in self.stored

    def shape(self, role: str) -> tuple[int, ...]:
        return tuple(self.stored[role].shape)

    def need(self, *roles: str) -> None:
        """InputError where a role's partner is absent."""
        missing = [role for role in roles if role not in self]
        if missing:
            raise InputError(
                f"{self.module} has {preview(key.text for key in self.keys.values())} without its partner",
                found=", ".join(self.stored),
                expected=", ".join(roles),
            )


def low_rank(group: Group, config: Config, base: "Checkpoint | None" = None) -> Update:
    """Linear, Conv1D or convolution: A (r, d_in) or (r, c_in, *kernel), B (d_out, r) or (d_out, r / groups, 1, ...)."""
    group.need("lora_A", "lora_B")
    a, b = group.stored["lora_A"], group.stored["lora_B"]
    if len(a.shape) < 2 or len(b.shape) != len(a.shape):
        raise _mismatch(group, "lora_A", "lora_B")
    rank = check_rank(group, config, a.shape[0], "lora_A")
    kernel = tuple(a.shape[2:])
    notes: tuple[str, ...] = ()
    if kernel and b.shape[1] != rank and b.shape[1] > 0 and rank % b.shape[1] == 0:
        b, notes = _ungrouped(b, rank), ("a grouped convolution: B is shown with its zeros",)
    elif b.shape[1] != rank or math.prod(b.shape[2:]) != 1:
        raise _mismatch(group, "lora_A", "lora_B")
    else:
        b = flattened(b)
    return _with_magnitude(
        group,
        Update(
            name=group.module,
            kind=_kind(config, kernel),
            roles={"A": flattened(a), "B": b},
            scale=config.scale_of(group.module, rank),
            transposed=is_transposed(group.module, (b.shape[0], flattened(a).shape[1]), config, base, kernel),
            kernel=kernel,
            notes=notes,
            bias=group.stored.get("lora_B.bias"),
        ),
    )


def embedding(group: Group, config: Config) -> Update:
    """An embedding, a map from one-hot tokens: A (r, vocabulary), B (dimension, r); the base stores the transpose."""
    group.need("lora_embedding_A", "lora_embedding_B")
    a, b = group.stored["lora_embedding_A"], group.stored["lora_embedding_B"]
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise _mismatch(group, "lora_embedding_A", "lora_embedding_B")
    rank = check_rank(group, config, a.shape[0], "lora_embedding_A")
    return _with_magnitude(
        group,
        Update(
            name=group.module,
            kind="low_rank",
            roles={"A": a, "B": b},
            scale=config.scale_of(group.module, rank),
            transposed=True,
            embedding=True,
        ),
    )


def triplet(group: Group, config: Config, base: "Checkpoint | None" = None) -> Update:
    """AdaLoRA: ΔW = s / (init_r + 1e-5) · B (E ⊙ A), where s is lora_alpha, or the rank where that is not positive.

    `ranknum`, which PEFT divides by, is not in the file: on loading it is the initial rank, whatever rank is left.
    """
    group.need("lora_A", "lora_B", "lora_E")
    a, b, e = (group.stored[role] for role in ("lora_A", "lora_B", "lora_E"))
    rank = a.shape[0] if a.shape else 0
    if len(a.shape) != 2 or len(b.shape) != 2 or b.shape[1] != rank or tuple(e.shape) != (rank, 1):
        raise _mismatch(group, "lora_A", "lora_B", "lora_E")
    scale = 1.0
    notes: tuple[str, ...] = ()
    if config.given:
        if rank > config.rank:
            raise _contradiction(group, "lora_A", rank, f"at most init_r {config.rank}")
        scale = (config.alpha if config.alpha > 0 else float(rank)) / (config.rank + 1e-5)
    if rank == 0:
        notes = ("AdaLoRA pruned every triplet of this module: ΔW is zero",)
    return Update(
        name=group.module,
        kind="triplet",
        roles={"A": a, "B": b, "E": e},
        scale=scale,
        transposed=is_transposed(group.module, (b.shape[0], a.shape[1]), config, base),
        notes=notes,
    )


def _kind(config: Config, kernel: tuple[int, ...]) -> str:
    """Plain low rank, or low rank on what the initialisation left of W. PiSSA's randomised variants stay plain, with
    the note that `config.notes_of` gives: their start is drawn anew at every loading."""
    start = config.raw.get("init_lora_weights")
    return start if start in ("pissa", "olora") and not kernel else "low_rank"


def _with_magnitude(group: Group, update: Update) -> Update:
    """DoRA: the same A and B with the rows' lengths m (d_out,), stored so or as (1, d_out, 1, ...)."""
    if "lora_magnitude_vector" not in group:
        return update
    m = group.stored["lora_magnitude_vector"]
    if math.prod(m.shape) != update.shape[0]:
        raise _mismatch(group, "lora_B" if "lora_B" in group else "lora_embedding_B", "lora_magnitude_vector")
    return replace(update, kind="magnitude", roles={**update.roles, "m": reshaped(m, update.shape[0])})


def check_rank(group: Group, config: Config, rank: int, role: str) -> int:
    """The rank the config gives this module; InputError where the tensor has another."""
    if rank == 0:
        raise InputError(
            f"{group.keys[role].text} has no rows",
            found=group.shape(role),
            hint="a sharded model (DeepSpeed ZeRO-3, FSDP) was saved without gathering; save it again",
        )
    if config.given and rank != config.rank_of(group.module):
        raise _contradiction(group, role, rank, f"rank {config.rank_of(group.module)}")
    return rank


def _contradiction(group: Group, role: str, rank: int, expected: str) -> InputError:
    return InputError(
        f"adapter_config.json contradicts the tensors: {group.keys[role].text} has rank {rank}",
        found=group.shape(role),
        expected=expected,
        hint="give the config that was saved with these weights",
    )


def _mismatch(group: Group, *roles: str) -> InputError:
    return InputError(
        f"the factors of {group.module} do not fit together",
        found=" and ".join(f"{group.keys[role].text} {group.shape(role)}" for role in roles),
        expected="A (r, d_in) and B (d_out, r) with one r",
    )


def _ungrouped(b: Stored, rank: int) -> Stored:
    """B (d_out, r / g, 1, ...) of a convolution in g groups as (d_out, r): each group of outputs has its rows of A."""
    d_out, own = b.shape[:2]
    groups = rank // own

    def expand(values: np.ndarray) -> np.ndarray:
        full = np.zeros((groups, d_out // groups, groups, own))
        for group, part in enumerate(values.reshape(groups, d_out // groups, own)):
            full[group, :, group, :] = part
        return full.reshape(d_out, rank)

    if d_out % groups or math.prod(b.shape) != d_out * own:
        raise InputError("a grouped convolution's B does not divide into its groups", found=tuple(b.shape))
    return Mapped(b, (d_out, rank), expand)


def is_transposed(
    module: str, shape: tuple[int, int], config: Config, base: "Checkpoint | None", kernel: tuple[int, ...] = ()
) -> bool:
    """Whether the base stores the weight as (d_in, d_out): by its shape where that tells, by the module's class where
    the base says which model it is, else by `fan_in_fan_out`, which PEFT takes back for a Linear, such as a head.
    """
    if kernel:
        return False
    if base is not None and (weight := base.find(module)) is not None and len(weight.shape) == 2:
        stored = tuple(weight.shape)
        if stored in (shape, shape[::-1]) and shape[0] != shape[1]:
            return stored == shape[::-1]
        if (known := is_conv1d(module, base.config)) is not None:
            return known
    return config.flag("fan_in_fan_out") and not module.endswith(LINEAR_HEADS)
