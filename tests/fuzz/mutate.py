"""What an attacker, a broken disk or another program makes of an adapter: changes of what is written, then of bytes.

Every mutation takes a source of chance, seeded or Hypothesis's, and changes its argument. `write_mutated` makes a file
of a case; the same chance gives the same bytes.
"""

import contextlib
import json
import math
import random
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.weights.dtypes import SIZES, encode
from lorascope.weights.formats.peft.recognise import known_fields
from tests.fuzz.adapters import STORAGE, draw
from tests.fuzz.drawing import Files, Tensor
from tests.fuzz.hostile import HUGE, REGEXES, TEXTS, altered, hostile, text_of
from tests.fuzz.writing import write

MAX = 1 << 16  # entries of an array that is really written
SHAPES = (
    [], [0], [1], [0, 0], [0, 3], [3, 0], [0, 1 << 47], [1 << 47, 0], [0, (1 << 48) - 1, 7], [1 << 24, 1 << 24, 0],
    [1] * 33, [1] * 32, [2] * 64, [-1], [-1, -1], [HUGE], [1.0, 2.0], ["2"], [True, True], None, "3", {}, [[2]],
    [1 << 40, 1 << 40],
)  # fmt: skip
DTYPES = (*SIZES, "F4", "F6_E2M3", "F6_E3M2", "F8_E8M0", "F8_E4M3FNUZ", "C64", "f32", "", "X" * 5000, None, 3, [], {})
VALUES = (
    float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 5e-324, 1e-310, 1e-168, 1e-200, 1e154, 1e155, 1e200, 1e300,
    1.7e308, -1.7e308, 65504.0, 1e38, 1.0, -1.0, 1e16,
)  # fmt: skip


def write_mutated(chance: random.Random, folder: Path) -> Path:
    """Draw an adapter, change it once or a few times, write it into an empty folder, and perhaps damage the bytes."""
    files = draw(chance)
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        chance.choice(OF_FILES)(files, chance)
    path = write(files, folder)
    if chance.random() < 0.1:
        damage(chance.choice(sorted(each for each in folder.iterdir() if each.is_file())), chance)
    return path


# --- arrays -----------------------------------------------------------------------------------------------------------


def _some_tensor(files: Files, chance: random.Random) -> int | None:
    return chance.randrange(len(files.tensors)) if files.tensors else None


def _replace(files: Files, index: int | None, change: Callable[[Tensor], Tensor]) -> None:
    if index is not None and files.tensors[index][1].stride is None:
        key, tensor = files.tensors[index]
        files.tensors[index] = key, change(tensor)


def _filled(shape: tuple[int, ...], dtype: str, values: np.ndarray | float) -> Tensor:
    return Tensor(dtype, shape, encode(np.broadcast_to(np.float64(values), shape).copy(), dtype))


def set_values(files: Files, chance: random.Random) -> None:
    """All entries of some arrays, or one, become an extreme number, in a type that holds it."""
    value, whole, every = chance.choice(VALUES), chance.random() < 0.5, chance.random() < 0.4

    def change(tensor: Tensor) -> Tensor:
        if not all(tensor.shape):
            return tensor
        values = np.full(tensor.shape, value if whole else 0.25)
        values.flat[0] = value
        return _filled(tensor.shape, "F64", values)

    chosen = range(len(files.tensors)) if every else [_some_tensor(files, chance)]
    for index in chosen:
        _replace(files, index, change)


def set_type(files: Files, chance: random.Random) -> None:
    """Another element type, with as many bytes as it needs: the array is valid, and may be integers or booleans."""
    dtype = chance.choice(tuple(SIZES))
    noise = chance.getrandbits(16)

    def change(tensor: Tensor) -> Tensor:
        count = int(np.prod(tensor.shape)) * SIZES[dtype]
        data = np.random.default_rng(noise).bytes(count)
        return Tensor(dtype, tensor.shape, bytes(b & 1 for b in data) if dtype == "BOOL" else data)

    _replace(files, _some_tensor(files, chance), change)


