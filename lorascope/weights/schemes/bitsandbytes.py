"""bitsandbytes: LLM.int8 and four bits.

    LLM.int8    `weight` I8, `SCB` (m,)                       W = code · SCB / 127
    nf4, fp4    `weight` U8 (mn/2, 1), `weight.absmax`, ...   W = map[code] · absmax of its block

Sources: bitsandbytes 0.50, `int8_vectorwise_dequant` (Dettmers et al. 2022, arXiv 2208.07339, §3), `dequantize_4bit`
and `QuantState.as_dict` (Dettmers et al. 2023, arXiv 2305.14314, §3).
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lorascope.inputs import parse_json
from lorascope.updates.base import Stored
from lorascope.weights.codes.nibbles import four_bits
from lorascope.weights.codes.scaled import Scaled
from lorascope.weights.codes.scales import Grid
from lorascope.weights.schemes.place import FLOATS, Place
from lorascope.weights.support import Support

_STATE = "bitsandbytes__"
_DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_LARGEST_STATE = 1 << 16  # bytes of JSON


def int8(place: Place) -> Stored | None:
    """LLM.int8; None where there is no SCB."""
    scale = place.next_to("SCB")
    if scale is None or place.codes.dtype != "I8":
        return None
    shape = tuple(place.codes.shape)
    if len(shape) != 2 or math.prod(scale.shape) != shape[0] or scale.dtype not in FLOATS:
        return place.misfit("bitsandbytes LLM.int8", scale)
    return place.decoded(shape, "bitsandbytes LLM.int8", Scaled(shape, Grid(1, shape[1], shape[0], 1), 127.0), scale)


def four_bit(place: Place) -> Stored | None:
    """nf4 or fp4, whose largest of the blocks may be coded again; None where there is no quant_state."""
    heads = (f"{place.name}.{_STATE}", f"{place.name}.quant_state.{_STATE}")
    kinds = [(head, key) for key in place.tensors for head in heads if key.startswith(head)] if _has_any(place) else []
    if not kinds:
        return place.lacking("bitsandbytes", "its quant_state") if _has_any(place) else None
    head, key = kinds[0]
    kind = f"bitsandbytes {key.removeprefix(head)}"
    state = _json_of(place.tensors[key])
    nested = "nested_blocksize" in state
    names = ["absmax", "quant_map", *(["nested_absmax", "nested_quant_map"] if nested else [])]
    parts = [place.tensors.get(f"{place.name}.{leaf}") for leaf in names]
    if absent := [name for name, part in zip(names, parts, strict=True) if part is None]:
        return place.lacking(kind, f"its {absent[0]}")
    there = [part for part in parts if part is not None]
    if why := _contradiction(place.codes, state, there):
        return place._no(f"the base's {place.name} is quantised with {kind}, and its tensors disagree: {why}")
    dtype = _DTYPES[str(state["dtype"])]
    return place.decoded(tuple(state["shape"]), kind, four_bits(state, dtype), *there, dtype=dtype)


def _has_any(place: Place) -> bool:
    return f"{place.name}.absmax" in place.tensors or f"{place.name}.quant_map" in place.tensors


def _contradiction(codes: Stored, state: Mapping[str, Any], parts: list[Stored]) -> str | None:
    """What the state and the shapes disagree on; None where all fits."""
    shape, block = state.get("shape"), state.get("blocksize")
    if not isinstance(shape, list) or not all(type(n) is int and n > 0 for n in shape) or not shape:
        return f"its quant_state has the shape {shape!r}"
    if type(block) is not int or block < 1 or str(state.get("dtype")) not in _DTYPES:
        return f"its quant_state has the block size {block!r} and the dtype {state.get('dtype')!r}"
    count = math.prod(shape)
    if codes.dtype != "U8" or math.prod(codes.shape) != (count + 1) // 2:
        return f"{count} entries, and {codes.dtype} codes {tuple(codes.shape)} for {2 * math.prod(codes.shape)}"
    blocks, sizes = -(-count // block), [math.prod(part.shape) for part in parts]
    expected = [blocks, 16]
    if "nested_blocksize" in state:
        inner, offset = state["nested_blocksize"], state.get("nested_offset")
        if type(inner) is not int or inner < 1 or type(offset) not in (int, float):
            return f"its quant_state has the nested block size {inner!r} and the offset {offset!r}"
        expected += [-(-blocks // inner), 256]
        if parts[0].dtype != "U8":
            return f"its absmax is nested and {parts[0].dtype}"
    elif parts[0].dtype not in FLOATS:
        return f"its absmax is {parts[0].dtype}"
    names = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
    wrong = [i for i, size in enumerate(sizes) if size != expected[i]]
    return f"{names[wrong[0]]} has {sizes[wrong[0]]} numbers, and {expected[wrong[0]]} are needed" if wrong else None


def _json_of(stored: Stored) -> dict[str, Any]:
    if stored.dtype != "U8" or math.prod(stored.shape) > _LARGEST_STATE:
        return {}
    try:
        value = parse_json(bytes(stored.read().astype(np.uint8)).decode())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


SUPPORT = (
    Support("bitsandbytes LLM.int8", "bitsandbytes' own dequantisation"),
    Support("bitsandbytes nf4, fp4, nested or not", "bitsandbytes' own dequantisation, and its arithmetic written out"),
)
