"""Quantised checkpoints: codes and scales as the weights they stand for, or a refusal by the scheme's name.

A checkpoint may store codes under the name of a weight. Nothing is taken for a weight because its shape fits: what is a
weight is listed here, and everything else is `Unreadable`, with the reason.

    fp8 by block        `weight` F8, `weight_scale_inv` (⌈m/b⌉, ⌈n/b⌉)    W = code · scale of its block
    fp8, int8 by row    `weight` F8 or I8, `weight_scale` () (m, 1)       W = (code − zero point) · scale
    ComfyUI's fp8       `weight` F8, `scale_weight` ()                    W = code · scale
    LLM.int8            `weight` I8, `SCB` (m,)                           W = code · SCB / 127
    nf4, fp4            `weight` U8 (mn/2, 1), `weight.absmax`, ...       W = map[code] · absmax of its block of 64

Sources: DeepSeek-V3's README_WEIGHTS and transformers' `finegrained_fp8`; compressed-tensors' formats float-quantized,
int-quantized and naive-quantized; bitsandbytes 0.50, `int8_vectorwise_dequant` (Dettmers et al. 2022, arXiv 2208.07339,
§3) and `dequantize_4bit` (Dettmers et al. 2023, arXiv 2305.14314, §3). Other schemes are named.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lorascope.errors import InputError
from lorascope.inputs import parse_json
from lorascope.linalg.rounding import UNIT_ROUNDOFF, round_to
from lorascope.updates.base import Stored

BLOCK = (128, 128)  # of fp8 by block where the config does not say: DeepSeek's, and transformers' default
HINT = "give the same model as it was before it was quantised"
_PLAIN = ("F64", "F32", "F16", "BF16")
_FP8 = ("F8_E4M3", "F8_E5M2")
_CODES = (*_FP8, "I8", "U8", "I16", "U16", "I32", "U32", "I64", "U64", "BOOL")
# What may stand next to a matrix `weight` in one module without saying anything about the weight.
_HARMLESS = frozenset(
    "weight bias e_score_correction_bias expert_bias tid2eid running_mean running_var num_batches_tracked".split()  # noqa: SIM905
)
# Scales of activations, caches and gradients: what is computed with the weight, not the weight.
_ACTIVATION = frozenset("input_scale input_scale_ub scale_input k_scale v_scale q_scale output_scale".split())  # noqa: SIM905
_ACTIVATION |= {"input_zero_point", "output_zero_point", "activation_scale", "weight_format"}
# Tensors that stand in the place of a `weight` and are its codes.
_PACKED = {
    "qweight": "GPTQ or AWQ",
    "weight_packed": "compressed-tensors, packed",
    "W_q": "HQQ",
    "weight._data": "Quanto",
    "weight_qdata": "torchao",
    "_weight_qdata": "torchao",
    "weight.qdata": "torchao",
    "codes": "AQLM",
    "centroids.weight": "VPTQ",
    "dense_weights": "SpQR",
    "weight.tensor_impl.int_data": "torchao",
    "weight.tensor_impl.float8_data": "torchao",
    "weight_blocks": "MXFP4",
}
_NAMES = {
    "gptq": "GPTQ", "awq": "AWQ", "hqq": "HQQ", "aqlm": "AQLM", "eetq": "EETQ", "quanto": "Quanto", "bitnet": "BitNet",
    "mxfp4": "MXFP4", "higgs": "HIGGS", "vptq": "VPTQ", "spqr": "SpQR", "fp8": "fp8", "fbgemm_fp8": "fp8 (FBGEMM)",
}  # fmt: skip
_SCALED = ("compressed-tensors", "fbgemm_fp8", "fp8", "modelopt", "quark")  # methods whose `weight_scale` multiplies


@dataclass(frozen=True)
class Decoded:
    """A weight whose codes are turned into numbers when it is read.

    Attributes:
        dtype: what the dequantised numbers are held in.
        scheme: the quantisation's name.
    """

    shape: tuple[int, ...]
    dtype: str
    scheme: str
    sources: tuple[Stored, ...]
    function: Callable[..., np.ndarray]

    def read(self) -> np.ndarray:
        return self.function(*(source.read() for source in self.sources))


@dataclass(frozen=True)
class Unreadable:
    """A tensor that stands for a weight in a way that is not understood. Reading it raises InputError."""

    shape: tuple[int, ...]
    dtype: str
    reason: str

    def read(self) -> np.ndarray:
        raise InputError(self.reason, hint=HINT)


def parameters(tensors: Mapping[str, Stored], config: Mapping[str, Any]) -> dict[str, Stored]:
    """The model's parameters by name, in file order: as stored, `Decoded`, or `Unreadable`.

    What belongs to another tensor's code (scales, maps, zero points) is not among them.

    Args:
        tensors: all of a checkpoint's tensors.
        config: the model's `config.json`, whose `quantization_config` names the scheme.
    """
    schemes = _Schemes(tensors, _quantisation(config))
    decoded: dict[str, Stored] = {}
    for name in tensors:
        if (owner := schemes.packed(name)) is not None:
            decoded[owner[0]] = owner[1]
        elif not schemes.is_companion(name):
            decoded[name] = schemes.parameter(name)
    return decoded


def scheme_name(config: Mapping[str, Any]) -> str | None:
    """What a model's config says that it is quantised with; None of a plain one."""
    quantisation = _quantisation(config)
    return (_Schemes({}, quantisation).name or "an unnamed scheme") if quantisation else None


