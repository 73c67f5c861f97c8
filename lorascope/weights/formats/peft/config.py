"""`adapter_config.json`: ranks, scales and patterns, resolved for each module exactly as PEFT 0.21 does."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lorascope import patterns
from lorascope.errors import InputError
from lorascope.weights.names import ALWAYS

# Fields that every method's config has. `lora_drop` is lorascope's own: the scores by which LoRA-drop chose its layers,
# which PEFT ignores.
COMMON = frozenset(
    """
    task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode
    target_modules exclude_modules fan_in_fan_out bias modules_to_save layers_to_transform layers_pattern
    r lora_alpha rank_pattern alpha_pattern runtime_config
    """.split()  # noqa: SIM905
)

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

    def name(self, field: str, default: str) -> str:
        """A field that is one name, or absent."""
        value = self.raw.get(field, default)
        if not isinstance(value, str):
            raise InputError(f"adapter_config.json: {field} is not a name", found=value)
        return value

    def names(self, field: str) -> tuple[str, ...]:
        """A field that is a list of names, or one name, or absent."""
        value = self.raw.get(field) or ()
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
            raise InputError(f"adapter_config.json: {field} is not a list of names", found=value)
        return tuple(value)


@dataclass(frozen=True)
class ScaleFields:
    """Where a family's config says rank and scale, with PEFT's defaults. `patterns`: whether single modules may have
    others; `rslora`: whether `use_rslora` divides by √r."""

    rank: str = "r"
    default_rank: int = 8
    alpha: str = "lora_alpha"
    patterns: bool = True
    rslora: bool = False
    default_alpha: float = 8


def parse_config(raw: Mapping[str, Any] | None, fields: ScaleFields | None) -> Config:
    """A `Config` from the JSON object, with PEFT's defaults for absent fields.

    Args:
        raw: the object, None of a file without a config.
        fields: where this method's rank and scale stand; None where it has none, or the method is not known.

    Raises:
        InputError: a field that decides a scale has a wrong type or an impossible value.
    """
    values = raw or {}
    peft_type = values.get("peft_type")
    if raw is not None and not isinstance(peft_type, str):
        raise InputError("adapter_config.json has no peft_type", found=peft_type, expected="LORA, VERA, IA3, ...")
    if fields is None:
        fields = ScaleFields(rslora=True)
        values = {**values, "r": 1, "lora_alpha": 1}  # what these fields mean there does not matter here
    rank, alpha = _number(values, fields.rank, fields.default_rank), _number(values, fields.alpha, fields.default_alpha)
    if rank != int(rank) or rank < 1:
        raise InputError("adapter_config.json: the rank is not a positive integer", found=rank)
    patterned = values if fields.patterns else {}
    return Config(
        given=raw is not None,
        peft_type=peft_type.upper() if isinstance(peft_type, str) else "",
        raw=raw or {},
        rank=int(rank),
        alpha=float(alpha),
        rank_pattern=Pattern("rank_pattern", _pattern(patterned, "rank_pattern", positive=True)),
        alpha_pattern=Pattern("alpha_pattern", _pattern(patterned, "alpha_pattern", positive=False)),
        rslora=fields.rslora and bool(values.get("use_rslora")),
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
