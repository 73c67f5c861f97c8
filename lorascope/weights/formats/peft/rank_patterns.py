"""α, r and their patterns in a config that is written, so that every module gets its rank and scale back."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.peft.config import Config, ScaleFields, parse_config

_PLAIN = re.compile(r"[\w.-]+")  # a path that is its own regex


def scale_fields(adapter: Adapter, ranked: list[tuple[Update, int]], fields: ScaleFields) -> dict[str, Any]:
    """r, α and their patterns that give every module its rank and its scale: the settings' own where they do.

    Args:
        ranked: each update with its rank.
        fields: where the method's config says rank and scale.
    """
    names = ("r", fields.alpha, "rank_pattern", "alpha_pattern", "use_rslora")
    settings = {name: adapter.settings[name] for name in names if name in adapter.settings}
    complete = "r" in settings and fields.alpha in settings
    if complete and _gives(parse_config({"peft_type": "", **settings}, fields), ranked):
        return settings
    rslora = fields.rslora and bool(adapter.settings.get("use_rslora"))
    ranks = {update.name: rank for update, rank in ranked}
    alphas = {update.name: _alpha(update.scale, rank, rslora) for update, rank in ranked}
    r, alpha = _most_common(ranks.values()), _most_common(alphas.values())
    return {
        "r": r,
        fields.alpha: alpha,
        "rank_pattern": _as_pattern(ranks, r),
        "alpha_pattern": _as_pattern(alphas, alpha),
        **({"use_rslora": rslora} if fields.rslora else {}),
    }


def _gives(config: Config, ranked: Iterable[tuple[Update, int]]) -> bool:
    return all(
        config.rank_of(update.name) == rank and config.scale_of(update.name, rank) == update.scale
        for update, rank in ranked
    )


def _as_pattern(values: Mapping[str, Any], usual: Any) -> dict[str, Any]:
    """What differs from the usual, by the module's path as it is, which every PEFT understands.

    PEFT takes the first key k for which `(.*\\.)?(k)$` matches a path; up to 0.13 `.*\\.k$`, and else the path itself.
    So the path `layers.1.q` also catches `enc.layers.1.q`. A module that another's path would catch is named by what
    stands before it too, `(?<=^enc\\.)layers\\.1\\.q`, which all of them read. It comes first: JSON's keys are sorted.
    """
    unusual = [name for name, value in values.items() if value != usual]
    keyed: dict[str, list[str]] = {}
    for name in unusual:
        keyed.setdefault(_any_character(name), []).append(name)
    pattern = {}
    for name, value in values.items():
        tails = [name, *(name[i + 1 :] for i, character in enumerate(name) if character == ".")]
        catching = (other for tail in tails for other in keyed.get(_any_character(tail), ()))
        if any(other != name and values[other] != value for other in catching):
            before, dot, rest = name.partition(".")
            key = f"(?<=^{re.escape(before)}\\.){re.escape(rest)}" if dot else f"(?<=^){re.escape(name)}"
            pattern[key] = value
    return pattern | {name if _PLAIN.fullmatch(name) else f"^{re.escape(name)}": values[name] for name in unusual}


def _any_character(path: str) -> str:
    """A path in which a dot, which matches any character, is the same as what else joins words."""
    return path.replace("_", ".").replace("-", ".")


def _most_common(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _alpha(scale: float, rank: int, rslora: bool) -> float:
    divisor = math.sqrt(rank) if rslora else rank
    return exact_alpha(lambda alpha: alpha / divisor, scale, divisor)


def exact_alpha(scale_of: Callable[[float], float], scale: float, factor: float) -> float:
    """The α for which `scale_of(α)` is `scale` to the last bit, a whole number where one does; else the nearest."""
    alpha = scale * factor
    for candidate in (round(alpha), alpha, math.nextafter(alpha, math.inf), math.nextafter(alpha, -math.inf)):
        if scale_of(candidate) == scale:
            return candidate
    return alpha
