"""Codes that are numbers themselves, float8, int8 or E2M1, and a scale for each block of them.

    fp8 by block     `weight` F8 or a pair of E2M1, `weight_scale_inv` (⌈m/b⌉, ⌈n/b⌉)   W = code · scale
    by tensor, row,  `weight` F8 or I8, `weight_scale` (), (m,), (m, 1), (m, g)         W = (code − zero) · scale
    group, block
    ComfyUI's fp8    `weight` F8, `scale_weight` ()                                     W = code · scale
    NVFP4            `weight` U8 (m, n/2), `weight_scale` F8, `weight_scale_2` ()       W = code · scale · scale₂
                     `weight_packed` U8, `weight_scale` F8, `weight_global_scale` ()    W = code · scale / global
    MXFP4, MXFP8     U8 (m, n/2) or F8, a scale of exponents (m, n/32)                  W = code · 2^(scale − 127)
    gpt-oss's MXFP4  `…_blocks` U8 (E, m, g, 16), `…_scales` U8 (E, m, g)               the same, transposed: (E, n, m)
    FBGEMM, experts  `gate_up_proj` F8 (E, n, m), `gate_up_proj_scale` (E, 1, m)        W = code · scale

Sources: DeepSeek-V3's README_WEIGHTS; transformers 5.23, `integrations/{finegrained_fp8,fbgemm_fp8,mxfp4}`;
compressed-tensors 0.20, `compressors/{naive_quantized,nvfp4,mxfp4,mxfp8}` and `converters/modelopt_nvfp4`; "OCP
Microscaling Formats" 1.0.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from lorascope.updates.base import Stored
from lorascope.weights.codes.nibbles import Nibbles
from lorascope.weights.codes.scaled import Scaled
from lorascope.weights.codes.scales import Grid
from lorascope.weights.schemes.place import BLOCK, EXPONENTS, FLOATS, FP8, Place, as_exponents, by_groups
from lorascope.weights.support import Support

_METHODS = ("compressed-tensors", "fbgemm_fp8", "fp8", "modelopt", "modelopt_fp4", "quark", "mxfp8", "nvfp4")
_NV, _MX = 16, 32  # columns that share a scale


def four_bit_floats(place: Place) -> Stored | None:
    """Pairs of E2M1 codes: NVFP4 and MXFP4 under `weight` or `weight_packed`, and DeepSeek's experts."""
    scale = place.ending("_scale_inv", "_scale")
    if scale is None or place.codes.dtype not in ("U8", "I8") or len(place.codes.shape) < 2:
        return None
    if scale.dtype not in (*EXPONENTS, "F8_E4M3") or (place.method and place.method not in _METHODS):
        return None
    shape = (*place.codes.shape[:-1], 2 * place.codes.shape[-1])
    size = _NV if scale.dtype == "F8_E4M3" else _MX
    grid = by_groups(shape, tuple(scale.shape), size)
    if grid is None or grid.width != size:
        return None if place.codes.dtype == "I8" else place.misfit("four-bit floats", scale)
    if size == _MX:
        return place.decoded(shape, "MXFP4", Nibbles(shape, grid), as_exponents(scale))
    of_all, divides = place.ending("_global_scale"), True
    if of_all is None:
        of_all, divides = place.ending("_scale_2"), False
    if of_all is None:
        return place.lacking("NVFP4", "the scale of the tensor")
    if of_all.dtype not in FLOATS or math.prod(of_all.shape) not in (1, math.prod(shape[:-2])):
        return place.misfit("NVFP4", scale, of_all)
    return place.decoded(shape, "NVFP4", Nibbles(shape, grid, divides), scale, of_all)


def experts_in_blocks(place: Place, scales: Stored) -> Stored:
    """gpt-oss's experts: `place.codes` are the blocks."""
    if len(place.codes.shape) < 4:
        return place.misfit("MXFP4", scales)
    *lead, blocks, size = place.codes.shape
    if place.codes.dtype != "U8" or scales.dtype not in EXPONENTS or size != _MX // 2:
        return place.misfit("MXFP4", scales)
    if tuple(scales.shape) != (*lead, blocks):
        return place.misfit("MXFP4", scales)
    shape = (*lead, _MX * blocks)
    grid = Grid(1, _MX, lead[-1], blocks)
    shape_in_model = (*lead[:-1], shape[-1], shape[-2])
    return place.decoded(shape_in_model, "MXFP4", Nibbles(shape, grid, transposed=True), as_exponents(scales))


