"""What disks, kills, other programs and attackers make of a folder: one or two of its files changed, or in place of one
something else. As in `mutate.py`, every choice comes from one source of chance.
"""

import copy
import io
import json
import os
import random
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
import yaml

from lorascope import locks
from tests.fuzz.hostile import NUMBERS, REGEXES, TEXTS, altered, hostile
from tests.fuzz.mutate import damage
from tests.fuzz.writing import json_text

MARK = "executed"  # what a pickle with code in it would make
GONE = ("missing", "empty", "zeros", "noise", "cut", "folder", "pipe", "loop", "nowhere", "device", "sparse")
LEFT = (
    locks.NAME, ".adapter.999999999-0123abcd.part", ".adapter.999999999-0123abcd.old", "adapter", "sweep.csv",
    ".config.yaml.999999999-0123abcd.part", ".summary.json.1-x.part", ".checkpoint.pt.999999999-01234567.part",
    "sweep.json", "index.html", "summary.json", "metrics.jsonl",
)  # fmt: skip
YAML_VALUES = (
    "!!python/object/apply:os.system ['touch executed']", "2020-01-01", "!!set {a, b}", "!!binary aGk=", "*x",
    "&a [*a]", "&a {b: *a}", ".inf", "-.inf", ".nan", "~", "0o17", "0x1F", "1_000", "12:30:45", "9" * 400, "1e400",
    "!!float x", "!!int x", "!!timestamp x", "!!omap [a: 1, a: 2]", "!!pairs [a: 1]", "? [a]\n  : b", "{[a]: b}",
    "|\n   x", "'\\u2028'", '"\\x1b[2J"', '"\\ud800"', '"\\uD83D"', "{<<: *x}", "{<<: 1}", "!x y", "%YAML 9.9",
    "\t", "- a", "[" * 3000, "{a: " * 3000, "yes", "=", "&a [x, x, x, x, x, x, x, x]\nb: &b " + "[" + "*a," * 60 + "]\n"
    "c: &c [" + "*b," * 60 + "]\nd: &d [" + "*c," * 60 + "]\ne: [" + "*d," * 60 + "]",
)  # fmt: skip


