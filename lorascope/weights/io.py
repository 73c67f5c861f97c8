"""Reading and writing adapters: every registered format is asked, and exactly one may claim a file."""

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorascope.errors import FullModelError, InputError, preview
from lorascope.inputs import read_json
from lorascope.outputs import staged, write_bytes
from lorascope.updates.base import Stored, Update, kinds
from lorascope.weights import several
from lorascope.weights.adapter import Adapter, Skipped, Source
from lorascope.weights.file_names import GGUF, HDF5, METADATA, PICKLES, SAFETENSORS
from lorascope.weights.files import open_tensors
from lorascope.weights.formats.base import Bundle, Format, Ledger, formats
from lorascope.weights.leftovers import STATE, skip_what_stands_elsewhere
from lorascope.weights.metadata import kept, training
from lorascope.weights.names import without_wrappers
from lorascope.weights.not_read import is_foreign, names_an_adapter, nearest, refuse_unclaimed
from lorascope.weights.trainers import sharded_weights

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

CONFIG, CARD = "adapter_config.json", "lorascope.json"
NOWHERE = Source()
_ADAPTERS = (
    "adapter_model.safetensors",
    "adapter_model.safetensors.index.json",
    "adapter_model.bin",
    "adapter_model.bin.index.json",
    "pytorch_lora_weights.safetensors",
    "pytorch_lora_weights.bin",
    "adapter.safetensors",  # AdapterHub's, next to the head's file
    "pytorch_adapter.bin",
    "adapters.safetensors",  # MLX's, next to its checkpoints
)
MODELS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_FACTOR = re.compile(r"\.lora_(A|B|down|up)(\.(?!bias$)[^.]+)?(\.weight)?$")
_TWO_CHECKPOINTS = "two full checkpoints are compared by `lorascope delta BASE TUNED`"


def read(path: str | Path, base: "Checkpoint | None" = None, adapter_name: str | None = None) -> Adapter:
    """The adapter at `path`: a weights file, an index of shards, or a folder with either. Arrays are read when used.

    Args:
        path: what the user named. A file takes the `adapter_config.json` next to it, where there is one.
        base: the base model, which helps where a format's names or shapes are lossy (kohya, VeRA).
        adapter_name: which adapter, of a file or a folder that holds several.

    Raises:
        InputError: nothing there, damaged, no format or more than one claims it, keys nobody understands, shapes or
            settings that contradict each other, or nothing in it that could be used.
        FullModelError: a full model, and no adapter.
    """
    place, name = one_of(Path(path), adapter_name)
    bundle, files = _open(place)
    return read_bundle(bundle, base, Source(str(path if place == Path(path) else place), files=files), name)


def read_bundle(
    bundle: Bundle, base: "Checkpoint | None" = None, source: Source = NOWHERE, adapter_name: str | None = None
) -> Adapter:
    """The adapter in a bundle, of a file or of memory; `source` says where it is from. Raises as `read` does."""
    others: tuple[Skipped, ...] = ()
    if adapter_name is not None:
        tensors, others = several.only(bundle.tensors, adapter_name, bundle.path)
        bundle = replace(bundle, tensors=tensors)
    name, format = _claimant(bundle)
    ledger = Ledger(bundle.tensors)
    parsed = format.read(bundle, ledger, base)
    notes = (*bundle.notes, *parsed.notes)
    if skipped := skip_what_stands_elsewhere(ledger):
        notes += (f"{len(skipped)} keys are not understood and were skipped: {preview(skipped)}",)
    left = ledger.left()
    if left:
        raise InputError(
            f"{bundle.path} is of the {name} format, and {len(left)} of its keys are not understood",
            found=preview(left),
            hint="they may be part of an update, so nothing is read; please report these keys at the issue tracker",
        )
    if not parsed.updates and not parsed.saved and not parsed.rows:
        reasons = dict.fromkeys(item.reason for item in ledger.skipped)
        raise InputError(
            f"{bundle.path} ({parsed.method or name}) holds no weight update that can be analysed",
            found="; ".join(list(reasons)[:3]) or preview(bundle.tensors),
        )
    for update in parsed.updates.values():
        _check_shapes(bundle.path, update)
    return Adapter(
        updates=parsed.updates,
        settings={**kept(bundle.metadata), **parsed.settings},
        training=training(bundle.metadata),
        source=Source(source.path or str(bundle.path), None, name, parsed.method, adapter_name, source.files),
        saved=parsed.saved,
        skipped=(*ledger.skipped, *others),
        notes=notes,
        non_weight_tensors=parsed.non_weight_tensors,
        rows=parsed.rows,
        base=parsed.base,
    )


