"""The order in which PEFT meets the modules of a model: where an adapter's numbers are dealt out by it.

PEFT walks the model's modules as its class defines them. A safetensors file has them by name instead, so the order is
that of the model's class, built without its weights; of a model in memory, and of a pickled state dict, it is theirs.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lorascope.errors import InputError
from lorascope.patterns import Pattern
from lorascope.weights import names as naming
from lorascope.weights.conversion import parameter_order
from lorascope.weights.file_names import PICKLES
from lorascope.weights.formats.peft.config import Config

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint


def in_order(modules: Iterable[str], base: "Checkpoint | None") -> list[str]:
    """The modules in the model's order. InputError where it is not known, or one is not the model's."""
    known = {naming.plain(name): index for index, name in enumerate(modules_of(base))}
    for name, index in list(known.items()):
        for rest in naming.rootless(name):
            known.setdefault(rest, index)
    places = {}
    for module in modules:
        spelled = (module, *naming.rootless(module))
        place = next((known[one] for one in spelled if one in known), None)
        if place is None:
            raise InputError(f"the base has no module {module}", hint="is it the base model that this was trained on?")
        places[module] = place
    return sorted(places, key=lambda module: places[module])


def modules_of(base: "Checkpoint | None") -> list[str]:
    """All modules with a weight, in the order of the model's class."""
    what = "the numbers are dealt out in the order of the model's modules"
    if base is None:
        raise InputError(f"{what}, which is not in the file", hint="pass --base MODEL")
    kept = all(path.name.lower().endswith(PICKLES) for path in base.tensors.files)  # none of a model in memory
    parameters = list(base.stored) if kept else parameter_order(base.config)
    if not parameters:
        raise InputError(
            f"{what}, which its weights' file does not tell, and config.json names no class of transformers",
            hint="give the base as a model in memory, or with its config.json",
        )
    return [name.removesuffix(".weight") for name in parameters if name.endswith(".weight")]


def targeted(config: Config, modules: Iterable[str]) -> list[str]:
    """Of the modules, those that PEFT's config targets. InputError where it says so in a way that is not known here."""
    raw = config.raw
    if any(raw.get(field) for field in ("layers_to_transform", "layers_pattern")):
        raise InputError("which modules are adapted is told by layers_to_transform, which is not read here")
    wanted = _matcher(raw.get("target_modules"), "target_modules")
    excluded = _matcher(raw.get("exclude_modules"), "exclude_modules") if raw.get("exclude_modules") else None
    return [name for name in modules if wanted(name) and not (excluded and excluded(name))]


def _matcher(value: Any, field: str):
    """PEFT's test: a string is a regex for the whole path, a list has names or ends of paths."""
    if isinstance(value, str):
        pattern = Pattern(value, f"adapter_config.json: {field}")
        return lambda name: pattern.fullmatch(name) is not None
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise InputError(f"adapter_config.json: {field} does not say which modules are adapted", found=value)
    return lambda name: any(name == one or name.endswith(f".{one}") for one in value)
