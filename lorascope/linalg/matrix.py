"""ΔW as a type: what every form of it can do, so that nobody asks which form it has.

`Matrix` is the protocol. `Factored` (left · right), `Kronecker` (first ⊗ second) and `Dense` (the entries) fulfil it;
none multiplies itself out but in `dense`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from lorascope.linalg import dense as spectra
from lorascope.linalg.arrays import Array, Float, namespace
from lorascope.linalg.spectrum import EXTREME

if TYPE_CHECKING:
    from lorascope.linalg.factored import Factored


@runtime_checkable
class Matrix(Protocol):
    """A real matrix (m, n), numpy's or torch's. Decompositions are in float64.

    Raises:
        ValueError: from the singular values and the SVD, where an entry is NaN or infinite.
    """

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def T(self) -> "Matrix":
        """The transpose, in the same form."""
        ...

    def dense(self) -> Float[Array, "m n"]:
        """The entries, in the dtype of what makes them."""
        ...

    def factors(self) -> "Factored | None":
        """left (m, k) and right (k, n), where it is kept as their product; None where it is not."""
        ...

    def rows(self, start: int, stop: int) -> Float[Array, "k n"]:
        """The entries of some rows, where it can be done without making the others."""
        ...

    @property
    def structured(self) -> bool:
        """Whether its form holds fewer numbers than it has entries, and gives `leading` exactly."""
        ...

    def frobenius_norm(self) -> float: ...
    def singular_values(self, overwrite: bool = False) -> Float[Array, " p"]:
        """Descending; those that are zero by the form alone are left out.

        `overwrite`: what it is made of is not needed afterwards, and may be worked on in place.
        """
        ...

    def svd(self) -> tuple[Float[Array, "m p"], Float[Array, " p"], Float[Array, "p n"]]:
        """U, S descending, Vh, with p as in `singular_values`."""
        ...

    def leading(self, count: int) -> tuple[Float[Array, "m p"], Float[Array, " p"], Float[Array, "p n"]]:
        """The leading singular triplets, as few as are asked for and there are: exact where the form gives them."""
        ...

    def truncated(self, rank: int) -> "Factored":
        """The best approximation of that rank (Eckart and Young 1936), σ shared evenly by both factors."""
        ...

    def scaled(self, factor: float) -> "Matrix":
        """factor · this, in the same form."""
        ...

    def inner(self, other: "Matrix") -> float:
        """⟨this, other⟩, the sum of the products of their entries."""
        ...

    def __matmul__(self, other: Array) -> Array:
        """This times an array (n, k) or (n,)."""
        ...

    def __rmatmul__(self, other: Array) -> Array:
        """An array (k, m) or (m,) times this."""
        ...


@dataclass(frozen=True)
class Dense:
    """A matrix by its entries (m, n)."""

    values: Array
    __array_ufunc__ = None  # so that array @ Dense asks Dense

    def __post_init__(self) -> None:
        if self.values.ndim != 2:
            raise ValueError(f"a matrix has two axes, not the shape {tuple(self.values.shape)}")

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.values, dtype=dtype)

    @property
    def shape(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    @property
    def T(self) -> "Dense":
        return Dense(self.values.T)

    def dense(self) -> Float[Array, "m n"]:
        return self.values

    def factors(self) -> None:
        return None

    def rows(self, start: int, stop: int) -> Float[Array, "k n"]:
        return self.values[start:stop]

    @property
    def structured(self) -> bool:
        return False

    def frobenius_norm(self) -> float:
        """‖·‖_F, where the squares overflow or vanish too."""
        xp, values = namespace(self.values), self.values
        if 0 in values.shape:
            return 0.0
        values = values if values.dtype == xp.float64 else xp.astype(values, xp.float64)
        top = max(float(xp.max(values)), -float(xp.min(values)))
        unit = 1.0 if 1 / EXTREME < top < EXTREME or top == 0 else top
        return float(xp.linalg.vector_norm(values / unit if unit != 1.0 else values)) * unit

    def singular_values(self, overwrite: bool = False) -> Float[Array, " p"]:
        """min(m, n) of them. `overwrite`: numpy's entries may be worked on in place, which halves the memory."""
        return spectra.singular_values(self.values, overwrite)

    def svd(self) -> tuple[Float[Array, "m p"], Float[Array, " p"], Float[Array, "p n"]]:
        xp = namespace(self.values)
        if not bool(xp.all(xp.isfinite(self.values))):
            raise ValueError("the matrix holds NaN or infinite entries")
        u, s, vh = xp.linalg.svd(xp.astype(self.values, xp.float64), full_matrices=False)
        return u, s, vh

    def leading(self, count: int) -> tuple[Float[Array, "m p"], Float[Array, " p"], Float[Array, "p n"]]:
        """By a randomised block Krylov space (`linalg.dense.leading`)."""
        triplets = spectra.leading(self.values, count)
        return triplets.u, triplets.s, triplets.vh

    def truncated(self, rank: int) -> "Factored":
        from lorascope.linalg.factored import Factored

        best = spectra.best_rank(self.values, rank)
        root = namespace(best.s).sqrt(best.s)
        return Factored(best.u * root, root[:, None] * best.vh)

    def scaled(self, factor: float) -> "Dense":
        return Dense(self.values * factor)

    def inner(self, other: Matrix) -> float:
        return float(namespace(self.values).sum(self.values * other.dense()))

    def __matmul__(self, other: Array) -> Array:
        return self.values @ other

    def __rmatmul__(self, other: Array) -> Array:
        return other @ self.values


def as_matrix(values: Any) -> Matrix:
    """A `Matrix`: the one that is given, or a `Dense` of an array."""
    return values if hasattr(values, "factors") else Dense(values)  # a tenth of the time that isinstance takes