def write(adapter: Adapter, folder: str | Path, format: str = "peft", *, replace: bool = True) -> list[Path]:
    """Write `adapter` into `folder` in the named format; the files written. The same adapter gives the same bytes.

    All its files appear at once, or none: weights without their config would be read with another scale.

    Args:
        replace: write into a folder that is not empty too, whose other files are kept.

    Raises:
        InputError: the format is not written, or cannot hold this adapter; without `replace`, the folder is not empty.
        LorascopeError: the folder cannot be written; nothing half-written is left.
    """
    folder, chosen = Path(folder), formats.get(format)
    with staged(folder, replace=replace) as stage:
        return [folder / path.relative_to(stage) for path in chosen.write(adapter, stage)]


def copy_card(adapter: Path, folder: Path) -> None:
    """Put what `lorascope train` left with an adapter, if it did, next to another one made of it: which model it is of,
    the classes' names."""
    source = adapter_folder(adapter)
    if (source / CARD).is_file():
        for name in (CARD, "README.md"):
            if (source / name).is_file():
                write_bytes(folder / name, (source / name).read_bytes())


def check_exists(path: Path) -> None:
    """InputError where nothing is at this path: asked before a base is fetched for it."""
    if not path.exists():
        raise InputError(f"no such file or folder: {path}")


def adapter_folder(path: Path) -> Path:
    """The path itself; of the folder of a run of `lorascope train`, the adapter's folder in it."""
    inside = path / "adapter"
    return inside if (path / "config.yaml").is_file() and inside.is_dir() else path


def one_of(path: Path, adapter_name: str | None) -> tuple[Path, str | None]:
    """Where the adapter of this name lies, and the name by which it is still to be chosen there: `save_pretrained` of
    a model with several adapters puts each but "default" into a folder of its name."""
    if adapter_name is not None and Path(adapter_name).name == adapter_name:
        inside = adapter_folder(path) / adapter_name
        if any((inside / name).is_file() for name in (*_file_names(), *MODELS)):
            return inside, None
    return path, adapter_name


def _open(path: Path) -> tuple[Bundle, tuple[Path, ...]]:
    """What the weights file at this path holds, and the files that these are."""
    check_exists(path)
    path = adapter_folder(path)
    weights = _weights_of(path) if path.is_dir() else path
    if weights.name == CONFIG:
        raise InputError(f"{path} is the config of an adapter", hint="pass the folder it lies in")
    tensors = open_tensors(weights)
    if not tensors.stored:
        raise InputError(f"{weights} holds no tensors")
    _refuse_shells(path, tensors.stored)
    config_path = _config_of(path, weights)
    config = read_json(config_path) if config_path is not None else None
    stored, notes = tensors.stored, tuple[str, ...]()
    if "lorascope" not in (tensors.metadata.get("format"), (config or {}).get("format")):
        stored, notes = without_wrappers(stored, path)
    bundle = Bundle(path, stored, tensors.metadata, config, notes)
    if weights.name in MODELS and not _holds_adapter(bundle) and not names_an_adapter(stored):
        raise FullModelError(f"{path} is a full model, not an adapter", found=preview(stored, 3), hint=_TWO_CHECKPOINTS)
    return bundle, tensors.files


def _config_of(path: Path, weights: Path) -> Path | None:
    """The config of an adapter: next to its weights, or in the folder that the user named, whose shards lie below."""
    places = dict.fromkeys((weights.parent, path if path.is_dir() else weights.parent))
    if weights.name == METADATA or weights.name.endswith("model_states.pt"):
        places |= dict.fromkeys((weights.parent.parent,))
    return next((place / CONFIG for place in places if os.path.lexists(place / CONFIG)), None)


def _holds_adapter(bundle: Bundle) -> bool:
    """Whether some format claims the keys by themselves: a config may have been left next to a merged model."""
    return any(format.claims(replace(bundle, config=None)) for _, format in formats.items())


