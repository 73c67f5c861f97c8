"""MiSS in PEFT's files: miss_block (r, d_out), which every r inputs share; with `mini` (r, mini_r), which the outputs
share too; with `bat` (d_out / r, r, r), which multiplies W. How many inputs there are, the base says.

Kang and Yin 2024, arXiv 2409.15371, as PEFT computes it (tuners/miss/layer.py): ΔW[o, i] = block[i mod r, o].
"""

from dataclasses import dataclass

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.formats.peft.config import Config, ScaleFields
from lorascope.weights.formats.peft.family import Context, Family, Group, check_rank, families
from lorascope.weights.formats.peft.places import place_of
from lorascope.weights.support import Support
from lorascope.weights.tensors import Mapped


class MiSS(Family):
    peft_types = {"MISS": frozenset({"low_rank", "bat"})}
    methods = {"bat": "MiSS (Bat)"}
    roles = ("miss_block",)
    marks = frozenset(roles)
    fields = "mini_r miss_dropout init_weights"
    scales = ScaleFields(default_rank=64, patterns=False)

    def method_name(self, update: Update, config: Config) -> str:
        return "MiSS" if update.kind == "low_rank" else self.methods[update.kind]

    def read(self, group: Group, context: Context) -> Update:
        """A is the r × r identity side by side, B the block's transpose: their product repeats it."""
        block, config, key = group.stored["miss_block"], context.config, group.keys["miss_block"].text
        axes = len(block.shape)
        bat = config.raw.get("init_weights") == "bat" if config.given else axes == 3
        if axes != (3 if bat else 2) or 0 in block.shape:
            raise InputError(
                f"{key} is not MiSS's", found=block.shape, expected="(d_out / r, r, r)" if bat else "(r, d)"
            )
        rank = check_rank(group, config, block.shape[-1] if bat else block.shape[0], "miss_block")
        if bat:
            return Update(group.module, "bat", {"M": block})
        place = place_of(group.module, context)
        if place.d_out % block.shape[1] or rank > place.d_in:
            raise InputError(f"{key} does not fit the base weight", found=block.shape, expected=place.shape)
        repeats = place.d_out // block.shape[1]
        if repeats > 1 and config.given and config.raw.get("init_weights") != "mini":
            raise InputError(f"{key} has fewer outputs than the base", found=block.shape, expected=(rank, place.d_out))
        b = Mapped(block, (place.d_out, rank), lambda values: np.tile(values, (1, repeats)).T)
        return Update(group.module, "low_rank", {"A": Identities((rank, place.d_in)), "B": b})


families.register("miss")(MiSS())


@dataclass(frozen=True)
class Identities:
    """Identity matrices (r, r) side by side, cut off at the given width."""

    shape: tuple[int, int]
    dtype: str = "F32"

    def read(self) -> np.ndarray:
        rank, width = self.shape
        return (np.arange(width)[None, :] % rank == np.arange(rank)[:, None]).astype(np.float64)


SUPPORT = (Support("MiSS", "PEFT's merge in float64", base="for shapes; with `bat`, for ΔW", peft="MISS"),)
