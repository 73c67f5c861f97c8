"""Where values become files: whole or not at all, JSON without NaN, CSV that no spreadsheet runs, ordinary modes.

A regular file is written beside its place and renamed; what is no regular file (a pipe, a device) is written through.
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

from lorascope.errors import InputError, LorascopeError, printable

STDOUT = "-"
_PART, _OLD = ".part", ".old"  # of a name: still being written; put aside until its successor is in place
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
_NAMED = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
# A spreadsheet takes a cell that begins so for a formula (OWASP, "CSV injection"; the last four are full-width).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
# Files of an input folder that no output may replace, by their endings.
_WEIGHTS = (".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt", ".lora", ".gguf")
_READ = (
    *_WEIGHTS, ".yaml", ".yml", ".jsonl", ".py", "config.json", ".index.json", "lorascope.json", "run.json",
    "summary.json", "rehearsal.json", "sweep.json", "tokenizer.json", "special_tokens_map.json", "vocab.json",
    "vocab.txt", "merges.txt", "merge.json",
)  # fmt: skip


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
    except OSError as error:
        raise LorascopeError(f"cannot write {path}: {error.strerror or error}") from error


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    target = Path(os.path.realpath(path))
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
        number = _descriptor(path)
        with open(temporary, "rb") as source, open(path if number is None else os.dup(number), "wb") as sink:
            shutil.copyfileobj(source, sink)
    finally:
        temporary.unlink(missing_ok=True)


def is_stream(path: Path) -> bool:
    """Whether what is written there goes on: - (stdout), a pipe, a device, or an open file of this process."""
    if str(path) == STDOUT or _descriptor(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _descriptor(path: Path) -> int | None:
    """The open file that `/dev/stdout` and `/dev/fd/63` name."""
    match = _DESCRIPTOR.fullmatch(str(path))
    return int(match[1]) if match else _NAMED.get(str(path))


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
        LorascopeError: it cannot be written, or is no regular file.
    """
    line = (json_text(value, **options) + "\n").encode("utf-8", errors="backslashreplace")
    how = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC  # opening a pipe must not wait
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
    """A scratch folder beside `target` that becomes `target` in one rename, or leaves nothing behind.

    Args:
        replace: take the place of a folder that is there and not empty; its other files are kept.

    Raises:
        InputError: the target is a file, or a folder that is not empty.
        LorascopeError: the folder cannot be written, or the disk is full; the target is then as it was.
    """
    target = Path(os.path.realpath(target))
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
    except OSError as error:
        raise LorascopeError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)


def check_new_folder(folder: Path) -> None:
    """InputError where a folder that is to be written is there already, and not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} is there already", hint="name a new folder")


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
    for entry in sorted(stage.iterdir(), key=lambda path: path.name.lower().endswith(_WEIGHTS)):
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
    """A new name beside `target` that says whose it is, so that another process knows when nobody writes it."""
    return target.with_name(f".{target.name[:60]}.{os.getpid()}-{secrets.token_hex(4)}{_PART}")


def _remove_left(target: Path) -> None:
    """Remove what a process that is no more left half-written for this target; what it had put aside comes back."""
    own, number = re.escape(target.name[:60]), r"(\d+)-[0-9a-f]{8}"
    # The last group is of a stage that is itself written in a stage.
    kind = f"({re.escape(_PART)}|{re.escape(_OLD)})"
    pattern = re.compile(rf"\.?\.{own}\.{number}{kind}(\.{number}{kind})?")
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


def check_regular(paths: Iterable[Path]) -> None:
    """InputError where something stands in place of a file of ours, such as a pipe: writing into it may never end."""
    for path in paths:
        if os.path.lexists(path) and not path.is_file():
            raise InputError(f"{path} is no file", found=_sort(path), expected="a file, or nothing", hint="remove it")


def _sort(path: Path) -> str:
    if path.is_symlink():
        return "a symbolic link"
    return "a folder" if path.is_dir() else "a pipe or a device"


def check_outputs(
    outputs: Mapping[str, Path | None], inputs: Iterable[Path | str | None] = (), folder: Path | None = None
) -> None:
    """Refuse, before any work is done, outputs that cannot be written or would destroy something.

    Args:
        outputs: the files to write, by their options; None or - (stdout) is none.
        inputs: files and folders that are read; a name that is no path here is passed over.
        folder: one that will be written before them, so that they may lie in it.

    Raises:
        InputError: an output is a folder, lies in a folder that is missing, is an input or one of its files, or is
            another output.
    """
    files = {option: path for option, path in outputs.items() if path is not None and str(path) != STDOUT}
    read = [Path(each) for each in inputs if each is not None and os.path.exists(each)]
    for option, path in files.items():
        if path.is_dir():
            raise InputError(f"{option} {path} is a folder", expected="the name of a file")
        parent = Path(os.path.realpath(path)).parent
        new = folder is not None and parent == Path(os.path.realpath(folder))
        if not (new or is_stream(path) or parent.is_dir()):
            raise InputError(f"{option} {path} lies in a folder that is not there", hint="make the folder first")
        for source in read:
            _refuse_input(option, path, source)
    for option, path in files.items():
        for other, second in files.items():
            if option < other and _is_same(path, second) and not _takes_many(path):
                raise InputError(f"{option} and {other} name the same file", found=path, hint="name two files")


def _refuse_input(option: str, path: Path, source: Path) -> None:
    """InputError where writing `path` would replace what is read."""
    if not path.exists() or _takes_many(path):
        return
    inside = [source] if source.is_file() else [p for p in source.rglob("*") if p.name.lower().endswith(_READ)]
    beside = [source.parent / "adapter_config.json"] if source.is_file() else []
    for each in (*inside, *beside):
        if each.exists() and _is_same(path, each):
            raise InputError(f"{option} {path} is an input, and would be replaced", found=each, hint="name a new file")


def _is_same(one: Path, other: Path) -> bool:
    """Whether two names are one file: by its inode where it is there, else by where it would lie."""
    if one.exists() and other.exists():
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def _takes_many(path: Path) -> bool:
    """Whether it is a device, such as /dev/null, into which everything may go."""
    try:
        return stat.S_ISCHR(path.stat().st_mode)
    except OSError:
        return False
