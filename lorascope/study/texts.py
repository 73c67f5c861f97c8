"""What each text of a split cost each run, and resamples of the texts.

A run's score is a mean over texts, which are a sample as the seeds are: an interval that keeps them fixed is about
these texts alone. Texts are drawn with replacement, the same ones for all runs of a draw (the pigeonhole bootstrap:
Owen 2007, "The pigeonhole bootstrap", doi 10.1214/07-AOAS122).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

TEST, HELD_OUT = "test", "held_out"  # the splits: of the final score, and of the choice of a learning rate
DRAWS = 2000  # of the texts
SEED = 20261129
STEP = 100  # draws at a time: their weights are (texts, draws) in memory


@dataclass(frozen=True)
class TextScores:
    """One split's scores of many runs.

    Attributes:
        keys: of the runs.
        loss: (runs, texts) summed cross-entropy of each text in nats.
        hits: (runs, texts) targets that the largest logit hit.
        targets: (texts,) of each text: one of a class, many of a language model.
    """

    keys: tuple[str, ...]
    loss: np.ndarray
    hits: np.ndarray
    targets: np.ndarray

    def __post_init__(self) -> None:
        shape = (len(self.keys), len(self.targets))
        if self.loss.shape != shape or self.hits.shape != shape:
            raise ValueError(f"scores of the shapes {self.loss.shape} and {self.hits.shape}, expected {shape}")

    @cached_property
    def rows(self) -> Mapping[str, int]:
        """The row of every run."""
        return {key: i for i, key in enumerate(self.keys)}

    @cached_property
    def drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """(runs, DRAWS) mean loss per target, and accuracy, on every draw of the texts; the same draws each time."""
        rng = np.random.default_rng(SEED)
        n = len(self.targets)
        loss, hits = (np.empty((len(self.keys), DRAWS)) for _ in range(2))
        for start in range(0, DRAWS, STEP):
            weights = rng.multinomial(n, np.full(n, 1 / n), size=STEP).T.astype(float)
            targets = self.targets @ weights
            loss[:, start : start + STEP] = self.loss.astype(float) @ weights / targets
            hits[:, start : start + STEP] = self.hits.astype(float) @ weights / targets
        return loss, hits

    def taken(self, keys: Sequence[str]) -> "TextScores":
        """Those of some runs."""
        rows = [self.rows[key] for key in keys]
        return TextScores(tuple(keys), self.loss[rows], self.hits[rows], self.targets)
