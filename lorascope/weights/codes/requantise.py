"""What a quantised weight's scheme would make of other numbers: Q(V) for V in the place of W, with fresh scales.

    bitsandbytes four bits   absmax of each block, the nearest entry of the table; a coded absmax is coded again
    LLM.int8, int8           absmax of each row (or block) over 127, rounded to the nearest integer
    fp8                      absmax of each block over the type's largest, rounded to the nearest code
    GGUF                     as the package gguf quantises, which k-quants and IQ types it does not
    others                   `nearest`

Sources: bitsandbytes 0.50, `quantize_4bit`, `int8_vectorwise_quant`; transformers 5.23, `Fp8Quantize`; gguf 0.19.
"""

from collections.abc import Callable

import numpy as np

from lorascope.weights.codes import nearest
from lorascope.weights.codes.decoded import Decoded, pieces
from lorascope.weights.codes.nibbles import FourBits, Nibbles, Rounding
from lorascope.weights.codes.packed import Rows, Transposed, group_of
from lorascope.weights.codes.scaled import Scaled
from lorascope.weights.codes.scales import Grid, numbers
from lorascope.weights.gguf_model import InBlocks

_STEP = 1 << 20  # entries at a time
_Rule = Callable[[np.ndarray], np.ndarray]
_MX = 32  # columns that share an exponent


def requantised(stored: Decoded, values: np.ndarray) -> np.ndarray | None:
    """`values`, of the weight's shape, as the scheme would hold them; None of schemes that are not computed.

    Args:
        values: float32; they are left as they are.
    """
    codec = stored.codec
    if isinstance(codec, FourBits):
        return _four_bits(codec, stored, values) if stored.shape == codec.shape else None
    if isinstance(codec, InBlocks):
        return _by_package(stored, values)
    transposed = isinstance(codec, Nibbles) and codec.transposed
    matrices = values.reshape(-1, *values.shape[-2:])
    rule = _rule(stored)
    if rule is None:
        return None
    made = [rule(np.ascontiguousarray(one.T)).T if transposed else rule(one) for one in matrices]
    return np.stack(made).reshape(values.shape)


def _rule(stored: Decoded) -> _Rule | None:
    """How one matrix of the weight is coded again."""
    codec, scale = stored.codec, stored.sources[1].dtype
    if isinstance(codec, Scaled):
        return _of_scaled(codec, stored, scale)
    if isinstance(codec, Nibbles) and codec.grid.height == 1:
        width = codec.grid.width
        if scale == "F8_E8M0":
            return lambda matrix: _in_groups(matrix, width, lambda groups: nearest.microscaled(groups, "E2M1"))
        return lambda matrix: _in_groups(matrix, width, _two_scales_of(matrix))
    if isinstance(codec, Rows) and codec.grid.height == 1:
        how = nearest.affine if codec.second == "bias" else nearest.with_zero if codec.second else nearest.signed
        return _grouped(how, codec.bits, stored, codec.grid.columns if codec.ordered else 0, codec.grid.width)
    if isinstance(codec, Transposed):
        middle = codec.zeros and bool(np.all(codec.zero_points(stored.sources) == 1 << (codec.bits - 1)))
        how = nearest.with_zero if codec.zeros and not middle else nearest.signed
        width = codec.shape[1] // codec.groups if codec.ordered else codec.group
        return _grouped(how, codec.bits, stored, codec.groups if codec.ordered else 0, width)
    return None


def _of_scaled(codec: Scaled, stored: Decoded, scale: str) -> _Rule | None:
    dtype = codec.words or stored.sources[0].dtype
    if "Intx" in stored.scheme or (len(stored.sources) > 2 and dtype != "I8"):
        return None  # of how many bits the codes are, the file does not say
    if len(stored.sources) > 2:
        return _grouped(nearest.with_zero, 8, stored, 0, codec.grid.width) if codec.grid.height == 1 else None
    if scale == "F8_E8M0" and codec.grid.height == 1 and codec.grid.width == _MX:
        return lambda matrix: _in_groups(matrix, _MX, lambda groups: nearest.microscaled(groups, dtype))
    return lambda matrix: _scaled(codec.grid, dtype, matrix, scale == "F8_E8M0")


def _grouped(
    how: Callable[[np.ndarray, int, str], np.ndarray], bits: int, stored: Decoded, named: int, width: int
) -> _Rule | None:
    """Rows in groups of `width` columns: neighbours, or of `named` groups those that the last source names; None where
    these differ in size."""
    scale = stored.sources[1].dtype
    if not named:
        return lambda matrix: _in_groups(matrix, width, lambda groups: how(groups, bits, scale))
    of = group_of(stored.sources[-1], named)
    if len(set(np.bincount(of, minlength=named).tolist())) > 1:
        return None
    order = np.argsort(of, kind="stable")

    def rule(matrix: np.ndarray) -> np.ndarray:
        out = np.empty_like(matrix)
        out[:, order] = _in_groups(matrix[:, order], width, lambda groups: how(groups, bits, scale))
        return out

    return rule


