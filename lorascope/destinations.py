"""What an output is pointed at: a file, a link, a pipe, a stream of this process; and what it must not be."""

import os
import re
import stat
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from lorascope.errors import InputError

STDOUT = "-"
WEIGHTS = (".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt", ".lora", ".gguf")
# Files that commands read, by their endings: no output may take their place.
_READ = (
    *WEIGHTS, ".yaml", ".yml", ".jsonl", ".py", ".model", "config.json", ".index.json", "lorascope.json", "run.json",
    "summary.json", "calibration.json", "rehearsal.json", "sweep.json", "tokenizer.json", "special_tokens_map.json",
    "vocab.json",
    "vocab.txt", "merges.txt", "merge.json", "readme.md",
)  # fmt: skip
_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,9})")
_NAMED = {"/dev/stdin": 0, "/dev/stdout": 1, "/dev/stderr": 2}
_MAX_LINKS = 40
# How a page, a JSON and a CSV of ours begin: what an earlier call wrote into an input's folder may be written again.
_OURS = re.compile(
    rb'<!DOCTYPE html>.*<meta name="generator" content="lorascope">|\s*\{\s*"schema":\s*\d|'
    rb"[^\n]*\b(frobenius_norm|stable_rank|d_out|rank_before|chance_share|phi_chance|energy_share|relative_norm)\b",
    re.S,
)


def descriptor(path: Path) -> int | None:
    """The open file of this process that a path names, through links too: /dev/stdout, /dev/fd/63, or the file that
    stdout or stderr goes to. Its content is not ours to replace."""
    at = path
    for _ in range(_MAX_LINKS):
        text = os.path.normpath(str(at)).replace("//", "/", 1)
        if match := _DESCRIPTOR.fullmatch(text):
            return int(match[1])
        if text in _NAMED:
            return _NAMED[text]
        if not at.is_symlink():
            break
        at = at.parent / os.readlink(at)
    try:
        there = path.stat()
        return next((n for n in (1, 2) if os.path.samestat(there, os.fstat(n))), None)
    except OSError:
        return None


def is_stream(path: Path) -> bool:
    """Whether what is written there goes on: - (stdout), a pipe, a device, or an open file of this process."""
    if str(path) == STDOUT or descriptor(path) is not None:
        return True
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def resolved(path: Path | str) -> Path:
    """Where a path leads, through all links. InputError where they lead in a circle."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise InputError(f"{path} is a symbolic link that leads to itself", hint="remove it, or name another path")
    return target


def check_new_folder(folder: Path) -> None:
    """InputError where a folder that is to be written is there already, and not empty."""
    resolved(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} already exists", hint="name a new folder")


def check_folder_for_files(folder: Path) -> None:
    """Make a folder where it is missing. InputError where no file can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        found = error.strerror or str(error)
        raise InputError(f"cannot write into {folder}", found=found, hint="name another folder") from None


def check_regular(paths: Iterable[Path]) -> None:
    """InputError where something stands in place of a file of ours, such as a pipe: writing into it may never end."""
    for path in paths:
        if os.path.lexists(path) and not path.is_file():
            raise InputError(f"{path} is not a file", found=_sort(path), expected="a file or nothing", hint="remove it")


def _sort(path: Path) -> str:
    if path.is_symlink():
        return "a symbolic link"
    return "a folder" if path.is_dir() else "a pipe or a device"


def check_outputs(
    outputs: Mapping[str, Path | None], inputs: Iterable[Path | str | None] = (), folder: Path | None = None
) -> None:
    """Refuse, before any work is done, outputs that cannot be written or would destroy something.

    Args:
        outputs: the files to write, by their options; None is none, - is stdout.
        inputs: files and folders that are read; a name that is not a path here is passed over.
        folder: one that will be written before them, so that they may lie in it.

    Raises:
        InputError: an output is a folder, lies in one that is missing or not writable, is an input or a file of its
            folder, or is another output.
    """
    files = {option: path for option, path in outputs.items() if path is not None}
    read = [Path(each) for each in inputs if each is not None and os.path.exists(each)]
    for option, path in files.items():
        try:
            if str(path) != STDOUT:
                _check_one(option, path, read, folder)
        except OSError as error:
            raise InputError(f"{option} {str(path)[:100]} cannot be written", found=error.strerror) from None
    for option, path in files.items():
        for other, second in files.items():
            if option < other and _is_same(path, second):
                raise InputError(f"{option} and {other} name the same file", found=path, hint="name two files")


def _check_one(option: str, path: Path, read: list[Path], folder: Path | None) -> None:
    number = descriptor(path)
    if number is not None:
        os.fstat(number)  # an OSError where it is not open
        return
    target = resolved(path)
    if target.is_dir() or (folder is not None and target == resolved(folder)):
        raise InputError(f"{option} {path} is a folder", expected="the name of a file")
    if is_stream(path):
        return
    if folder is not None and target.parent == resolved(folder):
        if target.name.lower().endswith(_READ):
            raise InputError(f"{option} {path} would replace a file of the new folder {folder}", hint="name another")
    elif not target.parent.is_dir():
        raise InputError(f"{option} {path} lies in a folder that is not there", hint="make the folder first")
    elif not os.access(target.parent, os.W_OK):
        raise InputError(f"{option} {path} lies in a folder that is not yours to write", hint="name another")
    if target.exists() and any(_is_of(target, source) for source in read):
        raise InputError(f"{option} {path} is an input, and would be replaced", found=target, hint="name a new file")


def _is_of(target: Path, source: Path) -> bool:
    """Whether a file is a source, one that is read with it, or lies in its folder and is not an output of ours."""
    if source.is_file():
        neighbour = target.parent == resolved(source).parent and target.name.lower().endswith(_READ)
        return neighbour or os.path.samefile(target, source)
    root = resolved(source)
    if target.is_relative_to(root):
        return target.name.lower().endswith(_READ) or not _is_ours(target)
    return any(os.path.samefile(target, p) for p in root.rglob("*") if p.name.lower().endswith(_READ) and p.exists())


def _is_ours(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return _OURS.match(file.read(2000)) is not None
    except OSError:
        return False


def _is_same(one: Path, other: Path) -> bool:
    """Whether two outputs are one file: a stream of this process, or by inode, or by where it would lie."""
    numbers = [1 if str(path) == STDOUT else descriptor(path) for path in (one, other)]
    if None not in numbers:
        return numbers[0] == numbers[1] and not _is_null(numbers[0] or 0)
    if numbers != [None, None]:
        return False
    if one.exists() and other.exists():
        return os.path.samefile(one, other) and not stat.S_ISCHR(one.stat().st_mode)
    return os.path.realpath(one) == os.path.realpath(other)


def _is_null(number: int) -> bool:
    """Whether an open file is the null device, into which everything may go."""
    try:
        return os.path.samestat(os.fstat(number), os.stat(os.devnull))
    except OSError:
        return False
