"""What a quantised weight's scheme would make of other numbers: Q(V) for V in the place of W, with fresh scales.

    bitsandbytes four bits   absmax of each block, the nearest entry of the table; a coded absmax is coded again
    LLM.int8, int8           absmax of each row (or block) over 127, rounded to the nearest integer
    fp8                      absmax of each block over the type's largest, rounded to the nearest code

Sources: bitsandbytes 0.50, `quantize_4bit`, `int8_vectorwise_quant`; transformers 5.23, `Fp8Quantize`.
"""

import numpy as np

from lorascope.weights.codes.decoded import Decoded, pieces
from lorascope.weights.codes.nibbles import FourBits, Rounding
from lorascope.weights.codes.scaled import Scaled
from lorascope.weights.codes.scales import Grid, numbers
from lorascope.weights.dtypes import FLOAT8

_STEP = 1 << 20  # entries at a time


def requantised(stored: Decoded, values: np.ndarray) -> np.ndarray | None:
    """`values`, of the weight's shape, as the scheme would hold them; None of schemes that are not computed.

    Args:
        values: float32; they are left as they are.
    """
    codec = stored.codec
    if isinstance(codec, FourBits) and stored.shape == codec.shape:
        return _four_bits(codec, stored, values)
    plain = isinstance(codec, Scaled) and len(stored.shape) == 2 and stored.shape == codec.shape
    if plain and isinstance(codec, Scaled) and len(stored.sources) == 2 and not codec.words:
        scale = stored.sources[1].dtype
        return None if scale == "F8_E8M0" else _scaled(codec.grid, stored.sources[0].dtype, values)
    return None


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


def _scaled(grid: Grid, dtype: str, values: np.ndarray) -> np.ndarray:
    out = np.empty_like(values)
    rows, width = values.shape
    top = 127.0 if dtype == "I8" else float(np.nanmax(FLOAT8[dtype][np.isfinite(FLOAT8[dtype])]))
    across = np.arange(0, width, min(grid.width, width))
    for start in range(0, rows, grid.height):
        block = values[start : start + grid.height]
        sizes = np.abs(block).max(axis=0) if grid.height > 1 else np.abs(block[0])
        largest = np.maximum.reduceat(sizes, across)
        scale = np.where(largest > 0, largest / np.float32(top), np.float32(1))
        wide = np.repeat(scale, min(grid.width, width))[:width]
        units = np.clip(block / wide, -top, top)
        out[start : start + grid.height] = (np.rint(units) if dtype == "I8" else rounded8(units, dtype)) * wide
    return out


def rounded8(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 within a float8's range as the nearest of its numbers, ties to even."""
    mantissa, smallest = (3, -6) if dtype == "F8_E4M3" else (2, -14)
    exponents = np.maximum(np.frexp(values)[1] - 1, smallest)
    unit = np.ldexp(np.float32(1), exponents - mantissa)
    return np.rint(values / unit) * unit