def set_shape(files: Files, chance: random.Random) -> None:
    """Another shape with the bytes that it takes: axes turned, added, dropped, made longer, or of no length."""
    how, size = chance.randrange(8), chance.choice([0, 1, 2, 3, 5, 17, 64])

    def change(tensor: Tensor) -> Tensor:
        shape = list(tensor.shape)
        axis = chance.randrange(len(shape)) if shape else 0
        if how == 0:
            shape.reverse()
        elif how == 1:
            shape.insert(axis, chance.choice([1, 1, 2, 0]))
        elif how == 2 and shape:
            del shape[axis]
        elif how in (3, 4) and shape:
            shape[axis] = size
        elif how == 5:
            shape = [int(np.prod(shape))]
        elif how == 6:
            shape = [0, chance.choice([1, 1 << 30, (1 << 48) - 1])][:: chance.choice([1, -1])]
        else:
            shape = chance.choice([[], [1], [1, 1], [0], [0, 0], [1] * 6, [2] * 6])
        if math.prod(shape) > MAX:
            return tensor
        dtype = tensor.dtype if tensor.dtype in SIZES else "F32"
        return _filled(tuple(shape), dtype, 0.5) if all(shape) else Tensor(dtype, tuple(shape), b"")

    chosen = [_some_tensor(files, chance)]
    if chance.random() < 0.3:  # the same change of all, which agrees with itself
        chosen = range(len(files.tensors))
    for index in chosen:
        _replace(files, index, change)


def set_entry(files: Files, chance: random.Random) -> None:
    """One field of a header's entry says something else, which the bytes may contradict."""
    what = chance.choice(["dtype", "shape", "shape", "data_offsets", "more", "whole"])
    if what == "dtype":
        entry: Any = {"dtype": chance.choice(DTYPES)}
    elif what == "shape":
        entry = {"shape": chance.choice(SHAPES) if chance.random() < 0.7 else hostile(chance)}
    elif what == "data_offsets":
        ends = [
            chance.choice([0, 1, 8, -1, 24, 1 << 47, 1 << 63, HUGE, 1.5, "0"])
            for _ in range(chance.choice([2, 2, 2, 0, 1, 3]))
        ]
        entry = {"data_offsets": ends if chance.random() < 0.8 else hostile(chance)}
    elif what == "more":
        entry = {chance.choice(["strides", "", "shape "]): hostile(chance)}
    else:
        entry = hostile(chance)
    _replace(files, _some_tensor(files, chance), lambda tensor: replace(tensor, entry=entry))


def set_stride(files: Files, chance: random.Random) -> None:
    """In a pickle: a view that claims far more than its storage, or reads it backwards or over itself."""
    files.storage = "pickle"
    shape = chance.choice(
        [(1 << 20, 1 << 20), (1 << 31, 2), (7, 5), (1 << 40,), (2, 2, 2), (100_000, 4), (1 << 62, 2), (0, 1 << 62)]
    )
    stride = chance.choice([(0,) * len(shape), (1,) * len(shape), tuple(range(len(shape)))])
    _replace(files, _some_tensor(files, chance), lambda tensor: replace(tensor, shape=shape, stride=stride))


# --- names ------------------------------------------------------------------------------------------------------------


def rename(files: Files, chance: random.Random) -> None:
    """A key with a strange piece in front, behind, within or in place of it; or one segment fewer; or an integer."""
    index = _some_tensor(files, chance)
    if index is None:
        return
    key, tensor = files.tensors[index]
    segments, text = str(key).split("."), chance.choice(TEXTS)
    at, how = chance.randrange(len(segments)), chance.randrange(8)
    if how == 0:
        key = text + key
    elif how == 1:
        key += text
    elif how == 2:
        key = text
    elif how == 3:
        del segments[at]
        key = ".".join(segments)
    elif how == 4:
        segments[at] += text
        key = ".".join(segments)
    elif how == 5:
        segments.insert(
            at, chance.choice(["base_layer", "default", "modules_to_save", "module", "weight", "0", "base_model.model"])
        )
        key = ".".join(segments)
    elif how == 6:
        key = ".".join(
            [
                *segments[:-1],
                chance.choice(["weight", "bias", "alpha", "lora_A", "lora_E", "dora_scale", "lora_down.weight"]),
            ]
        )
    else:
        others = str(chance.choice(files.tensors)[0]).split(".")
        key = ".".join([*segments[:at], *others[-2:]])
    files.tensors[index] = key, tensor


