"""The Walsh–Hadamard transform, and the structured random projection that is built of it, with its exact adjoint.

Fastfood (Le, Sarlós and Smola 2013, "Fastfood: Approximating Kernel Expansions in Loglinear Time", arXiv 1408.3060,
§3.2): a block V = H G Π H B of size n × n, n a power of two, with B random signs, Π a random permutation, G Gaussian
and H the Walsh–Hadamard matrix. It costs O(n log n) and stores O(n) numbers, or none where they are drawn again.

Two ways to reach D rows from d columns:

- stacked blocks, as in Le et al.: n = 2^⌈log₂ d⌉ (at least 4096) and ⌈D/n⌉ independent blocks, one above the other;
- `whole`, as in the code of Li et al. 2018 (arXiv 1804.08838) and of Aghajanyan et al. 2020 (arXiv 2012.13255): one
  block with n = 2^⌈log₂ max(D, d)⌉ into which x is padded, and its first D rows.

Both are divided by √(n ΣG²) · √(D/n). The first factor makes the columns of a whole block of unit length exactly; the
second makes up for the rows cut off or stacked, so that columns have unit length, and ‖P x‖ ≈ ‖x‖, whatever D is. Li
et al. ask for unit columns; without √(D/n) the same step would move a cut block up to √2 less than a full one.

What circulates as the code of Aghajanyan et al. multiplies by 1/√n in the backward pass of each of the two transforms
and not in the forward pass, so that its gradient is 1/n of the true one (n of that tensor). `as_published` does so.

x is non-zero in its first d places, and H (n) of such a vector repeats H (k) of it, k = 2^⌈log₂ d⌉; the first transform
is therefore done at size k, and Π acts as a map of n places to k. The result is the same.
"""

import hashlib
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from lorascope.linalg.arrays import Array, Float

RADIX = 16  # products with a 16 × 16 Hadamard matrix: five times faster than butterflies of numpy calls
MIN_BLOCK = 1 << 12  # entries of a stacked block: below this a call costs more than its arithmetic
GROUP = 1 << 18  # entries that are drawn, and worked on, at a time
KEEP = 1 << 27  # up to so many entries are kept in memory between calls (8 bytes each); more are drawn again


@cache
def _hadamard(size: int) -> np.ndarray:
    """H (size, size) in Sylvester's order, entries ±1."""
    h = np.ones((1, 1))
    while h.shape[0] < size:
        h = np.block([[h, h], [h, -h]])
    return h


_SENT: dict[tuple, Array] = {}  # Hadamard matrices by size, dtype and device: sending one to a GPU waits for it


def _hadamard_like(size: int, x: Array) -> Array:
    """H (size, size) in the library and dtype of x, on its device."""
    if isinstance(x, np.ndarray):
        return as_like(_hadamard(size), x)
    key = (size, x.dtype, x.device)
    if key not in _SENT:
        _SENT[key] = as_like(_hadamard(size), x)
    return _SENT[key]


