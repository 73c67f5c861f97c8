"""Where the commands keep the decompositions of base weights. No command itself."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lorascope.weights.base_svd import SvdCache


def open_cache(folder: Path | None, none: bool, device: str = "auto") -> "SvdCache":
    """The cache in `folder`; by default in the user's cache folder, next to the packaged models; or none.

    What is not in it is decomposed on a device that is named; "auto" is the CPU here, where no torch is imported.
    """
    from lorascope.api.devices import placer
    from lorascope.errors import InputError
    from lorascope.portable import user_cache
    from lorascope.weights.base_svd import FOLDER, SvdCache

    if none and folder is not None:
        raise InputError("--cache DIR and --no-cache exclude each other")
    place = None if device in ("auto", "cpu") else placer(device)
    return SvdCache(None if none else folder or user_cache() / FOLDER, place=place)
