"""A Kronecker product first (a, b) ⊗ second (c, d), never multiplied out.

With first = U₁ S₁ V₁ᵀ and second = U₂ S₂ V₂ᵀ, first ⊗ second = (U₁ ⊗ U₂)(S₁ ⊗ S₂)(V₁ ⊗ V₂)ᵀ: the singular values are
all products of one from either spectrum, and the norm is the product of the norms (Golub and Van Loan, Matrix
Computations, §12.3; Van Loan 2000, "The ubiquitous Kronecker product"). A 4096 × 4096 product of two 64 × 64 operands
costs two 64 × 64 SVDs.
"""

from dataclasses import dataclass

from lorascope.linalg.arrays import Array, Float, namespace
from lorascope.linalg.factored import Factored


@dataclass(frozen=True)
class Kronecker:
    """first (a, b) ⊗ second (c, d), of shape (a·c, b·d). An operand is an array or a `Factored`.

    Raises:
        ValueError: an operand is not a matrix; and, from the decompositions, an entry is NaN or infinite.
    """

    first: Array | Factored
    second: Array | Factored

    def __post_init__(self) -> None:
        for operand in (self.first, self.second):
            if len(operand.shape) != 2:
                raise ValueError(f"a Kronecker product here is of two matrices, not of shape {tuple(operand.shape)}")

    @property
    def shape(self) -> tuple[int, int]:
        (a, b), (c, d) = self.first.shape, self.second.shape
        return a * c, b * d

    @property
    def T(self) -> "Kronecker":
        return Kronecker(self.first.T, self.second.T)

    def dense(self) -> Float[Array, "m n"]:
        """The product: for merging, and as an oracle at small sizes."""
        first, second = _matrix(self.first), _matrix(self.second)
        return (first[:, None, :, None] * second[None, :, None, :]).reshape(self.shape)

    def singular_values(self) -> Float[Array, " p"]:
        """All p = p₁·p₂ products of the two spectra, descending; p₁ = min(a, b) or the inner size of a `Factored`.

        p can be less than min(m, n) = min(a·c, b·d), where the operands are oblong in opposite ways or factored: the
        values left out are exactly zero, as they are in `Factored.singular_values`.
        """
        first, second = _values(self.first), _values(self.second)
        xp = namespace(first, second)
        return xp.flip(xp.sort((first[:, None] * second[None, :]).reshape(-1)))

    def svd(self) -> tuple[Float[Array, "m p"], Float[Array, " p"], Float[Array, "p n"]]:
        """U (m, p), S (p,) descending, Vh (p, n), with p as in `singular_values`: U and Vh are dense."""
        return self._leading(None)

    def norm(self) -> float:
        """‖first‖_F · ‖second‖_F."""
        return _norm(self.first) * _norm(self.second)

    def truncate(self, rank: int) -> Factored:
        """The best approximation of that rank, σ shared evenly by both factors; forms `rank` vectors a side."""
        u, s, vh = self._leading(rank)
        root = namespace(s).sqrt(s)
        return Factored(u * root, root[:, None] * vh)

    def _leading(self, rank: int | None) -> tuple[Array, Array, Array]:
        """The `rank` leading singular triplets (all of them: None)."""
        u1, s1, vh1 = _svd(self.first)
        u2, s2, vh2 = _svd(self.second)
        xp = namespace(s1, s2)
        products = (s1[:, None] * s2[None, :]).reshape(-1)
        order = xp.flip(xp.argsort(products))[:rank]
        i, j = order // max(s2.shape[0], 1), order % max(s2.shape[0], 1)
        m, n = self.shape
        u = (u1[:, None, i] * u2[None, :, j]).reshape(m, order.shape[0])
        vh = (vh1[i][:, :, None] * vh2[j][:, None, :]).reshape(order.shape[0], n)
        return u, products[order], vh


def _matrix(operand: Array | Factored) -> Array:
    return operand.dense() if isinstance(operand, Factored) else operand


def _values(operand: Array | Factored) -> Array:
    if isinstance(operand, Factored):
        return operand.singular_values()
    matrix = _checked(operand)
    return namespace(matrix).linalg.svdvals(matrix)


def _svd(operand: Array | Factored) -> tuple[Array, Array, Array]:
    if isinstance(operand, Factored):
        return operand.svd()
    matrix = _checked(operand)
    return namespace(matrix).linalg.svd(matrix, full_matrices=False)


def _norm(operand: Array | Factored) -> float:
    if isinstance(operand, Factored):
        return operand.norm()
    matrix = _checked(operand)
    return float(namespace(matrix).linalg.vector_norm(matrix))


def _checked(matrix: Array) -> Array:
    """`matrix` in float64. ValueError where an entry is NaN or infinite."""
    xp = namespace(matrix)
    if not bool(xp.all(xp.isfinite(matrix))):
        raise ValueError("the Kronecker operands hold NaN or infinite entries")
    return matrix if matrix.dtype == xp.float64 else xp.astype(matrix, xp.float64)
