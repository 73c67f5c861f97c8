"""One process at a time: a lock on a folder that says whose it is, and that is free when its owner has ended."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from lorascope.errors import InputError, LorascopeError
from lorascope.outputs import is_alive
from lorascope.portable import BINARY, NOFOLLOW, lock

NAME = ".lorascope.lock"


@contextlib.contextmanager
def owning(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which is made where it is missing; nobody waits for another.

    The system lets go of it when the process ends, however that happens. On a file system without locks the file's
    text decides: it is stale where no process of this machine has its number.

    Raises:
        InputError: another process has it.
        LorascopeError: the folder cannot be written.
    """
    path = folder / NAME
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is not a folder", hint="name another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _opened(path)
    except OSError as error:
        raise LorascopeError(f"cannot use the folder {folder}", found=error.strerror, hint="name another") from error
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name in it
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())
        yield
    finally:
        if os.name != "nt":
            path.unlink(missing_ok=True)  # before it is let go: who opens it afterwards makes a new one
        os.close(descriptor)
        if os.name == "nt":  # where a file that is open stays
            with contextlib.suppress(OSError):  # another process has opened it
                path.unlink(missing_ok=True)


def _opened(path: Path) -> int:
    """The lock's file, open and ours."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | NOFOLLOW | BINARY, 0o666)
        if not _takes(descriptor):
            owner = _owner(descriptor)
            os.close(descriptor)
            whose = f"process {owner[0]} on {owner[1]}" if owner else "another process"
            raise InputError(
                f"{path.parent} is being written by another process",
                found=f"{whose} ({path.name})",
                hint="wait until it has ended, or name another folder",
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # its owner removed it in between


def _takes(descriptor: int) -> bool:
    """Take the lock; whether it was free."""
    free = lock(descriptor)
    if free is not None:
        return free
    owner = _owner(descriptor)
    return owner is None or owner[0] == os.getpid() or (owner[1] == socket.gethostname() and not is_alive(owner[0]))


def _owner(descriptor: int) -> tuple[int, str] | None:
    """The process and its machine that the file names."""
    os.lseek(descriptor, 0, os.SEEK_SET)
    words = os.read(descriptor, 200).decode(errors="replace").split()
    return (int(words[0]), words[1]) if len(words) == 2 and words[0].isdecimal() and len(words[0]) < 10 else None
