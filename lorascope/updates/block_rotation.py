"""Orthogonal fine-tuning by blocks along one side of W, as the tools for image models store it.

    diag_oft      ΔW = s·(diag(g)·Rᵀ·W − W), R block diagonal over the outputs, g an optional factor of each output
    lycoris_boft  the same with R a product of m butterfly factors, each of them block diagonal in an order of its own
    oft_v2        ΔW = s·(diag(m / n)·W·R̃ᵀ − W), R̃ block diagonal over the inputs; m and n optional, of outputs

A block of R is the Cayley transform (1 + Q)(1 − Q)⁻¹ of Q = B − Bᵀ; of R̃ it is the first terms of its series,
1 + 2Q + 2Q² + 2Q³ + Q⁴ (Cayley–Neumann), with Q from its entries above the diagonal, row by row. R̃ is orthogonal up
to O(Q⁴) alone.

Qiu et al. 2023, "Controlling Text-to-Image Diffusion by Orthogonal Finetuning" (OFT), arXiv 2306.07280; Liu et al.
2024, BOFT, arXiv 2311.06243; Qiu et al. 2025, OFTv2, arXiv 2506.19847. Orders of axes as in LyCORIS
(functional/diag_oft.py and boft.py of 4.1.3), sd-scripts (networks/oft.py) and OneTrainer (module/oft_utils.py).
"""

import math
from collections.abc import Mapping

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array, namespace
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.updates.base import Kind, Role, kinds


def cayley(blocks: Array) -> Array:
    """(1 + Q)(1 − Q)⁻¹ of Q = B − Bᵀ, for blocks B (..., b, b)."""
    xp = namespace(blocks)
    q = blocks - xp.matrix_transpose(blocks)
    one = xp.eye(q.shape[-1], dtype=q.dtype)
    return xp.linalg.solve(one - q, one + q)  # the two commute


def cayley_series(entries: Array) -> Array:
    """1 + 2Q + 2Q² + 2Q³ + Q⁴ (k, b, b), of the entries (k, b(b − 1)/2) above Q's diagonal."""
    xp = namespace(entries)
    side = side_of(entries.shape[1])
    rows = []
    start = 0
    for i in range(side):  # row i of the upper triangle has side − 1 − i entries
        stop = start + side - 1 - i
        rows.append(
            xp.concat([xp.zeros((entries.shape[0], i + 1), dtype=entries.dtype), entries[:, start:stop]], axis=1)
        )
        start = stop
    upper = xp.stack(rows, axis=1)
    q = upper - xp.matrix_transpose(upper)
    square = q @ q
    return xp.eye(side, dtype=q.dtype) + 2 * q + 2 * square + 2 * (square @ q) + square @ square


def side_of(entries: int) -> int:
    """The b of which b(b − 1)/2 is `entries`. InputError where there is none."""
    side = math.isqrt(2 * entries) + 1  # (b − 1)² ≤ b(b − 1) < b²
    if entries < 1 or side * (side - 1) // 2 != entries:
        raise InputError(
            "the entries of a block are not a triangle", found=entries, expected="b(b − 1)/2 for a whole b"
        )
    return side


