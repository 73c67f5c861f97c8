"""A finished run, opened to be measured."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorascope.linalg.matrix import Matrix

if TYPE_CHECKING:
    from lorascope.training.reopen import Reopened


def opened(folder: Path, texts: int = 8, split: str | None = None) -> "Reopened":
    """The run, to be scored on so many texts of a split (its held-out texts where none is named)."""
    from lorascope.training.reopen import reopen

    return reopen(folder, split=split, max_samples=texts)


def matrices(run: "Reopened") -> list[str]:
    """Its changed weights that are no vectors."""
    return [name for name, shape in run.shapes.items() if min(shape) > 1]


def singular_values(delta: Matrix) -> np.ndarray:
    """Of a ΔW, descending."""
    return delta.singular_values()
