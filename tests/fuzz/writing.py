"""A drawn adapter as files: safetensors whose header says what a mutation wants, pickles, shards."""

import json
from pathlib import Path
from typing import Any

from lorascope.weights.dtypes import SIZES
from tests.fuzz.drawing import Files, Raw, Tensor

_INDEX = ".index.json"


def write(files: Files, folder: Path) -> Path:
    """Write the adapter into an empty folder; what is to be given to the reader."""
    if files.config is not None:
        (folder / "adapter_config.json").write_text(json_object(files.config))
    if files.storage == "pickle":
        return _write_pickle(files, folder)
    if files.storage == "shards":
        return _write_shards(files, folder)
    path = folder / ("adapter_model.safetensors" if files.config is not None else "a.safetensors")
    path.write_bytes(safetensors(files.tensors, files.metadata))
    return path if files.storage == "alone" else folder


def safetensors(tensors: list[tuple[Any, Tensor]], metadata: Any) -> bytes:
    """The bytes of a safetensors file, its entries as the mutations want them."""
    pairs, position = [("__metadata__", metadata)] if metadata else [], 0
    for key, tensor in sorted(tensors, key=lambda pair: -SIZES.get(pair[1].dtype, 1)):
        end = position + len(tensor.data)
        entry = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        pairs.append((key, entry | tensor.entry if isinstance(tensor.entry, dict) else tensor.entry))
        position = end
    header = json_object(pairs).encode()
    body = b"".join(tensor.data for _, tensor in sorted(tensors, key=lambda pair: -SIZES.get(pair[1].dtype, 1)))
    return len(header).to_bytes(8, "little") + header + body


def json_object(pairs: list[tuple[Any, Any]]) -> str:
    """A JSON object in which a key may stand twice."""
    return "{" + ", ".join(f"{json.dumps(str(key))}: {json_text(value)}" for key, value in pairs) + "}"


def json_text(value: Any) -> str:
    """JSON, in which `Raw` text stands as it is."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return json_object(list(value.items()))
    if isinstance(value, list):
        return "[" + ", ".join(map(json_text, value)) + "]"
    return json.dumps(value)


def as_torch(tensor: Tensor) -> Any:
    import torch

    names = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
             "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "U8": "uint8", "BOOL": "bool"}  # fmt: skip
    dtype = getattr(torch, names.get(tensor.dtype, "uint8"))
    values = torch.frombuffer(bytearray(tensor.data), dtype=torch.uint8) if tensor.data else torch.empty(0).byte()
    flat = values[: len(values) // dtype.itemsize * dtype.itemsize].view(dtype)
    try:
        return flat.as_strided(tensor.shape, tensor.stride) if tensor.stride else flat.reshape(tensor.shape)
    except RuntimeError:  # shapes that a mutation has made too large for torch itself to hold
        return flat


def _write_pickle(files: Files, folder: Path) -> Path:
    import torch

    path = folder / ("adapter_model.bin" if files.config is not None else "a.pt")
    torch.save(files.wrapped({key: as_torch(tensor) for key, tensor in files.tensors}), path)
    return folder if files.config is not None else path


def _write_shards(files: Files, folder: Path) -> Path:
    half = len(files.tensors) // 2
    names = {}
    for number, tensors in enumerate((files.tensors[:half], files.tensors[half:]), 1):
        name = f"adapter_model-0000{number}-of-00002.safetensors"
        (folder / name).write_bytes(safetensors(tensors, files.metadata))
        names |= {str(key): name for key, _ in tensors}
    (folder / f"adapter_model.safetensors{_INDEX}").write_text(json_text({"weight_map": files.weight_map(names)}))
    return folder
