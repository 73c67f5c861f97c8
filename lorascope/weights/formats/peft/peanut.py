"""PEANuT in PEFT's files: a small network of W, by the weights of its layers.

    peanut_A.weight (r, d_out), peanut_B.weight (d_out, r), peanut_encoders.N.weight and peanut_decoders.N.weight (r, r)

PEFT 0.21.2, tuners/peanut/layer.py; `scaling` multiplies the result, and is not divided by r.
"""

import re

import numpy as np

from lorascope.errors import InputError, preview
from lorascope.updates.base import Stored, Update
from lorascope.updates.peanut import NONLINEARITIES
from lorascope.weights.formats.base import Ledger
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.family import Context, Family, Rest, families
from lorascope.weights.formats.peft.rest import keys_by_module, need, numbered
from lorascope.weights.support import Support
from lorascope.weights.tensors import Combined

_KEY = re.compile(r"(?P<module>.+)\.peanut_(?P<role>A|B|encoders\.\d+|decoders\.\d+)\.weight")
# transformers' names of the nonlinearities that are known; gelu_fast and gelu_new differ in the digits of a constant.
_NAMES = {name: name for name in NONLINEARITIES} | {
    "swish": "silu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_python_tanh": "gelu_tanh",
}  # fmt: skip


class Peanut(Family):
    peft_types = {"PEANUT": frozenset(f"peanut_{name}" for name in NONLINEARITIES)}
    methods = {f"peanut_{name}": "PEANuT" for name in NONLINEARITIES}
    rest_keys = frozenset({"peanut_"})
    fields = "depth act_fn scaling init_weights"

    def read_rest(self, ledger: Ledger, context: Context) -> Rest:
        modules = keys_by_module(ledger, _KEY)
        if not modules:
            return Rest()
        name, scale = context.config.name("act_fn", "relu"), _scale(context.config)
        if name not in _NAMES or not context.config.given:
            for key in (key for keys in modules.values() for key in keys.values()):
                ledger.skip(key, f"PEANuT: {_unknown(name) if context.config.given else NO_CONFIG}")
            return Rest(methods=("PEANuT",))
        updates = {}
        for module, keys in modules.items():
            need(module, keys, "A", "B")
            roles: dict[str, Stored] = {"down": ledger.take(keys["A"]), "up": ledger.take(keys["B"])}
            for part in ("encoders", "decoders"):
                if layers := [ledger.take(key) for key in numbered(keys, part)]:
                    roles[part] = _stacked(module, part, layers)
            updates[module] = Update(module, f"peanut_{_NAMES[name]}", roles, scale)
        return Rest(updates, methods=("PEANuT",))


families.register("peanut")(Peanut())
NO_CONFIG = "without adapter_config.json its nonlinearity is unknown"


def _unknown(name: str) -> str:
    return f"its nonlinearity is {name[:40]!r}, supported: {preview(_NAMES)}"


def _scale(config: Config) -> float:
    scale = config.raw.get("scaling", 1.0)
    if type(scale) not in (int, float):
        raise InputError("adapter_config.json: scaling is not a number", found=scale)
    return float(scale)


def _stacked(module: str, part: str, layers: list[Stored]) -> Stored:
    """(depth, r, r). InputError where the layers differ in shape."""
    shapes = {tuple(layer.shape) for layer in layers}
    if len(shapes) != 1:
        raise InputError(f"the {part} of {module} differ in shape", found=sorted(shapes))
    return Combined(tuple(layers), (len(layers), *shapes.pop()), lambda *arrays: np.stack(arrays))


SUPPORT = (Support("PEANuT", "PEFT's merge in float64", base="for ΔW", peft="PEANUT"),)
