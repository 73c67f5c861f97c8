"""Writing `target_parameters`: the factors of all experts of a parameter in one A and one B, as PEFT has them.

A (E·r, d_in) has expert after expert, B (d_out, r·E) rank after rank with the experts next to each other. Wrappers of
several parameters of one module are nested in the order in which the module registers them, the first innermost.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lorascope.architectures import EXPERT_PARAMETERS
from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.peft.family import Written
from lorascope.weights.formats.peft.keys import PREFIX
from lorascope.weights.tensors import InMemory

# torch's attention reads the weight of its out_proj and never calls it, so what PEFT would put there has no effect.
UNCALLED = "PEFT has no place for an update of out_proj alone in torch's attention"


def on_parameter(update: Update) -> bool:
    """Whether it changes a parameter that is no layer's weight: an expert of a stack, `in_proj_weight`."""
    return update.expert is not None or (update.base_weight or "weight").rpartition(".")[2] != "weight"


def by_parameter(update: Update) -> Update:
    """The update under the name that patterns of rank and alpha have for it: an expert's is its parameter's."""
    return replace(update, name=update.base_weight or update.name) if on_parameter(update) else update


def written_parameters(updates: Sequence[Update]) -> Written:
    """The keys of these updates, and `target_parameters`.

    Raises:
        InputError: an expert is missing, or the experts of one parameter differ in rank.
    """
    modules: dict[str, dict[str, list[Update]]] = {}
    for update in updates:
        module, _, parameter = (update.base_weight or update.name).rpartition(".")
        modules.setdefault(module, {}).setdefault(parameter, []).append(update)
    tensors: dict[str, Stored] = {}
    order = {name: place for place, name in enumerate(EXPERT_PARAMETERS)}
    names = []
    for module, parameters in modules.items():
        ordered = sorted(parameters, key=lambda name: (order.get(name, len(order)), name))
        for place, parameter in enumerate(ordered):
            names.append(f"{module}.{parameter}")
            path = f"{PREFIX}{module}{'.base_layer' * (len(ordered) - 1 - place)}"
            a, b = _factors(names[-1], parameters[parameter])
            tensors |= {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}
    return Written(tensors, {"target_parameters": names} if names else {})


def _factors(name: str, updates: Sequence[Update]) -> tuple[Stored, Stored]:
    by_expert = sorted(updates, key=lambda update: update.expert or 0)
    numbers = [update.expert for update in by_expert]
    if len({update.rank for update in by_expert}) > 1 or numbers not in ([None], list(range(len(by_expert)))):
        raise InputError(f"PEFT's file has all experts of {name} at one rank, or none", found=f"experts {numbers}")
    roles = [update.read() for update in by_expert]
    dtype = by_expert[0].roles["A"].dtype
    kind = np.float64 if dtype == "F64" else np.float32
    a = np.concatenate([np.asarray(each["A"], kind) for each in roles])
    b = np.stack([np.asarray(each["B"], kind) for each in roles], axis=-1)  # (d_out, r, E)
    stored_as = "F64" if dtype == "F64" else "F32"
    return InMemory(a, stored_as), InMemory(b.reshape(len(b), -1), stored_as)
