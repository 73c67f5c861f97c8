"""Spectra of dense matrices."""

from lorascope.linalg.arrays import Array, Float, namespace


def singular_values(matrix: Float[Array, "m n"]) -> Float[Array, " p"]:
    """min(m, n) singular values, descending, in float64.

    Raises:
        ValueError: an entry is NaN or infinite.
    """
    xp = namespace(matrix)
    if not bool(xp.all(xp.isfinite(matrix))):
        raise ValueError("the matrix holds NaN or infinite entries")
    return xp.linalg.svdvals(xp.astype(matrix, xp.float64))
