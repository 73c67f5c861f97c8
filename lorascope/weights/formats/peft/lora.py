"""LoRA and its relatives in PEFT's files: plain, rsLoRA, DoRA, embeddings, convolutions, fused experts."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.architectures import EMBEDDINGS, LINEAR_HEADS, is_conv1d
from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.peft.attention_written import attentions, without
from lorascope.weights.formats.peft.config import Config, ScaleFields
from lorascope.weights.formats.peft.experts import are_experts, read_experts
from lorascope.weights.formats.peft.experts_written import UNCALLED, by_parameter, on_parameter, written_parameters
from lorascope.weights.formats.peft.family import Context, Family, Group, Written, check_rank, families, refuse
from lorascope.weights.formats.peft.keys import PREFIX
from lorascope.weights.formats.peft.lora_variants import MONTECLORA, SHAPING, in_loras_shape
from lorascope.weights.formats.peft.merged_linear import enabled, merged_linear
from lorascope.weights.formats.peft.rank_patterns import scale_fields
from lorascope.weights.support import Support
from lorascope.weights.tensors import Mapped, flattened, reshaped

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

_FIELDS = """
    lora_dropout use_rslora init_lora_weights megatron_config megatron_core trainable_token_indices loftq_config
    eva_config corda_config lora_ga_config use_dora alora_invocation_tokens use_qalora qalora_group_size
    layer_replication lora_bias target_parameters arrow_config ensure_weight_tying use_bdlora velora_config
    monteclora_config kasa_config enable_lora merge_weights lora_drop
