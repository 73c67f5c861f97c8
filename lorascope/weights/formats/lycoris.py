"""LyCORIS: LoHa, LoKr, LoCon, full differences, (IA)³, OFT, GLoRA, norms, and what else its algorithms leave in one
file; and OneTrainer's OFT. What rotates or maps W itself is read in `formats/rotations.py`.

One file may mix algorithms, module by module. Scale, where there is one, is alpha/r: LyCORIS stores alpha already
multiplied for rsLoRA, and takes alpha = r where it is 0. Two rules of its own: LoKr with both operands stored whole has
scale 1 whatever its alpha was, or √r with `rs_lora` (PEFT's has alpha/r; see `_whole_scale`), and `get_diff_weight` of
LoHa and LoKr in 4.1.3 applies the scale twice, where its forward pass, which we follow, applies it once. Names: see
`kohya.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats import kohya, rotations
from lorascope.weights.formats.base import Bundle, Format, Ledger, Parsed, formats
from lorascope.weights.formats.diffusers import B_BIAS, NO_ALPHA, Settings
from lorascope.weights.formats.key_groups import (
    KeyGroup,
    alpha_scale,
    by_module,
    comfy_extras,
    contracted,
    kernel_of,
    number,
    rename,
    resolve,
)
from lorascope.weights.support import Support
from lorascope.weights.tensors import Mapped, flattened, transposed

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
LOKR = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
WHOLE_SCALE = "both operands are stored whole: LyCORIS's scale is then 1, whatever alpha says"
WHOLE_RS = (
    "both operands are stored whole, and were trained with rs_lora: LyCORIS's scale is then √r, r from alpha = r^1.5"
)
AMBIGUOUS = (
    "LoKr whose operands are stored whole: the scale is 1, or √r where it was trained with rs_lora; the file does not"
    " say which, and every number is that of scale 1"
)
_ROUNDED = {"F16": 1e-3, "BF16": 8e-3}  # how far a stored alpha may be from r^1.5; else float32's
COMMON = ("alpha", "dora_scale", "scalar")
VECTORS = {
    "diff_b": "a difference of a bias: a vector, not a matrix",
    "w_norm": "a difference of a norm's weight: a vector, not a matrix",
    "b_norm": "a difference of a norm's bias: a vector, not a matrix",
    "lora_B.bias": B_BIAS,
}
# Other spellings of a down/up pair, which ComfyUI reads next to `.diff` and `.diff_b` (Wan: CausVid, AccVideo).
PAIRS = {
    f"{spelling}.weight": f"lora_{side}.weight"
    for side, spellings in {
        "down": ("lora_A", "lora_A.default", "lora.down", "lora_linear_layer.down"),
        "up": ("lora_B", "lora_B.default", "lora.up", "lora_linear_layer.up"),
    }.items()
    for spelling in spellings
}


@dataclass(frozen=True)
class Algorithm:
    """One algorithm: the suffixes that give it away, the others it may have, and how a module of it is read."""

    name: str
    marks: tuple[str, ...]
    others: tuple[str, ...]
    read: Callable[[KeyGroup, Ledger], Update | None]


class Lycoris(Format):
    name = "lycoris"
    about = "LyCORIS: LoHa, LoKr, LoCon, full, (IA)³"

    def claims(self, bundle: Bundle) -> bool:
        of_peft = "peft_type" in (bundle.config or {})  # which writes some of the names, and other formulas under them
        return not of_peft and kohya.claimed_by_lycoris(bundle.tensors)

    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        settings = Settings.of(bundle.metadata)
        suffixes = {suffix for f in ALGORITHMS for suffix in (*f.marks, *f.others)}
        groups = by_module(bundle.tensors, suffixes | {*VECTORS} | {*PAIRS})
        updates, methods = [], []
        lokr = _LokrRanks.of(bundle)
        for group in map(_without_stray_weight, map(_one_spelling, groups.values())):
            for suffix, reason in VECTORS.items():
                group.skip(ledger, reason, (suffix,))
            algorithm = _algorithm(group)
            if algorithm is None:
                continue
            methods.append(algorithm.name)
            if update := algorithm.read(group, ledger):
                updates.append(_scaled_by(settings, group, lokr.rescaled(group, update, ledger)))
        kohya.skip_embeddings(bundle.tensors, ledger)
        names = resolve(groups, base, kohya.PREFIXES)
        updates = [rotations.of_kernel(update, base, names) for update in updates]
        bare = (
            {}
            if settings.raw
            else {m: group for m, group in groups.items() if "alpha" not in group and group.keys.keys() & PAIRS.keys()}
        )
        notes = (f"{NO_ALPHA}: {len(bare)} of {len(groups)} modules",) if bare else ()
        return Parsed(
            updates=rename(updates, names),
            method=" + ".join(sorted(set(methods))),
            settings={**kohya.settings(bundle.metadata), **settings.raw},
            saved=comfy_extras(ledger),
            notes=(*kohya.name_notes(groups, names, base is not None), *notes, *lokr.notes(updates)),
        )


def _algorithm(group: KeyGroup) -> Algorithm | None:
    """The algorithm of a module; None where it holds vectors only. InputError where it is none, or several."""
    rest = [suffix for suffix in group.keys if suffix not in VECTORS]
    algorithms = [algorithm for algorithm in ALGORITHMS if any(mark in group for mark in algorithm.marks)]
    strange = [group.keys[s] for s in rest if not any(s in (*f.marks, *f.others) for f in algorithms)]
    if len(algorithms) > 1 or strange:
        raise InputError(
            f"{group.module} mixes the keys of several LyCORIS algorithms, or has keys of none",
            found=", ".join(group.keys.values()),
            expected="the keys of one algorithm",
        )
    return algorithms[0] if algorithms else None


@dataclass(frozen=True)
class _LokrRanks:
    """What tells the scale of a LoKr whose operands are both whole, r or r^1.5 being its stored alpha.

    lycoris-lora's scale is α/r with α set to r, or α/√r = √r with `rs_lora`, and it stores α·r/(r or √r).

    Attributes:
        rs_lora: what the file's metadata say of the training; None where they say nothing.
        ranks: the ranks of the file's factored LoKr modules, and the metadata's.
    """

    rs_lora: bool | None
    ranks: frozenset[int]

    @classmethod
    def of(cls, bundle: Bundle) -> "_LokrRanks":
        arguments = kohya.settings(bundle.metadata).get("ss_network_args")
        rslora = str(arguments.get("rs_lora", False)).lower() == "true" if isinstance(arguments, dict) else None
        factors = (key for key in bundle.tensors if key.endswith((".lokr_w1_b", ".lokr_w2_b")))
        ranks = {bundle.tensors[key].shape[0] for key in factors if bundle.tensors[key].shape}
        dim = bundle.metadata.get("ss_network_dim", "")
        return cls(rslora, frozenset(ranks | ({int(dim)} if dim.isdecimal() else set())))

    def rescaled(self, group: KeyGroup, update: Update, ledger: Ledger) -> Update:
        """The update with √r where it was trained with `rs_lora`; with a note where nothing tells."""
        if update.notes != (WHOLE_SCALE,) or "alpha" not in group:
            return update
        stored = ledger.peek(group.keys["alpha"])
        factor, note = self._factor(number(stored, group.keys["alpha"]), _ROUNDED.get(stored.dtype, 1e-6))
        return replace(update, scale=update.scale * factor, notes=(note,))

    def _factor(self, alpha: float, tolerance: float) -> tuple[float, str]:
        """1 or √r, and what is to be said, from alpha as it is stored."""
        rank = round(abs(alpha) ** (2 / 3))
        if not 2 <= rank < 1 << 14 or abs(rank**1.5 - alpha) > tolerance * alpha or self.rs_lora is False:
            return 1.0, WHOLE_SCALE
        plain, rescaled = round(alpha) in self.ranks, rank in self.ranks
        if self.rs_lora or alpha != round(alpha) or (rescaled and not plain):
            return math.sqrt(rank), WHOLE_RS
        return 1.0, WHOLE_SCALE if plain and not rescaled else AMBIGUOUS

    def notes(self, updates: list[Update]) -> tuple[str, ...]:
        doubtful = sum(AMBIGUOUS in update.notes for update in updates)
        return (f"{AMBIGUOUS}: {doubtful} of {len(updates)} modules",) if doubtful else ()


def _one_spelling(group: KeyGroup) -> KeyGroup:
    """The module's keys under the suffixes of LyCORIS. InputError where two of them mean the same."""
    keys: dict[str, str] = {}
    for suffix, key in group.keys.items():
        suffix = PAIRS.get(suffix, suffix)
        if suffix in keys:
            raise InputError(f"two keys mean the same: {keys[suffix]!r} and {key!r}")
        keys[suffix] = key
    return KeyGroup(group.module, keys)


