"""A full model on disk, sharded or not, read lazily tensor by tensor, its parameters found by the adapters' names."""

import math
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.architectures import FUSED_EXPERTS, TIED, ends_with, is_vocabulary
from lorascope.errors import InputError, preview
from lorascope.inputs import read_json
from lorascope.linalg.rounding import UNIT_ROUNDOFF
from lorascope.updates.base import MAX_EXPANDED, Stored, Update
from lorascope.weights import fused_experts, quantised
from lorascope.weights import names as naming
from lorascope.weights.conversion import names_in_memory
from lorascope.weights.dtypes import SIZES
from lorascope.weights.file_names import GGUF, PICKLES, SAFETENSORS
from lorascope.weights.files import Tensors, open_tensors
from lorascope.weights.tensors import Mapped, first_rows, flattened, reshaped, slot, transposed

_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
)
# Modules that share one parameter in the usual models; a checkpoint stores it once, under either name.
_OTHER_SENSES = re.compile(r"(^|\.)(vision|visual|audio)")  # a part whose embeddings are not words
ABSENT = "the base has no such weight"
NO_BIAS = "the base's layer has no bias, to which the update would be added"


@dataclass(frozen=True)
class Checkpoint:
    """A full model's parameters by name; nothing is read before `weight(...).read()`.

    Attributes:
        path: the file or folder it was opened from.
        config: the model's `config.json`, or empty.
    """

    path: Path
    tensors: Tensors
    config: Mapping[str, Any] = field(default_factory=dict)
    _resolved: dict[str, str | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def stored(self) -> Mapping[str, Stored]:
        """The parameters by their names, in file order: codes of a known scheme decoded, others unreadable."""
        return quantised.parameters(self.tensors.stored, self.config, self.tensors.metadata)

    def names(self) -> list[str]:
        """The parameters' names as stored, in file order."""
        return list(self.stored)

    def sha256(self) -> str:
        """The hash of the bytes of its weights files."""
        return self.tensors.sha256()

    @cached_property
    def dtype(self) -> str:
        """The type that most of the bytes have."""
        sizes: Counter[str] = Counter()
        for stored in self.tensors.stored.values():
            sizes[stored.dtype] += SIZES[stored.dtype] * int(np.prod(stored.shape, dtype=np.int64))
        return sizes.most_common(1)[0][0] if sizes else "F32"

    @cached_property
    def _plain(self) -> dict[str, str]:
        """Names as stored, by what they are without wrappers."""
        return {naming.plain(name): name for name in self.stored}

    @cached_property
    def _rootless(self) -> dict[str, list[str]]:
        """Names as stored, by what is left of them without their roots."""
        by_rest: dict[str, list[str]] = {}
        for plain, name in self._plain.items():
            for rest in naming.rootless(plain):
                by_rest.setdefault(rest, []).append(name)
        return by_rest

    @cached_property
    def _in_memory(self) -> dict[str, str]:
        """Names as stored, by what transformers calls them where that differs. It is asked where nothing else helps, of
        the repeated blocks alone: a head that is not there is not there."""
        return names_in_memory(self.config, self.stored) if self.config.get("architectures") else {}

    @cached_property
    def _names_in_memory(self) -> dict[str, str]:
        """What transformers calls a parameter in the model, by its stored name, where that differs."""
        return {stored: name for name, stored in self._in_memory.items()}

    def name_in_memory(self, module: str) -> str:
        """The path of a module or parameter in the model that transformers loads, which adapters name it by."""
        for ending in (".weight", ""):
            if name := self._names_in_memory.get(module + ending):
                return name.removesuffix(ending)
        return module

    @property
    def layers(self) -> int | None:
        """How many repeated blocks the model has, by its config; None where that does not say, or says several."""
        inner = self.config.get("text_config")
        whole: Mapping[str, Any] = inner if isinstance(inner, Mapping) else self.config
        if "decoder_layers" in whole or "num_decoder_layers" in whole:  # an encoder besides
            return None
        counts = [whole[key] for key in ("num_hidden_layers", "n_layer", "num_layers", "n_layers") if key in whole]
        return counts[0] if counts and type(counts[0]) is int else None

    @property
    def folder(self) -> str:
        """The name of the folder it lies in, which of a diffusers pipeline says which component it is."""
        return (self.path if self.path.is_dir() else self.path.absolute().parent).name

    def resolve(self, name: str) -> str | None:
        """The stored name of a module's weight, or of a parameter, whatever root either side has; None if absent.

        A root is what transformers itself adds and takes away (`names.ROOTS`): of `encoder` and `decoder`, or
        `transformer` and `transformer_2`, one is never taken for the other. A tied parameter that is stored under its
        partner's name (`lm_head`, `embed_tokens`) is found there.
        """
        if name not in self._resolved:
            self._resolved[name] = self._resolve(name)
        return self._resolved[name]

    def _resolve(self, name: str) -> str | None:
        spelled = [naming.plain(name + ending) for ending in ("", ".weight")]
        for one in spelled:
            if resolved := self._resolve_plain(one):
                return resolved
        if resolved := self._resolve_tied(name.removesuffix(".weight")):
            return resolved
        if not any(part.isdecimal() for part in spelled[0].split(".")):
            return None
        every = [each for one in spelled for each in (one, *naming.rootless(one))]
        return next((self._in_memory[one] for one in every if one in self._in_memory), None)

    def _resolve_plain(self, name: str) -> str | None:
        if name in self._plain:
            return self._plain[name]
        inside = naming.without_component(name, self.folder)
        component = self.folder in naming.COMPONENTS or "_class_name" in self.config
        if component and name.partition(".")[0] in naming.COMPONENTS:
            return self._plain.get(inside) if inside else None
        tried = [name, *naming.renamed(name), *([inside] if inside else [])]
        for one in tried:
            for rest in (one, *naming.rootless(one)):
                if rest in self._plain:
                    return self._plain[rest]
        for one in tried:
            if len(matches := self._rootless.get(one, [])) == 1:
                return matches[0]
        return None

    def _resolve_tied(self, name: str) -> str | None:
        if not self._may_be_tied or not ends_with(name, TIED) or _OTHER_SENSES.search(name):
            return None
        partners = [
            stored
            for stored in self.stored
            if stored.endswith(".weight") and ends_with(stored.removesuffix(".weight"), TIED)
        ]
        return partners[0] if len(partners) == 1 else None

    @property
    def _may_be_tied(self) -> bool:
        """Whether an output layer that the file does not hold can be the input embedding: not where the config says
        otherwise, nor in the file of a bare model, which has no output layer."""
        tied = self.config.get("tie_word_embeddings")
        classes = [str(name) for name in self.config.get("architectures") or ()]
        bare = [name for name in classes if name.endswith("Model") and "LM" not in name and "Head" not in name]
        return bool(tied) if tied is not None else not bare

    def find(self, name: str) -> Stored | None:
        """The stored weight of a module, or a parameter; None where there is none.

        Of experts that the model fuses into one parameter and the file keeps apart, as (experts, d_out, d_in).
        """
        resolved = self.resolve(name)
        return self.stored[resolved] if resolved is not None else self._fused(naming.plain(name))

    def _fused(self, name: str) -> Stored | None:
        """`….experts.gate_up_proj` of a file with `….experts.0.gate_proj.weight`, ...: as transformers 5 joins them."""
        rows = [tuple(self.stored[one] for one in names) for names in self._expert_parts(name)]
        return Stacked.of(rows) if rows else None

    def _expert_parts(self, name: str) -> list[list[str]]:
        """The stored names of each expert's parts, of a parameter that the model joins from them; else none."""
        owner, _, parameter = name.rpartition(".")
        if parameter not in FUSED_EXPERTS or not owner.endswith("experts"):
            return []
        for place in (owner, owner.replace(".mlp.", ".block_sparse_moe.")):
            for parts in FUSED_EXPERTS[parameter]:
                experts: list[list[str]] = []
                while len(names := self._of_expert(f"{place}.{len(experts)}", parts)) == len(parts):
                    experts.append(names)
                if experts and not names:
                    return experts
        return []

    def _of_expert(self, expert: str, parts: tuple[str, ...]) -> list[str]:
        found = (self._resolve_plain(f"{expert}.{part}.weight") for part in parts)
        return [name for name in found if name is not None]

    def places(self, update: Update) -> dict[tuple[str, int | None], slice]:
        """The parameters, or experts of one, that an update changes, and which rows of its ΔW (d_out, d_in) are theirs:
        several where the model joins what the file keeps apart. Empty where there are none, or only parts of one."""
        name = update.base_weight or update.name
        if (resolved := self.resolve(name)) is not None:
            return {(resolved, update.expert): slice(None)}
        experts = self._expert_parts(naming.plain(name)) if update.expert is not None else []
        places: dict[tuple[str, int | None], slice] = {}
        start = 0
        for part in dict(enumerate(experts)).get(update.expert or 0, ()):
            stop = start + self.stored[part].shape[0]
            places[part, None] = slice(start, stop)
            start = stop
        return places

    def weight(self, name: str) -> Stored:
        """As `find`. InputError where the model has no such parameter."""
        stored = self.find(name)
        if stored is None:
            raise InputError(
                f"{self.path} has no parameter for {name!r}",
                found=preview(self.names(), 3),
                hint="is it the base model that this adapter was trained on?",
            )
        return stored

    def of(self, update: Update) -> Stored:
        """The base weight W of an update as (d_out, d_in): transposed, flattened or sliced as the update says; a vector
        as (d, 1).

        Raises:
            InputError: the model has no such parameter, one of another shape, or codes that are not decoded.
        """
        weight = self.lookup(update)
        if isinstance(weight, str):
            raise InputError(f"{self.path} does not fit the adapter at {update.name}", found=weight)
        return weight

    def lookup(self, update: Update) -> Stored | str:
        """As `of`; where there is no such W, why not."""
        stored = self.find(update.base_weight or update.name)
        if stored is None and (fused := self._in_fused(update)) is not None:
            return fused
        if stored is None:
            layer, _, parameter = (update.base_weight or update.name).rpartition(".")
            return NO_BIAS if parameter == "bias" and self.find(layer) is not None else ABSENT
        if isinstance(stored, quantised.Unreadable):
            return stored.reason
        if stored.dtype not in UNIT_ROUNDOFF:
            return f"the base stores {stored.dtype} there, and no weights"
        if update.expert is not None and len(stored.shape) == 3:
            if update.expert >= stored.shape[0]:
                return f"the base has {stored.shape[0]} experts there"
            stored = slot(stored, update.expert)
        if len(stored.shape) == 4 and update.kind == "oft_v2" and not update.kernel:
            return "it is a convolution, which the adapter was read without: read it together with the base"
        if len(stored.shape) < 2:
            stored = reshaped(stored, math.prod(stored.shape), 1)  # a bias or a norm's weight is a map of one input
        matrix = flattened(stored) if len(stored.shape) > 2 else stored
        return _fitted(update, transposed(matrix) if update.transposed else matrix)

    def _in_fused(self, update: Update) -> Stored | str | None:
        """W of one expert's projection out of a parameter that fuses it, as `lookup` gives it; None where it is not."""

        def shape_of(name: str) -> tuple[int, ...] | None:
            found = self.find(name)
            return None if found is None else tuple(found.shape)

        there = fused_experts.place(update, shape_of, self.config)
        if there is None:
            return None
        whole = self.weight(there.parameter)
        if isinstance(whole, quantised.Unreadable):
            return whole.reason
        return Mapped(slot(whole, there.expert), there.shape, there.view)


@dataclass(frozen=True)
class Stacked:
    """Experts that lie apart as one array (experts, d_out, d_in), each a stack of its parts' rows."""

    experts: tuple[tuple[Stored, ...], ...]

    @staticmethod
    def of(experts: list[tuple[Stored, ...]]) -> "Stacked | quantised.Unreadable | None":
        """None where the parts do not stack; unreadable where one of them is."""
        if bad := [one for parts in experts for one in parts if isinstance(one, quantised.Unreadable)]:
            return bad[0]
        shapes = {tuple(tuple(one.shape) for one in parts) for parts in experts}
        first = next(iter(shapes))
        fits = all(len(shape) == 2 and shape[1] == first[0][-1] for shape in first)
        return Stacked(tuple(experts)) if len(shapes) == 1 and fits else None

    @property
    def shape(self) -> tuple[int, ...]:
        first = self.experts[0]
        return len(self.experts), sum(part.shape[0] for part in first), first[0].shape[1]

    @property
    def dtype(self) -> str:
        return self.experts[0][0].dtype

    def read(self) -> np.ndarray:
        return np.stack([np.concatenate([part.read() for part in parts]) for parts in self.experts])

    def rows(self, start: int, stop: int) -> "Stacked":
        """Experts `start` to `stop`, without reading the others."""
        return Stacked(self.experts[start:stop])


def _fitted(update: Update, matrix: Stored) -> Stored | str:
    """W in the shape of ΔW; why it does not fit where it does not."""
    try:
        expected = update.shape
    except InputError:  # only the base knows both sides
        known = update.sides
        fits = all(side in (None, size) for side, size in zip(known, matrix.shape, strict=True))
        there, wanted = tuple(matrix.shape), tuple("any" if side is None else side for side in known)
        return matrix if fits else f"the base has another shape there: found {there}, expected {wanted}"
    shape = tuple(matrix.shape)
    if shape == expected:
        return matrix
    if update.kernel and shape[0] == expected[0] and 0 < shape[1] < expected[1] and expected[1] % shape[1] == 0:
        if math.prod(expected) > MAX_EXPANDED:
            return f"the base's grouped convolution is too large to write out: {math.prod(expected):,} entries"
        return _ungrouped(matrix, expected[1] // shape[1], math.prod(update.kernel))
    if update.kind == "tuned" and shape[1] == expected[1] and shape[0] > expected[0]:
        return first_rows(matrix, expected[0])
    longer = 1 if update.embedding else 0
    if shape[1 - longer] == expected[1 - longer] and is_vocabulary(update.name):
        return f"the vocabulary was resized: {expected[longer]} tokens in the adapter, {shape[longer]} in the base"
    return f"the base has another shape there: found {shape}, expected {expected}"


def _ungrouped(matrix: Stored, groups: int, positions: int) -> Stored:
    """W (d_out, c_in / groups · k) of a grouped convolution as (d_out, c_in · k), with zeros between the groups."""
    d_out, rank_per_group = matrix.shape

    def expand(values: np.ndarray) -> np.ndarray:
        full = np.zeros((groups, d_out // groups, groups, rank_per_group))
        for group, part in enumerate(values.reshape(groups, d_out // groups, rank_per_group)):
            full[group, :, group, :] = part
        return full.reshape(d_out, groups * rank_per_group)

    if d_out % groups or rank_per_group % positions:
        raise InputError(
            "a grouped convolution does not divide into its groups", found=(d_out, rank_per_group), expected=groups
        )
    return Mapped(matrix, (d_out, groups * rank_per_group), expand)


def open_checkpoint(path_or_name: str | Path) -> Checkpoint:
    """A full model from a folder, a weights file, or a hub name that is in the local cache. Nothing is downloaded.

    Raises:
        InputError: there is no such model here, the folder holds an adapter or nothing, or a file is damaged.
    """
    path = Path(path_or_name)
    if not path.exists():
        path = _cached(str(path_or_name))
    if not path.is_dir():
        folder, weights = path.parent, path
    else:
        folder, weights = path, _weights_of(path)
    config = folder / "config.json"
    values, tensors = read_json(config) if os.path.lexists(config) else {}, open_tensors(weights)
    values = _with_quantisation(values, folder)
    if "general.architecture" in tensors.metadata:
        from lorascope.weights import gguf_model  # rare, and slow to import

        values = values or gguf_model.config_of(tensors.metadata)
        tensors = replace(tensors, stored=gguf_model.parameters(tensors.stored, tensors.metadata))
    return Checkpoint(path, tensors, values)


def _with_quantisation(config: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """The config with the settings that AutoGPTQ and AutoAWQ wrote into files of their own before transformers had a
    place for them: without AutoGPTQ's `checkpoint_format` its zero points would be read off by one."""
    for name, method in (("quantize_config.json", "gptq"), ("quant_config.json", "awq")):
        if "quantization_config" not in config and os.path.lexists(folder / name):
            return {**config, "quantization_config": {"quant_method": method, **read_json(folder / name)}}
    return config


def _weights_of(folder: Path) -> Path:
    for name in _FILES:
        if (folder / name).is_file():
            return folder / name
    present = sorted(entry.name for entry in folder.iterdir())
    if any(name.startswith("adapter_") for name in present):
        raise InputError(f"{folder} holds an adapter, not a full model", found=preview(present))
    candidates = [name for name in present if name.lower().endswith((*SAFETENSORS, *PICKLES, *GGUF))]
    if len(candidates) == 1:
        return folder / candidates[0]
    parts = [folder / name for name in present if name in naming.COMPONENTS]
    models = [str(part) for part in parts if (part / "config.json").is_file()]
    hint = f"give the folder of one of its models: {preview(models)}" if models else None
    found = preview(present) or "an empty folder"
    raise InputError(f"{folder} holds no model", found=found, expected=_FILES[0], hint=hint)


def _cached(name: str) -> Path:
    """The folder of a hub model in the local cache."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise InputError(f"no such file or folder: {name}")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(f"no such file or folder: {name}", hint="install huggingface_hub to use hub names") from None
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except Exception:  # the library raises many kinds; all mean that the model is not here
        raise InputError(
            f"there is no folder {name}, and no model of that name in the local Hugging Face cache",
            hint="download it first, or pass a folder",
        ) from None
