"""Adapters that are modules of their own between a model's layers: recognised whole, and no update of a weight.

    AdapterHub   ….adapters.NAME.adapter_down.0.weight, .adapter_up.weight; prefix_tunings.NAME., refts.NAME., ...
    NeMo         ….adapter_layer.adapter_1.linear_in.weight

Each has a nonlinearity, a position or a hidden state of its own, so that no ΔW says what it does. The tensors are the
adapter's `non_weight_tensors`: counted, listed and not analysed. Sources: adapter-hub/adapters,
`src/adapters/methods/`; NVIDIA/NeMo, `adapter_mixins.py`. LoRA of AdapterHub is `loralib.py`'s, NeMo's `nemo.py`'s.
"""

import re
from typing import TYPE_CHECKING

from lorascope.updates.base import Stored
from lorascope.weights.formats.base import Bundle, Format, Ledger, Parsed, formats
from lorascope.weights.support import Support

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

BOTTLENECK = "bottleneck: a small network between two layers, and no update of a weight"
_OF_ADAPTERHUB = {
    r"\.adapters\.[^.]+\.": BOTTLENECK,
    r"(^|\.)invertible_adapters\.[^.]+\.": "invertible adapter: a small network after the embedding",
    r"(^|\.)shared_parameters\.[^.]+\.(W_|s_|phm)": "factors that the bottlenecks of a compacter share",
    r"\.adapter_fusion_layer\.": "AdapterFusion: attention over several bottlenecks",
    r"(^|\.)prefix_tunings?\.|(^|\.)prefix_gates\.": "prefix tuning: keys and values of virtual tokens",
    r"(^|\.)prompt_tunings?\.": "prompt tuning: embeddings of virtual tokens",
    r"\.refts\.[^.]+\.": "ReFT: it edits hidden states",
}
_OF_NEMO = {r"\.adapter_layer\.adapter_\d+\.": BOTTLENECK, r"\.adapter_layer\.infused_adapter": "(IA)³ of activations"}
_REASONS = tuple((re.compile(pattern), reason) for pattern, reason in (_OF_ADAPTERHUB | _OF_NEMO).items())
_LORA = re.compile(r"\.loras\.[^.]+\.|\.lora_\w+")


class Bottlenecks(Format):
    name = "bottlenecks"
    about = "AdapterHub's and NeMo's adapters that are modules of their own: recognised, and no update of a weight"

    def claims(self, bundle: Bundle) -> bool:
        if bundle.config is not None and ("peft_type" in bundle.config or "format" in bundle.config):
            return False
        return any(map(reason_of, bundle.tensors)) and not any(map(_LORA.search, bundle.tensors))

    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        saved, reasons = take_parts(ledger)
        config = (bundle.config or {}).get("config")
        methods = dict.fromkeys(reason.partition(":")[0] for reason in reasons.values())
        settings = dict(config) if isinstance(config, dict) else {}
        return Parsed({}, " + ".join(methods), settings, saved, non_weight_tensors=reasons)


def reason_of(key: str) -> str | None:
    """Why a tensor is no update of a weight, by its key; None where the key does not say so."""
    return next((reason for pattern, reason in _REASONS if pattern.search(key)), None)


def take_parts(ledger: Ledger) -> tuple[dict[str, Stored], dict[str, str]]:
    """The tensors of such modules that are not yet accounted for, taken; and why each is no update of a weight."""
    reasons = {key: reason for key in ledger.left() if (reason := reason_of(key)) is not None}
    return {key: ledger.take(key) for key in reasons}, reasons


formats.register("bottlenecks")(Bottlenecks())

SUPPORT = (
    Support(
        "AdapterHub: bottlenecks, prefixes, ReFT", refused="modules of their own: listed, and no update of a weight"
    ),
    Support("NeMo: bottlenecks", refused="modules of their own: listed, and no update of a weight"),
)
