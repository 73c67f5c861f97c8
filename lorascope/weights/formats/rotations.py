"""The algorithms of image models whose ΔW is a function of W: OFT, BOFT and GLoRA of LyCORIS, OFTv2 of OneTrainer.

    .oft_blocks (k, b, b), .rescale, .alpha    LyCORIS's diag-OFT, and sd-scripts' OFT (`oft_unet_…`)
    .oft_blocks.0, .oft_blocks.1, ...          sd-scripts' OFT of FLUX, one for each part of a fused projection
    .oft_blocks (m, k, b, b), ...              LyCORIS's BOFT
    .oft_R.weight (k, b(b−1)/2)                OneTrainer's and sd-scripts' OFTv2, after PEFT's; k = 1 where all groups
                                               of inputs share a block; `.oft_R.scaled_oft` marks scaled entries, and
                                               `.dora_scale` and `.initial_norm` lengths of rows
    .a1, .a2, .b1, .b2, .bm                    GLoRA

Of OFT alpha is a bound on ‖Q‖_F: alpha·d_out, where it is above 0 (LyCORIS 4.1.3, modules/diag_oft.py), and at 0 too in
sd-scripts' own (networks/oft.py). ComfyUI's weight adapter differs in two points, which a note says where they matter.
"""

import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import MAX_EXPANDED, Stored, Update
from lorascope.updates.block_rotation import side_of
from lorascope.weights.formats.base import Ledger
from lorascope.weights.formats.key_groups import MAX_PARTS, KeyGroup, alpha_scale, kernel_of, low_rank_roles, number
from lorascope.weights.support import Support
from lorascope.weights.tensors import Combined, Mapped, flattened, reshaped

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lorascope.weights.checkpoint import Checkpoint

OFT_PARTS = tuple(f"oft_blocks.{part}" for part in range(MAX_PARTS))
OFT_V2 = ("oft_R.weight",)
_DESCRIBED = tuple(
    f"{what}_metadata" for what in ("oft_block_size", "oft_block_share", "oft_coft", "coft_eps", "scaled_oft")
)
OFT_V2_OTHERS = ("oft_R.scaled_oft", "dora_scale", "initial_norm", "alpha", *_DESCRIBED)
BOUND = "alpha bounds the rotation: ‖Q‖ is at most alpha·d_out, as trained; ComfyUI takes alpha itself"
RESCALED = "its outputs have factors (rescale), which ComfyUI leaves out of diag-OFT"
SCALED = (
    "scaled OFT: its entries are divided by 2·√(b − 1), as OneTrainer does; an older node for ComfyUI divides by"
    " √(b(b − 1)/2)"
)


def of_parts(group: KeyGroup, ledger: Ledger) -> Update | None:
    """sd-scripts' OFT of the parts of a fused projection, each bounded by itself; None where their blocks differ."""
    count = max(index for index, suffix in enumerate(OFT_PARTS) if suffix in group) + 1
    blocks = [ledger.peek(group.keys[suffix]) for suffix in OFT_PARTS[:count] if suffix in group]
    if len({tuple(each.shape[1:]) for each in blocks}) > 1:
        group.skip(ledger, "OFT whose parts have blocks of several sizes, which lorascope does not model")
        return None
    blocks = [group.take(ledger, suffix) for suffix in OFT_PARTS[:count]]
    shape = tuple(blocks[0].shape)
    if len(shape) != 3 or 0 in shape or shape[1] != shape[2]:
        raise InputError(f"{group.keys[OFT_PARTS[0]]!r} are not square blocks", found=shape, expected="(k, b, b)")
    stored = group.optional(ledger, "alpha")
    alpha = number(stored, group.keys["alpha"]) if stored is not None else None

    def joined(*values: np.ndarray) -> np.ndarray:
        bounded = [each if alpha is None else _bounded(each, alpha * len(each) * shape[1], True) for each in values]
        return np.concatenate(bounded)

    every = Combined(tuple(blocks), (sum(each.shape[0] for each in blocks), *shape[1:]), joined)
    return Update(group.module, "diag_oft", {"blocks": every})


def diagonal_or_butterfly(group: KeyGroup, ledger: Ledger) -> Update:
    """OFT (k, b, b) or BOFT (m, k, b, b) of LyCORIS or sd-scripts."""
    blocks, key = group.take(ledger, "oft_blocks"), group.keys["oft_blocks"]
    if len(blocks.shape) not in (3, 4) or 0 in blocks.shape or blocks.shape[-1] != blocks.shape[-2]:
        expected = "(k, b, b) or (m, k, b, b)"
        raise InputError(f"{key!r} are not square blocks", found=tuple(blocks.shape), expected=expected)
    kind = "diag_oft" if len(blocks.shape) == 3 else "lycoris_boft"
    notes: tuple[str, ...] = ()
    stored = group.optional(ledger, "alpha")
    alpha = number(stored, group.keys["alpha"]) if stored is not None else 0.0
    by_sd_scripts = group.module.startswith("oft_")
    if alpha > 0 or (by_sd_scripts and stored is not None):
        limit = max(alpha, 0.0) * blocks.shape[-1] * blocks.shape[-3]
        blocks = Mapped(blocks, tuple(blocks.shape), lambda values: _bounded(values, limit, by_sd_scripts))
        notes += (BOUND,)
    roles = {"blocks": blocks}
    if (rescale := group.optional(ledger, "rescale")) is not None:
        if tuple(rescale.shape[:1]) != (math.prod(rescale.shape),):
            found = tuple(rescale.shape)
            raise InputError(f"{group.keys['rescale']!r} does not fit", found=found, expected="(d_out, 1)")
        roles["g"] = reshaped(rescale, math.prod(rescale.shape))
        notes += (RESCALED,) if kind == "diag_oft" else ()
    return Update(group.module, kind, roles, notes=notes)