def rename_module(files: Files, chance: random.Random) -> None:
    """A strange piece in the name of a module, wherever it stands: in the keys and in the config."""
    old = chance.choice(["layers", "self_attn", "model", "q", "0", "blocks", "conv"])
    new = chance.choice((*TEXTS, *REGEXES[:6]))
    files.tensors = [(str(key).replace(old, new), tensor) for key, tensor in files.tensors]
    if files.config is not None and chance.random() < 0.5:
        text = json.dumps(dict(files.config), default=str).replace(f".{old}", f".{json.dumps(new)[1:-1]}")
        with contextlib.suppress(ValueError):
            files.config = list(json.loads(text).items())


def repeat(files: Files, chance: random.Random) -> None:
    """A key again, under the same name or with another end."""
    index = _some_tensor(files, chance)
    if index is not None:
        key, tensor = files.tensors[index]
        files.tensors.append((str(key) + chance.choice(["", "", ".weight", ".bias", " ", ".0"]), tensor))


def remove(files: Files, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 1, 2, 99])):
        if (index := _some_tensor(files, chance)) is not None:
            del files.tensors[index]


def cross(files: Files, chance: random.Random) -> None:
    """The keys of another adapter beside, or its config in place of this one's."""
    other = draw(chance)
    if chance.random() < 0.5:
        files.tensors += other.tensors
    else:
        files.config = other.config


# --- settings ---------------------------------------------------------------------------------------------------------


def set_config(files: Files, chance: random.Random) -> None:
    """A field of the config, or a value within one, becomes something else; or one stands there twice."""
    if files.config is None:
        files.config = [("peft_type", chance.choice(["LORA", "lora", None, 3]))] if chance.random() < 0.3 else None
        return
    how = chance.random()
    if how < 0.6 and files.config:
        index = chance.randrange(len(files.config))
        key, value = files.config[index]
        files.config[index] = key, altered(value, chance)
    elif how < 0.9:
        files.config = [*files.config, (chance.choice(sorted(known_fields())), hostile(chance))]
    else:
        files.config = [*files.config, (chance.choice(TEXTS), hostile(chance))]


def set_size(files: Files, chance: random.Random) -> None:
    """A whole number in the config, or in the metadata's JSON, is one that could be a size and that no memory holds."""
    size = chance.choice([0, 1, 2, 1 << 20, 1 << 24, 1 << 27, 1 << 28, 1 << 31, 1 << 40, (1 << 48) - 1])
    if files.config is not None and chance.random() < 0.6:
        files.config = list(_sized(dict(files.config), size, chance).items())
    elif isinstance(files.metadata, dict):
        for name, value in files.metadata.items():
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                files.metadata[name] = json.dumps(_sized(json.loads(value), size, chance))


def _sized(tree: Any, size: int, chance: random.Random) -> Any:
    """`tree` with `size` in place of some of its whole numbers."""
    if isinstance(tree, dict):
        return {key: _sized(value, size, chance) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_sized(value, size, chance) for value in tree]
    return size if type(tree) is int and chance.random() < 0.3 else tree


def set_pattern(files: Files, chance: random.Random) -> None:
    """A regex that takes for ever, or is none, where PEFT has patterns of modules."""
    if files.config is None:
        return
    field, regex = (
        chance.choice(["rank_pattern", "alpha_pattern", "feedforward_modules", "target_modules", "layers_pattern"]),
        chance.choice(REGEXES),
    )
    files.config = [
        *files.config,
        (field, {regex: chance.choice([1, 2, 3, 0, HUGE])} if "_pattern" in field else regex),
    ]
    if chance.random() < 0.5:
        files.tensors = [(str(key).replace("layers", "a" * 40), tensor) for key, tensor in files.tensors]


def set_metadata(files: Files, chance: random.Random) -> None:
    """A value of the header's metadata, JSON within it, or all of it becomes something else."""
    if not isinstance(files.metadata, dict) or chance.random() < 0.15:
        files.metadata = hostile(chance)
        return
    names = [
        *files.metadata,
        "lora_adapter_metadata",
        "ss_network_args",
        "ss_network_dim",
        "vera_input_widths",
        "format",
    ]
    name = chance.choice(names)
    try:
        inner = json.loads(str(files.metadata.get(name, "")))
    except (ValueError, RecursionError):
        inner = {"unet.r": 3, "unet.lora_alpha": 1} if chance.random() < 0.5 else hostile(chance)
    text = text_of(altered(inner, chance))
    files.metadata = files.metadata | {name: text if chance.random() < 0.9 else hostile(chance)}