def spoil(folder: Path, chance: random.Random, among: str = "*") -> dict[str, str]:
    """Change one or two files, mostly `among` those whose path matches; what was done to each, by its path within."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    wanted = [path for path in files if fnmatch(path.relative_to(folder).as_posix(), among)]
    files = wanted if wanted and chance.random() < 0.8 else files
    done: dict[str, str] = {}
    for path in chance.sample(files, min(len(files), chance.choice((1, 1, 1, 2)))):
        done[path.relative_to(folder).as_posix()] = _changed(path, chance)
    if chance.random() < 0.1:
        done[_leave(folder, chance)] = "left"
    return done


def _changed(path: Path, chance: random.Random) -> str:
    how = chance.choice(GONE) if chance.random() < 0.35 else ""
    if how:
        OF_ANY[how](path, chance)
        return how
    if path.suffix in OF_SORT:
        name, change = chance.choice(OF_SORT[path.suffix])
        change(path, chance)
        return name
    damage(path, chance)
    return "bytes"


def _leave(folder: Path, chance: random.Random) -> str:
    """Something that a process which is no more has left, or that stands where one wants to write."""
    path = folder / chance.choice(LEFT)
    if not os.path.lexists(path):
        place = chance.choice(("empty", "noise", "folder", "pipe", "loop", "nowhere"))
        path.touch()
        OF_ANY[place](path, chance)
    return path.relative_to(folder).as_posix()


# --- any file ---------------------------------------------------------------------------------------------------------


def _instead(make: Callable[[Path], Any]) -> Callable[[Path, random.Random], None]:
    def put(path: Path, _: random.Random) -> None:
        path.unlink()
        make(path)

    return put


def _cut(path: Path, chance: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(max(1, len(content) - 2))])


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


OF_ANY: dict[str, Callable[[Path, random.Random], None]] = {
    "missing": lambda path, _: path.unlink(),
    "empty": lambda path, _: path.write_bytes(b""),
    "zeros": lambda path, _: path.write_bytes(bytes(4096)),
    "noise": lambda path, chance: path.write_bytes(chance.randbytes(chance.choice((1, 9, 300, 5000)))),
    "cut": _cut,
    "folder": _instead(Path.mkdir),
    "pipe": _instead(os.mkfifo),
    "loop": _instead(lambda path: path.symlink_to(path.name)),
    "nowhere": _instead(lambda path: path.symlink_to("/nowhere/x")),
    "device": _instead(lambda path: path.symlink_to("/dev/zero")),
    "sparse": _instead(_sparse),
}


# --- text -------------------------------------------------------------------------------------------------------------


def _json(path: Path, chance: random.Random) -> None:
    tree = json.loads(path.read_text())
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        tree = altered(tree, chance) if chance.random() < 0.5 else _elsewhere(tree, chance)
    path.write_text(json_text(tree), errors="surrogatepass")


def _elsewhere(tree: Any, chance: random.Random) -> Any:
    """Any node of the tree, all alike, becomes something hostile, or what stands in another place of it."""
    holders: list[Any] = [tree]
    for each in holders:
        inside = each.values() if isinstance(each, dict) else each
        holders += [inner for inner in inside if isinstance(inner, dict | list) and inner]
    nodes = [(each, key) for each in holders for key in (each if isinstance(each, dict) else range(len(each)))]
    if nodes:
        (holder, key), (other, place) = chance.choice(nodes), chance.choice(nodes)
        holder[key] = copy.deepcopy(other[place]) if chance.random() < 0.5 else hostile(chance)
    return tree


def _json_twice(path: Path, chance: random.Random) -> None:
    """A key again, with another value."""
    tree = json.loads(path.read_text())
    key = chance.choice(list(tree))
    path.write_text(json_text(tree)[:-1] + f", {json.dumps(key)}: {json_text(hostile(chance))}}}")


def _yaml(path: Path, chance: random.Random) -> None:
    """Another value at any depth; written as JSON, which is YAML."""
    tree = yaml.safe_load(path.read_text())
    for _ in range(chance.choice((1, 1, 2))):
        tree = altered(tree, chance)
    path.write_text(json_text(tree), errors="surrogatepass")


def _yaml_number(path: Path, chance: random.Random) -> None:
    """One of the config's numbers is another one, or a word another word."""
    lines = path.read_text().splitlines()
    at = chance.randrange(len(lines))
    value = chance.choice((*(n for n in NUMBERS if not isinstance(n, str)), *TEXTS, *REGEXES))
    lines[at] = lines[at].partition(":")[0] + ": " + json.dumps(value)
    path.write_text("\n".join(lines))


def _yaml_syntax(path: Path, chance: random.Random) -> None:
    lines = path.read_text().splitlines()
    at = chance.randrange(len(lines))
    lines[at] = lines[at].partition(":")[0] + ": " + chance.choice(YAML_VALUES)
    path.write_text("\n".join(lines))


def _lines(path: Path, chance: random.Random) -> None:
    """A log: a line cut, gone, twice, turned, of another value, or joined with the next."""
    lines = path.read_bytes().splitlines(keepends=True)
    at, how = chance.randrange(len(lines)), chance.randrange(7)
    line = lines[at]
    if how == 0:
        lines[at] = line[: chance.randrange(len(line))] + b"\n"
    elif how == 1:
        del lines[at]
    elif how == 2:
        lines.insert(chance.randrange(len(lines)), line)
    elif how == 3:
        lines.reverse()
    elif how == 4:
        lines[at] = line.rstrip(b"\n")
    elif how == 5:
        lines.insert(at, chance.choice((b"\n", b"\xff\xfe\n", b"null\n", b"[1]\n", b"x" * (1 << 25) + b"\n")))
    else:
        lines[at] = json_text(altered(json.loads(line), chance)).encode(errors="surrogatepass") + b"\n"
    path.write_bytes(b"".join(lines))


# --- checkpoints ------------------------------------------------------------------------------------------------------