def _two_scales_of(matrix: np.ndarray) -> _Rule:
    of_all = float(np.abs(matrix).max(initial=0))
    return lambda groups: nearest.two_scales(groups, of_all)


def _in_groups(matrix: np.ndarray, width: int, how: _Rule) -> np.ndarray:
    """Each row in groups of `width` columns, the last of which may be smaller, some rows at a time."""
    rows, columns = matrix.shape
    out, width = np.empty_like(matrix), min(width, columns)
    for a, b in pieces(rows, max(1, _STEP // columns)):
        part = np.pad(matrix[a:b].astype(np.float64), ((0, 0), (0, -columns % width)), mode="edge")
        out[a:b] = how(part.reshape(b - a, -1, width)).reshape(b - a, -1)[:, :columns]
    return out


def _by_package(stored: Decoded, values: np.ndarray) -> np.ndarray | None:
    """ggml's blocks, which lie in a row: the order of rows does not change them."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType[stored.scheme.removeprefix("GGUF ")]
    out = np.empty_like(values)
    try:
        for index in np.ndindex(values.shape[:-2]):
            matrix = values[index]
            for a, b in pieces(len(matrix), max(1, _STEP // matrix.shape[-1])):
                out[index][a:b] = dequantize(quantize(np.ascontiguousarray(matrix[a:b]), kind), kind)
    except NotImplementedError:
        return None
    return out


def _four_bits(codec: FourBits, stored: Decoded, values: np.ndarray) -> np.ndarray:
    flat, out = values.reshape(-1), np.empty(values.size, np.float32)
    table = numbers(stored.sources[2]).astype(np.float32)
    starts = np.arange(0, flat.size, codec.block)
    largest = np.maximum(np.maximum.reduceat(flat, starts), -np.minimum.reduceat(flat, starts))
    held = _coded(largest, codec, stored) if codec.nested_block else largest
    ordered = np.argsort(table, kind="stable")
    middles = (table[ordered][1:] + table[ordered][:-1]) / 2
    rounding = Rounding(codec.dtype, min(flat.size, _STEP))
    for a, b in pieces(flat.size, _STEP // codec.block * codec.block or codec.block):
        each, stays = (
            np.repeat(one[a // codec.block : -(-b // codec.block)], codec.block)[: b - a] for one in (largest, held)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            unit = np.nan_to_num(flat[a:b] / each, nan=0.0)
        products = table[ordered][np.searchsorted(middles, unit)] * stays
        if codec.dtype == "F32":
            out[a:b] = products
        else:
            rounding(products, out[a:b])
    return out.reshape(values.shape)


def _coded(largest: np.ndarray, codec: FourBits, stored: Decoded) -> np.ndarray:
    """The blocks' largest as the second coding holds them: less their mean, over their own blocks' largest."""
    table = np.sort(numbers(stored.sources[4]).astype(np.float32))
    offset = np.float32(largest.mean())
    centred = largest - offset
    starts = np.arange(0, centred.size, codec.nested_block)
    of_all = np.repeat(np.maximum.reduceat(np.abs(centred), starts), codec.nested_block)[: centred.size]
    of_all = np.where(of_all > 0, of_all, np.float32(1))
    codes = np.searchsorted((table[1:] + table[:-1]) / 2, centred / of_all)
    return table[codes] * of_all + offset


def _scaled(grid: Grid, dtype: str, values: np.ndarray, powers_of_two: bool) -> np.ndarray:
    out = np.empty_like(values)
    rows, width = values.shape
    top = 127.0 if dtype == "I8" else nearest.largest_of(dtype)
    across = np.arange(0, width, min(grid.width, width))
    for start in range(0, rows, grid.height):
        block = values[start : start + grid.height]
        sizes = np.abs(block).max(axis=0) if grid.height > 1 else np.abs(block[0])
        largest = np.maximum.reduceat(sizes, across)
        scale = np.where(largest > 0, largest / np.float32(top), np.float32(1))
        if powers_of_two:
            scale = np.exp2(np.ceil(np.log2(scale)))
        wide = np.repeat(scale, min(grid.width, width))[:width]
        units = np.clip(block / wide, -top, top)
        out[start : start + grid.height] = (np.rint(units) if dtype == "I8" else nearest.rounded(units, dtype)) * wide
    return out
