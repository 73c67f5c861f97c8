"""When s·B·A is not what is added to the base that the user has: what every command that adds it must refuse or say."""

from lorascope.weights.adapter import Adapter
from lorascope.weights.peft.config import CHANGES_BASE

_COMPUTED = ("pissa", "olora")  # kinds of update whose formula takes the start away again


def of_another_base(adapter: Adapter) -> str | None:
    """Why ΔW belongs to a base that is not the original one; None where it belongs to the original.

    PEFT's CorDA, LoftQ, LoRA-GA and PiSSA by randomised SVD take the start of B·A away from W, which cannot be computed
    again: it depends on data, on a quantisation or on random numbers.
    """
    start = adapter.settings.get("init_lora_weights")
    if not isinstance(start, str) or not start.lower().startswith(CHANGES_BASE):
        return None
    if adapter.updates and all(update.kind in _COMPUTED for update in adapter.updates.values()):
        return None
    return f"A and B belong to a base from which their beginning was taken away (init_lora_weights {start!r})"


def not_for_all_tokens(adapter: Adapter) -> str | None:
    """Why the update is no fixed change of a weight; None where it is one."""
    if adapter.settings.get("alora_invocation_tokens"):
        return "an activated LoRA (aLoRA) applies only to tokens after its invocation tokens"
    return None
