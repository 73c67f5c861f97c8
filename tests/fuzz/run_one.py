"""The contract of a reader of strangers' files, over one path: it works, or it says in one sentence why it does not."""

import atexit
import contextlib
import csv
import io
import json
import resource
import shutil
import signal
import sys
import tempfile
import traceback
import unicodedata
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch  # noqa: F401  loaded before any clock runs

from lorascope.errors import LorascopeError

SECONDS = 8.0
MEMORY = 1 << 30  # bytes beyond what the process has: files here have a few kilobytes
LONGEST = 1500
SHM = "/dev/shm" if Path("/dev/shm").is_dir() else None


class Overdue(BaseException):
    """The time is over. No `Exception`, so that nothing on the way catches it."""


def check(path: Path, seconds: float = SECONDS, *, analyse: bool = True) -> str:
    """ "read" or "refused". AssertionError, whose cause is the failure, where the contract does not hold.

    Without `analyse` the adapter and its tensors are read, and nothing is computed of them.
    """
    try:
        with _limits(seconds), warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", ResourceWarning)  # Python's own filter: files close with their last tensor
            _read(path)
            if analyse:
                _analyse(path)
    except LorascopeError as error:
        if len(str(error)) > LONGEST:
            said = f"a message of {len(str(error))} characters at {where(error)}: {str(error)[:300]}"
            raise AssertionError(said) from error
        return "refused"
    except Overdue as error:
        raise AssertionError(f"{path} took more than {seconds:g} s, at {where(error)}") from error
    except Exception as error:
        raise AssertionError(f"{path}: {type(error).__name__} at {where(error)}: {str(error)[:300]}") from error
    return "read"


def where(error: BaseException | None) -> str:
    """The innermost line of lorascope in a traceback."""
    frames = traceback.extract_tb(error.__traceback__) if error else []
    ours = [frame for frame in frames if "/lorascope/" in frame.filename and "/tests/" not in frame.filename]
    if not ours:
        return "no line of lorascope"
    return f"lorascope/{ours[-1].filename.rpartition('/lorascope/')[2]}:{ours[-1].lineno} ({ours[-1].name})"


def _read(path: Path) -> None:
    """Read the adapter and every tensor of it."""
    from lorascope.weights.io import read

    adapter = read(path)
    roles = [stored for update in adapter.updates.values() for stored in (*update.roles.values(), update.bias)]
    for stored in (*roles, *adapter.saved.values(), *adapter.base.values()):
        if stored is not None:
            found, promised = stored.read().shape, tuple(stored.shape)
            assert found == promised, f"an array of shape {found} in place of {promised}"


def _analyse(path: Path) -> None:
    """Run `lorascope analyze`, and read what it writes: strict JSON, CSV in columns, text that drives no terminal."""
    from lorascope.cli._outputs import Outputs
    from lorascope.cli.analyze import analysed, report_on

    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(io.StringIO()):
        report_on(analysed([path]), Outputs(json=_scratch() / "out.json", csv=_scratch() / "out.csv"))
    json.loads((_scratch() / "out.json").read_text(), parse_constant=_no_constant)
    with open(_scratch() / "out.csv", newline="") as file:
        lengths = {len(row) for row in csv.reader(file)}
    assert len(lengths) <= 1, f"CSV rows of {sorted(lengths)} cells"
    driving = {c for c in screen.getvalue() if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}
    assert not driving, f"the terminal gets {driving!r}"


def _no_constant(name: str) -> None:
    raise ValueError(f"the JSON holds {name}")


@contextlib.contextmanager
def _limits(seconds: float) -> Iterator[None]:
    """Overdue after `seconds`, MemoryError beyond `MEMORY`."""

    def end(*_) -> None:
        raise Overdue

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before, soft = signal.signal(signal.SIGALRM, end), resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, soft[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, soft)


@cache
def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="lorascope-fuzz-", dir=SHM))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


if __name__ == "__main__":
    print(check(Path(sys.argv[1])))
