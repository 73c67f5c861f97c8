"""What `lorascope.merge` gives: the model, its tokenizer, and a report of what rounding took."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from lorascope.adapt.merge import Merge


@dataclass(frozen=True, repr=False)
class Merged:
    """What `merge` made.

    Attributes:
        model: with W + ΔW in its weights.
        tokenizer: the base's, where it was opened here and has one.
        report: what rounding took from each weight, what else was put in, what was left out.
    """

    model: nn.Module
    tokenizer: Any
    report: Merge

    def __repr__(self) -> str:
        losses = [one.rounding_loss for one in self.report.weights]
        lost = f", at most {100 * max(losses):.2g} % of an update lost to rounding" if losses else ""
        return f"<Merged {type(self.model).__name__}: {len(losses)} updates{lost}>"
