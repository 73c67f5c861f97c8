"""Orthogonal blocks from skew-symmetric ones: how OFT, BOFT and PSOFT store them (PEFT 0.21.2).

Cayley's transform of a skew S is (1 − S)·(1 + S)⁻¹. OFT may take the Neumann series of the inverse instead,
1 + 2·S + 2·S² + … (of S where the transform is of −S), cut after so many terms; then it is orthogonal in first order.
"""

import math

import numpy as np

from lorascope.errors import InputError


def side_of(count: int) -> int:
    """The side b of a skew matrix with b(b − 1)/2 numbers above its diagonal. InputError where there is none."""
    side = (1 + math.isqrt(1 + 8 * count)) // 2
    if side * (side - 1) // 2 != count or count == 0:
        raise InputError("this is not the triangle of a skew matrix", found=f"{count} numbers", expected="b(b − 1)/2")
    return side


def skew(vectors: np.ndarray) -> np.ndarray:
    """Skew blocks (k, b, b) from the rows above their diagonals, (k, b(b − 1)/2)."""
    side = side_of(vectors.shape[1])
    blocks = np.zeros((len(vectors), side, side))
    rows, columns = np.triu_indices(side, 1)
    blocks[:, rows, columns] = vectors
    return blocks - blocks.transpose(0, 2, 1)


def skew_part(blocks: np.ndarray) -> np.ndarray:
    """½·(X − Xᵀ) of each block of (…, b, b)."""
    return 0.5 * (blocks - np.swapaxes(blocks, -1, -2))


def cayley(blocks: np.ndarray) -> np.ndarray:
    """(1 − S)·(1 + S)⁻¹ of each skew block of (…, b, b)."""
    one = np.eye(blocks.shape[-1])
    return np.swapaxes(np.linalg.solve(np.swapaxes(one + blocks, -1, -2), np.swapaxes(one - blocks, -1, -2)), -1, -2)


def neumann(blocks: np.ndarray, terms: int, last: float = 1.0) -> np.ndarray:
    """1 + 2·S + … + 2·S^(n−2) + S^(n−1) with n terms, of each block of (k, b, b).

    Args:
        last: the factor of the last term from the fourth on: 1 since PEFT 0.18, 2 before.
    """
    one = np.broadcast_to(np.eye(blocks.shape[-1]), blocks.shape)
    if terms <= 1:
        return np.array(one)
    series = one + 2 * blocks
    if terms == 2:
        return series
    power = blocks @ blocks
    series = series + 2 * power
    if terms == 3 and last == 1.0:  # PEFT adds the cube here too, once
        return series + power @ blocks
    for index in range(3, terms):
        power = power @ blocks
        series = series + (last if index == terms - 1 else 2.0) * power
    return series


def constrained(data: np.ndarray, eps: float) -> np.ndarray:
    """Each block of (k, b, b) with a norm of eps/√k at most: constrained OFT (`coft`)."""
    limit = eps / math.sqrt(len(data))
    norms = np.linalg.norm(data, axis=(1, 2), keepdims=True)
    return np.where(norms <= limit, data, limit * data / np.where(norms > 0, norms, 1.0))
