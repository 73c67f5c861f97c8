"""LayerNorm tuning in PEFT's files: the tuned gain and offset of every norm, stored whole.

PEFT takes any module that is named (PEFT 0.21.2, tuners/ln_tuning/model.py): a linear map's matrix is stored whole too.
"""

import re

from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.base import Ledger
from lorascope.weights.formats.peft.family import Context, Family, Rest, Written, families
from lorascope.weights.formats.peft.keys import PREFIX, body
from lorascope.weights.support import Support
from lorascope.weights.tensors import flattened, reshaped

_KEY = re.compile(r"^(?P<module>.+)\.ln_tuning_layers(?:\.(?P<adapter>[^.]+))?\.(?P<parameter>weight|bias)$")


class LayerNormTuning(Family):
    peft_types = {"LN_TUNING": frozenset({"tuned"})}
    methods = {"tuned": "LayerNorm tuning"}
    kinds_written = frozenset({"tuned"})

    def read_rest(self, ledger: Ledger, context: Context) -> Rest:
        return Rest(norms(ledger))

    def write(self, adapter: Adapter) -> Written:
        tensors, modules = norm_keys(dict(adapter.updates))
        return Written(tensors, {"peft_type": "LN_TUNING", "target_modules": modules})


families.register("layernorm")(LayerNormTuning())


def norms(ledger: Ledger) -> dict[str, Update]:
    """Updates, those of vectors as (d, 1), by the parameter's name, `layers.0.norm.weight`, and those of the weights of
    other layers by the layer's; their keys are taken.

    Raises:
        InputError: a key holds no entries, or the file holds several adapters.
    """
    updates: dict[str, Update] = {}
    names: set[str] = set()
    for key in ledger.left():
        match = _KEY.match(body(key))
        if match is None:
            continue
        name, shape = f"{match['module']}.{match['parameter']}", tuple(ledger.peek(key).shape)
        if not shape or 0 in shape:
            raise InputError(f"{key} has no entries", found=shape, expected="(d,), or a matrix")
        if name in names:
            raise InputError(f"the file holds {name} twice", found=key, expected="one adapter")
        names.add(name)
        stored = ledger.take(key)
        tuned = reshaped(stored, shape[0], 1) if len(shape) == 1 else flattened(stored)
        layer = match["module"] if len(shape) > 1 and match["parameter"] == "weight" else name
        updates[layer] = Update(layer, "tuned", {"tuned": tuned}, kernel=shape[2:], base_weight=name)
    return updates


def norm_keys(updates: dict[str, Update]) -> tuple[dict[str, Stored], list[str]]:
    """Tensors by PEFT's keys, and the modules they belong to. InputError where an update is not a norm's vector."""
    tensors: dict[str, Stored] = {}
    for update in updates.values():
        module, _, parameter = (update.base_weight or update.name).rpartition(".")
        if update.shape[1] != 1 or parameter not in ("weight", "bias") or update.scale != 1:
            raise InputError(
                f"{update.name}: PEFT stores tuned weights of norms only", hint="write lorascope's own layout"
            )
        tensors[f"{PREFIX}{module}.ln_tuning_layers.{parameter}"] = reshaped(update.roles["tuned"], update.shape[0])
    return tensors, list(dict.fromkeys((u.base_weight or u.name).rpartition(".")[0] for u in updates.values()))


SUPPORT = (Support("LayerNorm tuning", "PEFT's merge in float64", base="for ΔW", peft="LN_TUNING"),)