class _Rotation(Kind):
    """What they have in common: only the base says the other side of W."""

    needs_base = True

    def shape(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """InputError always: the blocks say one side of ΔW, the base says the other."""
        raise InputError("the shape of a rotation is known from the base only", found=shapes, hint="pass --base MODEL")

    def rank(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """None: ΔW can have the rank of W."""
        self.dimensions(shapes)

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Matrix:
        """ΔW (d_out, d_in), dense. InputError without `base`, or where the blocks do not fit it."""
        if base is None:
            raise InputError("a rotation changes the base weight in proportion", hint="pass --base MODEL")
        return Dense((self.tuned(roles, base) - base) * scale)

    def tuned(self, roles: Mapping[str, Array], base: Array) -> Array:
        """W' (d_out, d_in)."""
        raise NotImplementedError


class DiagOft(_Rotation):
    name = "diag_oft"
    formula = "ΔW = s·(diag(g)·Rᵀ·W − W), R = (1 + Q)(1 − Q)⁻¹, Q = B − Bᵀ"
    roles = {
        "blocks": Role(("a", "c", "c"), "B, one for each group of outputs"),
        "g": Role(("d_out",), "factor of each output", optional=True),
    }

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        sizes = super().dimensions(shapes)
        return _outputs(sizes, sizes["a"] * sizes["c"])

    def tuned(self, roles: Mapping[str, Array], base: Array) -> Array:
        xp = namespace(base)
        groups, side, _ = roles["blocks"].shape
        _fits("outputs", groups * side, base.shape[0])
        rotated = xp.matrix_transpose(cayley(roles["blocks"])) @ base.reshape(groups, side, -1)
        return _scaled_rows(rotated.reshape(base.shape), roles.get("g"))


class LycorisBoft(_Rotation):
    name = "lycoris_boft"
    formula = "ΔW = s·(diag(g)·R_m⋯R_1·W − W), R_i butterfly factors of Cayley blocks"
    roles = {
        "blocks": Role(("r2", "a", "c", "c"), "B, of each factor and each group of outputs"),
        "g": Role(("d_out",), "factor of each output", optional=True),
    }

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        sizes = super().dimensions(shapes)
        widest = 2 ** (sizes["r2"] - 1) * sizes["c"]  # how many outputs the last factor mixes at a time
        if sizes["c"] % 2 or (sizes["a"] * sizes["c"]) % widest:
            found = (sizes["r2"], sizes["a"], sizes["c"])
            raise InputError("the butterfly's factors do not divide its outputs", found=found)
        return _outputs(sizes, sizes["a"] * sizes["c"])

    def tuned(self, roles: Mapping[str, Array], base: Array) -> Array:
        xp = namespace(base)
        factors, groups, side, _ = roles["blocks"].shape
        _fits("outputs", groups * side, base.shape[0])
        rotated = base
        for i, rotation in enumerate(cayley(roles["blocks"])[k, ...] for k in range(factors)):
            stride = 2**i * (side // 2)  # a factor mixes outputs that lie so far apart
            mixed = xp.permute_dims(rotated.reshape(-1, 2, stride, base.shape[1]), (0, 2, 1, 3))
            mixed = (rotation @ mixed.reshape(groups, side, -1)).reshape(-1, stride, 2, base.shape[1])
            rotated = xp.permute_dims(mixed, (0, 2, 1, 3)).reshape(base.shape)
        return _scaled_rows(rotated, roles.get("g"))


class OftV2(_Rotation):
    name = "oft_v2"
    formula = "ΔW = s·(diag(m / n)·W·R̃ᵀ − W), R̃ = 1 + 2Q + 2Q² + 2Q³ + Q⁴"
    roles = {
        "entries": Role(
            ("groups", "triangle"), "of Q above its diagonal, for each group of inputs; one row serves all groups"
        ),
        "m": Role(("d_out",), "length of each row of W'", optional=True),
        "n": Role(("d_out",), "length of each row of W in training, instead of the base's", optional=True),
    }

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        sizes = super().dimensions(shapes)
        if "n" in shapes and "m" not in shapes:
            raise InputError("the rows' first lengths have no lengths to be set against", found=", ".join(shapes))
        return {**sizes, "b": side_of(sizes["triangle"])}

    def tuned(self, roles: Mapping[str, Array], base: Array) -> Array:
        xp = namespace(base)
        rotation = xp.matrix_transpose(cayley_series(roles["entries"]))
        groups, side, _ = rotation.shape
        if groups == 1:
            groups = base.shape[1] // side
        _fits("inputs", groups * side, base.shape[1])
        rotated = base.reshape(base.shape[0], groups, 1, side) @ rotation
        rotated = rotated.reshape(base.shape)
        if "m" not in roles:
            return rotated
        lengths = roles["n"] if "n" in roles else xp.linalg.vector_norm(base, axis=1)
        return _scaled_rows(rotated, roles["m"] / lengths)


def _outputs(sizes: dict[str, int], d_out: int) -> dict[str, int]:
    if sizes.setdefault("d_out", d_out) != d_out:
        raise InputError("the blocks and the outputs' factors disagree", found=f"{d_out} and {sizes['d_out']}")
    return sizes


def _fits(side: str, found: int, expected: int) -> None:
    if found != expected:
        raise InputError(f"the blocks do not fit the {side} of the base weight", found=found, expected=expected)


def _scaled_rows(matrix: Array, factors: Array | None) -> Array:
    return matrix if factors is None else matrix * factors[:, None]


kinds.register("diag_oft")(DiagOft())
kinds.register("lycoris_boft")(LycorisBoft())
kinds.register("oft_v2")(OftV2())
