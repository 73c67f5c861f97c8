"""PEFT's tuners that are recognised and not read, each with the reason."""

from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.family import Family, families
from lorascope.weights.support import Support

LATER = "recognised by name only"
REASONS = {
    "ADAPTION_PROMPT": "learned tokens that attention reads besides the text, and no change of a weight",
    "SHADOW": "a second network beside the model, and no change of a weight",
    "XLORA": "mixes several adapters for each token, each scaled by a classifier",
}


class Refused(Family):
    """Types without a kind of update: every tensor of theirs is skipped by name."""

    peft_types = dict.fromkeys(REASONS, frozenset())

    def unreadable(self, config: Config) -> str:
        return f"{config.peft_type}: {REASONS[config.peft_type]}"


families.register("refused")(Refused())

SUPPORT = tuple(Support(type, refused=reason, peft=type) for type, reason in REASONS.items())