def _quantisation(config: Mapping[str, Any]) -> Mapping[str, Any]:
    quantisation = config.get("quantization_config") or config.get("compression_config") or config.get("quantization")
    return quantisation if isinstance(quantisation, Mapping) else {}


def scheme_of(stored: Stored | None) -> str | None:
    """What the weight is quantised with; None of a plain one."""
    return stored.scheme if isinstance(stored, Decoded) else None


class _Schemes:
    """One checkpoint's tensors by module, and what its config says of them."""

    def __init__(self, tensors: Mapping[str, Stored], config: Mapping[str, Any]):
        self.tensors, self.config = tensors, config
        self.method = str(config.get("quant_method", "")).lower()
        self.leaves: dict[str, list[str]] = {}
        for name in tensors:
            module, _, leaf = name.rpartition(".")
            self.leaves.setdefault(module, []).append(leaf)

    @property
    def name(self) -> str:
        """The scheme by the config's word."""
        if self.method == "bitsandbytes":
            bits = self.config.get("bnb_4bit_quant_type", "4-bit") if self.config.get("load_in_4bit") else "LLM.int8"
            return f"bitsandbytes {bits}"
        if "group_size" in self.config and "bits" in self.config and not self.method:
            return f"MLX {self.config['bits']}-bit"
        return _NAMES.get(self.method, self.method)

    def is_companion(self, name: str) -> bool:
        """Whether a tensor only says how another's codes are meant."""
        module, _, leaf = name.rpartition(".")
        if leaf in _ACTIVATION:
            return True
        head, below, _ = name.partition(".weight.")
        owner = f"{head if below else module}.weight"
        if owner in self.tensors and owner != name:
            return self.tensors[owner].dtype not in _PLAIN and leaf not in _HARMLESS
        if module in self.tensors and self.tensors[module].dtype not in _PLAIN:  # a parameter's own state
            return True
        endings = ("_scale_inv", "_scale", "_scales", "_zero_point", "_blocks", "_global_scale")
        owner = next((name.removesuffix(ending) for ending in endings if name.endswith(ending)), "")
        return owner in self.tensors or (owner != "" and f"{owner}_blocks" in self.tensors) or self._of_packed(module)

    def _of_packed(self, module: str) -> bool:
        plain = module.removesuffix(".weight")
        leaves = {*self.leaves.get(plain, ()), *(f"weight.{leaf}" for leaf in self.leaves.get(f"{plain}.weight", ()))}
        return bool(leaves & _PACKED.keys()) and "weight" not in leaves

    def packed(self, name: str) -> tuple[str, Unreadable] | None:
        """The parameter that codes stand in the place of, where they stand under a name of their own."""
        for leaf, scheme in _PACKED.items():
            if name.endswith(f".{leaf}") and not self._plain_codes(name, leaf):
                return name.removesuffix(leaf) + "weight", self._unreadable(name, self.name or scheme)
        if name.endswith("_blocks") and f"{name.removesuffix('_blocks')}_scales" in self.tensors:
            return name.removesuffix("_blocks"), self._unreadable(name, self.name or "MXFP4")
        return None

    def _plain_codes(self, name: str, leaf: str) -> bool:
        """`codes` may be any parameter's name: it is AQLM's next to `codebooks` only."""
        return leaf == "codes" and "codebooks" not in self.leaves[name.rpartition(".")[0]]

    def _unreadable(self, name: str, scheme: str) -> Unreadable:
        stored = self.tensors[name]
        reason = f"the base is quantised with {scheme}, whose codes lorascope does not decode"
        return Unreadable(tuple(stored.shape), stored.dtype, reason)

    def parameter(self, name: str) -> Stored:
        """One tensor that is not a companion: itself where it is a plain one, decoded, or unreadable."""
        stored = self.tensors[name]
        module, _, leaf = name.rpartition(".")
        if stored.dtype in _PLAIN:
            return self._plain(name, module, leaf, stored)
        if stored.dtype not in _CODES or not self._is_weight(name, leaf, stored):
            return stored  # positions, masks, counters: buffers
        for decode in (self._int8, self._four_bits, self._by_block, self._scaled):
            if (decoded := decode(name, module, stored)) is not None:
                return decoded
        if stored.dtype in _FP8 and not self.method and not self._unknown_keys(name, module):
            return stored  # a plain cast: the code is the number
        if self.name:
            return self._unreadable(name, self.name)
        beside = self._unknown_keys(name, module)
        what = f"codes of type {stored.dtype}" + (f" beside {beside[0]!r}" if beside else " and no scale")
        reason = f"the base stores {what} for {name}, in no scheme that lorascope knows"
        return Unreadable(tuple(stored.shape), stored.dtype, reason)

    def _is_weight(self, name: str, leaf: str, stored: Stored) -> bool:
        """Whether a tensor of codes stands in a weight's place: by its name, or by what stands next to it."""
        if stored.dtype in _FP8 or self._unknown_keys(name, name.rpartition(".")[0]):
            return True
        return len(stored.shape) > 1 and leaf.endswith(("weight", "proj", "kernel"))

    def _plain(self, name: str, module: str, leaf: str, stored: Stored) -> Stored:
        """A matrix in a floating dtype, unless something next to it may change what it means."""
        if self.config.get("transform_config") and leaf == "weight" and len(stored.shape) == 2:
            return self._unreadable(name, f"{self.name}, its weights rotated")
        if len(stored.shape) < 2 or not (beside := self._unknown_keys(name, module)):
            return stored
        reason = f"{name} stands next to {beside[0]!r} in the base, which lorascope does not understand"
        return Unreadable(tuple(stored.shape), stored.dtype, reason)

    def _unknown_keys(self, name: str, module: str) -> list[str]:
        """Tensors of the same stem whose meaning is not known."""
        keys = [f"{name}{leaf}" for leaf in ("_scale_inv", "_scale", "_zero_point") if f"{name}{leaf}" in self.tensors]
        keys += [f"{name}.{leaf}" for leaf in self.leaves.get(name, ())]
        if not name.endswith(".weight"):
            return keys
        leaves = [leaf for leaf in self.leaves[module] if leaf not in _HARMLESS | _ACTIVATION]
        return [*keys, *(one for leaf in leaves if (one := f"{module}.{leaf}") not in keys)]

    # --- schemes --------------------------------------------------------------------------------------------------

    def _int8(self, name: str, module: str, stored: Stored) -> Stored | None:
        if stored.dtype != "I8" or f"{module}.SCB" not in self.tensors:
            return None
        scale = self.tensors[f"{module}.SCB"]
        if len(stored.shape) != 2 or math.prod(scale.shape) != stored.shape[0]:
            return self._misfit(name, stored, scale)
        return Decoded(
            tuple(stored.shape), "F32", "bitsandbytes LLM.int8", (stored, scale),
            lambda codes, scb: codes * (scb.reshape(-1, 1) / 127),
        )  # fmt: skip

    def _four_bits(self, name: str, module: str, stored: Stored) -> Stored | None:
        states = [leaf for leaf in self.leaves.get(name, ()) if leaf.startswith("bitsandbytes__")]
        states += [leaf for leaf in self.leaves.get(f"{name}.quant_state", ()) if leaf.startswith("bitsandbytes__")]
        if not states or f"{name}.absmax" not in self.tensors:
            return None
        prefix = f"{name}.quant_state." if f"{name}.quant_state.{states[0]}" in self.tensors else f"{name}."
        state = _json_of(self.tensors[prefix + states[0]])
        names = ["absmax", "quant_map", *(["nested_absmax", "nested_quant_map"] if "nested_blocksize" in state else [])]
        kind = f"bitsandbytes {states[0].removeprefix('bitsandbytes__')}"
        sources = [self.tensors.get(f"{name}.{leaf}") for leaf in names]
        shape, dtype = state.get("shape"), _OF_STATE.get(str(state.get("dtype")))
        count = math.prod(shape) if isinstance(shape, list) and all(type(n) is int and n > 0 for n in shape) else 0
        arrays = tuple(source for source in sources if source is not None)
        valid = len(arrays) == len(names) and stored.dtype == "U8" and math.prod(stored.shape) == (count + 1) // 2
        if not valid or not count or dtype is None:
            return self._unreadable(name, kind)
        return Decoded(tuple(shape or ()), dtype, kind, (stored, *arrays), lambda *read: _nf4(state, dtype, *read))

    def _by_block(self, name: str, module: str, stored: Stored) -> Stored | None:
        scale = self.tensors.get(f"{name}_scale_inv")
        if scale is None:
            return None
        if stored.dtype not in _FP8 or scale.dtype not in _PLAIN or len(stored.shape) < 2:
            return self._unreadable(name, self.name or f"{stored.dtype} codes with a {scale.dtype} scale")
        block = _block(self.config.get("weight_block_size") or BLOCK, tuple(stored.shape), tuple(scale.shape))
        if block is None:
            return self._misfit(name, stored, scale)
        return Decoded(tuple(stored.shape), "F32", "fp8", (stored, scale), lambda c, s: c * _spread(s, block, c.shape))

    def _scaled(self, name: str, module: str, stored: Stored) -> Stored | None:
        """`weight_scale` by tensor, row, group of columns or block; a ComfyUI file's `scale_weight` by tensor."""
        comfy = self.tensors.get(f"{module}.scale_weight")
        scale = self.tensors.get(f"{name}_scale") if comfy is None else comfy
        understood = {f"{name}_scale", f"{name}_zero_point", f"{module}.scale_weight", f"{name}_shape"}
        if (
            scale is None
            or set(self._unknown_keys(name, module)) - understood
            or (self.method and self.method not in _SCALED)
        ):
            return None
        block = self._strategy(tuple(stored.shape), tuple(scale.shape))
        if stored.dtype not in (*_FP8, "I8") or scale.dtype not in _PLAIN or block is None:
            return self._misfit(name, stored, scale)
        zero = self.tensors.get(f"{name}_zero_point")
        if zero is not None and tuple(zero.shape) != tuple(scale.shape):
            return self._misfit(name, stored, zero)
        scheme = "fp8" if stored.dtype in _FP8 else "int8"

        def decode(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None) -> np.ndarray:
            centred = codes if zero is None else codes - _spread(zero, block, codes.shape)
            return centred * _spread(scale, block, codes.shape)

        sources = (stored, scale) if zero is None else (stored, scale, zero)
        return Decoded(tuple(stored.shape), "F32", f"{scheme} by {self.name or 'scale'}", sources, decode)

    def _strategy(self, shape: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, int] | None:
        """The rows and columns that share one scale."""
        if math.prod(scale) == 1:
            return shape[-2:] if len(shape) > 1 else None  # type: ignore[return-value]
        if len(shape) != 2:
            return None
        rows, columns = shape
        if scale in ((rows,), (rows, 1)):
            return 1, columns
        if len(scale) == 2 and scale[0] == rows and columns % scale[1] == 0:
            return 1, columns // scale[1]
        groups = self.config.get("config_groups")
        first: Any = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
        weights = first.get("weights") if isinstance(first, Mapping) else {}
        sides = (weights or {}).get("block_structure") or BLOCK
        if isinstance(sides, str) and re.fullmatch(r"\d+x\d+", sides):
            sides = [int(side) for side in sides.split("x")]
        return _block(sides, shape, scale) if len(scale) == 2 else None

    def _misfit(self, name: str, stored: Stored, scale: Stored) -> Unreadable:
        shapes = f"codes {stored.dtype} {tuple(stored.shape)} and a scale {scale.dtype} {tuple(scale.shape)}"
        scheme = self.name or "by a scale"
        reason = f"the base's {name} is quantised ({scheme}) in a way that lorascope does not know: {shapes}"
        return Unreadable(tuple(stored.shape), stored.dtype, reason)


