"""Nunchaku (SVDQuant): `….lora_down` and `….lora_up`, without `.weight`, packed for the GPU's matrix instructions.

Of a linear map both are stored as (d, r), cut into fragments of 16 × 16 whose entries stand in the order in which the
32 lanes of a warp take them, sides filled up with zeros to multiples of 16 (`pack_lowrank_weight`,
nunchaku/lora/flux/nunchaku_converter.py of 1.2). Of a block's first norm (`norm.linear`, `norm1.linear`,
`norm1_context.linear`) nothing is packed, A is (r, d_in), and the rows of B stand by channel, the 3 or 6 shifts, scales
and gates of one channel after another (`reorder_adanorm_lora_up`). What the base does not quantise keeps
`.lora_A.weight` and `.lora_B.weight`. ΔW = B·A: the converter has multiplied alpha/r in.

A conversion that was given the base's file puts the base's own low-rank branch in front of A and B, which is part of W
and no update. It is taken off where `--base` has the same branch; without a base nobody can tell, and a note says so.
"""

from typing import TYPE_CHECKING

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.base import Bundle, Format, Ledger, Parsed, formats
from lorascope.weights.formats.key_groups import KeyGroup, by_module, is_packed, low_rank_roles
from lorascope.weights.support import Support
from lorascope.weights.tensors import Mapped

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

SUFFIXES = ("lora_down", "lora_up", "lora_A.weight", "lora_B.weight")
SIDE = 16  # of a fragment
NORMS = {"norm.linear": 3, "norm1.linear": 6, "norm1_context.linear": 6}
UNKNOWN_NORMS = ("img_mod.1", "txt_mod.1")
MAYBE_BRANCH = (
    "A and B may begin with the base's own low-rank branch (SVDQuant), which is part of W and no update, and every"
    " number then has it in: pass the quantised base with --base, which shows it, or the LoRA it was made of"
)
BRANCH = "the base's own low-rank branch stood in front of A and B, and was taken off: {rank} of {all}"
VECTOR = "a difference of a bias or a norm's weight: a vector, not a matrix"


class Nunchaku(Format):
    name = "nunchaku"
    about = "LoRA of Nunchaku, packed for its kernels: lora_down and lora_up without .weight"

    def claims(self, bundle: Bundle) -> bool:
        if bundle.config is not None and "peft_type" in bundle.config:
            return False
        return is_packed(bundle.tensors)

    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        updates, checked = [], 0
        for group in by_module(bundle.tensors, SUFFIXES).values():
            if group.module.endswith(UNKNOWN_NORMS):
                group.skip(ledger, "the order in which Nunchaku has the rows of this norm is not known")
            elif "lora_down" in group or "lora_up" in group:
                update, found = _without_branch(_unpacked(group, ledger), group.module, base)
                checked += found
                updates.append(update)
            else:
                a, b = group.take(ledger, "lora_A.weight"), group.take(ledger, "lora_B.weight")
                roles = low_rank_roles(a, b, None, (group.keys["lora_A.weight"], group.keys["lora_B.weight"]))
                updates.append(Update(group.module, "low_rank", roles))
        for key in ledger.left():
            if len(ledger.peek(key).shape) == 1 and key.endswith((".bias", ".weight")):
                ledger.skip(key, VECTOR)
        notes = () if checked else (MAYBE_BRANCH,)
        return Parsed({update.name: update for update in updates}, "LoRA", notes=notes)


def _unpacked(group: KeyGroup, ledger: Ledger) -> Update:
    down, up = group.take_matrix(ledger, "lora_down"), group.take_matrix(ledger, "lora_up")
    return Update(group.module, "low_rank", _roles(group.module, down, up))


def _roles(module: str, down: Stored, up: Stored) -> dict[str, Stored]:
    """A (r, d_in) and B (d_out, r) of a pair as stored. InputError where the two do not fit."""
    if len(down.shape) != 2 or len(up.shape) != 2:
        raise InputError(f"the factors of {module} are not matrices", found=f"{down.shape} and {up.shape}")
    splits = next((count for ending, count in NORMS.items() if module.endswith(f".{ending}")), None)
    if splits is not None:
        if down.shape[0] != up.shape[1] or up.shape[0] % splits:
            expected = f"(r, d_in) and ({splits}·n, r)"
            raise InputError(
                f"the factors of {module} do not fit", found=f"{down.shape}, {up.shape}", expected=expected
            )
        return {"A": down, "B": Mapped(up, tuple(up.shape), lambda values: _by_split(values, splits))}
    if down.shape[1] != up.shape[1] or any(size % SIDE or not size for size in (*down.shape, *up.shape)):
        expected = "(d_in, r) and (d_out, r), all multiples of 16"
        raise InputError(
            f"the factors of {module} are not packed", found=f"{down.shape}, {up.shape}", expected=expected
        )
    a = Mapped(
        down,
        (down.shape[1], down.shape[0]),
        lambda values: fragments(values).transpose(1, 2, 0, 3).reshape(values.T.shape),
    )
    return {
        "A": a,
        "B": Mapped(up, tuple(up.shape), lambda values: fragments(values).transpose(0, 2, 1, 3).reshape(values.shape)),
    }


def fragments(packed: np.ndarray) -> np.ndarray:
    """The fragments (d/16, r/16, 16, 16) of a packed matrix (d, r), each with its rows and columns in order.

    Lane 4i + j of a warp holds rows i and i + 8 and columns 2j, 2j + 1, 2j + 8 and 2j + 9, in this order.
    """
    lanes = packed.reshape(packed.shape[0] // SIDE, packed.shape[1] // SIDE, 8, 4, 2, 2, 2)
    return lanes.transpose(0, 1, 4, 2, 5, 3, 6).reshape(*lanes.shape[:2], SIDE, SIDE)


def _by_split(up: np.ndarray, splits: int) -> np.ndarray:
    """Rows by shift, scale and gate, of rows by channel."""
    return up.reshape(-1, splits, up.shape[1]).swapaxes(0, 1).reshape(up.shape)


def _without_branch(update: Update, module: str, base: "Checkpoint | None") -> tuple[Update, bool]:
    """The update without the base's own branch, where the base has one there; and whether the base has one."""
    if base is None:
        return update, False
    down, up = (base.tensors.stored.get(f"{module}.{suffix}") for suffix in SUFFIXES[:2])
    if down is None or up is None:
        return update, False
    branch, roles = _roles(module, down, up), update.roles
    rank, whole = branch["A"].shape[0], roles["A"].shape[0]
    fits = rank <= whole and branch["A"].shape[1] == roles["A"].shape[1] and branch["B"].shape[0] == roles["B"].shape[0]
    if not fits or not rank or not np.array_equal(branch["A"].read(), roles["A"].read()[:rank]):
        return update, True
    if rank == whole or not np.array_equal(branch["B"].read(), roles["B"].read()[:, :rank]):
        return update, True
    a = Mapped(roles["A"], (whole - rank, roles["A"].shape[1]), lambda values: values[rank:])
    b = Mapped(roles["B"], (roles["B"].shape[0], whole - rank), lambda values: values[:, rank:])
    note = BRANCH.format(rank=rank, all=whole)
    return Update(update.name, "low_rank", {"A": a, "B": b}, notes=(note,)), True


formats.register("nunchaku")(Nunchaku())

SUPPORT = (
    Support(
        "Nunchaku (SVDQuant) LoRA of FLUX",
        "Nunchaku's packing in float64",
        base="to take the base's own low-rank branch off",
    ),
)
