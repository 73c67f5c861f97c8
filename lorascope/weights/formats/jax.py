"""LoRA of JAX and Keras: factors stored the other way round, whose axes may be several where a layer is an einsum.

    tunix, qwix        q_proj.w_lora_a (d_in, r), q_proj.w_lora_b (r, heads, d); o_proj.w_lora_a (heads, d, r)
                       kernel_lora_a (d_in, r), kernel_lora_b (r, d_out)
    Keras, KerasHub    lora_kernel_a (d_in, r), lora_kernel_b (r, d_out)
                       lora_embeddings_a (V, r), lora_embeddings_b (r, d)

ΔW = s·(a·b)ᵀ with the axes before and after r joined. s is alpha/r, and alpha is in the training's config and not in
the file: scale 1 is reported, which is Keras's where no alpha was given, and a note says so. Sources: google/qwix,
`qwix/_src/providers/lora.py`; keras-team/keras, `layers/core/dense.py`, `einsum_dense.py`, `embedding.py`; keras-hub,
`models/backbone.py` (`save_lora_weights`).
"""

import math
import re
from typing import TYPE_CHECKING

from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.base import Bundle, Format, Ledger, Parsed, formats
from lorascope.weights.support import Support
from lorascope.weights.tensors import reshaped, transposed

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

NO_ALPHA = (
    "scale unknown: alpha is in the training's config and not in the file, so every number is that of scale 1 "
    "(alpha = r)"
)
NAMES = "KerasHub counts layers in place of naming them: lora.3 is the model's layer number 3"
RANK = "the rank, as KerasHub writes it next to the factors"
_KEY = re.compile(r"(?P<module>.+?)\.(vars\.)?(?P<kind>w_lora|kernel_lora|lora_kernel|lora_embeddings)_(?P<side>[ab])")


class Jax(Format):
    name = "jax"
    about = "JAX and Keras (tunix, qwix, KerasHub): w_lora_a, kernel_lora_a, lora_kernel_a"

    def claims(self, bundle: Bundle) -> bool:
        if bundle.config is not None and "peft_type" in bundle.config:
            return False
        return any(map(_KEY.fullmatch, bundle.tensors))

    def read(self, bundle: Bundle, ledger: Ledger, base: "Checkpoint | None" = None) -> Parsed:
        pairs: dict[tuple[str, str], dict[str, str]] = {}
        for key in bundle.tensors:
            if match := _KEY.fullmatch(key):
                sides = pairs.setdefault((match["module"], match["kind"]), {})
                if match["side"] in sides:
                    raise InputError(f"two keys mean the same: {sides[match['side']]!r} and {key!r}")
                sides[match["side"]] = key
        updates = {}
        for (module, kind), keys in pairs.items():
            if module in updates:
                raise InputError(f"two updates for one module, {module}", found=", ".join(keys.values()))
            updates[module] = _update(module, kind == "lora_embeddings", keys, ledger, base)
        for key in ledger.left():
            if re.fullmatch(r"lora\.(vars\.)?rank", key):
                ledger.skip(key, RANK)
        counted = any(re.fullmatch(r"lora\.\d+", module) for module in updates)
        return Parsed(updates, "LoRA", notes=(NO_ALPHA, *([NAMES] if counted else [])))


def _update(module: str, embedding: bool, keys: dict[str, str], ledger: Ledger, base: "Checkpoint | None") -> Update:
    if missing := {"a", "b"} - keys.keys():
        raise InputError(f"{module} is incomplete: its {missing.pop()} is missing", found=", ".join(keys.values()))
    a, b = ledger.take(keys["a"]), ledger.take(keys["b"])
    if len(a.shape) < 2 or len(b.shape) < 2 or a.shape[-1] != b.shape[0] or 0 in (*a.shape, *b.shape):
        raise InputError(
            f"{keys['a']!r} and {keys['b']!r} do not fit together",
            found=f"{tuple(a.shape)} and {tuple(b.shape)}",
            expected="(d_in, ..., r) and (r, d_out, ...)",
        )
    rank = b.shape[0]
    inward: Stored = reshaped(a, math.prod(a.shape[:-1]), rank)
    outward: Stored = reshaped(b, rank, math.prod(b.shape[1:]))
    roles = {"A": transposed(inward), "B": transposed(outward)}
    weight = base.find(module) if base is not None else None
    sides = (inward.shape[0], outward.shape[1])
    stored_transposed = embedding or (weight is not None and tuple(weight.shape) == sides and sides[0] != sides[1])
    return Update(module, "low_rank", roles, transposed=stored_transposed, embedding=embedding)


formats.register("jax")(Jax())

SUPPORT = (
    Support("JAX (tunix, qwix): LoRA saved by name", "the writers' formula in float64"),
    Support("Keras, KerasHub: LoRA (.h5 where h5py is installed)", "the writers' formula in float64"),
    Support("JAX: Orbax folders", refused="orbaxport, which the error names, converts them to safetensors"),
)
