"""OFT and BOFT in PEFT's files: blocks of rotations, each stored as the skew matrix that it is Cayley's transform of.

    PEFT ≥ 0.16    oft_R.weight (blocks, b(b − 1)/2)         rotates inputs; of an embedding, oft_embedding_R, outputs
    0.14 and 0.15  oft_r (blocks, b, b), oft_s (d_out, 1)    rotates inputs, and stretches each row
    up to 0.13     oft_r (blocks, b, b)                      rotates outputs
    BOFT           boft_R (factors, blocks, b, b), boft_s (d_out, 1)

From tuners/oft/layer.py of these versions (0.13.2, 0.15.2, 0.17.1, 0.21.2) and tuners/boft/layer.py. PEFT's merge for a
Conv1D takes the stored weight for the map and rotates its outputs; its training rotates the inputs, as here.
"""

import math
from typing import Any

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.formats.peft.cayley import cayley, constrained, neumann, side_of, skew, skew_part
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.family import Context, Family, Group, families
from lorascope.weights.formats.peft.layout import is_transposed_by
from lorascope.weights.support import Support
from lorascope.weights.tensors import Mapped, reshaped

OLD_SERIES = "trained by PEFT before 0.18, whose Neumann series ends otherwise: newer versions compute another ΔW"
NO_CONFIG = "there is no adapter_config.json: PEFT's default, a Neumann series of 5 terms, was taken"


class OFT(Family):
    peft_types = {"OFT": frozenset({"rotation", "rotation_out"})}
    methods = {"rotation": "OFT", "rotation_out": "OFT"}
    roles = ("oft_R", "oft_embedding_R", "oft_r", "oft_s")
    marks = frozenset(roles)
    with_tail = frozenset({"oft_R", "oft_embedding_R"})
    fields = """
        oft_block_size module_dropout init_weights coft eps block_share use_cayley_neumann num_cayley_neumann_terms
    """

    def read(self, group: Group, context: Context) -> Update:
        if "oft_r" in group or "oft_s" in group:
            return _old(group, context)
        role = "oft_embedding_R" if "oft_embedding_R" in group else "oft_R"
        group.need(role)
        stored, config = group.stored[role], context.config
        if len(stored.shape) != 2:
            raise InputError(f"{group.keys[role].text} is not a matrix", found=group.shape(role))
        blocks, side = stored.shape[0], side_of(stored.shape[1])
        transform, note = _transform(config)
        rotations = Mapped(stored, (blocks, side, side), lambda values: np.swapaxes(transform(values), -1, -2))
        notes = (note,) if note else ()
        if role == "oft_embedding_R":
            return Update(group.module, "rotation_out", {"R": rotations}, transposed=True, embedding=True, notes=notes)
        transposed = is_transposed_by(group.module, blocks * side, 1, config, context.base)
        return Update(
            group.module, "rotation", {"R": reshaped(rotations, 1, blocks, side, side)}, transposed=transposed,
            notes=notes,
        )  # fmt: skip


class BOFT(Family):
    peft_types = {"BOFT": frozenset({"rotation"})}
    roles = ("boft_R", "boft_s")
    marks = frozenset(roles)
    fields = "boft_block_size boft_block_num boft_n_butterfly_factor boft_dropout init_weights"

    def read(self, group: Group, context: Context) -> Update:
        group.need("boft_R", "boft_s")
        stored, s = group.stored["boft_R"], group.stored["boft_s"]
        shape = tuple(stored.shape)
        if len(shape) != 4 or shape[2] != shape[3]:
            raise InputError(
                f"{group.keys['boft_R'].text} does not hold square blocks", found=shape, expected="(m, k, b, b)"
            )
        rotations = Mapped(stored, shape, lambda values: np.swapaxes(cayley(skew_part(values)), -1, -2))
        transposed = is_transposed_by(group.module, math.prod(s.shape), 0, context.config, context.base)
        roles = {"R": rotations, "s": reshaped(s, math.prod(s.shape))}
        return Update(group.module, "rotation", roles, transposed=transposed)

    def method_name(self, update: Update, config: Config) -> str:
        return "BOFT"


families.register("oft")(OFT())
families.register("boft")(BOFT())


def _transform(config: Config) -> tuple[Any, str]:
    """How the stored triangles (k, b(b − 1)/2) become blocks (k, b, b), and what is to be said of it."""
    raw, note, last = config.raw, "" if config.given else NO_CONFIG, 1.0
    limit = _number(raw.get("eps", 6e-5), "eps") if config.flag("coft") else None
    series = raw.get("use_cayley_neumann", True)
    terms = raw.get("num_cayley_neumann_terms", 5)
    if type(terms) is not int or not 0 < terms <= 100:
        raise InputError("adapter_config.json: num_cayley_neumann_terms is not a number of terms", found=terms)
    if series and config.given and _version(raw.get("peft_version")) < (0, 18):
        note, last = OLD_SERIES, 2.0

    def transform(values: np.ndarray) -> np.ndarray:
        blocks = skew(values)
        if limit is not None:
            blocks = constrained(blocks, limit)
        return neumann(blocks, terms, last) if series else cayley(blocks)

    return transform, note


def _old(group: Group, context: Context) -> Update:
    """OFT as PEFT had it before 0.16: blocks stored whole."""
    group.need("oft_r")
    config, stored = context.config, group.stored["oft_r"]
    shape = tuple(stored.shape)
    if len(shape) != 3 or shape[1] != shape[2] or 0 in shape:
        raise InputError(f"{group.keys['oft_r'].text} does not hold square blocks", found=shape, expected="(k, b, b)")
    eps = _number(config.raw.get("eps", 6e-5), "eps") if config.flag("coft") else None
    stretched = group.stored.get("oft_s")
    if eps is not None and stretched is not None:
        eps *= math.ceil(math.prod(stretched.shape) / shape[0]) ** 2
    elif eps is not None:
        eps *= shape[1] ** 2

    def blocks(values: np.ndarray) -> np.ndarray:
        values = values if eps is None else constrained(values, eps)
        return np.swapaxes(cayley(skew_part(values)), -1, -2)

    rotations = Mapped(stored, shape, blocks)
    if stretched is None:  # of a Linear or a convolution, which have outputs first
        return Update(group.module, "rotation_out", {"R": rotations})
    size = math.prod(stretched.shape)
    return Update(
        group.module, "rotation", {"R": reshaped(rotations, 1, *shape), "s": reshaped(stretched, size)},
        transposed=is_transposed_by(group.module, size, 0, config, context.base),
    )  # fmt: skip


def _version(value: Any) -> tuple[int, ...]:
    """(0, 18) of "0.18.1.dev0@hash"; (0, 0) where there is none: PEFT writes it since 0.18."""
    parts = str(value or "0.0").split(".")[:2]
    return tuple(int(part) if part.isdecimal() else 0 for part in parts)


def _number(value: Any, field: str) -> float:
    if type(value) not in (int, float) or not value > 0:
        raise InputError(f"adapter_config.json: {field} is not a positive number", found=value)
    return float(value)


SUPPORT = (
    Support("OFT", "PEFT's merge in float64", base="for ΔW", peft="OFT"),
    Support("OFT of PEFT before 0.16", "the formulas of PEFT 0.13.2 and 0.15.2 in float64", base="for ΔW"),
    Support("BOFT", "PEFT's merge in float64", base="for ΔW", peft="BOFT"),
)
