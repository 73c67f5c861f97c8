"""Where values become files: whole or not at all, JSON without NaN, CSV that no spreadsheet runs, ordinary modes.

A regular file is written next to its place and renamed; a pipe or a device is written through.
A symbolic link stays one: the file that it points to is replaced. What a killed process left half-written is removed by
the next one that writes the same path.
"""

import contextlib
import csv
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorascope.destinations import WEIGHTS, check_new_folder, descriptor, is_stream, resolved
from lorascope.errors import LorascopeError, printable
from lorascope.portable import BINARY, CLOEXEC, NONBLOCK

_PART, _OLD = ".part", ".old"  # of a name: still being written; put aside until its successor is in place
# A spreadsheet takes a cell that begins so for a formula (OWASP, "CSV injection"; the last four are full-width).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """The path of a temporary file that becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
        LorascopeError: the folder is missing or not writable, or the disk is full; `path` is then as it was.
    """
    path = Path(path)
    try:
        with _through(path) if is_stream(path) else _beside(path) as temporary:
            yield temporary
    except BrokenPipeError:
        raise  # the reader has gone, which is not an error
    except OSError as error:
        raise LorascopeError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    target = resolved(path)
    if target.is_dir():
        raise IsADirectoryError(21, "it is a folder")
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    _remove_left(target)
    temporary = _part_of(target)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # less the umask, as any new file
        yield temporary
        if mode is not None:
            os.chmod(temporary, mode)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _through(path: Path) -> Iterator[Path]:
    """What is written is copied into a pipe or a device when it is complete: there is nothing to rename."""
    handle, name = tempfile.mkstemp(prefix="lorascope-")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        number = descriptor(path)
        with open(temporary, "rb") as source, open(path if number is None else os.dup(number), "wb") as sink:
            shutil.copyfileobj(source, sink)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path | str, content: bytes | Iterable[bytes]) -> None:
    """Write the bytes, or the pieces, and onto the disk: whole or not at all. Raises as `replacing` does."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.writelines([content] if isinstance(content, bytes) else content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all; what UTF-8 cannot hold (a lone surrogate in a key) is escaped."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_json(path: Path | str, value: Any, *, indent: int | None = 2, sort_keys: bool = False) -> None:
    """Write JSON, as `json_text` makes it. Raises as `replacing` does."""
    write_text(path, json_text(value, indent=indent, sort_keys=sort_keys) + "\n")


def json_text(value: Any, *, indent: int | None = None, sort_keys: bool = False, **options: Any) -> str:
    """JSON that every reader takes: a number that is not finite is null. Other `options` as of `json.dumps`."""
    if indent is None:
        options.setdefault("separators", (",", ":"))
    options = {"ensure_ascii": False, "indent": indent, "sort_keys": sort_keys, **options}
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:  # a NaN somewhere
        return json.dumps(finite(value), allow_nan=False, **options)


def finite(value: Any) -> Any:
    """A copy of nested maps and lists in which a number that is not finite is None."""
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def append_json(path: Path, value: Any, **options: Any) -> None:
    """Append one line of JSON to a log, made where it is missing; a last line that was cut off stays one of its own.

    Raises:
        LorascopeError: it cannot be written, or is not a regular file.
    """
    line = (json_text(value, **options) + "\n").encode("utf-8", errors="backslashreplace")
    how = os.O_RDWR | os.O_APPEND | os.O_CREAT | NONBLOCK | CLOEXEC | BINARY  # opening a pipe must not wait
    try:
        with open(os.open(path, how, 0o666), "a+b") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
    except OSError as error:
        raise LorascopeError(f"cannot write {path}: {error.strerror or error}") from error


def csv_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV; the columns are all keys, in order of appearance. No text in it is a formula or a control."""
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_inert(column) for column in columns])
    writer.writerows([_inert(row.get(column, "")) for column in columns] for row in rows)
    return text.getvalue()


def _inert(value: Any) -> Any:
    """A cell that is shown and never run: text that would be a formula begins with an apostrophe."""
    if isinstance(value, float) and not math.isfinite(value):
        return ""
    if value is None or isinstance(value, bool | int | float):
        return value
    text = str(value)
    return ("'" if text.lstrip(" ").startswith(_FORMULA) else "") + printable(text)


@contextlib.contextmanager
def staged(target: Path | str, *, replace: bool = False) -> Iterator[Path]:
    """A scratch folder next to `target` that becomes `target` in one rename, or leaves nothing behind.

    Args:
        replace: take the place of a folder that is there and not empty; its other files are kept.

    Raises:
        InputError: the target is a file, or a folder that is not empty.
        LorascopeError: the folder cannot be written, or the disk is full; the target is then as it was.
    """
    target = resolved(target)
    stage = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_left(target)
        if not replace:
            check_new_folder(target)
        stage = _part_of(target)
        stage.mkdir()
        yield stage
        _put(stage, target, replace)
    except LorascopeError as error:
        if stage is None or str(stage) not in str(error):
            raise
        raise type(error)(str(error).replace(str(stage), str(target))) from error
    except OSError as error:
        raise LorascopeError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


def _put(stage: Path, target: Path, replace: bool) -> None:
    """Let the stage take the target's place."""
    if not (replace and target.is_dir()):
        try:
            stage.rename(target)
        except OSError:
            if not target.is_dir() or any(target.iterdir()):
                raise
            _move_in(stage, target)  # an empty folder that cannot be replaced, such as a container's volume
        return
    for entry in target.iterdir():
        if not (stage / entry.name).exists():
            _keep(entry, stage / entry.name)
    old = _part_of(target).with_suffix(_OLD)
    target.rename(old)
    try:
        stage.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _move_in(stage: Path, target: Path) -> None:
    """Move a stage's files into a folder, weights last: until they are there, nobody takes it for complete."""
    for entry in sorted(stage.iterdir(), key=lambda path: path.name.lower().endswith(WEIGHTS)):
        shutil.move(entry, target / entry.name)


def _keep(entry: Path, place: Path) -> None:
    """The same file, or folder of files, under another name: linked where the file system can."""

    def link(source: str, to: str, **_: Any) -> None:
        try:
            os.link(source, to, follow_symlinks=False)
        except OSError:
            shutil.copy2(source, to, follow_symlinks=False)

    if entry.is_dir() and not entry.is_symlink():
        shutil.copytree(entry, place, symlinks=True, copy_function=link)
    else:
        link(str(entry), str(place))


def _part_of(target: Path) -> Path:
    """A new name next to `target` that says whose it is, so that another process knows when nobody writes it."""
    return target.with_name(f".{target.name[:60]}.{os.getpid()}-{secrets.token_hex(4)}{_PART}")


def _remove_left(target: Path) -> None:
    """Remove what a process that has ended left half-written for this target; what it had put aside comes back."""
    name, number = re.escape(target.name[:60]), r"(\d+)-[0-9a-f]{8}"
    # The last group is of a stage that is itself written in a stage.
    kind = f"({re.escape(_PART)}|{re.escape(_OLD)})"
    pattern = re.compile(rf"\.?\.{name}\.{number}{kind}(\.{number}{kind})?")
    for entry in target.parent.iterdir():
        match = pattern.fullmatch(entry.name)
        if match and not is_alive(int(match[1])):
            with contextlib.suppress(OSError):
                if match[2] == _OLD and not target.exists():
                    entry.rename(target)
                else:
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def is_alive(pid: int) -> bool:
    """Whether a process of this machine has this number. Unknown where the system does not say: then True."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True
