"""What each text of a split cost each run, and resamples of the texts.

A run's score is a mean over texts, which are a sample as the seeds are: an interval that keeps them fixed is about
these texts alone. Texts are drawn with replacement, the same ones for all runs of a draw (the pigeonhole bootstrap:
Owen 2007, "The pigeonhole bootstrap", doi 10.1214/07-AOAS122).
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from lorascope.outputs import replacing

TEST, HELD_OUT = "test", "held_out"  # the splits: of the final score, and of the choice of a learning rate
FILE = "texts.npz"  # of a run
DRAWS = 2000  # of the texts
SEED = 20261129
TYPES = {"loss": np.float32, "hits": np.int16, "targets": np.int16}
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


def write(path: Path, splits: Mapping[str, tuple[Sequence[Sequence[int]], Mapping[str, np.ndarray]]]) -> None:
    """A run's scores of each text.

    Args:
        splits: by name the tokens of the texts, whose hash tells whether two runs were scored on the same ones, and
            "loss", "hits" and "targets", (texts,) each.
    """
    arrays: dict[str, np.ndarray] = {}
    for split, (tokens, scores) in splits.items():
        text = repr([list(map(int, each)) for each in tokens])
        arrays[f"{split}.digest"] = np.array(hashlib.sha256(text.encode()).hexdigest()[:16])
        arrays |= {f"{split}.{name}": values.astype(TYPES[name]) for name, values in scores.items()}
    with replacing(path) as stage, stage.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read(runs: Sequence[tuple[str, Path]]) -> dict[str, TextScores]:
    """By split the scores of runs, given by key and folder, if all of them were scored on the same texts.

    A split of which a run has no scores, or of other texts, is left out: its texts are not resampled.
    """
    files = {key: dict(np.load(folder / FILE)) if (folder / FILE).is_file() else {} for key, folder in runs}
    found = {}
    for split in (TEST, HELD_OUT):
        digests = {str(arrays.get(f"{split}.digest")) for arrays in files.values()}
        if len(digests) == 1 and "None" not in digests:
            loss, hits = (
                np.array([arrays[f"{split}.{name}"] for arrays in files.values()]) for name in ("loss", "hits")
            )
            found[split] = TextScores(tuple(files), loss, hits, next(iter(files.values()))[f"{split}.targets"])
    return found
