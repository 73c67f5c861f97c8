"""Microsoft's loralib and what kept its layout: `.lora_A` and `.lora_B` with no prefix and no `.weight`, mostly `.pt`.

    Linear        A (r, d_in),      B (d_out, r)             ΔW = s·B A
    Embedding     A (r, vocabulary), B (dim, r)              the same; the base stores its transpose
    MergedLinear  A (k·r, d_in),    B (k·d, r)               block j of k: ΔW_j = s·B_j A_j, a grouped convolution
    Conv2d        A (r·κ, c_in·κ),  B (d_out/groups·κ, r·κ)  ΔW = s·B A, reshaped to (d_out, c_in/groups, κ, κ)
    AdaLoRA       and E (r, 1), ranknum (1,)                 ΔW = alpha/(ranknum + 1e-5)·B (A ∘ E), QingruZhang/AdaLoRA

s = alpha/r, and alpha is not in the file: scale 1 is reported, and a note says so. ComfyUI, which reads bare keys as
well (Mochi's), takes a module's `.alpha` where there is one. AdapterHub (`….loras.NAME.lora_A`) keeps it in
`adapter_config.json`: s = config.alpha/config.r (adapters, `methods/lora.py`). Not in the file either is MergedLinear's
`enable_lora`, which of the n blocks of rows (query, key, value) were trained: the update then covers the trained rows
alone, whose singular values are those of the whole. A convolution is known from its base weight, in the file or given.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from lorascope.architectures import LITGPT_FUSED
from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats import litgpt
from lorascope.weights.formats.base import Bundle, Format, Ledger, Parsed, formats
from lorascope.weights.formats.bottlenecks import take_parts
from lorascope.weights.formats.key_groups import KeyGroup, alpha_scale, by_module, number
from lorascope.weights.support import Support
from lorascope.weights.tensors import Combined, Mapped

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

SUFFIXES = ("lora_A", "lora_B", "lora_E", "ranknum", "alpha")
PARAMETERS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked", "position_ids", "masked_bias")
_LORAS = re.compile(r"\.loras\.[^.]+(?=\.)")
NO_ALPHA = (
    "scale unknown: loralib stores no alpha, so every number is that of scale 1 (alpha = r); "
    "multiply ΔW and its norms by alpha/r where you know it"
)


class Loralib(Format):
    name = "loralib"
    about = "loralib, AdaLoRA's repository and litgpt: bare lora_A and lora_B"

    def claims(self, bundle: Bundle) -> bool:
        if bundle.config is not None and "peft_type" in bundle.config:
            return False
        return any(key.endswith((".lora_A", ".lora_B")) and not key.startswith("base_model.") for key in bundle.tensors)

    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        hub = _adapterhub(bundle)
        groups = {m: g for m, g in by_module(bundle.tensors, SUFFIXES).items() if set(g.keys) != {"alpha"}}
        weights = {module: _base_weight(module, bundle.tensors, base) for module in groups}
        settings = litgpt.settings(bundle.path) if _is_litgpts(bundle) else litgpt.Settings()
        read = (_read(group, ledger, weights[module], settings) for module, group in groups.items())
        updates = {update.name: update for update in read if update}
        if hub is not None:
            updates = _of_adapterhub(updates, *hub)
        elif settings.scale is not None:
            updates = {name: replace(update, scale=update.scale * settings.scale) for name, update in updates.items()}
        bare = any("alpha" not in group for group in groups.values())
        adalora = any(update.kind == "triplet" for update in updates.values())
        parts, reasons = take_parts(ledger)  # AdapterHub combines LoRA with bottlenecks and prefixes in one file
        return Parsed(
            updates=updates,
            method="AdaLoRA" if adalora else "LoRA",
            saved={**_saved(bundle.tensors, ledger, set(groups)), **parts},
            non_weight_tensors=reasons,
            settings=dict((bundle.config or {}).get("config") or {}) if hub is not None else {},
            notes=(NO_ALPHA,) if hub is None and settings.scale is None and bare else (),
        )


def _is_litgpts(bundle: Bundle) -> bool:
    return any(key.startswith(("transformer.h.", "lm_head.")) for key in bundle.tensors)


def _adapterhub(bundle: Bundle) -> tuple[float, int] | None:
    """alpha and r of AdapterHub's config; None where there is none. InputError where its LoRA is not B·A."""
    config = (bundle.config or {}).get("config")
    if not isinstance(config, Mapping) or not any(map(_LORAS.search, bundle.tensors)):
        return None
    if config.get("composition_mode", "add") != "add" or config.get("use_gating"):
        raise InputError(
            f"{bundle.path} is AdapterHub's LoRA with composition_mode {config.get('composition_mode')!r} or a gate",
            found=f"use_gating {config.get('use_gating')!r}",
            expected='composition_mode "add" and no gate: only then is ΔW = alpha/r·B·A',
        )
    alpha, rank = config.get("alpha"), config.get("r")
    if not isinstance(alpha, int | float) or not isinstance(rank, int) or rank < 1 or not math.isfinite(alpha):
        raise InputError("adapter_config.json: config.alpha and config.r are not numbers", found=f"{alpha!r}, {rank!r}")
    return float(alpha), rank


