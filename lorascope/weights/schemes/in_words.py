"""Integers of a few bits, packed into words of 32, or one a byte, with a scale and a zero point for each group.

    GPTQ                `qweight` I32 (d_in·b/32, d_out), `qzeros`, `scales` (g, d_out), `g_idx` (d_in,)
    AWQ                 `qweight` I32 (d_in, d_out·b/32), `qzeros`, `scales` (g, d_out)
                        both: W = ((code − zero) · scale)ᵀ; GPTQ's first format stores zero − 1
    compressed-tensors  `weight_packed` I32 (m, ⌈n·b/32⌉), `weight_scale` (m, g), `weight_zero_point` packed along m,
                        `weight_shape`, `weight_g_idx`: W = (code − zero) · scale, without zeros 2^(b−1)
    MLX                 `weight` U32 (m, n·b/32), `scales` and `biases` (m, g): W = code · scale + bias
                        modes mxfp4, mxfp8, nvfp4: `scales` U8 alone
    torchao             `_weight_qdata` and `_weight_scale`, the tensor's class in the file's metadata

Sources: AutoGPTQ 0.7, `qlinear_cuda`, and GPTQModel's `checkpoint_format`; AutoAWQ 0.2, `utils/packing_utils`;
compressed-tensors 0.20, `compressors/pack_quantized`; MLX 0.32, `mx.dequantize`; torchao 0.18,
`prototype/safetensors` and `quantize_/workflows`.
"""

import math
from collections.abc import Mapping
from typing import Any

from lorascope.updates.base import Stored
from lorascope.weights.codes.decoded import as_type
from lorascope.weights.codes.nibbles import Nibbles
from lorascope.weights.codes.packed import Rows, Transposed
from lorascope.weights.codes.scaled import Scaled
from lorascope.weights.schemes.place import FLOATS, FP8, Place, as_exponents, by_groups
from lorascope.weights.support import Support

_WORD = 32
_BITS = (2, 3, 4, 5, 6, 8)


def gptq_or_awq(place: Place) -> Stored:
    """`place.codes` are a `qweight`; which of the two it is, its shape says."""
    scales, zeros, order = place.next_to("scales"), place.next_to("qzeros"), place.next_to("g_idx")
    scheme = place.title or "GPTQ or AWQ"
    if scales is None:
        return place.lacking(scheme, "scales")
    codes = place.codes
    if (
        codes.dtype not in ("I32", "U32")
        or len(codes.shape) != 2
        or len(scales.shape) != 2
        or scales.dtype not in FLOATS
    ):
        return place.misfit(scheme, scales)
    groups, d_out = scales.shape
    config_bits = place.config.get("bits", place.config.get("w_bit"))
    if codes.shape[1] == d_out:
        return _gptq(place, scales, zeros, order, config_bits)
    if codes.shape[1] * 8 != d_out or config_bits not in (None, 4):
        return place.misfit(scheme, scales, zeros)
    group = _group_size(place, codes.shape[0], groups)
    if group is None or (zeros is not None and tuple(zeros.shape) != (groups, codes.shape[1])):
        return place.misfit("AWQ", scales, zeros)
    shape = (d_out, codes.shape[0])
    codec = Transposed(shape, 4, groups, group, interleaved=True, zeros=zeros is not None)
    return place.decoded(shape, "AWQ 4-bit", codec, scales, zeros)


def _gptq(place: Place, scales: Stored, zeros: Stored | None, order: Stored | None, config_bits: Any) -> Stored:
    form = place.config.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2") or place.method not in ("", "gptq"):
        return place.refused(f"{place.title or 'GPTQ'}, in its layout {form!r}")
    groups, d_out = scales.shape
    bits = zeros.shape[1] * _WORD / d_out if zeros is not None and len(zeros.shape) == 2 and d_out else config_bits
    if bits not in (2, 3, 4, 8) or place.codes.shape[0] * _WORD % bits:
        return place.misfit("GPTQ", scales, zeros)
    bits = int(bits)
    d_in = place.codes.shape[0] * _WORD // bits
    group = _group_size(place, d_in, groups)
    ordered = order is not None and math.prod(order.shape) > 0
    if ordered and (order is None or tuple(order.shape) != (d_in,) or order.dtype not in ("I32", "I64")):
        return place.misfit("GPTQ", scales, order)
    if zeros is not None and (zeros.dtype not in ("I32", "U32") or tuple(zeros.shape[:-1]) != (groups,)):
        return place.misfit("GPTQ", scales, zeros)
    if not ordered and group is None:
        return place.misfit("GPTQ", scales, zeros)
    added = 0 if form == "gptq_v2" else 1
    codec = Transposed((d_out, d_in), bits, groups, group or 1, False, zeros is not None, added, ordered)
    return place.decoded((d_out, d_in), f"GPTQ {bits}-bit", codec, scales, zeros, order if ordered else None)


