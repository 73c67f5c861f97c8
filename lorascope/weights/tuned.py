"""The tuned side of a comparison: a full checkpoint, or an adapter, whichever lies there."""

from pathlib import Path

from lorascope.errors import FullModelError
from lorascope.weights import io
from lorascope.weights.adapter import Adapter
from lorascope.weights.checkpoint import Checkpoint, open_checkpoint


def open_tuned(path: str | Path, base: Checkpoint, adapter_name: str | None = None) -> Checkpoint | Adapter:
    """The tuned side: a full checkpoint, or an adapter folder such as a full fine-tuning run of lorascope leaves.

    Raises:
        InputError: there is neither.
    """
    folder = Path(path)
    if folder.is_dir() and (folder / io.CONFIG).is_file() and not any((folder / n).is_file() for n in io.MODELS):
        return io.read(folder, base, adapter_name)
    return open_checkpoint(path)


def adapter_or_model(
    path: str | Path, base: Checkpoint | None, adapter_name: str | None = None
) -> Adapter | Checkpoint:
    """An adapter; of a full model its checkpoint, where there is a base to take away from it.

    Raises:
        InputError: there is neither, or a full model and no base.
    """
    try:
        return io.read(path, base, adapter_name)
    except FullModelError:
        if base is None:
            raise
    return open_checkpoint(path)