def _scaled_by(settings: Settings, group: KeyGroup, update: Update) -> Update:
    """diffusers keeps PEFT's config in the metadata of its LoKr files, and PEFT's scale holds: α/r, whole or not.

    InputError where the file's own alpha says another scale.
    """
    config_and_path = settings.find(update.name)
    if config_and_path is None or update.kind not in ("kronecker", "hadamard", "low_rank"):
        return update
    config, path = config_and_path
    scale = config.scale_of(path, config.rank_of(path))
    if "alpha" in group and update.kind != "kronecker" and not math.isclose(scale, update.scale):
        raise InputError(
            f"two sources for one scale: {group.keys['alpha']!r} and lora_adapter_metadata in the file's metadata",
            found=f"{update.scale:g} and {scale:g}",
            expected="one of the two, as diffusers demands",
        )
    return replace(update, scale=scale, notes=())


def _without_stray_weight(group: KeyGroup) -> KeyGroup:
    """`.weight` is (IA)³'s next to `.on_input`; alone it is somebody else's key, left for the ledger to report."""
    if "on_input" in group or "weight" not in group:
        return group
    return KeyGroup(group.module, {suffix: key for suffix, key in group.keys.items() if suffix != "weight"})


def _loha(group: KeyGroup, ledger: Ledger) -> Update:
    """ΔW = s·(w1_a w1_b) ∘ (w2_a w2_b); with Tucker cores, w_a is stored (r, d_out) and t (r, r, *kernel)."""
    factors = {name: group.take_matrix(ledger, f"hada_{name}") for name in ("w1_a", "w1_b", "w2_a", "w2_b")}
    rank, kernel = factors["w1_b"].shape[0], kernel_of(factors["w1_b"])
    if "hada_t1" in group or "hada_t2" in group:
        for i in "12":
            core = group.take_matrix(ledger, f"hada_t{i}")
            left, right = factors[f"w{i}_a"], factors[f"w{i}_b"]
            factors |= {f"w{i}_a": _as_transposed(group, left), f"w{i}_b": _with_core(group, core, right)}
            kernel = kernel_of(core)
    roles = {name: flattened(stored) for name, stored in factors.items()}
    scale = alpha_scale(group, ledger, rank) * kohya.scalar(group, ledger)
    return kohya.decomposed(group, ledger, Update(group.module, "hadamard", roles, scale, kernel=kernel))