class Code:
    """Makes a file where it is unpickled."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


def _checkpoint(path: Path, chance: random.Random) -> None:
    state = torch.load(path, weights_only=True)
    for _ in range(chance.choice((1, 1, 1, 2))):
        state = _node(state, chance, path)
    _save(state, path)


def _save(state: Any, path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getvalue())


def _node(tree: Any, chance: random.Random, path: Path, depth: int = 0) -> Any:
    """The state with one node changed, a key or an entry gone, or one more."""
    children = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else []
    if not children or chance.random() < 0.1:
        return _tensor(tree, chance) if isinstance(tree, torch.Tensor) and chance.random() < 0.8 else _odd(chance, path)
    at, how = chance.choice(list(children)), chance.random()
    at = "members" if "members" in children and chance.random() < 0.6 else at
    tree = tree.copy()
    if how < 0.08:
        tree.pop(at)
    elif how < 0.14 and isinstance(tree, dict):
        tree[chance.choice((3, None, True, "x" * 5000, "\ud800", (1, 2), 1.5, "\x1b[2J", -1))] = tree.pop(at)
    elif how < 0.17 and isinstance(tree, list):
        tree.append(tree[at])
    elif how < 0.2:
        tree[at] = tree  # holds itself
    else:
        tree[at] = _node(tree[at], chance, path, depth + 1)
    return tree


def _tensor(tensor: torch.Tensor, chance: random.Random) -> Any:
    """Another shape, type, layout or value."""
    bad = chance.choice((float("nan"), float("inf"), -float("inf"), 1e38, 0.0, -1.0))
    flat = tensor.reshape(-1)
    makers = (
        lambda: tensor.new_zeros(1).as_strided(tensor.shape, (0,) * tensor.ndim),
        lambda: tensor.new_zeros(tensor.shape[::-1]).permute(*range(tensor.ndim)[::-1]),
        lambda: torch.full_like(tensor, bad),
        lambda: tensor.index_fill(0, torch.tensor([0]), bad) if tensor.ndim else torch.full_like(tensor, bad),
        lambda: tensor.double(),
        lambda: tensor.half(),
        lambda: tensor.to(torch.complex64),
        lambda: tensor.long(),
        lambda: tensor.bool(),
        lambda: tensor.t() if tensor.ndim == 2 else flat[:0],
        lambda: tensor[None],
        lambda: flat[: len(flat) // 2],
        lambda: tensor.to_sparse(),
        lambda: tensor.to("meta"),
        lambda: torch.nn.Parameter(tensor.float()),
        lambda: tensor.clone().requires_grad_(tensor.is_floating_point()),
        lambda: torch.zeros((0,) * tensor.ndim),
        lambda: tensor.new_zeros(1).as_strided((1 << 30, 1 << 30), (0, 0)),
        lambda: tensor.new_zeros(1).as_strided((1 << 40,), (0,)),
        lambda: torch.quantize_per_tensor(tensor.float(), 1.0, 0, torch.qint8),
        lambda: tensor.tolist(),
    )  # fmt: skip
    return chance.choice(makers)()


def _odd(chance: random.Random, path: Path) -> Any:
    """What no state holds there."""
    numbers = (0, -1, 1, 2, 3, 4, 5, 1 << 40, 1 << 70, -(1 << 63), float("nan"), float("inf"), 1e308, -1.0, 0.5)
    code = Code(path.with_name(MARK))
    return chance.choice(
        (*numbers, None, True, False, "", "x", "finished", "diverged", [], {}, (), [None], {"x": None}, b"x", 1j,
         {"loss": 1.0, "accuracy": 1.0, "targets": 3}, [0.5, 1], torch.zeros(3), torch.zeros(()), torch.Size([1]),
         torch.float32, torch.device("cpu"), range(3), {1, 2}, code, {"what": code}, [code])
    )  # fmt: skip


OF_SORT: dict[str, list[tuple[str, Callable[[Path, random.Random], None]]]] = {
    ".json": [("value", _json), ("value", _json), ("value", _json), ("twice", _json_twice), ("bytes", damage)],
    ".yaml": [("value", _yaml), ("value", _yaml_number), ("syntax", _yaml_syntax), ("bytes", damage)],
    ".jsonl": [("lines", _lines), ("lines", _lines), ("bytes", damage)],
    ".pt": [("value", _checkpoint), ("value", _checkpoint), ("value", _checkpoint), ("bytes", damage)],
}