"""
# Fields that change what A and B mean, so that ΔW is no longer s·B·A.
_CHANGES_DELTA = {
    "arrow_config": "Arrow routes each token through several adapters, which are files of their own: analyse those",
}
_VARIANTS = {"use_qalora": "QALoRA", "use_bdlora": "BD-LoRA"}
# Initialisations that subtract something from the base weight, so that A and B do not belong to the original base.
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_STARTS_IN_W = ("pissa", "olora")  # kinds of update whose formula subtracts the start from W again
_IN_MEMORY = re.compile(r"\.(lora_[AB]\.weight|lora_([ABE]|embedding_[AB])\.[^.]+(\.weight)?|lora_embedding_[AB])$")
SCALES = ScaleFields(rslora=True)
GROUPED = "a grouped convolution"  # how the notes of these begin
GROUPED_DORA = (
    "DoRA of a grouped convolution: PEFT's layer divides by the norms of W plus a reshaped B·A, not of W + ΔW; the"
    " numbers here follow DoRA's formula, so PEFT's output differs"
)
B_BIAS = "the bias of B: it adds scale · bias to the output, in addition to the weight"


class LoRA(Family):
    """A and B of linear maps, Conv1D, convolutions and fused experts."""

    peft_types = {"LORA": frozenset({"low_rank", "magnitude", "pissa", "olora", "kasa"})}
    methods = {"low_rank": "LoRA", "magnitude": "DoRA", "pissa": "PiSSA", "olora": "OLoRA"}
    roles = ("lora_A", "lora_B", "lora_magnitude_vector")
    marks = frozenset({"lora_A", "lora_B"})
    with_tail = frozenset(roles)
    fields = _FIELDS
    scales = SCALES
    kinds_written = peft_types["LORA"] - {"kasa"}
    bias_reason = B_BIAS

    def read(self, group: Group, context: Context) -> Update:
        if blocks := enabled(context.config):
            return merged_linear(group, blocks, context.config)
        shaped, factor = in_loras_shape(group, context)
        update = low_rank(shaped, context.config, context.base)
        return replace(update, scale=update.scale * factor)

    def waits(self, group: Group, context: Context) -> bool:
        """Whether its factors are those of a parameter that fuses experts."""
        return are_experts(group, context.config)

    def read_together(self, groups: Sequence[Group], context: Context) -> Iterator[tuple[Group, list[Update] | str]]:
        wrappers: dict[str, list[Group]] = {}
        for group in groups:
            wrappers.setdefault(group.module, []).append(group)
        for of_module in wrappers.values():
            yield from read_experts(of_module, context)

    def claims_key(self, key: str) -> bool:
        return not key.startswith("base_model.") and _IN_MEMORY.search(key) is not None

    def method_name(self, update: Update, config: Config) -> str:
        variant = next((name for field, name in _VARIANTS.items() if config.flag(field)), None)
        if variant is not None and update.kind == "low_rank":
            return variant
        return "rsLoRA" if update.kind == "low_rank" and config.rslora else super().method_name(update, config)

    def unreadable(self, config: Config) -> str | None:
        return next((reason for field, reason in _CHANGES_DELTA.items() if config.flag(field)), None)

    def notes(self, config: Config) -> list[str]:
        notes, init = [], config.raw.get("init_lora_weights")
        if _taken_from_w(init):
            exact = init in _STARTS_IN_W
            more = "ΔW of the original base needs that base" if exact else "ΔW here is relative to it"
            notes.append(
                f"init_lora_weights is {init!r}: training started from a base from which the initial B·A was taken "
                f"away; {more}"
            )
        if config.flag("monteclora_config"):
            notes.append(MONTECLORA)
        if config.flag("alora_invocation_tokens"):
            notes.append("activated LoRA: the update applies only after the invocation tokens")
        if config.flag("layer_replication"):
            notes.append(
                "layer_replication: module paths are those of the replicated model, not of the base checkpoint"
            )
        return notes

    def other_base(self, adapter: Adapter) -> str | None:
        """PEFT's CorDA, LoftQ, LoRA-GA and PiSSA by randomised SVD subtract the start of B·A from W. It cannot be
        computed again: it depends on data, on a quantisation or on random numbers. PiSSA's and OLoRA's can; of an
        embedding PEFT takes none."""
        start = adapter.settings.get("init_lora_weights")
        if not _taken_from_w(start):
            return None
        known = start in _STARTS_IN_W  # LoftQ changes embeddings, too
        if adapter.updates and all(u.kind in _STARTS_IN_W or (known and u.embedding) for u in adapter.updates.values()):
            return None
        return f"A and B belong to a base from which their beginning was taken away (init_lora_weights {start!r})"

    def not_for_all_tokens(self, settings: Mapping[str, Any]) -> str | None:
        if settings.get("alora_invocation_tokens"):
            return "an activated LoRA (aLoRA) applies only to tokens after its invocation tokens"
        return None

    def write(self, adapter: Adapter) -> Written:
        return _written(adapter)


class LoRAEmbedding(Family):
    """A and B of embeddings, which are written with those of linear maps."""

    roles = ("lora_embedding_A", "lora_embedding_B", "lora_magnitude_vector")
    marks = frozenset({"lora_embedding_A", "lora_embedding_B"})
    scales = LoRA.scales
    bias_reason = B_BIAS

    def read(self, group: Group, context: Context) -> Update:
        return embedding(group, context.config)

    def method_name(self, update: Update, config: Config) -> str:
        return LORA.method_name(update, config)


LORA = LoRA()
families.register("lora")(LORA)
families.register("lora_embedding")(LoRAEmbedding())


def low_rank(group: Group, config: Config, base: "Checkpoint | None" = None) -> Update:
    """Linear, Conv1D or convolution: A (r, d_in) or (r, c_in, *kernel), B (d_out, r) or (d_out, r / groups, 1, ...)."""
    group.need("lora_A", "lora_B")
    a, b = group.stored["lora_A"], group.stored["lora_B"]
    if len(a.shape) < 2 or len(b.shape) != len(a.shape):
        raise mismatch(group, "lora_A", "lora_B")
    sides = (b.shape[0], math.prod(a.shape[1:]))
    rank = a.shape[0]
    if not (_taken_from_w(config.raw.get("init_lora_weights")) and rank == min(sides) < config.rank_of(group.owner)):
        check_rank(group, config, rank, "lora_A")
    kernel = tuple(a.shape[2:])
    notes: tuple[str, ...] = ()
    if kernel and b.shape[1] != rank and b.shape[1] > 0 and rank % b.shape[1] == 0:
        b, notes = _ungrouped(b, rank), (f"{GROUPED}: B is shown with its zeros",)
        notes += (GROUPED_DORA,) if "lora_magnitude_vector" in group else ()
    elif b.shape[1] != rank or math.prod(b.shape[2:]) != 1:
        raise mismatch(group, "lora_A", "lora_B")
    else:
        b = flattened(b)
    return _with_magnitude(
        group,
        Update(
            name=group.module,
            kind=_kind(config, kernel),
            roles={"A": flattened(a), "B": b},
            scale=config.scale_of(group.owner, config.rank_of(group.owner)),
            transposed=is_transposed(group.module, (b.shape[0], flattened(a).shape[1]), config, base, kernel),
            kernel=kernel,
            notes=notes,
            bias=group.stored.get("lora_B.bias"),
        ),
    )


def embedding(group: Group, config: Config) -> Update:
    """An embedding, a map from one-hot tokens: A (r, vocabulary), B (dimension, r); the base stores the transpose."""
    group.need("lora_embedding_A", "lora_embedding_B")
    a, b = group.stored["lora_embedding_A"], group.stored["lora_embedding_B"]
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise mismatch(group, "lora_embedding_A", "lora_embedding_B")
    rank = check_rank(group, config, a.shape[0], "lora_embedding_A")
    return _with_magnitude(
        group,
        Update(
            name=group.module,
            kind="low_rank",
            roles={"A": a, "B": b},
            scale=config.scale_of(group.module, rank),
            transposed=True,
            embedding=True,
        ),
    )


def _taken_from_w(start: Any) -> bool:
    """Whether A and B start as parts of W, which has no more directions than its smaller side: r may be larger."""
    return isinstance(start, str) and start.lower().startswith(_CHANGES_BASE)


def _kind(config: Config, kernel: tuple[int, ...]) -> str:
    """Plain low rank, or low rank on what the initialisation left of W. PiSSA's randomised variants stay plain, with
    the note that `config.notes_of` gives: their start is drawn anew at every loading."""
    start = config.raw.get("init_lora_weights")
    return start if start in ("pissa", "olora") and not kernel else "low_rank"


def _with_magnitude(group: Group, update: Update) -> Update:
    """DoRA: the same A and B with the rows' lengths m (d_out,), stored so or as (1, d_out, 1, ...)."""
    if "lora_magnitude_vector" not in group:
        return update
    m = group.stored["lora_magnitude_vector"]
    if math.prod(m.shape) != update.shape[0]:
        raise mismatch(group, "lora_B" if "lora_B" in group else "lora_embedding_B", "lora_magnitude_vector")
    return replace(update, kind="magnitude", roles={**update.roles, "m": reshaped(m, update.shape[0])})