def _lokr(group: KeyGroup, ledger: Ledger) -> Update:
    """ΔW = s·w1 ⊗ w2. Of a convolution w2 is (c, d, *kernel), w2_b (r, d·k), or w2_a (r, c) with a core t2."""
    roles: dict[str, Stored] = {}
    for operand in ("w1", "w2"):
        whole, halves = f"lokr_{operand}", (f"lokr_{operand}_a", f"lokr_{operand}_b")
        if whole in group and any(half in group for half in halves):
            raise InputError(f"{group.module} stores {operand} both whole and factored", found=", ".join(group.keys))
        for suffix in (whole,) if not any(half in group for half in halves) else halves:
            roles[suffix.removeprefix("lokr_")] = group.take_matrix(ledger, suffix)
    kernel = kernel_of(roles["w2"] if "w2" in roles else roles["w2_b"])
    ranks = [roles[name].shape[0] for name in ("w1_b", "w2_b") if name in roles]
    if "lokr_t2" in group:
        core, left, right = group.take_matrix(ledger, "lokr_t2"), roles.get("w2_a"), roles.get("w2_b")
        if left is None or right is None:
            raise InputError(f"{group.keys['lokr_t2']!r} has no lokr_w2_a and lokr_w2_b to act on")
        roles |= {"w2_a": _as_transposed(group, left), "w2_b": _with_core(group, core, right)}
        kernel = kernel_of(core)
    scale, notes = 1.0, [WHOLE_SCALE]
    if ranks:
        scale, notes = alpha_scale(group, ledger, ranks[-1]), []  # of two that differ ComfyUI divides by w2's
    else:
        group.optional(ledger, "alpha")
    roles = {name: flattened(stored) for name, stored in roles.items()}
    scale *= kohya.scalar(group, ledger)
    update = Update(group.module, "kronecker", roles, scale, kernel=kernel, notes=tuple(notes))
    return kohya.decomposed(group, ledger, update)