def _of_adapterhub(updates: Mapping[str, Update], alpha: float, rank: int) -> dict[str, Update]:
    """The updates with AdapterHub's scale, by the modules' own names. InputError where the config is of others."""
    renamed: dict[str, Update] = {}
    for update in updates.values():
        name = _LORAS.sub("", f"{update.name}.").removesuffix(".")
        rest = update.roles["A"].shape[0] % rank
        if rest or name in renamed:
            raise InputError(
                f"adapter_config.json contradicts the tensors of {update.name}",
                found=f"A {tuple(update.roles['A'].shape)}" if rest else f"{name} twice",
                expected=f"config.r {rank}" if rest else "one adapter",
            )
        renamed[name] = replace(update, name=name, scale=update.scale * alpha / rank)
    return renamed


def _base_weight(module: str, tensors: Mapping[str, Stored], base: "Checkpoint | None") -> Stored | None:
    """The layer's own weight, which says what kind of layer it is: from the file (loralib wraps a convolution as
    `.conv`), else from the base."""
    for name in (f"{module}.weight", f"{module}.conv.weight"):
        if name in tensors:
            return tensors[name]
    return base.find(module) if base is not None else None


def _read(group: KeyGroup, ledger: Ledger, weight: Stored | None, settings: litgpt.Settings) -> Update | None:
    fused = group.module.endswith(LITGPT_FUSED) and {"lora_A", "lora_B"} <= set(group.keys)
    if fused and settings.sizes is None:
        group.skip(ledger, litgpt.UNKNOWN)
        return None
    a, b = group.take(ledger, "lora_A"), group.take(ledger, "lora_B")
    update = _of_factors(group, ledger, a, b, weight, settings)
    return replace(update, scale=update.scale * alpha_scale(group, ledger, b.shape[1]))


def _of_factors(
    group: KeyGroup, ledger: Ledger, a: Stored, b: Stored, weight: Stored | None, settings: litgpt.Settings
) -> Update:
    """The update of scale 1 (AdaLoRA's r/ranknum) that the factors of one layer make."""
    a_key, b_key = f"{group.module}.lora_A", f"{group.module}.lora_B"
    if len(a.shape) != 2 or len(b.shape) != 2 or 0 in (*a.shape, *b.shape):
        raise InputError(f"{a_key!r} and {b_key!r} are not matrices", found=f"{tuple(a.shape)} and {tuple(b.shape)}")
    if group.module.endswith(LITGPT_FUSED):
        return litgpt.fused(group.module, a, b, settings)
    blocks, rest = divmod(a.shape[0], b.shape[1])
    if rest or b.shape[0] % blocks or (blocks > 1 and "lora_E" in group):
        raise InputError(
            f"{a_key!r} and {b_key!r} disagree on the rank",
            found=f"{tuple(a.shape)} and {tuple(b.shape)}",
            expected="(r, d_in) and (d_out, r), or (k·r, d_in) and (k·d, r) for k fused blocks",
        )
    if "lora_E" in group or "ranknum" in group:
        return _triplet(group, ledger, a, b, weight)
    if weight is not None and len(weight.shape) > 2:
        return _convolution(group.module, a, b, tuple(weight.shape))
    return _linear(group.module, a, b, blocks, weight)


def _linear(module: str, a: Stored, b: Stored, blocks: int, weight: Stored | None) -> Update:
    """Linear and Embedding, and MergedLinear with `blocks` trained blocks."""
    r, rows = b.shape[1], b.shape[0] // blocks
    notes: tuple[str, ...] = ()
    left = b
    if blocks > 1:
        left = Mapped(b, (b.shape[0], blocks * r), lambda values: _block_diagonal(values, blocks))
        notes = (f"{blocks} fused blocks of {rows} rows, each of rank {r}",)
    sides = tuple(weight.shape) if weight is not None else ()
    if sides and b.shape[0] not in sides:
        whole = max(sides) if a.shape[1] == min(sides) else sides[0]
        notes += (
            f"a fused layer of {whole} rows of which {b.shape[0]} were trained: ΔW here is those rows alone, "
            "because the file does not say which they are (enable_lora)",
        )
    elif blocks > 1 and not sides:
        notes += ("whether the layer has further, untrained blocks is not in the file (enable_lora)",)
    elif not sides and "conv" in module.rpartition(".")[2].lower():
        notes += ("read as a matrix: a convolution of loralib's can only be told from one with the base weight",)
    return Update(
        module, "low_rank", {"A": a, "B": left}, transposed=_is_transposed(sides, b.shape[0], a.shape[1]), notes=notes
    )