def fwht(x: Float[Array, "... n"]) -> Float[Array, "... n"]:
    """H x along the last axis: the Walsh–Hadamard transform, unnormalised (H H = n I), in Sylvester's order.

    H is symmetric, so this is its own adjoint. ValueError where n is not a power of two.
    """
    n, shape = int(x.shape[-1]), tuple(x.shape)
    if n < 1 or n & (n - 1):
        raise ValueError(f"the Walsh–Hadamard transform needs a power of two, not {n}")
    right = 1
    while right < n:
        radix = min(RADIX, n // right)
        h = _hadamard_like(radix, x)
        x = x.reshape(-1, radix) @ h if right == 1 else h @ x.reshape(-1, radix, right)
        right *= radix
    return x.reshape(shape)


class Projection(ABC):
    """A fixed random linear map P (rows, columns), given by its seed and never stored whole.

    Attributes:
        rows, columns: D and d.
        seed: all that its draws depend on.
    """

    rows: int
    columns: int
    seed: int

    @abstractmethod
    def apply(self, x: Float[Array, " columns"]) -> Float[Array, " rows"]:
        """P x."""

    @abstractmethod
    def adjoint(self, y: Float[Array, " rows"]) -> Float[Array, " columns"]:
        """Pᵀ y, exactly."""

    def part(self, x: Float[Array, " columns"], start: int, stop: int) -> Float[Array, " some"]:
        """Rows `start` to `stop` of P x."""
        return self.apply(x)[start:stop]


@dataclass(frozen=True)
class _Draw:
    """Some blocks' draws. `index` says for each of c·n places which of the c·k it takes its value from."""

    signs: Array  # (c, k), ±1
    index: Array  # (c·n,), int32
    gauss: Array  # (c, n), G over the normaliser


class Fastfood(Projection):
    """P of `rows` × `columns`, see the module's docstring.

    Args:
        whole: one transform as long as the rows, in place of stacked blocks.
        as_published: the adjoint of the code in circulation, 1/n of the true one.
    """

    def __init__(self, rows: int, columns: int, seed: int, *, whole: bool = False, as_published: bool = False):
        self.rows, self.columns, self.seed, self.as_published = rows, columns, seed, as_published
        self.inner = next_power_of_two(columns)
        least = max(columns, rows if whole else min(MIN_BLOCK, rows))
        self.block = next_power_of_two(least)
        self.blocks = -(-rows // self.block)
        self.together = max(1, GROUP // self.block)  # blocks of one group
        self._kept: dict[tuple, _Draw] = {}

    def apply(self, x: Float[Array, " columns"]) -> Float[Array, " rows"]:
        return self.part(x, 0, self.rows)

    def part(self, x: Float[Array, " columns"], start: int, stop: int) -> Float[Array, " some"]:
        """Rows `start` to `stop` of P x; of stacked blocks only those that hold them are worked out."""
        out, x = zeros_like(x, stop - start), padded(x, self.inner)
        size = self.block * self.together
        for group in range(start // size, -(-stop // size)):
            draw = self._draw(group, x)
            inner = fwht(draw.signs * x).reshape(-1)
            values = fwht(gather(inner, draw.index).reshape(draw.gauss.shape) * draw.gauss).reshape(-1)
            low, high = max(start, group * size), min(stop, group * size + values.shape[0])
            out[low - start : high - start] = values[low - group * size : high - group * size]
        return out

    def adjoint(self, y: Float[Array, " rows"]) -> Float[Array, " columns"]:
        """Pᵀ y = Σ over blocks of B H Πᵀ G H y; 1/n of it with `as_published`."""
        total, size = zeros_like(y, self.inner), self.block * self.together
        for group in range(-(-self.blocks // self.together)):
            draw = self._draw(group, y)
            rows = padded(y[group * size : (group + 1) * size], math.prod(draw.gauss.shape))
            outer = fwht(rows.reshape(draw.gauss.shape)) * draw.gauss
            inner = scatter_add(draw.index, outer.reshape(-1), math.prod(draw.signs.shape))
            total = total + (fwht(inner.reshape(draw.signs.shape)) * draw.signs).sum(0)
        return total[: self.columns] / self.block if self.as_published else total[: self.columns]

    def _draw(self, group: int, like: Array) -> _Draw:
        """The group's draws as arrays of the library, device and dtype of `like`."""
        key = (group, type(like), str(getattr(like, "device", "")), str(like.dtype))
        if key not in self._kept:
            numbers = self._drawn(group)
            draw = _Draw(*(as_like(array, like, keep_dtype=array.dtype == np.int32) for array in numbers))
            if self.blocks * self.block > KEEP:
                return draw
            self._kept[key] = draw
        return self._kept[key]

    def _drawn(self, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count = min(self.together, self.blocks - group * self.together)
        rng = generator(self.seed, group)
        signs = 1 - 2 * rng.integers(0, 2, (count, self.inner), dtype=np.int8)
        gauss = rng.standard_normal((count, self.block), dtype=np.float32)
        index = np.empty((count, self.block), dtype=np.int32)
        index.reshape(count, -1, self.inner)[:] = np.arange(self.inner, dtype=np.int32)
        rng.permuted(index, axis=1, out=index)
        index += (np.arange(count, dtype=np.int32) * self.inner)[:, None]
        squares = np.einsum("cn,cn->c", gauss, gauss, dtype=np.float64)
        scale = 1 / np.sqrt(self.block * squares * (self.rows / self.block))
        return signs, index.reshape(-1), gauss * scale[:, None].astype(np.float32)


def generator(*entropy: int) -> np.random.Generator:
    """numpy's PCG64, seeded by these numbers."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def fingerprint() -> str:
    """What this numpy's generator draws for a fixed seed, in 16 digits: files keep seeds, and say what they meant."""
    rng = generator(20, 18)
    draws = (
        rng.integers(0, 2, 64, dtype=np.int8),
        rng.standard_normal(64, dtype=np.float32),
        rng.permuted(np.arange(64, dtype=np.int32).reshape(1, -1), axis=1),
        rng.binomial(10_000, 0.01, 8).astype(np.int64),
        rng.choice(10_000, 16, replace=False, shuffle=False).astype(np.int64),
    )
    return hashlib.sha256(b"".join(array.tobytes() for array in draws)).hexdigest()[:16]


def next_power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def as_like(array: np.ndarray, like: Array, keep_dtype: bool = False) -> Array:
    """A numpy array in the library and on the device of `like`, and in its dtype unless `keep_dtype`."""
    if isinstance(like, np.ndarray):
        return array if keep_dtype else array.astype(like.dtype, copy=False)
    import torch  # `like` is a tensor, so it is loaded

    return torch.from_numpy(array).to(device=like.device, dtype=None if keep_dtype else like.dtype)


def zeros_like(like: Array, size: int) -> Array:
    """(size,) zeros of the library, device and dtype of `like`."""
    if isinstance(like, np.ndarray):
        return np.zeros(size, dtype=like.dtype)
    return like.new_zeros(size)


def padded(x: Float[Array, " some"], size: int) -> Float[Array, " size"]:
    """x with zeros behind it, up to `size`; itself where it is as long."""
    if len(x) == size:
        return x
    out = zeros_like(x, size)
    out[: len(x)] = x
    return out


def gather(x: Float[Array, " some"], index: Any) -> Float[Array, " places"]:
    """x[index]; int32 indices stay int32, which halves what is read."""
    return np.take(x, index) if isinstance(x, np.ndarray) else x.index_select(0, index)


def scatter_add(index: Any, values: Float[Array, " places"], size: int) -> Float[Array, " size"]:
    """The adjoint of `gather`: values added up at the places of `index`."""
    if isinstance(values, np.ndarray):
        return np.bincount(index, values, size).astype(values.dtype)
    return values.new_zeros(size).index_add_(0, index, values)
