"""GraLoRA: ΔW in k × k blocks, each a product of its own, and a product for the whole besides (the hybrid).

Jung et al. 2025, "GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning", arXiv 2505.20355, as PEFT
stores it (tuners/gralora/layer.py): block n of the inputs has A_n (p, w), block j of the outputs B_j (w, q), and the
block (j, n) of ΔW is s·B_j[n]ᵀ·A_n[j]ᵀ, of the n-th of the k equal parts of B_j's rows and the j-th of A_n's columns.
"""

from collections.abc import Mapping

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array, namespace
from lorascope.linalg.factored import Factored
from lorascope.updates.base import Kind, Role, kinds


class GraLoRA(Kind):
    name = "gralora"
    formula = "ΔW[j, n] = s·B_j[n]ᵀ·A_n[j]ᵀ (+ s·B·A)"
    roles = {
        "A_blocks": Role(("k", "p", "w"), "projections down, one for each block of inputs"),
        "B_blocks": Role(("k", "w", "q"), "projections up, one for each block of outputs"),
        "A_general": Role(("h", "d_in"), "projection down of the whole", optional=True),
        "B_general": Role(("d_out", "h"), "projection up of the whole", optional=True),
    }

    def dimensions(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """k, p, q, w, d_out = k·q, d_in = k·p, and r, the largest rank.

        Raises:
            InputError: as `bind`; where w does not divide by k, or the hybrid is half there or of another shape.
        """
        if ("A_general" in shapes) != ("B_general" in shapes):
            raise InputError("one factor of the hybrid is missing", found=", ".join(shapes))
        sizes = super().dimensions(shapes)
        k, p, q, w = (sizes[symbol] for symbol in "kpqw")
        if k < 1 or w % k:
            raise InputError(f"a rank of {w} does not divide into {k} parts", found=dict(shapes))
        whole = {"d_out": k * q, "d_in": k * p}
        for symbol, size in whole.items():
            if sizes.get(symbol, size) != size:
                raise InputError(f"blocks and hybrid disagree on {symbol}", found=f"{size} and {sizes[symbol]}")
        rank = min(k * min(q, w), k * min(p, w)) + sizes.get("h", 0)
        return {**sizes, **whole, "r": min(rank, *whole.values())}

    def largest(self, shapes: Mapping[str, tuple[int, ...]]) -> int:
        sizes = self.dimensions(shapes)
        return max(sizes["d_out"], sizes["d_in"]) * (sizes["k"] * sizes["w"] + sizes.get("h", 0))

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Factored:
        """ΔW as a product of inner size k·w (+ h), whose factors have zeros outside of their blocks."""
        a, b = roles["A_blocks"], roles["B_blocks"] * scale
        xp = namespace(a, b)
        (k, p, w), q = a.shape, b.shape[2]
        own = xp.astype(xp.eye(k), a.dtype)  # which outputs, and which inputs, a part of the inner axis belongs to
        left = own[:, None, :, None] * xp.permute_dims(b, (0, 2, 1))[:, :, None, :]  # (j, q, j', w)
        parts = xp.permute_dims(xp.reshape(a, (k, p, k, w // k)), (2, 0, 3, 1))  # (j, n, w / k, p)
        right = parts[:, :, :, None, :] * own[None, :, None, :, None]  # (j, n, w / k, n', p)
        left, right = xp.reshape(left, (k * q, k * w)), xp.reshape(right, (k * w, k * p))
        if "A_general" in roles:
            left = xp.concat([left, roles["B_general"] * scale], axis=1)
            right = xp.concat([right, roles["A_general"]], axis=0)
        return Factored(left, right)


kinds.register("gralora")(GraLoRA())