def _block_diagonal(values: np.ndarray, blocks: int) -> np.ndarray:
    """B (k·d, r) as the block diagonal (k·d, k·r), so that one product with A (k·r, d_in) does all groups."""
    d, r = values.shape[0] // blocks, values.shape[1]
    out = np.zeros((blocks * d, blocks * r))
    for j in range(blocks):
        out[j * d : (j + 1) * d, j * r : (j + 1) * r] = values[j * d : (j + 1) * d]
    return out


def _is_transposed(stored: tuple[int, ...], d_out: int, d_in: int) -> bool:
    """Whether the base stores this layer as (d_in, d_out): embeddings, and GPT-2's Conv1D (fan_in_fan_out)."""
    return stored == (d_in, d_out) and d_in != d_out


def _convolution(module: str, a: Stored, b: Stored, shape: tuple[int, ...]) -> Update:
    """ΔW = B A reshaped to the weight's shape, which mixes rows: row o holds B A's rows o·κ … o·κ + κ - 1 in turn.

    With one group that is [B_0 … B_(κ-1)] · blockdiag(A, …, A), B_j the rows of B at offset j, and stays factored.
    """
    d_out, columns, kappa = shape[0], math.prod(shape[1:]), shape[-1]
    if b.shape[0] * a.shape[1] != d_out * columns:
        raise InputError(
            f"{module}.lora_A and lora_B do not make this convolution",
            found=f"{tuple(a.shape)} and {tuple(b.shape)}",
            expected=f"a product with as many entries as {shape}",
        )
    if b.shape[0] == d_out * kappa:
        left = Mapped(b, (d_out, kappa * b.shape[1]), lambda values: values.reshape(d_out, -1))
        right_shape = (kappa * a.shape[0], kappa * a.shape[1])
        right = Mapped(a, right_shape, lambda values: _repeated(values, kappa))
        return Update(module, "low_rank", {"A": right, "B": left}, kernel=shape[2:])
    whole = Combined((b, a), (d_out, columns), lambda b, a: (b @ a).reshape(d_out, columns))
    return Update(module, "dense", {"delta": whole}, kernel=shape[2:], notes=("a grouped convolution, multiplied out",))


def _repeated(values: np.ndarray, times: int) -> np.ndarray:
    """blockdiag(A, …, A)."""
    (rows, columns), out = values.shape, np.zeros((times * values.shape[0], times * values.shape[1]))
    for j in range(times):
        out[j * rows : (j + 1) * rows, j * columns : (j + 1) * columns] = values
    return out


def _triplet(group: KeyGroup, ledger: Ledger, a: Stored, b: Stored, weight: Stored | None) -> Update:
    """AdaLoRA's own repository, with its default alpha = r."""
    e = group.take(ledger, "lora_E")
    ranknum = number(group.take(ledger, "ranknum"), group.keys["ranknum"])
    if ranknum <= 0:
        raise InputError(f"{group.keys['ranknum']!r} is not a rank", found=ranknum, expected="a positive number")
    sides = tuple(weight.shape) if weight is not None else ()
    return Update(
        group.module,
        "triplet",
        {"A": a, "B": b, "E": e},
        a.shape[0] / (ranknum + 1e-5),
        transposed=_is_transposed(sides, b.shape[0], a.shape[1]),
    )


def _saved(tensors: Mapping[str, Stored], ledger: Ledger, adapted: set[str]) -> dict[str, Stored]:
    """What a whole state dict holds besides: frozen weights are skipped, everything else was stored to be kept."""
    saved: dict[str, Stored] = {}
    for key in tensors:
        module, _, parameter = key.rpartition(".")
        if key not in ledger or parameter not in PARAMETERS or _is_within(module, adapted):
            continue
        if parameter == "weight" and (module in adapted or module.removesuffix(".conv") in adapted):
            ledger.skip(key, "the frozen weight of an adapted layer (loralib merges ΔW into it in eval mode)")
        else:
            saved[key] = ledger.take(key)
    return saved


def _is_within(module: str, adapted: set[str]) -> bool:
    """Whether a module lies within an adapted one, such as a gate: what it does to ΔW is not known."""
    segments = module.removesuffix(".conv").split(".")
    return any(".".join(segments[:end]) in adapted for end in range(1, len(segments)))


formats.register("loralib")(Loralib())

SUPPORT = (
    Support("loralib, AdaLoRA's repository", "loralib's merge and the writers' formula"),
    Support("litgpt, fused projections with its model_config.yaml", "litgpt's formula in float64"),
)
