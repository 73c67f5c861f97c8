"""Quantised checkpoints: codes and scales as the weights they stand for, or a refusal by the scheme's name.

A checkpoint may store codes under the name of a weight. Nothing is taken for a weight because its shape fits: what is a
weight is listed in `weights/schemes/`, a file for each family with its keys, formulas and sources, and everything else
is `Unreadable`, with the reason. How codes become numbers stands in `weights/codes/`. Other schemes are named.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lorascope.linalg.rounding import UNIT_ROUNDOFF
from lorascope.updates.base import Stored
from lorascope.weights.codes.decoded import HINT, Decoded, Unreadable
from lorascope.weights.dtypes import SIZES
from lorascope.weights.schemes import bitsandbytes, by_scale, in_words
from lorascope.weights.schemes.place import FLOATS, FP8, Place
from lorascope.weights.support import Support

_CODES = tuple(dtype for dtype in SIZES if dtype not in FLOATS and dtype != "F8_E8M0")
# What may stand next to a matrix `weight` in one module without saying anything about the weight.
_HARMLESS = frozenset(
    "weight bias e_score_correction_bias expert_bias tid2eid running_mean running_var num_batches_tracked".split()  # noqa: SIM905
)
# Scales of activations, caches and gradients: what is computed with the weight, not the weight.
_ACTIVATION = frozenset("input_scale input_scale_ub scale_input k_scale v_scale q_scale output_scale".split())  # noqa: SIM905
_ACTIVATION |= {"input_zero_point", "output_zero_point", "activation_scale", "weight_format", "input_global_scale"}
SVDQUANT = "SVDQuant (Nunchaku)"
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
    "auto-round": "AutoRound", "intel/auto-round": "AutoRound", "sinq": "SINQ", "fp_quant": "FP-Quant",
    "quark": "Quark", "modelopt": "ModelOpt", "metal": "Metal",
}  # fmt: skip
# By quant_method: those whose words of codes are understood under these names.
_OF_WORDS = {
    "qweight": ("", "gptq", "awq"),
    "weight_packed": ("", "compressed-tensors"),
    "_weight_qdata": ("", "torchao"),
}


def parameters(
    tensors: Mapping[str, Stored], config: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> dict[str, Stored]:
    """The model's parameters by name, in file order: as stored, `Decoded`, or `Unreadable`.

    What belongs to another tensor's code (scales, maps, zero points) is not among them.

    Args:
        tensors: all of a checkpoint's tensors.
        config: the model's `config.json`, whose `quantization_config` names the scheme.
        metadata: of the files' headers, where torchao says of what class its tensors are.
    """
    schemes = _Schemes(tensors, _quantisation(config), metadata or {})
    decoded: dict[str, Stored] = {}
    for name, stored in tensors.items():
        if isinstance(stored, Decoded | Unreadable):  # of a file that says itself how it is coded
            decoded[name] = stored
        elif (owner := schemes.packed(name)) is not None:
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


@dataclass(frozen=True)
class _Schemes:
    """One checkpoint's tensors by module, and what its config says of them."""

    tensors: Mapping[str, Stored]
    config: Mapping[str, Any]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def method(self) -> str:
        return str(self.config.get("quant_method", "")).lower()

    @cached_property
    def leaves(self) -> dict[str, list[str]]:
        by_module: dict[str, list[str]] = {}
        for name in self.tensors:
            module, _, leaf = name.rpartition(".")
            by_module.setdefault(module, []).append(leaf)
        return by_module

    @cached_property
    def width(self) -> int | None:
        """The width of the model, where all norms before a block agree on it."""
        sizes = {
            stored.shape[0]
            for name, stored in self.tensors.items()
            if name.endswith("input_layernorm.weight") and len(stored.shape) == 1
        }
        return sizes.pop() if len(sizes) == 1 else None

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
            return self.tensors[owner].dtype not in FLOATS and leaf not in _HARMLESS
        if module in self.tensors and self.tensors[module].dtype not in FLOATS:  # a parameter's own state
            return True
        endings = ("_scale_inv", "_scale", "_scales", "_zero_point", "_blocks", "_global_scale")
        owner = next((name.removesuffix(ending) for ending in endings if name.endswith(ending)), "")
        return (
            owner in self.tensors
            or (owner != "" and f"{owner}_blocks" in self.tensors)
            or self._of_packed(module, leaf)
        )

    def _of_packed(self, module: str, leaf: str) -> bool:
        plain = module.removesuffix(".weight")
        leaves = {*self.leaves.get(plain, ()), *(f"weight.{leaf}" for leaf in self.leaves.get(f"{plain}.weight", ()))}
        return bool(leaves & _PACKED.keys()) and "weight" not in leaves and leaf not in _HARMLESS

    def _place(self, name: str, codes: Stored) -> Place:
        return Place(name, codes, self.tensors, self.config, self.method, self.name)

    def packed(self, name: str) -> tuple[str, Stored] | None:
        """The parameter that codes stand in the place of, where they stand under a name of their own."""
        for leaf, scheme in _PACKED.items():
            if name.endswith(f".{leaf}") and not self._plain_codes(name, leaf):
                owner = name.removesuffix(leaf) + "weight"
                return owner, self._in_words(self._place(owner, self.tensors[name]), leaf, scheme)
        if name.endswith("_blocks") and f"{name.removesuffix('_blocks')}_scales" in self.tensors:
            owner = name.removesuffix("_blocks")
            scales = self.tensors[f"{owner}_scales"]
            return owner, by_scale.experts_in_blocks(self._place(owner, self.tensors[name]), scales)
        return None

    def _in_words(self, place: Place, leaf: str, scheme: str) -> Stored:
        """Codes under a name of their own, decoded where their layout is known."""
        if leaf not in _OF_WORDS or self.method not in _OF_WORDS[leaf]:
            return place.refused(self.name or scheme)
        if leaf == "qweight" and place.next_to("wscales", "wtscale") is not None:
            return place.refused(SVDQUANT)
        if leaf == "qweight":
            return in_words.gptq_or_awq(place)
        if leaf == "_weight_qdata":
            return in_words.torchao(place, _json_of(self.metadata.get(place.name)))
        decoded = in_words.packed(place) or by_scale.four_bit_floats(place)
        return decoded or place.misfit(scheme, place.ending("_scale"))

    def _plain_codes(self, name: str, leaf: str) -> bool:
        """`codes` may be any parameter's name: it is AQLM's next to `codebooks` only."""
        return leaf == "codes" and "codebooks" not in self.leaves[name.rpartition(".")[0]]

    def parameter(self, name: str) -> Stored:
        """One tensor that is not a companion: itself where it is a plain one, decoded, or unreadable."""
        stored = self.tensors[name]
        module, _, leaf = name.rpartition(".")
        place = self._place(name, stored)
        if stored.dtype in FLOATS:
            return self._plain(place, leaf)
        if stored.dtype not in _CODES or not self._is_weight(name, leaf, stored):
            return stored  # positions, masks, counters: buffers
        unknown = self._unknown_keys(name, module)
        schemes: tuple[Callable[[], Stored | None], ...] = (
            lambda: bitsandbytes.int8(place),
            lambda: bitsandbytes.four_bit(place),
            lambda: in_words.mlx(place, self.width),
            lambda: by_scale.four_bit_floats(place),
            lambda: by_scale.by_block(place),
            lambda: by_scale.scaled(place, set(unknown)),
        )
        for decode in schemes:
            if (decoded := decode()) is not None:
                return decoded
        if stored.dtype in FP8 and not self.method and not unknown:
            return stored  # a plain cast: the code is the number
        if self.name:
            return place.refused(self.name)
        what = f"codes of type {stored.dtype}" + (f" next to {unknown[0]!r}" if unknown else " and no scale")
        reason = f"the base stores {what} for {name}, in a scheme that is not supported"
        return Unreadable(tuple(stored.shape), stored.dtype, reason)

    def _is_weight(self, name: str, leaf: str, stored: Stored) -> bool:
        """Whether a tensor of codes stands in a weight's place: by its name, or by what stands next to it."""
        if stored.dtype in FP8 or self._unknown_keys(name, name.rpartition(".")[0]):
            return True
        return len(stored.shape) > 1 and leaf.endswith(("weight", "proj", "kernel"))

    def _plain(self, place: Place, leaf: str) -> Stored:
        """A matrix in a floating dtype, unless something next to it may change what it means."""
        stored = place.codes
        if self.config.get("transform_config") and leaf == "weight" and len(stored.shape) == 2:
            return place.refused(f"{self.name}, its weights rotated")
        if len(stored.shape) < 2 or not (unknown := self._unknown_keys(place.name, place.module)):
            return stored
        reason = f"{place.name} stands next to {unknown[0]!r} in the base, which is not supported"
        return Unreadable(tuple(stored.shape), stored.dtype, reason)

    def _unknown_keys(self, name: str, module: str) -> list[str]:
        """Tensors of the same stem whose meaning is not known."""
        keys = [f"{name}{leaf}" for leaf in ("_scale_inv", "_scale", "_zero_point") if f"{name}{leaf}" in self.tensors]
        keys += [f"{name}.{leaf}" for leaf in self.leaves.get(name, ())]
        if not name.endswith(".weight"):
            return keys
        leaves = [leaf for leaf in self.leaves[module] if leaf not in _HARMLESS | _ACTIVATION]
        return [*keys, *(one for leaf in leaves if (one := f"{module}.{leaf}") not in keys)]


def _json_of(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text) if text is not None and len(text) < 1 << 16 else {}
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


SUPPORT = tuple(
    Support(name, refused="recognised by name only")
    for name in ("AQLM", "AutoRound", "BitNet", "EETQ", "HIGGS", "HQQ", "Quanto", "SpQR", SVDQUANT, "VPTQ")
)
assert set(FLOATS) <= UNIT_ROUNDOFF.keys()
__all__ = ["HINT", "Decoded", "Unreadable", "parameters", "scheme_name", "scheme_of"]
