"""Writing PEFT's layout: the two files that `PeftModel.from_pretrained` loads.

Each array keeps its dtype, bit for bit. The same adapter gives the same bytes: keys are ordered, and nothing of the day
or the machine is written.
"""

from pathlib import Path
from typing import Any

from lorascope.errors import InputError
from lorascope.outputs import write_json
from lorascope.patterns import Pattern
from lorascope.updates.base import Stored
from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.base import refuse_loss
from lorascope.weights.formats.peft.attention_written import attentions, without
from lorascope.weights.formats.peft.experts_written import on_parameter
from lorascope.weights.formats.peft.family import Family
from lorascope.weights.formats.peft.keys import PREFIX
from lorascope.weights.formats.peft.recognise import all_families, family_of_type, known_fields
from lorascope.weights.safetensors import write_safetensors


def write_peft(adapter: Adapter, folder: Path) -> list[Path]:
    """Write `adapter` into `folder`; the two files.

    Raises:
        InputError: PEFT has no place for this adapter: kinds of several methods, or a shape that no module of PEFT has.
        LorascopeError: the folder cannot be written; nothing half-written is left.
    """
    refuse_loss(adapter)
    family = _family(adapter)
    if (written_files := family.write_files(adapter, folder)) is not None:
        return written_files
    written = family.write(adapter)
    saved, saved_fields = _saved(adapter)
    rows, rows_fields = _rows(adapter)
    tensors = {**written.tensors, **saved, **rows, **_base_copies(adapter)}
    targets = {"target_modules": _targets(adapter)}
    config = {**_passed_on(adapter), **targets, **written.fields, **saved_fields, **rows_fields, "inference_mode": True}
    files = [folder / "adapter_model.safetensors", folder / "adapter_config.json"]
    write_safetensors(files[0], tensors, {"format": "pt", **written.metadata})
    write_json(files[1], config, sort_keys=True)
    return files


def _family(adapter: Adapter) -> Family:
    """The family that has a place for all kinds of this adapter; that of the settings' PEFT type before others."""
    by_type = family_of_type(adapter.settings.get("peft_type"))
    if by_type is not None and not by_type.kinds_written and by_type.peft_types[adapter.settings["peft_type"]]:
        raise InputError(f"lorascope reads PEFT's {adapter.settings['peft_type']} and does not write it")
    for family in (*((by_type,) if by_type is not None else ()), *all_families()):
        if family.can_write(adapter):
            return family
    raise InputError(
        "PEFT's layout holds one method in a file",
        found=", ".join(sorted({update.kind for update in adapter.updates.values()})) or "no updates",
        expected="updates that one PEFT config can describe",
    )


def _passed_on(adapter: Adapter) -> dict[str, Any]:
    """Fields of the settings that PEFT knows, as they were; not those of old PEFT's fused layers, written as one."""
    fields = known_fields()
    dropped = ("auto_mapping", "enable_lora", "merge_weights")
    kept = {key: value for key, value in adapter.settings.items() if key in fields and key not in dropped}
    return {"base_model_name_or_path": None, "task_type": None, **kept}


def _targets(adapter: Adapter) -> Any:
    """`target_modules` as it was, where that still names every module by PEFT's rule; else their exact paths."""
    wrapped = attentions(adapter.updates)
    names = [*wrapped, *(u.name for u in without(list(adapter.updates.values()), wrapped) if not on_parameter(u))]
    if adapter.updates and not names:
        return None
    named = adapter.settings.get("target_modules")
    if isinstance(named, list) and all(any(n == t or n.endswith(f".{t}") for t in named) for n in names):
        return named
    if isinstance(named, str):
        pattern = Pattern(named, "adapter_config.json: target_modules")
        if all(map(pattern.fullmatch, names)):
            return named
    return names


def _saved(adapter: Adapter) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Parameters stored whole, under their plain names; biases of adapted modules below `.base_layer`."""
    bias = adapter.settings.get("bias", "none") != "none"
    announced = list(adapter.settings.get("modules_to_save") or [])
    tensors = {}
    for name, stored in adapter.saved.items():
        module, _, parameter = name.rpartition(".")
        if bias and parameter == "bias":
            inner = ".base_layer" if module in adapter.updates else ""
            tensors[f"{PREFIX}{module}{inner}.bias"] = stored
            continue
        tensors[PREFIX + name] = stored
        if not any(f".{owner}." in f".{name}" for owner in announced):
            announced.append(module)
    return tensors, {"modules_to_save": announced or None}


def _rows(adapter: Adapter) -> tuple[dict[str, Stored], dict[str, Any]]:
    """Trained rows of embeddings, and which they are."""
    if not adapter.rows:
        return {}, {}
    modules = {name.removesuffix(".weight"): rows for name, rows in adapter.rows.items()}
    tensors = {f"{PREFIX}{m}.token_adapter.trainable_tokens_delta": rows.stored for m, rows in modules.items()}
    return tensors, {"trainable_token_indices": {m.rpartition(".")[2]: list(r.indices) for m, r in modules.items()}}


def _base_copies(adapter: Adapter) -> dict[str, Stored]:
    """Weights of the base that the file held: those that an update is added to, below `.base_layer`."""
    names = {update.base_weight or f"{update.name}.weight" for update in adapter.updates.values()}
    copies = {}
    for name, stored in adapter.base.items():
        module, _, parameter = name.rpartition(".")
        copies[f"{PREFIX}{module}.base_layer.{parameter}" if name in names else PREFIX + name] = stored
    return copies
