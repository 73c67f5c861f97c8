"""Writing files whole or not at all: a temporary file in the same folder, then one rename."""

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from lorascope.errors import LorascopeError


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """The path of a temporary file that becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
        LorascopeError: the folder is missing or not writable, or the disk is full; `path` is then as it was.
    """
    path = Path(path)
    temporary = None
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:60]}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise LorascopeError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path | str, content: bytes | Iterable[bytes]) -> None:
    """Write the bytes, or the pieces, and onto the disk: whole or not at all. Raises as `replacing` does."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.writelines([content] if isinstance(content, bytes) else content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all; what UTF-8 cannot hold (a lone surrogate in a key) is escaped."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
