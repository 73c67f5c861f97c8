"""Parameters by the names that transformers gives them in memory, where a file keeps older ones (ViT, DINOv2, ...).

transformers 5 renames while it loads, by a table for each class of model, and puts the prefix of the class's base model
in front of the names of a file that lacks it. Adapters are written with the names in
memory, checkpoints with those of the file. The table is transformers' own, and is asked only where a name is not found.
"""

from collections.abc import Iterable, Mapping
from typing import Any


def names_in_memory(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """Stored names by what transformers calls them, where that is another name and the tensor stays as it is.

    Empty where transformers does not know the model, has no such table, or is not there.
    """
    names = list(names)
    try:
        pairs = zip(names, _renamed(config, names), strict=True)
        on_disk = {new: name for name, new in pairs if new not in (None, name)}
    except Exception:  # tables of another version, a config that no class takes: then there is nothing to rename
        return {}
    taken = set(names)
    return {str(new): name for new, name in on_disk.items() if new not in taken}


def parameter_order(config: Mapping[str, Any]) -> list[str]:
    """The names of the model's parameters in the order in which its class has them; empty where transformers does not
    know the class that the config names, or is not there."""
    try:
        return [name for name, _ in _without_weights(config).named_parameters(remove_duplicate=False)]
    except Exception:  # a config that no class takes
        return []


def _without_weights(config: Mapping[str, Any]) -> Any:
    """The model that a config describes, on the meta device."""
    import torch
    import transformers

    cls = getattr(transformers, config["architectures"][0])
    built = transformers.AutoConfig.for_model(**config)
    with torch.device("meta"):
        return cls(built)


def _renamed(config: Mapping[str, Any], names: list[str]) -> list[str | None]:
    """The new name of each; None of one that is taken apart or joined with others."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    model = _without_weights(config)
    table = get_model_conversion_mapping(model)
    renamings = [one for one in table if isinstance(one, WeightRenaming)]
    converters = [one for one in table if isinstance(one, WeightConverter)]
    there = model.state_dict()
    renamed = (rename_source_key(name, renamings, converters, model.base_model_prefix, there) for name in names)
    return [new if source is None else None for new, source in renamed]