_OF_STATE = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def _json_of(stored: Stored) -> dict[str, Any]:
    try:
        value = parse_json(bytes(stored.read().astype(np.uint8)).decode())
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _nf4(
    state: Mapping[str, Any],
    dtype: str,
    codes: np.ndarray,
    absmax: np.ndarray,
    table: np.ndarray,
    nested_absmax: np.ndarray | None = None,
    nested_table: np.ndarray | None = None,
) -> np.ndarray:
    """bitsandbytes' 4-bit weights: two codes a byte, the high one first; the block's largest may be coded again."""
    count, block = math.prod(state["shape"]), int(state["blocksize"])
    packed = codes.astype(np.uint8).reshape(-1)
    numbers = table[np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)[:count]]
    if nested_absmax is not None and nested_table is not None:
        steps = np.repeat(nested_absmax.reshape(-1), int(state["nested_blocksize"]))[: absmax.size]
        absmax = nested_table[absmax.astype(np.uint8).reshape(-1)] * steps + float(state["nested_offset"])
    values = numbers * np.repeat(absmax.reshape(-1), block)[:count]
    return round_to(values.reshape(state["shape"]), dtype)


def _block(sides: Any, shape: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, int] | None:
    """The sides of a block, as the config says them; None where the grid of scales does not fit them."""
    rows, columns = shape[-2:]
    if math.prod(scale) == 1:
        return rows, columns
    if len(scale) != len(shape) or scale[:-2] != shape[:-2]:
        return None
    valid = (
        isinstance(sides, list | tuple) and len(sides) == 2 and all(type(side) is int and side > 0 for side in sides)
    )
    if not valid or (math.ceil(rows / sides[0]), math.ceil(columns / sides[1])) != scale[-2:]:
        return None
    return sides[0], sides[1]


def _spread(scale: np.ndarray, block: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """Every entry's scale, (…, m, n) from (…, ⌈m/b⌉, ⌈n/c⌉)."""
    if scale.size == 1:
        return scale.reshape((1,) * len(shape))
    grid = scale.reshape(-1, 1) if scale.ndim == 1 else scale
    wide = np.repeat(np.repeat(grid, block[0], axis=-2), block[1], axis=-1)
    return wide[..., : shape[-2], : shape[-1]]


assert set(_OF_STATE.values()) <= UNIT_ROUNDOFF.keys()