def _full(group: KeyGroup, ledger: Ledger) -> Update | None:
    """ΔW itself. A difference of a vector, or of a table (1, n, d) that is a parameter and not a kernel, is skipped."""
    shape = tuple(ledger.peek(group.keys["diff"]).shape)
    if len(shape) <= 1:
        group.skip(ledger, "a difference of a vector (a norm's weight), not of a matrix")
        return None
    if (len(shape) == 3 and shape[0] == 1) or len(shape) > 5:
        group.skip(ledger, f"a difference of shape {shape}: of a table of vectors or the like, not of a matrix")
        return None
    diff = group.take_matrix(ledger, "diff")
    return Update(group.module, "dense", {"delta": flattened(diff)}, kernel=kernel_of(diff))


def _ia3(group: KeyGroup, ledger: Ledger) -> Update:
    """ΔW = w ⊙ W along the outputs, or the inputs where `on_input` is 1. LyCORIS stores w, the others' l is 1 + w."""
    for suffix in ("weight", "on_input"):
        if suffix not in group:
            group.take(ledger, suffix)
    weight = ledger.peek(group.keys["weight"])
    size = math.prod(weight.shape)
    if max(weight.shape, default=0) != size:
        raise InputError(f"{group.keys['weight']!r} is not a vector", found=tuple(weight.shape))
    on_input = number(group.take(ledger, "on_input"), group.keys["on_input"]) != 0
    factor = Mapped(group.take(ledger, "weight"), (size,), lambda values: values.reshape(-1) + 1)
    return Update(group.module, "scaling", {"in_scale" if on_input else "out_scale": factor})


def _as_transposed(group: KeyGroup, stored: Stored) -> Stored:
    if len(stored.shape) != 2:
        raise InputError(f"a factor of {group.module} is not a matrix", found=tuple(stored.shape))
    return transposed(stored)


def _with_core(group: KeyGroup, core: Stored, right: Stored) -> Stored:
    if len(core.shape) < 3 or len(right.shape) != 2 or core.shape[1] != right.shape[0]:
        raise InputError(
            f"the Tucker core of {group.module} does not fit its factor",
            found=f"{tuple(core.shape)} and {tuple(right.shape)}",
            expected="(r, r, *kernel) and (r, d_in)",
        )
    return contracted(core, right)


def _skips(reason: str) -> Callable[[KeyGroup, Ledger], None]:
    return lambda group, ledger: group.skip(ledger, reason)


ALGORITHMS = (
    Algorithm("IA3", ("on_input",), ("weight",), _ia3),
    Algorithm("LoCon", ("lora_down.weight", "lora_up.weight", "lora_mid.weight"), COMMON, kohya.read_pair),
    Algorithm("LoHa", LOHA, COMMON, _loha),
    Algorithm("LoKr", LOKR, COMMON, _lokr),
    Algorithm("full", ("diff",), (), _full),
    Algorithm("OFT", ("oft_blocks",), ("rescale", "alpha"), rotations.diagonal_or_butterfly),
    Algorithm("OFT", rotations.OFT_PARTS, ("alpha",), rotations.of_parts),
    Algorithm("OFTv2", rotations.OFT_V2, rotations.OFT_V2_OTHERS, rotations.oft_v2),
    Algorithm("GLoRA", kohya.GLORA, ("bm.weight", "alpha", "scalar"), rotations.glora),
    Algorithm(
        "T-LoRA",
        ("q_layer.weight", "p_layer.weight", "lambda_layer"),
        ("alpha",),
        _skips("T-LoRA subtracts its initialisation, an SVD of the base weight that the file does not hold"),
    ),
)

formats.register("lycoris")(Lycoris())

SUPPORT = (
    Support("LyCORIS: LoHa, LoKr, LoCon, full", "LyCORIS's layers in float64", base="for ΔW of DoRA"),
    Support("LyCORIS: (IA)³", "LyCORIS's layers", base="for ΔW"),
    Support("LyCORIS: T-LoRA", refused="it subtracts its start, directions of W of which the file does not say which"),
)
