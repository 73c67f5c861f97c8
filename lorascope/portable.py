"""What the systems spell differently: flags of `os.open`, reads at a position, locks, the processor, the cache."""

import os
import threading
from io import BufferedReader
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # everything else
    msvcrt = None  # type: ignore[assignment]

# Windows has no pipes among its files, lets no child inherit a descriptor, and would translate line ends.
NONBLOCK: int = getattr(os, "O_NONBLOCK", 0)
CLOEXEC: int = getattr(os, "O_CLOEXEC", 0)
NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
BINARY: int = getattr(os, "O_BINARY", 0)
_FAR = 1 << 30  # of a lock file, the byte that Windows locks: nobody can read a locked one

_position = threading.Lock()  # where a file has one position for all threads


def read_at(file: BufferedReader, view: memoryview, offset: int) -> int:
    """Read into `view` what stands at `offset`; how many bytes came, 0 at the end. Safe in threads."""
    if hasattr(os, "preadv"):
        return os.preadv(file.fileno(), [view], offset)
    with _position:
        file.seek(offset)
        return file.readinto(view)


def wait_for_lock(descriptor: int) -> None:
    """Take the lock of an open file, which ends with it, as soon as it is free; nothing where there is no `flock`."""
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def lock(descriptor: int) -> bool | None:
    """Take the lock of an open file, which ends with it: whether it was free; None where the system has no locks."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if msvcrt is not None:
            os.lseek(descriptor, _FAR, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
            return True
    except OSError as error:
        taken = isinstance(error, BlockingIOError if fcntl is not None else PermissionError)
        return False if taken else None  # or a file system without locks
    return None


def user_cache() -> Path:
    """The user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lorascope"


def processor() -> str:
    """The processor's name; where the system hides the model, with its family and model numbers."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    seen = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = seen.get("model name", platform.machine())
    return f"{name} (family {seen['cpu family']}, model {seen['model']})" if "cpu family" in seen else name
