"""Keys that a format did not understand: which of them could change ΔW, and which stand elsewhere.

A scale, a mask, a diagonal or a second factor stands next to the factors it acts on, in the same module, or above. So
a key that nobody understands refuses the file where its module is one of the updates' or holds one, where it stands
above all modules, or where its name speaks of an adapter or of something that acts on others. Any other one, a norm's
own parameter say, is listed as skipped, by name.
"""

import re
from collections.abc import Iterable

from lorascope.weights.formats.base import Ledger
from lorascope.weights.names import plain

STATE = "._extra_state"  # what torch's get_extra_state gives for a layer
SKIPPED = "not understood, and skipped: it belongs to no module that has an update"

# The first segment of a key that is a format's role and no module's name; the module's path ends before it.
_ROLE = re.compile(
    r"(lora|vera|ia3|hada|lokr|oft|boft|loras?|dora|diff|processor|magnitude|alpha|scalar|rescale|w_norm|b_norm"
    r"|on_input|a[12]|b[12]|bm|ranknum|set_weight|reshape_weight|linear_in|linear_out|modules_to_save|base_layer"
    r"|trainable_tokens|token_adapter|ln_tuning)(_\w+)?$|\w+_lora\d*$"
)
_WORDS = re.compile(r"(^|[._])(lora|loha|lokr|hada|dora|adapter|alpha|rank|vera|ia3|oft)s?([._\d]|$)", re.I)


# Words for what multiplies, hides or chooses something else.
_ACTS = re.compile(r"scal(e|ing|ar)|multiplier|mask|gate|router|gain|strength|coef|magnitude|lambda", re.I)


def modules_of(keys: Iterable[str]) -> set[str]:
    """The paths of the modules that keys of an adapter belong to, without PEFT's prefix."""
    modules = set()
    for key in keys:
        segments = plain(key).split(".")
        end = next((i for i, segment in enumerate(segments) if i and _ROLE.match(segment)), len(segments) - 1)
        modules.add(".".join(segments[:end]))
    return modules - {""}


def changes_delta(key: str, modules: set[str]) -> bool:
    """Whether a key that nobody understands might be part of an update."""
    segments = plain(key).split(".")
    below = any(".".join(segments[:end]) in modules for end in range(1, len(segments)))
    owner = ".".join(segments[:-1])
    above = any(module.startswith(f"{owner}.") for module in modules)
    return below or above or len(segments) == 1 or bool(_WORDS.search(key) or _ACTS.search(segments[-1]))


def skip_what_stands_elsewhere(ledger: Ledger) -> list[str]:
    """Set aside every key left over that is part of no update; the keys.

    The others stay left over, and refuse the file.
    """
    for key in ledger.left():
        if key.endswith(STATE):
            ledger.skip(key, "a layer's own state (TransformerEngine's scales for fp8), and no weight")
    modules = modules_of(ledger.taken)
    elsewhere = [key for key in ledger.left() if not changes_delta(key, modules)]
    for key in elsewhere:
        ledger.skip(key, SKIPPED)
    return elsewhere
