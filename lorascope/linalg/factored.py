"""A matrix kept as left (m, k) · right (k, n), never multiplied out.

With QR on both sides, left = Q_l R_l and rightᵀ = Q_r R_r, so left · right = Q_l (R_l R_rᵀ) Q_rᵀ and the singular values
are those of the k × k core: O((m + n) k²) in place of O(m n min(m, n)). This is the QR route of Halko, Martinsson and
Tropp 2011 (§5), not the Gram matrices, which square the condition number.

The factors are not unique: (left C, C⁻¹ right) is the same matrix. Rounding in the QRs is relative to the *factors*, so
an unlucky gauge, or a steep spectrum, costs digits in the small singular values. `singular_values` estimates that
loss, and where it matters moves to the gauge left C with columns of size √σ_i first, which gives every value to about
eps · √(σ_1/σ_i).
"""

from dataclasses import dataclass

import numpy as np

from lorascope.linalg.arrays import Array, Float, namespace, to_numpy

ACCURACY = 1e-12  # the relative error that every singular value down to NEGLIGIBLE · σ_1 should have
NEGLIGIBLE = 1e-7


@dataclass(frozen=True)
class Factored:
    """left (m, k) @ right (k, n).

    Raises:
        ValueError: the inner sizes differ.
    """

    left: Array
    right: Array

    def __post_init__(self) -> None:
        if self.left.ndim != 2 or self.right.ndim != 2 or self.left.shape[1] != self.right.shape[0]:
            raise ValueError(f"cannot multiply {tuple(self.left.shape)} by {tuple(self.right.shape)}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def T(self) -> "Factored":
        return Factored(self.right.T, self.left.T)

    def dense(self) -> Float[Array, "m n"]:
        """The product, for small oracles and for merging."""
        return self.left @ self.right

    def singular_values(self) -> Float[Array, " p"]:
        """All min(m, n, k) singular values, descending."""
        raise NotImplementedError

    def svd(self) -> tuple[Array, Array, Array]:
        """U (m, p), S (p,) descending, Vh (p, n)."""
        raise NotImplementedError