def _group_size(place: Place, d_in: int, groups: int) -> int | None:
    """Inputs that share a scale; None where the number of groups does not say."""
    size = place.config.get("group_size", place.config.get("q_group_size"))
    if type(size) is int and size > 0 and -(-d_in // size) == groups:
        return size
    return d_in // groups if groups and d_in % groups == 0 else None


def packed(place: Place) -> Stored | None:
    """compressed-tensors' `weight_packed` of words; None of its bytes, which are floats."""
    scale, zero, order = place.ending("_scale"), place.ending("_zero_point"), place.ending("_g_idx")
    size = place.ending("_shape")
    if place.codes.dtype != "I32" or len(place.codes.shape) < 2:
        return None
    if scale is None or size is None:
        return place.lacking("compressed-tensors, packed", "its weight_scale" if scale is None else "its weight_shape")
    *lead, words = place.codes.shape
    wanted = [int(n) for n in size.read().reshape(-1)[:8]] if math.prod(size.shape) <= 8 else []
    width = wanted[-1] if wanted else 0
    bits = _weights_of(place.config).get("num_bits", words * _WORD // width if width > 0 else 0)
    if wanted[:-1] != lead or bits not in range(1, 9) or width <= 0 or -(-width * bits // _WORD) != words:
        return place.misfit("compressed-tensors, packed", scale, size)
    shape = (*lead, width)
    grid = by_groups(shape, tuple(scale.shape), _weights_of(place.config).get("group_size"))
    second = ""
    if zero is not None:
        by_words = (*lead[:-1], -(-lead[-1] * bits // _WORD), scale.shape[-1] if scale.shape else 1)
        second = "packed zero" if zero.dtype == "I32" and tuple(zero.shape) == by_words else "zero"
    fits = zero is None or second == "packed zero" or (tuple(zero.shape) == tuple(scale.shape) and zero.dtype == "I8")
    ordered = order is not None and tuple(order.shape) == (width,) and order.dtype in ("I32", "I64")
    if grid is None or not fits or scale.dtype not in FLOATS or (order is not None and not ordered):
        return place.misfit("compressed-tensors, packed", scale, zero if zero is not None else order)
    centre = 0.0 if second == "packed zero" else float(1 << (bits - 1))
    codec = Rows(shape, bits, grid, centre, second, ordered)
    return place.decoded(shape, f"compressed-tensors int{bits}", codec, scale, zero, order)


def _weights_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What compressed-tensors' config says of weights, where it says one thing of all."""
    groups = config.get("config_groups")
    each = (
        [one.get("weights") for one in groups.values() if isinstance(one, Mapping)]
        if isinstance(groups, Mapping)
        else []
    )
    known = [one for one in each if isinstance(one, Mapping)]
    return known[0] if len(known) == 1 else {}


def mlx(place: Place, width: int | None = None) -> Stored | None:
    """MLX's `weight` of words, and transformers' Metal; None where there are no scales.

    Args:
        width: of the model, where a vector says it: of a checkpoint whose config does not say bits and group size.
    """
    scales, biases = place.next_to("scales"), place.next_to("biases", "qbiases")
    if scales is None or place.codes.dtype != "U32" or len(place.codes.shape) < 2:
        return None
    mode, bits, group = _mlx_settings(place, scales, biases)
    words, groups = place.codes.shape[-1], scales.shape[-1] if scales.shape else 0
    if bits is None and groups:
        bits = _mlx_guess(words, groups, width)
    if bits is None:
        return place.lacking("MLX", "the number of bits, which its config.json says,")
    if type(bits) is not int or bits not in _BITS or words * _WORD % bits:
        return place.misfit(f"MLX {bits}-bit", scales, biases)
    shape = (*place.codes.shape[:-1], words * _WORD // bits)
    grid = by_groups(shape, tuple(scales.shape), group)
    if grid is None or grid.shared or (group is not None and grid.width != group):
        return place.misfit(f"MLX {bits}-bit", scales, biases)
    if mode != "affine":
        return _mlx_floats(place, mode, shape, scales)
    if biases is None or tuple(biases.shape) != tuple(scales.shape) or not {scales.dtype, biases.dtype} <= set(FLOATS):
        return place.misfit(f"MLX {bits}-bit", scales, biases)
    return place.decoded(shape, f"MLX {bits}-bit", Rows(shape, bits, grid, second="bias"), scales, biases)


def _mlx_settings(place: Place, scales: Stored, biases: Stored | None) -> tuple[str, Any, Any]:
    """(mode, bits, group size) of one module, as the config and the tensors say them."""
    each = place.config.get(place.module)
    settings = {**place.config, **(each if isinstance(each, Mapping) else {})}
    by_default = "affine" if biases is not None else "mxfp4"
    mode, bits, group = settings.get("mode", by_default), settings.get("bits"), settings.get("group_size")
    mode = str(mode)
    if biases is None and mode == "affine":
        mode = by_default
    if mode != "affine":
        bits, group = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}.get(mode, (bits, group))
    return mode, bits, group if type(group) is int else None


def _mlx_guess(words: int, groups: int, width: int | None) -> int | None:
    """The number of bits with which a row is as wide as the model; None where none is."""
    return next((bits for bits in _BITS if width and words * _WORD == width * bits and width % groups == 0), None)


def _mlx_floats(place: Place, mode: str, shape: tuple[int, ...], scales: Stored) -> Stored:
    """MLX's modes of small floats, which have no biases."""
    grid = by_groups(shape, tuple(scales.shape))
    if scales.dtype != "U8" or grid is None or mode not in ("mxfp4", "mxfp8", "nvfp4"):
        return place.misfit(f"MLX {mode}", scales)
    scale = as_type(scales, "F8_E4M3") if mode == "nvfp4" else as_exponents(scales)
    if mode == "mxfp8":
        return place.decoded(shape, "MLX mxfp8", Scaled(shape, grid, words="F8_E4M3"), scale)
    return place.decoded(shape, f"MLX {mode}", Nibbles(shape, grid), scale)


def torchao(place: Place, described: Mapping[str, Any]) -> Stored:
    """torchao's tensors that are rows of codes; others are refused by their class.

    Args:
        described: what the file's metadata says of the parameter.
    """
    kind = str(described.get("_type", ""))
    name = f"{place.module}._{place.name.rpartition('.')[2]}_"
    scale, zero = place.tensors.get(f"{name}scale"), place.tensors.get(f"{name}zero_point")
    pre = place.tensors.get(f"{name}act_pre_scale")
    if kind not in ("Float8Tensor", "Int8Tensor", "IntxUnpackedToInt8Tensor") or pre is not None:
        return place.refused(f"torchao's {kind or 'tensor, of which the file does not say the class'}")
    shape = tuple(place.codes.shape)
    wanted = FP8 if kind == "Float8Tensor" else ("I8",)
    if scale is None or place.codes.dtype not in wanted or len(shape) < 2 or scale.dtype not in FLOATS:
        return place.misfit(f"torchao's {kind}", scale)
    grid = by_groups(shape, tuple(scale.shape))
    if grid is None or (zero is not None and tuple(zero.shape) != tuple(scale.shape)):
        return place.misfit(f"torchao's {kind}", scale, zero)
    return place.decoded(shape, f"torchao {kind}", Scaled(shape, grid), scale, zero)


SUPPORT = (
    Support("AWQ (gemm)", "AutoAWQ's own dequantisation"),
    Support("compressed-tensors, packed", "compressed-tensors' own dequantisation"),
    Support("GPTQ, 2, 3, 4 and 8 bits, in order or not", "AutoGPTQ's formula, bit by bit"),
    Support("MLX, 2 to 8 bits, mxfp4, mxfp8, nvfp4", "MLX's own dequantisation"),
    Support("torchao: Int8Tensor, IntxUnpackedToInt8Tensor, Float8Tensor", "the formula in float64"),
    Support("torchao: other tensors", refused="their layouts are those of one kernel"),
)
