"""A finished run, opened to be measured."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorascope.linalg import batched
from lorascope.linalg.batched import Place
from lorascope.linalg.matrix import Matrix

if TYPE_CHECKING:
    from lorascope.training.reopen import Reopened

_device = ContextVar("device", default="auto")


@contextmanager
def measured_on(device: str) -> Iterator[None]:
    """Runs that are opened inside the block go to that device: cpu, cuda, cuda:N, or auto."""
    before = _device.set(device)
    try:
        yield
    finally:
        _device.reset(before)


def opened(folder: Path, texts: int = 8, split: str | None = None) -> "Reopened":
    """The run, to be scored on so many texts of a split (its held-out texts where none is named)."""
    from lorascope.training.reopen import reopen

    return reopen(folder, _device.get(), split=split, max_samples=texts)


def matrices(run: "Reopened") -> list[str]:
    """Its changed weights that are no vectors."""
    return [name for name, shape in run.shapes.items() if min(shape) > 1]


def windows(run: "Reopened") -> Iterator[list[str]]:
    """Its changed matrices, as many at a time as are decomposed together where its model is."""
    names, shapes = matrices(run), run.shapes
    for window in batched.windows([shapes[name] for name in names], run.place):
        yield names[window]


def singular_values(deltas: Sequence[Matrix], place: Place | None = None) -> list[np.ndarray]:
    """Of every ΔW, descending.

    Args:
        place: as of `linalg.batched.singular_values`, for those that are not factored.

    Raises:
        ValueError: an entry is NaN or infinite.
    """
    dense = [delta.dense() for delta in deltas if not delta.structured]
    if not all(np.isfinite(entries).all() for entries in dense):
        raise ValueError("a ΔW holds NaN or infinite entries")
    values = iter(batched.singular_values(dense, place))
    return [delta.singular_values() if delta.structured else next(values) for delta in deltas]