def _refuse_shells(path: Path, tensors: Mapping[str, Stored]) -> None:
    """InputError where tensors are empty, or all factors flat: what a sharded model leaves that was not gathered."""
    factors = [key for key in tensors if _FACTOR.search(key)]
    flat = factors if all(len(tensors[key].shape) == 1 for key in factors) else []
    shells = [key for key, stored in tensors.items() if tuple(stored.shape) == (0,) and not key.endswith(STATE)] or flat
    if shells:
        raise InputError(
            f"{path} holds {len(shells)} empty or flat tensors of {len(tensors)}: the shards of a model that was"
            " trained with DeepSpeed ZeRO-3 or FSDP were not gathered when it was saved",
            found=preview([f"{key} {tuple(tensors[key].shape)}" for key in shells], 3),
            hint="gather the weights and save again: zero_to_fp32.py, GatheredParameters or summon_full_params",
        )


def _file_names() -> Iterator[str]:
    """The names by which an adapter's weights are found in a folder, the commonest first."""
    yield from _ADAPTERS
    for _, format in formats.items():
        yield from format.file_names


def _weights_of(folder: Path) -> Path:
    """The one weights file of a folder."""
    for name in _file_names():
        if (folder / name).is_file():
            return folder / name
    present = sorted(entry.name for entry in folder.iterdir())
    models = [name for name in MODELS if name in present]
    if models:  # where LoRA was put into it, the whole model with an adapter inside; else refused as a full model
        return folder / models[0]
    if (sharded := sharded_weights(folder)) is not None:
        return sharded
    candidates = [name for name in present if name.lower().endswith((*SAFETENSORS, *PICKLES, *GGUF, *HDF5))]
    indices = [name for name in present if name.endswith(".index.json")]
    if len(indices) == 1 or len(candidates) == 1:
        return folder / (indices or candidates)[0]
    if candidates:
        raise InputError(f"{folder} holds several weights files", found=preview(candidates), hint="name one of them")
    foreign = [name for name in present if is_foreign(name)]
    if foreign:
        return folder / foreign[0]  # which is refused for what it is
    below = sorted({str(path.parent) for name in _file_names() for path in folder.glob(f"*/{name}")})
    raise InputError(
        f"{folder} holds no adapter",
        found=preview(present) or "an empty folder",
        expected=_ADAPTERS[0],
        hint=f"choose one with --adapter-name: {preview([Path(each).name for each in below])}"
        if len(below) > 1
        else f"did you mean {below[0]}?"
        if below
        else None,
    )


def _claimant(bundle: Bundle) -> tuple[str, Format]:
    claims = [(name, format) for name, format in formats.built_in() if format.claims(bundle)]
    claims = claims or [(name, format) for name, format in formats.items() if format.claims(bundle)]  # plug-ins'
    if len(claims) == 1:
        return claims[0]
    if claims:
        raise InputError(
            f"{bundle.path} is claimed by more than one format",
            found=f"{', '.join(name for name, _ in claims)} for {preview(bundle.tensors)}",
            hint="add the adapter_config.json it was written with",
        )
    refuse_unclaimed(bundle.path, bundle.tensors, bundle.config, _TWO_CHECKPOINTS)
    near = nearest(bundle.tensors)
    what = f"{bundle.path} has an unknown adapter format"
    if near is not None:
        odd = f", and {len(near[1])} of {len(bundle.tensors)} keys are not of it" if near[1] else ""
        what += f"; {near[0]} dialect is the nearest{odd}"
    raise InputError(
        what,
        found=preview((near[1] if near is not None else []) or bundle.tensors),
        expected=f"keys of one of {', '.join(formats.names())}",
    )


def _check_shapes(path: Path, update: Update) -> None:
    """InputError naming the file and the module where the roles' shapes disagree, or an array is empty."""
    try:
        shapes = {name: tuple(stored.shape) for name, stored in update.roles.items()}
        sizes = kinds.get(update.kind).dimensions(shapes)
        pruned = update.kind == "triplet" and sizes["r"] == 0  # AdaLoRA may leave a module without a direction
        if empty := [f"{name} {shape}" for name, shape in shapes.items() if 0 in (() if pruned else shape)]:
            raise InputError("a factor has no entries", found=preview(empty), hint="save the adapter again")
    except InputError as error:
        what = f"{path}, {update.name}: {error.what}"
        raise InputError(what, found=error.found, expected=error.expected, hint=error.hint) from None
