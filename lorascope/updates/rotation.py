"""Rotations: ΔW = diag(s)·W·G − W, G orthogonal and made of blocks, so that it has few parameters.

Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning" (OFT), arXiv 2306.07280, §3: one
block-diagonal factor. Liu et al. 2023, "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization" (BOFT),
arXiv 2311.06243, §4: several, each in coordinates that a butterfly permutation shuffles. s is the length of each row.

The blocks are those of G: how a file stores them (Cayley's transform of a skew matrix, a Neumann series of it) is its
reader's matter. One block alone serves all inputs. `rotation_out` acts on the outputs, as on those of an embedding.
"""

from collections.abc import Mapping

import numpy as np

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array, namespace
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.updates.base import Kind, Role, kinds, needed


class Rotation(Kind):
    name = "rotation"
    formula = "ΔW = diag(s)·W·G₁·…·G_m − W"
    needs_base = True
    roles = {
        "R": Role(("factors", "blocks", "side", "side"), "the blocks of each factor, that on W first"),
        "s": Role(("d_out",), "the length that each row is multiplied by", optional=True),
    }

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        sizes = super().dimensions(shapes)
        factors, blocks, side = sizes["factors"], sizes["blocks"], sizes["side"]
        if factors > 1 and (side % 2 or blocks % 2 ** min(factors - 1, 32)):
            raise InputError(
                "so many butterfly factors do not fit these blocks",
                found=f"{factors} factors of {blocks} blocks of side {side}",
                expected="an even side, and a number of blocks that divides by 2 as often as there are more factors",
            )
        return sizes if blocks == 1 else {**sizes, "d_in": blocks * side}

    def rank(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.dimensions(shapes)

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Matrix:
        """ΔW (d_out, d_in), dense, block by block. InputError without `base`, or where it has another shape."""
        weight, factors = needed(self, roles, base), roles["R"]
        count, blocks, side, _ = factors.shape
        if weight.shape[1] % side:
            raise InputError("the base weight does not divide into blocks", found=tuple(weight.shape))
        rotated = weight
        for index in range(count):
            rotated = _times_factor(rotated, factors[index, ...], butterfly(index, count, blocks, side))
        if "s" in roles:
            rotated = rotated * roles["s"][:, None]
        return Dense((rotated - weight) * scale)


class RotationOut(Kind):
    name = "rotation_out"
    formula = "ΔW = G·W − W"
    needs_base = True
    roles = {"R": Role(("blocks", "side", "side"), "the blocks of G, which is cut to the rows of W")}

    def rank(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.dimensions(shapes)

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Matrix:
        """ΔW (d_out, d_in), dense. InputError without `base`, or where it has more rows than there are blocks for, or
        so few that a block is left over."""
        weight, blocks = needed(self, roles, base), roles["R"]
        count, side, _ = blocks.shape
        count = count if count > 1 else -(-weight.shape[0] // side)
        if not (count - 1) * side < weight.shape[0] <= count * side:
            raise InputError(
                "the base weight has another shape", found=tuple(weight.shape), expected=f"{count * side} rows"
            )
        missing = count * side - weight.shape[0]
        xp = namespace(weight)
        padded = xp.concat([weight, xp.zeros((missing, weight.shape[1]), dtype=weight.dtype)]) if missing else weight
        rotated = xp.reshape(blocks @ xp.reshape(padded, (count, side, -1)), padded.shape)
        return Dense((rotated[: weight.shape[0], :] - weight) * scale)


def _times_factor(weight: Array, blocks: Array, order: np.ndarray | None) -> Array:
    """`weight` (d_out, d_in) times one factor, in the order of columns in which that is block diagonal."""
    xp, (_, side, _) = namespace(weight, blocks), blocks.shape
    if order is not None:
        weight = xp.take(weight, xp.asarray(np.argsort(order)), axis=1)
    parts = xp.permute_dims(xp.reshape(weight, (weight.shape[0], -1, side)), (1, 0, 2))
    product = xp.reshape(xp.permute_dims(parts @ blocks, (1, 0, 2)), weight.shape)
    return product if order is None else xp.take(product, xp.asarray(order), axis=1)


def butterfly(index: int, factors: int, blocks: int, side: int) -> np.ndarray | None:
    """The order of columns of factor `index`: in groups of 2^index blocks, the even half-blocks before the odd ones.

    None of the only factor, whose blocks are as they are (`block_butterfly_perm` of PEFT's tuners/boft/layer.py).
    """
    if factors == 1:
        return None
    columns = np.arange(blocks * side).reshape(blocks // 2**index, -1, 2, side // 2)
    return columns.transpose(0, 2, 1, 3).ravel()


kinds.register("rotation")(Rotation())
kinds.register("rotation_out")(RotationOut())