def mismatch(group: Group, *roles: str) -> InputError:
    return InputError(
        f"the factors of {group.module} do not fit together",
        found=" and ".join(f"{group.keys[role].text} {group.shape(role)}" for role in roles),
        expected="A (r, d_in) and B (d_out, r) with one r",
    )


def _ungrouped(b: Stored, rank: int) -> Stored:
    """B (d_out, r / g, 1, ...) of a convolution in g groups as (d_out, r): each group of outputs has its rows of A."""
    d_out, rank_per_group = b.shape[:2]
    groups = rank // rank_per_group

    def expand(values: np.ndarray) -> np.ndarray:
        full = np.zeros((groups, d_out // groups, groups, rank_per_group))
        for group, part in enumerate(values.reshape(groups, d_out // groups, rank_per_group)):
            full[group, :, group, :] = part
        return full.reshape(d_out, rank)

    if d_out % groups or math.prod(b.shape) != d_out * rank_per_group:
        raise InputError("a grouped convolution's B does not divide into its groups", found=tuple(b.shape))
    return Mapped(b, (d_out, rank), expand)


def is_transposed(
    module: str, shape: tuple[int, int], config: Config, base: "Checkpoint | None", kernel: tuple[int, ...] = ()
) -> bool:
    """Whether the base stores the weight as (d_in, d_out): by its shape where that tells, by the module's class where
    the base says which model it is, else by `fan_in_fan_out`, which PEFT takes back for a Linear, such as a head.
    """
    if kernel:
        return False
    if base is not None and (weight := base.find(module)) is not None and len(weight.shape) == 2:
        stored = tuple(weight.shape)
        if stored in (shape, shape[::-1]) and shape[0] != shape[1]:
            return stored == shape[::-1]
        if (conv1d := is_conv1d(module, base.config)) is not None:
            return conv1d
    return config.flag("fan_in_fan_out") and not module.endswith(LINEAR_HEADS)


def _written(adapter: Adapter) -> Written:
    """LoRA, rsLoRA and DoRA: linear maps, Conv1D, convolutions, embeddings and torch's attention."""
    wrapped = attentions(adapter.updates)
    updates = without(list(adapter.updates.values()), wrapped)
    dora = {update.kind == "magnitude" for update in updates}
    if len(dora) > 1:
        raise InputError("PEFT's use_dora is for all modules or none, and this adapter mixes both")
    tensors: dict[str, Stored] = {key: stored for each in wrapped.values() for key, stored in each.keys().items()}
    for update in updates:
        refuse(update, UNCALLED in update.notes, UNCALLED)
        refuse(update, "A" not in update.roles, "PEFT's DoRA has no place for magnitudes without A and B")
        if not on_parameter(update):
            tensors |= _lora_keys(update)
    stacks = written_parameters([update for update in updates if on_parameter(update)])
    tensors |= stacks.tensors
    ranked = [(each.as_update(), each.rank) for each in wrapped.values()]
    ranked += [(by_parameter(u), u.roles["A"].shape[0]) for u in updates]
    fields = scale_fields(adapter, ranked, SCALES)
    of_layers = [u for u in updates if not (u.embedding or _like_embedding(u) or on_parameter(u))]
    transposed = {update.transposed for update in of_layers}
    config = {
        **{field: None for field in (*SHAPING, "target_parameters") if adapter.settings.get(field)},
        "peft_type": "LORA",
        "use_dora": dora == {True},
        "fan_in_fan_out": True in transposed,
        "init_lora_weights": adapter.settings.get("init_lora_weights", True),
        **stacks.fields,
        **fields,
    }
    return Written(tensors, config)


def _lora_keys(update: Update) -> dict[str, Stored]:
    start = f"{PREFIX}{update.name}"
    a, b = update.roles["A"], update.roles["B"]
    keys: dict[str, Stored]
    if update.embedding or _like_embedding(update):
        keys = {f"{start}.lora_embedding_A": a, f"{start}.lora_embedding_B": b}
    else:
        if update.kernel:
            c_in, rest = divmod(a.shape[1], math.prod(update.kernel))
            refuse(update, rest != 0, "the input axis does not divide by the kernel")
            refuse(update, any(note.startswith(GROUPED) for note in update.notes), f"{GROUPED} is not written")
            a = reshaped(a, a.shape[0], c_in, *update.kernel)
            b = reshaped(b, *b.shape, *(1,) * len(update.kernel))
        keys = {f"{start}.lora_A.weight": a, f"{start}.lora_B.weight": b}
    if "m" in update.roles:
        m, plain = update.roles["m"], not update.kernel
        keys[f"{start}.lora_magnitude_vector"] = m if plain else reshaped(m, 1, m.shape[0], *(1,) * len(update.kernel))
    return keys


def _like_embedding(update: Update) -> bool:
    """Whether an update that is not marked as one is an embedding's: transposed, under a name that embeddings have."""
    return update.transposed and (update.name.endswith(EMBEDDINGS) or "embedding" in update.name.rpartition(".")[2])


SUPPORT = (
    Support("LoRA", "PEFT's merge in float64", peft="LORA"),
    Support("rsLoRA", "PEFT's merge in float64", peft="LORA.use_rslora"),
    Support("DoRA", "PEFT's merge in float64", base="for ΔW; B·A without", peft="LORA.use_dora"),
    Support("LoRA of fused experts", "PEFT's merge in float64", peft="LORA.target_parameters"),
    Support("a bias of B", "PEFT's merge in float64", peft="LORA.lora_bias"),
    Support("activated LoRA", "PEFT's merge in float64", peft="LORA.alora_invocation_tokens"),
    Support("VeLoRA", "PEFT's merge in float64", peft="LORA.velora_config"),
    Support("replicated layers", "PEFT's merge in float64", peft="LORA.layer_replication"),
    Support("PiSSA and OLoRA", "PEFT's merge in float64", base="for ΔW; B·A without", peft="LORA.init_lora_weights"),
    Support("QALoRA", "PEFT's layer, asked for its output", peft="LORA.use_qalora"),
    Support("BD-LoRA", "PEFT's merge in float64", peft="LORA.use_bdlora"),
    Support("MonteCLoRA", "PEFT's merge in float64: the mean", peft="LORA.monteclora_config"),
    Support("Arrow", refused=_CHANGES_DELTA["arrow_config"], peft="LORA.arrow_config"),
    Support("EVA", "as LoRA: A starts elsewhere, ΔW = s·B·A", peft="LORA.eva_config"),
    Support("CorDA", "B·A alone, with a note: training started from another base", peft="LORA.corda_config"),
    Support("LoftQ", "B·A alone, with a note: training started from another base", peft="LORA.loftq_config"),
    Support("LoRA-GA", "B·A alone, with a note: training started from another base", peft="LORA.lora_ga_config"),
)
