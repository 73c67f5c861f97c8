"""A method's settings by our names or by PEFT's, from a config's keys or from Python's keywords."""

from collections.abc import Collection, Mapping
from typing import Any

from lorascope.errors import InputError
from lorascope.schema import build

# PEFT's names of settings that have another one here.
ALIASES = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets"}
# PEFT's settings that have no equal here, and what to write.
ELSEWHERE = {
    "use_dora": 'name the method "dora"',
    "init_lora_weights": "write init",
    "lora_bias": "biases of B are not supported",
    "bias": 'to train the base\'s biases name the method "bitfit"',
    "task_type": "it has no effect on training; leave it out",
    "inference_mode": "it has no effect on training; leave it out",
}


def settings_of(method: str, config: type, settings: Mapping[str, Any]) -> Any:
    """An instance of the dataclass `config` with these settings and its defaults for the rest.

    Args:
        method: the method's name, for messages.

    Raises:
        InputError: a setting is unknown, ill-typed or out of range; all of them in one sentence, with near names.
    """
    problems: list[str] = []
    made = build(config, settings, "", problems, ALIASES)
    if problems:
        hints = [f"{name}: {ELSEWHERE[name]}" for name in settings if name in ELSEWHERE and not hasattr(config, name)]
        raise InputError(f"wrong settings of {method}: {'; '.join(problems)}", hint="; ".join(hints) or None)
    return made


def targets_of(targets: str | Collection[str] | None, settings: dict[str, Any]) -> str | list[str] | None:
    """The targets under either of their names; PEFT's is taken out of `settings`."""
    by_peft = settings.pop("target_modules", None)
    if targets is not None and by_peft is not None:
        raise InputError("targets and target_modules are the same setting", hint="give one of them")
    chosen = by_peft if targets is None else targets
    return chosen if chosen is None or isinstance(chosen, str) else list(chosen)