def by_block(place: Place) -> Stored | None:
    """fp8 with `weight_scale_inv`."""
    scale = place.ending("_scale_inv")
    if scale is None:
        return None
    shape = tuple(place.codes.shape)
    if place.codes.dtype not in FP8 or scale.dtype not in (*FLOATS, *EXPONENTS) or len(shape) < 2:
        return place.misfit("fp8", scale)
    grid = _blocks(place.config.get("weight_block_size") or BLOCK, shape, tuple(scale.shape))
    if grid is None and scale.dtype in EXPONENTS:  # microscaling: 32 columns of a row
        grid = by_groups(shape, tuple(scale.shape), _MX)
    if grid is None:
        return place.misfit("fp8", scale)
    return place.decoded(shape, "fp8", Scaled(shape, grid), as_exponents(scale))


def scaled(place: Place, unknown: set[str]) -> Stored | None:
    """`weight_scale` by tensor, row, group of columns or block; a ComfyUI file's `scale_weight` by tensor.

    Args:
        unknown: tensors of the same module whose meaning is not known.
    """
    comfy = place.next_to("scale_weight")
    scale = place.ending("_scale") if comfy is None else comfy
    understood = {place.name + ending for ending in ("_scale", "_zero_point", "_shape")}
    if scale is None or unknown - understood - {f"{place.module}.scale_weight"}:
        return None
    if place.method and place.method not in _METHODS:
        return None
    shape = tuple(place.codes.shape)
    grid = _strategy(place, shape, tuple(scale.shape))
    exponents = scale.dtype in EXPONENTS and place.codes.dtype in FP8
    if place.codes.dtype not in (*FP8, "I8") or not (scale.dtype in FLOATS or exponents) or grid is None:
        return place.misfit("by a scale", scale)
    zero = place.ending("_zero_point")
    if zero is not None and (tuple(zero.shape) != tuple(scale.shape) or zero.dtype not in ("I8", "I32", *FLOATS)):
        return place.misfit("by a scale", scale, zero)
    kind = "MXFP8" if exponents else "fp8" if place.codes.dtype in FP8 else "int8"
    return place.decoded(shape, f"{kind} by {place.title or 'scale'}", Scaled(shape, grid), as_exponents(scale), zero)


def _strategy(place: Place, shape: tuple[int, ...], scale: tuple[int, ...]) -> Grid | None:
    """Which entries share a scale."""
    if len(shape) < 2:
        return None
    rows, width = shape[-2:]
    if len(shape) > 2 and scale in (shape[:-2], (*shape[:-2], 1, 1)):
        return Grid(rows, width, 1, 1)
    if len(shape) > 2 and place.method == "fbgemm_fp8" and scale in (
        (*shape[:-2], 1, width), (*shape[:-2], width, 1)
    ):  # fmt: skip
        return Grid(rows, 1, 1, width)
    return by_groups(shape, scale) or _blocks(_block_structure(place.config), shape, scale)


def _block_structure(config: Mapping[str, Any]) -> Any:
    """A block's sides, as compressed-tensors' config says them."""
    groups = config.get("config_groups")
    first: Any = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
    weights = first.get("weights") if isinstance(first, Mapping) else {}
    sides = weights.get("block_structure") if isinstance(weights, Mapping) else None
    if isinstance(sides, str) and re.fullmatch(r"\d{1,6}x\d{1,6}", sides):
        return [int(side) for side in sides.split("x")]
    return sides or BLOCK


def _blocks(sides: Any, shape: tuple[int, ...], scale: tuple[int, ...]) -> Grid | None:
    """A scale for each block of these sides; None where the grid of scales does not fit them."""
    rows, width = shape[-2:]
    if math.prod(scale) == 1:
        return Grid(max(1, rows), max(1, width), 1, 1, shared=True)
    if len(scale) != len(shape) or scale[:-2] != shape[:-2]:
        return None
    valid = (
        isinstance(sides, list | tuple) and len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)
    )
    if not valid or (-(-rows // sides[0]), -(-width // sides[1])) != scale[-2:]:
        return None
    return Grid(sides[0], sides[1], scale[-2], scale[-1])


SUPPORT = (
    Support("fp8 by block (DeepSeek, Qwen, transformers)", "transformers' own dequantisation"),
    Support("fp8, int8 by tensor, row or group (compressed-tensors, ModelOpt, FBGEMM)", "the formula in float64"),
    Support("fp8 of ComfyUI", "the formula in float64"),
    Support("MXFP4 (gpt-oss)", "transformers' own dequantisation"),
    Support(
        "MXFP4, MXFP8, NVFP4 (compressed-tensors, ModelOpt)", "compressed-tensors' own, and the formula in float64"
    ),
)
