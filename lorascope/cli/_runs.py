"""A run, reopened for a command that evaluates it. No command itself."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorascope.training.reopen import Reopened


def opened(folder: Path, *settings: Any, **more: Any) -> "Reopened":
    """The run; what it differs in from the trained model is printed on stderr."""
    from lorascope.cli._progress import note
    from lorascope.training.reopen import reopen

    run = reopen(folder, *settings, **more)
    for text in run.notes:
        note(text)
    return run
