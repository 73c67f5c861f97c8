"""Which models store a weight as (d_in, d_out): the module's class decides it, and of a square no shape can tell.

transformers' Conv1D in GPT-2 and its kin; and fused experts whose class says `is_transposed` (transformers 5.23).
"""

import re
from collections.abc import Mapping
from typing import Any

_CONV1D = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)$")
_CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp")
_TRANSPOSED_EXPERTS = ("gpt_oss", "aria", "aria_text", "openai_privacy_filter")


def is_conv1d(module: str, config: Mapping[str, Any]) -> bool | None:
    """Whether a module is transformers' Conv1D; None where the base's config does not say which model it is."""
    kind = config.get("model_type")
    return None if kind is None else kind in _CONV1D_MODELS and _CONV1D.search(module) is not None


def looks_like_conv1d(module: str) -> bool:
    """Whether a module has one of the names that Conv1D has in GPT-2."""
    return _CONV1D.search(module) is not None


def experts_turned(config: Mapping[str, Any]) -> bool | None:
    """Whether fused experts are stored (experts, d_in, d_out); None where the config does not say which model it is."""
    kinds = [config.get("model_type")]
    if isinstance(config.get("text_config"), Mapping):
        kinds.append(config["text_config"].get("model_type"))
    known = [kind for kind in kinds if kind is not None]
    return any(kind in _TRANSPOSED_EXPERTS for kind in known) if known else None
