"""A matrix of circulant blocks, kept by the first row of each: block (i, j) has the entries w[i, j, (c − r) mod b].

The Fourier transform F of length b makes every circulant block diagonal (Davis 1979, Circulant Matrices, §3.2), so
(1 ⊗ F) · M · (1 ⊗ F)ᴴ falls apart into one m × n matrix for each of the b frequencies, conj(ŵ[:, :, f]), and M has the
singular values of all of these. M is real: frequencies f and b − f are conjugate, and their vectors u ⊗ φ_f and
conj(u ⊗ φ_f) make two real ones. A 4096 × 4096 matrix of blocks of 64 costs 33 SVDs of 64 × 64.
"""

import math
from dataclasses import dataclass
from typing import Any

from lorascope.linalg.arrays import Array, Float, namespace
from lorascope.linalg.factored import Factored
from lorascope.linalg.matrix import Dense, Matrix


@dataclass(frozen=True)
class BlockCirculant:
    """m × n circulant blocks (b, b), of shape (m·b, n·b); `kernel` (m, n, b) holds the first row of each.

    Raises:
        ValueError: the kernel has not three axes; and, from the decompositions, an entry is NaN or infinite.
    """

    kernel: Array
    __array_ufunc__ = None  # so that array @ BlockCirculant asks BlockCirculant

    def __post_init__(self) -> None:
        if self.kernel.ndim != 3:
            raise ValueError(f"a kernel has three axes, not the shape {tuple(self.kernel.shape)}")

    @property
    def shape(self) -> tuple[int, int]:
        m, n, b = self.kernel.shape
        return m * b, n * b

    @property
    def T(self) -> "BlockCirculant":
        xp = namespace(self.kernel)
        transposed = xp.permute_dims(self.kernel, (1, 0, 2))
        return BlockCirculant(xp.concat([transposed[:, :, :1], xp.flip(transposed[:, :, 1:], axis=2)], axis=2))

    def dense(self) -> Float[Array, "m n"]:
        """All entries: for merging, and as an oracle at small sizes."""
        xp, (m, n, b) = namespace(self.kernel), self.kernel.shape
        steps = xp.arange(b)
        which = xp.reshape((steps[None, :] - steps[:, None]) % b, (-1,))
        blocks = xp.reshape(xp.take(self.kernel, which, axis=2), (m, n, b, b))
        return xp.reshape(xp.permute_dims(blocks, (0, 2, 1, 3)), (m * b, n * b))

    def factors(self) -> None:
        return None

    def rows(self, start: int, stop: int) -> Float[Array, "k n"]:
        b = max(self.kernel.shape[2], 1)
        first = start // b
        blocks = BlockCirculant(self.kernel[first : -(-stop // b)])
        return blocks.dense()[start - first * b : stop - first * b]

    @property
    def structured(self) -> bool:
        return True

    def scaled(self, factor: float) -> "BlockCirculant":
        return BlockCirculant(self.kernel * factor)

    def frobenius_norm(self) -> float:
        m, n, b = self.kernel.shape
        return Dense(namespace(self.kernel).reshape(self.kernel, (m, n * b))).frobenius_norm() * math.sqrt(b)

    def inner(self, other: Matrix) -> float:
        if self.shape != other.shape:
            raise ValueError(f"shapes differ: {self.shape} and {other.shape}")
        xp = namespace(self.kernel)
        if isinstance(other, BlockCirculant) and other.kernel.shape == self.kernel.shape:
            return float(xp.sum(self.kernel * other.kernel)) * self.kernel.shape[2]
        return float(xp.sum(self.dense() * other.dense()))

    def __matmul__(self, other: Array) -> Array:
        return self.dense() @ other

    def __rmatmul__(self, other: Array) -> Array:
        return other @ self.dense()

    def singular_values(self, overwrite: bool = False) -> Float[Array, " p"]:
        """min(m, n)·b of them, descending."""
        xp = namespace(self.kernel)
        values = xp.linalg.svdvals(self._frequencies())
        return xp.flip(xp.sort(self._of_all(values)))

    def svd(self) -> tuple[Float[Array, "m p"], Float[Array, " p"], Float[Array, "p n"]]:
        return self.leading(None)

    def leading(self, count: int | None) -> tuple[Float[Array, "m p"], Float[Array, " p"], Float[Array, "p n"]]:
        """The leading singular triplets, exactly (all of them: None); forms so many vectors a side."""
        xp, b = namespace(self.kernel), self.kernel.shape[2]
        u, s, vh = xp.linalg.svd(self._frequencies(), full_matrices=False)
        each = s.shape[1]
        values = self._of_all(s)
        order = xp.flip(xp.argsort(values))[:count]
        place = order // max(
            each, 1
        )  # of the frequency among all b: those after the middle are the second real vectors
        second = 2 * place > b
        frequency = xp.where(second, b - place, place)
        which = order % max(each, 1)
        left, right = u[frequency, :, which], vh[frequency, which, :]
        return (
            self._real(left, frequency, second).T, values[order],
            self._real(xp.conj(right), frequency, second),
        )  # fmt: skip

    def truncated(self, rank: int) -> Factored:
        """The best approximation of that rank, σ shared evenly by both factors."""
        u, s, vh = self.leading(rank)
        root = namespace(s).sqrt(s)
        return Factored(u * root, root[:, None] * vh)

    def _frequencies(self) -> Array:
        """conj(ŵ) as (b // 2 + 1, m, n): the frequencies that the others are conjugate to."""
        xp = namespace(self.kernel)
        wide = xp.astype(self.kernel, xp.float64)
        if not bool(xp.all(xp.isfinite(wide))):
            raise ValueError("the blocks hold NaN or infinite entries")
        return xp.permute_dims(xp.conj(xp.fft.rfft(wide, axis=2)), (2, 0, 1))

    def _of_all(self, values: Array) -> Array:
        """Values by frequency, (b // 2 + 1, p), as those of all b frequencies in one row."""
        xp, b = namespace(self.kernel), self.kernel.shape[2]
        again = xp.flip(values[1 : (b + 1) // 2], axis=0)
        return xp.reshape(xp.concat([values, again], axis=0), (-1,))

    def _real(self, parts: Array, frequency: Array, second: Array) -> Any:
        """Complex vectors (c, m) of frequencies (c,) as real singular vectors (c, m·b): u ⊗ φ_f, or √2 times its real
        or (`second`) its imaginary part."""
        xp, b = namespace(self.kernel), self.kernel.shape[2]
        angle = xp.astype((frequency[:, None] * xp.arange(b)[None, :]) % b, xp.float64) * (2 * math.pi / b)
        cosine, sine = xp.cos(angle)[:, None, :], xp.sin(angle)[:, None, :]
        re, im = xp.real(parts)[:, :, None], xp.imag(parts)[:, :, None]
        vectors = xp.where(second[:, None, None], re * sine + im * cosine, re * cosine - im * sine)
        alone = (frequency == 0) | (2 * frequency == b)
        length = xp.sqrt((2.0 - xp.astype(alone, xp.float64)) / b)
        return xp.reshape(vectors * length[:, None, None], (parts.shape[0], -1))
