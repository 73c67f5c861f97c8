"""What every analysis gives back: a frozen result with a table, a summary and blocks."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lorascope.blocks import Block, Finding
from lorascope.registry import Registry
from lorascope.weights.adapter import Adapter

if TYPE_CHECKING:
    import pandas as pd


class Result(Protocol):
    """A frozen result. Numbers that could not be computed are None, never NaN."""

    @property
    def findings(self) -> tuple[Finding, ...]: ...

    def table(self) -> "pd.DataFrame":
        """Tidy: one row per thing measured."""
        ...

    def summary(self) -> dict[str, Any]:
        """The few numbers that answer the question. JSON types only."""
        ...

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON types only."""
        ...

    def blocks(self) -> tuple[Block, ...]:
        """The page and the terminal summary, in reading order."""
        ...


analyses: Registry[Callable[..., Result]] = Registry("analysis", "lorascope.analyses")

# What asks about several adapters at once, such as how much of their subspaces two of them share.
comparisons: Registry[Callable[[Sequence[Adapter]], Result]] = Registry("comparison", "lorascope.analyses")
