"""A calibration: what a method may do with the task before it trains, without knowing how training works."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Calibration:
    """The training texts, by number, and what can be done with them.

    Attributes:
        length: how many texts there are.
        labels: the class of each text; None for a language model.
        seed: of the run, for whatever is drawn.
        train: train the adapter on these texts for so many epochs, with the run's own settings.
        look: pass each of these texts once through the model in its evaluation mode, without gradients. Passes hold
            texts of one length, so that there is no padding in what layers see.
        agree: the mean of a tensor over all processes, so that each of them decides the same.
    """

    length: int
    labels: Sequence[int] | None
    seed: int
    train: Callable[[Sequence[int], float], None]
    look: Callable[[Sequence[int]], None]
    agree: Callable[[Tensor], Tensor]
