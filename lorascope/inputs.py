"""Where files become values: of a bounded size, of JSON's types alone, finite, and of the shape that was announced.

A shape is a description in plain Python: `{"key": shape}` an object with these keys (`"key?"` may be absent, others are
let be), `{str: shape}` one with any keys, `[shape]` a list, a frozenset one of its words, a tuple one of its types, a
function a test of the value, `ANY` whatever there is. In a tuple, `float` is any finite number.
"""

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any

from lorascope.errors import InputError
from lorascope.portable import BINARY, CLOEXEC, NONBLOCK

ANY = None
OBJECT = {str: ANY}
MAX_JSON = 64 << 20  # bytes; the index of the largest models has some ten million
MAX_YAML = 1 << 20  # bytes of a config
MAX_NODES = 100_000  # of a YAML file, each alias counted as what it stands for
DEEPEST = 100  # levels of a YAML file
MAX_LINE = 1 << 24  # bytes of one line in a log
MAX = 1 << 64  # an integer beyond it is not a size, seed or count
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read its bytes. A pipe or a device is refused: reading one may wait forever.

    Raises:
        InputError: it is missing, not readable, or no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | NONBLOCK | CLOEXEC | BINARY)
    except (OSError, ValueError) as error:
        raise cannot_read(path, error) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "a pipe" if stat.S_ISFIFO(mode) else "a folder" if stat.S_ISDIR(mode) else "a device"
        raise InputError(f"cannot read {path}", found=what, expected="a file", hint="save it as a file first")
    return os.fdopen(descriptor, "rb")


def sha256_of(files: Iterable[Path]) -> str:
    """The SHA-256 of the bytes of all files, in order. Raises as `open_regular` does."""
    digest, block = hashlib.sha256(), memoryview(bytearray(1 << 20))
    for path in files:
        with open_regular(path) as file:
            while count := file.readinto(block):
                digest.update(block[:count])
    return digest.hexdigest()


def cannot_read(path: Path | str, error: Exception) -> InputError:
    """The sentence for a file that is missing, or not ours to read."""
    reason = getattr(error, "strerror", None) or error
    return InputError(f"cannot read {path}: {reason}")