def set_storage(files: Files, chance: random.Random) -> None:
    files.storage = chance.choice(STORAGE)


def set_pickled(files: Files, chance: random.Random) -> None:
    """What a training script saves in place of a state dict, or beside it."""
    files.storage, how, which = "pickle", chance.randrange(9), chance.random()

    def wrap(tensors: dict) -> Any:
        import torch

        first, key = next(iter(tensors.values()), torch.zeros(2, 2)), next(iter(tensors), "a")
        ones = torch.ones(2, 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # quantised tensors are deprecated, and still in files
            quantised = torch.quantize_per_tensor(ones, 1.0, 0, torch.qint8)
        odd = [ones.to(torch.complex64), ones.to_sparse(), ones.to("meta"), torch.nn.Parameter(ones), quantised]
        odd += [3, None, "x", [first], {"a": first}]
        return (
            {"state_dict": tensors},
            {"model": tensors, "module": dict(tensors)},
            {"state_dict": {"model": tensors}},
            {**tensors, "epoch": 3},
            {**tensors, 3: first},
            {**tensors, key: odd[int(which * len(odd))]},
            list(tensors.values()),
            first,
            {},
        )[how]

    files.wrapped = wrap


def set_weight_map(files: Files, chance: random.Random) -> None:
    """An index that promises other files or keys."""
    files.storage = "shards" if len(files.tensors) > 1 else files.storage
    files.weight_map = lambda names: altered(names, chance)


OF_FILES = (
    set_values, set_values, set_type, set_shape, set_shape, set_shape, set_entry, set_entry, set_stride, rename,
    rename, rename, rename_module, repeat, remove, cross, set_config, set_config, set_config, set_config, set_size,
    set_size, set_pattern, set_metadata, set_metadata, set_storage, set_pickled, set_weight_map,
)  # fmt: skip


# --- bytes ------------------------------------------------------------------------------------------------------------


def damage(path: Path, chance: random.Random) -> None:
    """Bytes of a file flipped, cut, added or put in place of others; of a pickle, of what its archive holds."""
    if zipfile.is_zipfile(path) and chance.random() < 0.7:
        with zipfile.ZipFile(path) as archive:
            members = {name: bytearray(archive.read(name)) for name in archive.namelist()}
        chosen = next((name for name in members if name.endswith("data.pkl")), next(iter(members)))
        members[chosen] = _damaged(members[chosen], chance)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, bytes(content))
    else:
        path.write_bytes(_damaged(bytearray(path.read_bytes()), chance))


def _damaged(content: bytearray, chance: random.Random) -> bytearray:
    how = chance.randrange(8)
    if how == 0 or not content:
        return content[: chance.randrange(len(content) + 1)]
    if how == 1:
        return content + bytes(chance.choice([1, 7, 4096]))
    if how == 2:  # the header's length
        content[:8] = (
            chance.choice([0, 1, 7, len(content) - 8, len(content), 1 << 62, (1 << 64) - 1]).to_bytes(
                8, "little", signed=False
            )
            if len(content) >= 8
            else b""
        )
        return content
    if how == 3:
        at = chance.randrange(len(content))
        return (
            content[:at]
            + bytearray(
                chance.choice([b"\x00", b"\xff\xfe", b"{", b"}", b'"', b",", b"\\ud800", b"1e999", b"[" * 5000])
            )
            + content[at:]
        )
    if how == 4:
        return (
            bytearray(
                chance.choice(
                    [b"\xef\xbb\xbf", b"\xff\xfe", b"version https://git-lfs", b"GGUF", b"PK\x03\x04", b"\x80\x02"]
                )
            )
            + content
        )
    head = min(len(content), chance.choice([16, 200, len(content)]))
    for _ in range(chance.choice([1, 1, 3, 20])):
        content[chance.randrange(head)] = chance.randrange(256)
    return content
