"""Singular values against their index, as the pages of `delta` and `dimension` draw them: of ΔW, of noise, of B·A."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lorascope.blocks import Lines, Series
from lorascope.linalg.noise import noise_spectrum

MAX_POINTS = 120  # of a line: enough for a log axis
MIN_DRAWN = 1e-4  # of the largest singular value in the figure


def middle(spectra: Sequence[Any]) -> tuple[float, ...]:
    """The median at each index that all of them have."""
    width = min(map(len, spectra))
    return tuple(np.median([np.asarray(s)[:width] for s in spectra], axis=0).tolist())


def line(label: str, sigma: Any, panel: str, weight: Any) -> Series:
    """The values against their index; of a long list those at about equal distances on a log axis."""
    at = np.unique(np.round(np.geomspace(1, len(sigma), MAX_POINTS)).astype(int))
    return Series(label, tuple(at.tolist()), tuple(float(sigma[i - 1]) or None for i in at), panel, weight)


def noise(shape: tuple[int, int], norm: float) -> np.ndarray:
    """The spectrum of an iid matrix of this shape and Frobenius norm."""
    return noise_spectrum(*shape) * (norm / np.sqrt(np.prod(shape)))


def by_type(series: Sequence[Series], caption: str) -> Lines:
    """A panel for each type. `caption`: what the lines are; that small values are not drawn is added."""
    least = MIN_DRAWN * max((y for each in series for y in each.y if y is not None), default=1.0)
    drawn = [replace(s, y=tuple(y if y is not None and y >= least else None for y in s.y)) for s in series]
    return Lines(
        "Singular values of ΔW, of noise, and of B·A, by module type", tuple(drawn), "index i", "σᵢ",
        log_x=True, log_y=True, where="page", shade="depth, first to last",
        caption=f"{caption} Values below {MIN_DRAWN:g} of the largest are not drawn.",
    )  # fmt: skip
