"""A Kronecker product first (a, b) ⊗ second (c, d), never multiplied out.

With first = U₁ S₁ V₁ᵀ and second = U₂ S₂ V₂ᵀ, first ⊗ second = (U₁ ⊗ U₂)(S₁ ⊗ S₂)(V₁ ⊗ V₂)ᵀ: the singular values are
all products of one from either spectrum, and the norm is the product of the norms (Golub and Van Loan, Matrix
Computations, §12.3; Van Loan 2000, "The ubiquitous Kronecker product"). A 4096 × 4096 product of two 64 × 64 operands
costs two 64 × 64 SVDs.
"""

import math
from dataclasses import dataclass

from lorascope.linalg.arrays import Array, Float, namespace
from lorascope.linalg.factored import Factored
from lorascope.linalg.matrix import Matrix


@dataclass(frozen=True)
class Kronecker:
    """first (a, b) ⊗ second (c, d), of shape (a·c, b·d). An operand is a `Matrix` itself.

    Raises:
        ValueError: an operand is not a matrix; and, from the decompositions, an entry is NaN or infinite.
    """

    first: Matrix
    second: Matrix
    __array_ufunc__ = None  # so that array @ Kronecker asks Kronecker

    @property
    def shape(self) -> tuple[int, int]:
        (a, b), (c, d) = self.first.shape, self.second.shape
        return a * c, b * d

    @property
    def T(self) -> "Kronecker":
        return Kronecker(self.first.T, self.second.T)

    def dense(self) -> Float[Array, "m n"]:
        """The product: for merging, and as an oracle at small sizes."""
        first, second = self.first.dense(), self.second.dense()
        return (first[:, None, :, None] * second[None, :, None, :]).reshape(self.shape)

    def factors(self) -> None:
        return None

    def rows(self, start: int, stop: int) -> Float[Array, "k n"]:
        return self.dense()[start:stop]

    @property
    def structured(self) -> bool:
        return True

    def scaled(self, factor: float) -> "Kronecker":
        return Kronecker(self.first.scaled(factor), self.second)

    def __matmul__(self, other: Array) -> Array:
        """By columns: (first ⊗ second) vec(X) is first X secondᵀ, X row by row."""
        (_, b), (_, d) = self.first.shape, self.second.shape
        flat = other.reshape(b * d, -1)
        xp = namespace(flat)
        images = [self.first @ (self.second @ flat[:, k].reshape(b, d).T).T for k in range(flat.shape[1])]
        made = xp.stack([image.reshape(-1) for image in images], axis=1)
        return made if other.ndim == 2 else made[:, 0]

    def __rmatmul__(self, other: Array) -> Array:
        return (self.T @ other.T).T if other.ndim == 2 else self.T @ other

    def singular_values(self, overwrite: bool = False) -> Float[Array, " p"]:
        """All p = p₁·p₂ products of the two spectra, descending; p₁ = min(a, b) or the inner size of a `Factored`.

        p can be less than min(m, n) = min(a·c, b·d), where the operands are oblong in opposite ways or factored: the
        values left out are exactly zero, as they are in `Factored.singular_values`.
        """
        first, second = self.first.singular_values(), self.second.singular_values()
        xp = namespace(first, second)
        return xp.flip(xp.sort((first[:, None] * second[None, :]).reshape(-1)))

    def svd(self) -> tuple[Float[Array, "m p"], Float[Array, " p"], Float[Array, "p n"]]:
        """U (m, p), S (p,) descending, Vh (p, n), with p as in `singular_values`: U and Vh are dense."""
        return self.leading(None)

    def inner(self, other: Matrix) -> float:
        """⟨A ⊗ B, C ⊗ D⟩ = ⟨A, C⟩⟨B, D⟩ of operands that are alike; else by the entries."""
        if isinstance(other, Kronecker) and self.first.shape == other.first.shape:
            return self.first.inner(other.first) * self.second.inner(other.second)
        ours = self.dense()
        return float(namespace(ours).sum(ours * other.dense()))

    def frobenius_norm(self) -> float:
        """‖first‖_F · ‖second‖_F."""
        norms = self.first.frobenius_norm(), self.second.frobenius_norm()
        if not all(map(math.isfinite, norms)):
            raise ValueError("the Kronecker operands hold NaN or infinite entries")
        return norms[0] * norms[1]

    def truncated(self, rank: int) -> Factored:
        """The best approximation of that rank, σ shared evenly by both factors; forms `rank` vectors a side."""
        u, s, vh = self.leading(rank)
        root = namespace(s).sqrt(s)
        return Factored(u * root, root[:, None] * vh)

    def leading(self, count: int | None) -> tuple[Array, Array, Array]:
        """The leading singular triplets, exactly (all of them: None); forms so many vectors a side."""
        u1, s1, vh1 = self.first.svd()
        u2, s2, vh2 = self.second.svd()
        xp = namespace(s1, s2)
        products = (s1[:, None] * s2[None, :]).reshape(-1)
        order = xp.flip(xp.argsort(products))[:count]
        i, j = order // max(s2.shape[0], 1), order % max(s2.shape[0], 1)
        m, n = self.shape
        u = (u1[:, None, i] * u2[None, :, j]).reshape(m, order.shape[0])
        vh = (vh1[i][:, :, None] * vh2[j][:, None, :]).reshape(order.shape[0], n)
        return u, products[order], vh
