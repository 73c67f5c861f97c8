"""Runs and adapters that a command opens to evaluate them. No command itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorascope.training.given import Given
    from lorascope.training.reopen import Reopened


def opened(folder: Path, given: "Given", *settings: Any, **more: Any) -> "Reopened":
    """The run or the adapter; what it differs in from the trained model is printed on stderr."""
    from lorascope.cli._progress import note
    from lorascope.training.foreign import open_evaluated

    run = open_evaluated(folder, given, *settings, **more)
    for text in run.notes:
        note(text)
    return run
