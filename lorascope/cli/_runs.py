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


def given_by(
    base: str | None, data: str | None, labels: str | None, adapter_name: str | None = None, **columns: Any
) -> "Given":
    """What the options of a command say of an adapter.

    Raises:
        InputError: an option that describes the data, and no data.
    """
    from lorascope.errors import InputError
    from lorascope.training.given import Given

    named = {key: value for key, value in {**columns, "labels": labels}.items() if value is not None}
    if named and data is None:
        raise InputError(f"--{next(iter(named)).replace('_', '-')} describes the data", hint="name them with --data")
    return Given(
        base, data, labels=None if labels is None else tuple(labels.split(",")), adapter_name=adapter_name, **columns
    )
