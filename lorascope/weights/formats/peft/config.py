"""`adapter_config.json`: ranks, scales and patterns, resolved for each module exactly as PEFT 0.21 does."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorascope import patterns
from lorascope.errors import InputError, preview
from lorascope.weights.names import ALWAYS

# Every field that a PEFT config of the analysed methods can have; another one is named in the notes. `lora_drop` is
# lorascope's own: the scores by which LoRA-drop chose its layers. PEFT ignores it.
KNOWN = frozenset(
    """
    task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode
    r target_modules exclude_modules lora_alpha lora_dropout fan_in_fan_out bias use_rslora modules_to_save
    init_lora_weights layers_to_transform layers_pattern rank_pattern alpha_pattern megatron_config megatron_core
    trainable_token_indices loftq_config eva_config corda_config lora_ga_config use_dora alora_invocation_tokens
    use_qalora qalora_group_size layer_replication runtime_config lora_bias target_parameters arrow_config
    ensure_weight_tying use_bdlora velora_config monteclora_config kasa_config
    target_r init_r tinit tfinal deltaT beta1 beta2 orth_reg_weight total_step
    projection_prng_key save_projection vera_dropout d_initial init_weights
    feedforward_modules init_ia3_weights
    alpha rank_dropout module_dropout use_effective_conv2d decompose_both decompose_factor rank_dropout_scale
    token_indices
    num_virtual_tokens token_dim num_transformer_submodules num_attention_heads num_layers
    prompt_tuning_init prompt_tuning_init_text tokenizer_name_or_path tokenizer_kwargs
    encoder_hidden_size prefix_projection encoder_reparameterization_type encoder_dropout encoder_num_layers
    enable_lora merge_weights num_tasks num_ranks prompt_tuning_init_state_dict_path prompt_tuning_init_task
    lora_drop
    """.split()  # noqa: SIM905
)

# Fields that change what A and B mean, so that ΔW is no longer s·B·A.
CHANGES_DELTA = {
    "use_qalora": "QALoRA pools the input, so A has another width than the weight",
    "use_bdlora": "BD-LoRA's factors are block diagonal",
    "kasa_config": "KaSA changes the base weight and puts a diagonal between A and B",
    "monteclora_config": "MonteCLoRA samples around A and B",
    "arrow_config": "Arrow routes each token through several adapters",
}
# Initialisations that subtract something from the base weight, so that A and B do not belong to the original base.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


_WRAPPED = re.compile(rf"({'|'.join(ALWAYS)})\\?\.")


class Pattern:
    """A `rank_pattern` or `alpha_pattern`: the first key k for which `(.*\\.)?(k)$` matches the module, as in PEFT.

    The exact module path is looked up too, where no regex matches: a path with characters special to regexes.
    """

    _PLAIN = re.compile(r"[\w.]+\Z")

    def __init__(self, field: str, values: Mapping[str, float]):
        self.values = dict(values)
        self._compiled: list[tuple[str, int, patterns.Pattern]] = []
        budget = patterns.Budget()
        for key in self.values:
            # A plain key matches its own length of the path: checking that first spares a regex per module and key.
            text = _WRAPPED.sub("", key)  # modules' names come without wrappers
            length = len(text) if self._PLAIN.match(text) else 0
            where = f"adapter_config.json: a key of {field}"
            self._compiled.append((key, length, patterns.Pattern(text, where, r"(.*\.)?(", ")$", budget)))

    def get(self, module: str, default: float) -> float:
        for key, length, regex in self._compiled:
            if length and not (len(module) == length or module[-length - 1 : -length] == "."):
                continue
            if regex.match(module):
                return self.values[key]
        return self.values.get(module, default)


@dataclass(frozen=True)
class Config:
    """What a config says about scale, for any module. `given` is False for a bare file: then every scale is 1."""

    given: bool
    peft_type: str
    raw: Mapping[str, Any]
    rank: int
    alpha: float
    rank_pattern: Pattern
    alpha_pattern: Pattern
    rslora: bool

    def rank_of(self, module: str) -> int:
        return int(self.rank_pattern.get(module, self.rank))

    def scale_of(self, module: str, rank: int) -> float:
        """α/r or α/√r, with this module's α and the config's r for it; 1 for a bare file."""
        if not self.given:
            return 1.0
        alpha = self.alpha_pattern.get(module, self.alpha)
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank

    def flag(self, name: str) -> bool:
        return bool(self.raw.get(name))

    def names(self, field: str) -> tuple[str, ...]:
        """A field that is a list of names, or one name, or absent."""
        value = self.raw.get(field) or ()
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
            raise InputError(f"adapter_config.json: {field} is not a list of names", found=value)
        return tuple(value)


def parse_config(raw: Mapping[str, Any] | None) -> Config:
    """A `Config` from the JSON object, with PEFT's defaults for absent fields.

    Raises:
        InputError: a field that decides a scale has a wrong type or an impossible value.
    """
    values = raw or {}
    kind = values.get("peft_type")
    if raw is not None and not isinstance(kind, str):
        raise InputError("adapter_config.json has no peft_type", found=kind, expected="LORA, VERA, IA3, ...")
    if raw is not None and kind not in ("LORA", "ADALORA", "VERA", "LOHA", "LOKR"):
        values = {**values, "r": 1, "lora_alpha": 1}  # no scale: what these fields mean there does not matter here
    lycoris = kind in ("LOHA", "LOKR")
    adalora = kind == "ADALORA"
    vera = kind == "VERA"
    rank = _number(values, "init_r" if adalora else "r", 12 if adalora else 256 if vera else 8)
    alpha = _number(values, "alpha" if lycoris else "lora_alpha", 8)
    if rank != int(rank) or rank < 1:
        raise InputError("adapter_config.json: the rank is not a positive integer", found=rank)
    empty = adalora  # its rank_pattern is a mask over triplets, not a rank
    return Config(
        given=raw is not None,
        peft_type=(kind or "").upper() if isinstance(kind, str) else "",
        raw=raw or {},
        rank=int(rank),
        alpha=float(alpha),
        rank_pattern=Pattern("rank_pattern", {} if empty else _pattern(values, "rank_pattern", positive=True)),
        alpha_pattern=Pattern("alpha_pattern", {} if empty else _pattern(values, "alpha_pattern", positive=False)),
        rslora=bool(values.get("use_rslora")) and not lycoris and not adalora,
    )


def _number(values: Mapping[str, Any], field: str, default: float) -> float:
    value = values.get(field, default)
    if type(value) not in (int, float) or not math.isfinite(value):
        raise InputError(f"adapter_config.json: {field} is not a number", found=value)
    return value


def _pattern(values: Mapping[str, Any], field: str, *, positive: bool) -> dict[str, float]:
    value = values.get(field) or {}
    if not isinstance(value, dict):
        raise InputError(f"adapter_config.json: {field} is not a map from module patterns to numbers", found=value)
    for key, number in value.items():
        whole = type(number) is int and number >= 1
        if not (whole if positive else type(number) in (int, float) and math.isfinite(number)):
            raise InputError(
                f"adapter_config.json: {field}[{key!r}] is not a {'rank' if positive else 'number'}", found=number
            )
    return value


def notes_of(config: Config) -> list[str]:
    """What the config says that a reader of the numbers should know."""
    if not config.given:
        return [
            "scale unknown: there is no adapter_config.json beside this file, so α, rsLoRA and patterns are not known; "
            "every number is that of B·A with scale 1"
        ]
    notes = []
    unknown = sorted(set(config.raw) - KNOWN)
    if unknown:
        notes.append(f"adapter_config.json has fields lorascope does not know, and does not apply: {preview(unknown)}")
    init = config.raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(CHANGES_BASE):
        more = "ΔW of the original base needs that base" if init in ("pissa", "olora") else "ΔW here is relative to it"
        notes.append(
            f"init_lora_weights is {init!r}: training started from a base from which the initial B·A was taken away; "
            f"{more}"
        )
    if config.flag("alora_invocation_tokens"):
        notes.append("activated LoRA: the update applies only after the invocation tokens")
    if config.flag("layer_replication"):
        notes.append("layer_replication: module paths are those of the replicated model, not of the base checkpoint")
    return notes