def read_text(path: Path, most: int = MAX_JSON) -> str:
    """A whole text file in UTF-8, with or without a byte order mark.

    Raises:
        InputError: as of `open_regular`; or it has more than `most` bytes, or is not UTF-8.
    """
    with open_regular(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise InputError(f"{path} is too large", found=f"more than {most:,} bytes", expected="a smaller file")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text", found=f"byte {error.start} is not part of it") from None


def read_json(path: Path, shape: Any = OBJECT, *, hint: str | None = "restore the file, or write it again") -> Any:
    """The value of a JSON file.

    Raises:
        InputError: as of `read_text`; or it is not JSON, or has another shape. The sentence ends with `hint`.
    """
    text = read_text(path)
    try:
        value = parse_json(text)
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON", found=error, hint=hint) from None
    if not isinstance(value, dict) and isinstance(shape, dict):
        raise InputError(f"{path} is not a JSON object", found=type(value).__name__, hint=hint)
    if wrong := misfit(value, shape):
        raise InputError(f"{path} is damaged", found=wrong, hint=hint)
    return value


def parse_json(text: str) -> Any:
    """JSON as `json.loads` reads it.

    Raises:
        ValueError: it is not JSON, nested too deep, or holds an integer beyond 64 bits or half a surrogate pair.
    """
    try:
        value = json.loads(text, parse_int=_integer)
        if _HALF_PAIR.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair, which is not text") from None
    return value


def read_json_lines(path: Path) -> Iterator[Any]:
    """Every line of a JSON-lines file that is whole; one that was cut off, or is not JSON, is None.

    Raises:
        InputError: as of `open_regular`; or a line is longer than any that is written.
    """
    with open_regular(path) as file:
        while line := file.readline(MAX_LINE):
            if len(line) == MAX_LINE:
                raise InputError(f"{path} is damaged", found=f"a line of {MAX_LINE:,} bytes or more")
            try:
                yield parse_json(line.decode()) if line.strip() else None
            except ValueError:
                yield None


def read_yaml(path: Path, shape: Any = OBJECT) -> Any:
    """The value of a YAML file, of JSON's types alone.

    Raises:
        InputError: as of `read_text`; or it is not YAML, holds more than a config can, or has another shape.
    """
    value = parse_yaml(read_text(path, MAX_YAML), str(path))
    if not isinstance(value, dict) and isinstance(shape, dict):
        raise InputError(f"{path} holds no config", found=type(value).__name__, expected="sections of keys")
    if wrong := misfit(value, shape):
        raise InputError(f"{path} is damaged", found=wrong)
    return value


def parse_yaml(text: str, where: str) -> Any:
    """What YAML says, of JSON's types alone. InputError, naming `where`, where it is not YAML or holds more."""
    import yaml

    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        _check_depth(yaml.parse(text, loader))
        value = yaml.load(text, loader)
        _check_plain(value)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not YAML", found=" ".join(str(error).split())) from None
    except RecursionError:
        raise InputError(f"{where} is nested too deep, or holds itself") from None
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:  # of a tag's constructor
        raise InputError(f"{where} is not a config", found=error) from None
    return value


def _check_depth(events: Iterator[Any]) -> None:
    """RecursionError where a YAML file is nested deeper than any config: libyaml would overflow the stack."""
    depth = 0
    for event in events:
        name = type(event).__name__
        depth += name.endswith(("SequenceStartEvent", "MappingStartEvent"))
        depth -= name.endswith(("SequenceEndEvent", "MappingEndEvent"))
        if depth > DEEPEST:
            raise RecursionError


def _check_plain(value: Any) -> None:
    """ValueError where a value is not of JSON's types, or an alias repeats too much."""
    left = MAX_NODES

    def look(each: Any, where: str = "") -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"more than {MAX_NODES:,} values")
        if isinstance(each, dict):
            for key, inner in each.items():
                look(key)
                look(inner, f"{where}.{key}".lstrip("."))
        elif isinstance(each, list):
            for inner in each:
                look(inner, where)
        elif isinstance(each, int):
            _bounded(each, where)
        elif isinstance(each, str):
            each.encode()
        elif not isinstance(each, float | None):
            raise ValueError(f"a {type(each).__name__}, which is not text, number, list or map; quote it")

    look(value)


def _integer(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError(f"an integer of {len(digits)} digits")
    return _bounded(int(digits))


def _bounded(number: int, where: str = "") -> int:
    if abs(number) >= MAX:
        raise ValueError("an integer beyond 64 bits" + (f" as {where}" if where else ""))
    return number


def misfit(value: Any, shape: Any, where: str = "") -> str | None:
    """What in `value` has not the shape, in words; None where all has."""
    if shape is ANY:
        return None
    if not _fits(value, shape):
        return f"{repr(value)[:60]} as {where or 'the whole'}"
    inside: list[tuple[Any, Any, str]] = []
    if isinstance(shape, list):
        inside = [(each, shape[0], f"{where}[{i}]") for i, each in enumerate(value)]
    elif isinstance(shape, dict) and str in shape:
        inside = [(each, shape[str], f"{where}.{key}") for key, each in value.items()]
    elif isinstance(shape, dict):
        for key, each in shape.items():
            name = key.removesuffix("?")
            place = f"{where}.{name}".lstrip(".")
            if name in value:
                inside.append((value[name], each, place))
            elif name == key:
                return f"no {place}"
    return next((wrong for each in inside if (wrong := misfit(*each))), None)


def _fits(value: Any, shape: Any) -> bool:
    """Whether a value is of the sort that a shape is, what is inside it apart."""
    if isinstance(shape, frozenset):
        return isinstance(value, str) and value in shape
    if isinstance(shape, tuple):
        if float in shape and type(value) in (int, float):
            return math.isfinite(value)
        return type(value) in shape
    if callable(shape):
        return bool(shape(value))
    return isinstance(value, type(shape))
