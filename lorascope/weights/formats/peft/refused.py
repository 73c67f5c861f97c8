"""PEFT's tuners that are recognised and not read, each with the reason."""

from lorascope.errors import preview
from lorascope.weights.formats.base import Ledger
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.family import Context, Family, Rest, families
from lorascope.weights.formats.peft.recognise import method_not_read
from lorascope.weights.support import Support

LATER = "recognised by name only"
REASONS = {
    "ADAPTION_PROMPT": "learned tokens that attention reads next to the text, and no change of a weight",
    "SHADOW": "a second network next to the model, and no change of a weight",
    "XLORA": "mixes several adapters for each token, each scaled by a classifier",
}


_NAMES = {"ADAPTION_PROMPT": "LLaMA-Adapter", "SHADOW": "Shadow", "XLORA": "X-LoRA"}


class Refused(Family):
    """Types without a kind of update: every tensor of theirs is skipped by name."""

    peft_types = dict.fromkeys(REASONS, frozenset())

    def unreadable(self, config: Config) -> str:
        return _reason(config)

    def read_rest(self, ledger: Ledger, context: Context) -> Rest:
        type = context.config.peft_type
        keys = [key for key in ledger.left() if type in REASONS and method_not_read(key)]
        for key in keys:
            ledger.skip(key, _reason(context.config))
        return Rest()


families.register("refused")(Refused())


def _reason(config: Config) -> str:
    """Why this file is not read; of X-LoRA, where the adapters are that it mixes."""
    reason = f"{_NAMES.get(config.peft_type, config.peft_type)}: {REASONS[config.peft_type]}"
    mixed = config.raw.get("adapters")
    if config.peft_type == "XLORA" and isinstance(mixed, dict) and mixed:
        reason += f"; analyse these, which are files of their own: {preview(map(str, mixed.values()))}"
    return reason


SUPPORT = tuple(Support(_NAMES.get(type, type), refused=reason, peft=type) for type, reason in REASONS.items())