def _bounded(blocks: np.ndarray, limit: float, by_sd_scripts: bool) -> np.ndarray:
    """The blocks B, made smaller where the Frobenius norm of all Q = B − Bᵀ is above the limit."""
    norm = float(np.linalg.norm(blocks - np.swapaxes(blocks, -1, -2)))
    if by_sd_scripts:
        return blocks * ((min(norm, limit) + 1e-8) / (norm + 1e-8))
    norm += 1e-8
    return blocks * (limit / norm) if norm > limit else blocks


def oft_v2(group: KeyGroup, ledger: Ledger) -> Update:
    """A rotation of the inputs by blocks, and lengths of rows where there are any."""
    entries, key = group.take(ledger, "oft_R.weight"), group.keys["oft_R.weight"]
    if len(entries.shape) != 2 or 0 in entries.shape:
        raise InputError(f"{key!r} is not a matrix", found=tuple(entries.shape), expected="(k, b(b − 1)/2)")
    notes: tuple[str, ...] = ()
    try:
        side = side_of(entries.shape[1])
    except InputError as error:
        raise InputError(f"{key!r}: {error.what}", found=error.found, expected=error.expected) from None
    marked = group.optional(ledger, "oft_R.scaled_oft")
    if marked is not None:
        divisor = 2 * math.sqrt(side - 1)
        entries = Mapped(entries, tuple(entries.shape), lambda values: values / divisor)
        notes += (SCALED,)
    roles: dict[str, Stored] = {"entries": entries}
    for role, suffix in (("m", "dora_scale"), ("n", "initial_norm")):
        if (lengths := group.optional(ledger, suffix)) is not None:
            if tuple(lengths.shape[:1]) != (math.prod(lengths.shape),):
                found = tuple(lengths.shape)
                raise InputError(f"{group.keys[suffix]!r} does not fit", found=found, expected="(d_out, 1)")
            roles[role] = reshaped(lengths, math.prod(lengths.shape))
    for suffix in ("alpha", *_DESCRIBED):  # which describe what the entries' shape and the other keys define
        group.optional(ledger, suffix)
    return Update(group.module, "oft_v2", roles, notes=notes)


def of_kernel(update: Update, base: "Checkpoint | None", names: "Mapping[str, str]") -> Update:
    """What the base's kernel says of a convolution: OFTv2 rotates its inputs the other way (OneTrainer's LoRAModule),
    and R̃ of −Q is R̃ᵀ of Q; the factors of (IA)³ are those of channels, each at all positions."""
    if base is None or (update.kind != "oft_v2" and "in_scale" not in update.roles):
        return update
    weight = base.find(names.get(update.name, update.name))
    if weight is None or len(weight.shape) < (4 if update.kind == "oft_v2" else 3):
        return update
    if update.kind == "scaling":
        factors, positions = update.roles["in_scale"], math.prod(weight.shape[2:])
        if factors.shape[0] * positions > MAX_EXPANDED:
            return update
        repeated = Mapped(factors, (factors.shape[0] * positions,), lambda values: np.repeat(values, positions))
        return replace(update, roles={"in_scale": repeated}, kernel=kernel_of(weight))
    entries = update.roles["entries"]
    negated = Mapped(entries, tuple(entries.shape), lambda values: -values)
    return replace(update, roles={**update.roles, "entries": negated}, kernel=kernel_of(weight))


def glora(group: KeyGroup, ledger: Ledger) -> Update:
    """Both products, of LyCORIS's current files or of its first ones, which had each pair the other way round."""
    a1, a2, b1, b2 = (group.take_matrix(ledger, f"{name}.weight") for name in ("a1", "a2", "b1", "b2"))
    first = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
    current = b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]
    if first and not (current and a2.shape[0] <= a1.shape[0]):  # of a square W the rank is the smaller side
        a1, a2, b1, b2 = a2, a1, b2, b1
    mid = group.optional(ledger, "bm.weight")
    keys = group.keys["b2.weight"], group.keys["b1.weight"]
    product = low_rank_roles(b2, b1, mid, keys)
    for name, stored in (("a1", a1), ("a2", a2)):
        if math.prod(stored.shape[2:]) != 1:
            raise InputError(f"{group.keys[name + '.weight']!r} has a kernel of its own", found=tuple(stored.shape))
    scale = alpha_scale(group, ledger, a2.shape[0])
    if (scalar := group.optional(ledger, "scalar")) is not None:
        scale *= number(scalar, group.keys["scalar"])
    roles = {"a1": flattened(a1), "a2": flattened(a2), "b1": product["B"], "b2": product["A"]}
    return Update(group.module, "lycoris_glora", roles, scale, kernel=kernel_of(mid or b2))


SUPPORT = (
    Support("LyCORIS: diag-OFT, BOFT", "LyCORIS's layers, and the dense formula in float64", base="for ΔW"),
    Support("LyCORIS: GLoRA", "LyCORIS's layers, and ComfyUI's formula in float64", base="for ΔW"),
    Support("OFTv2 of OneTrainer and sd-scripts", "OneTrainer's formula in float64", base="for ΔW"),
    Support("OFT of sd-scripts", "sd-scripts' formula in float64", base="for ΔW"),
)
