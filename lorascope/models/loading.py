"""Base models by name, folder or hub name, with their tokenizers."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorascope.architectures import CLASSIFIER_HEADS
from lorascope.errors import InputError, LorascopeError, preview
from lorascope.inputs import read_json
from lorascope.models import assets, mean_pool
from lorascope.models.config import ModelConfig
from lorascope.models.mean_pool import MeanPoolClassifier

DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "dropout_prob")  # where modules keep it as a number
ADAPTER_FILE = "adapter_config.json"
OURS_TO_SAY = ("LOAD REPORT", "which is incompatible to the `id2label` map")  # in transformers' warnings
NOTES = "_lorascope_notes"  # where a model keeps `notes`
DRAWN = "_lorascope_drawn"  # where a model keeps the names of the parameters that its checkpoint did not hold


def load_tokenizer(config: ModelConfig) -> Any:
    """The model's tokenizer, with a padding token. InputError where there is none."""
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, config, "tokenizer")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise InputError(f"the tokenizer of {config.name} has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_beside(adapter: Path) -> Any | None:
    """The tokenizer that a trainer left with its adapter, in its folder or the one above; None where there is none.

    Raises:
        InputError: it cannot be opened.
    """
    from transformers import AutoTokenizer

    for folder in (adapter, adapter.parent):
        if not (folder / "tokenizer_config.json").is_file():
            continue
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            found = " ".join(str(error).split())[:300]
            raise InputError(f"cannot open the tokenizer in {folder}", found=found) from error
        if tokenizer.pad_token_id is None and tokenizer.eos_token is not None:
            tokenizer.pad_token = tokenizer.eos_token
        return tokenizer
    return None


def load_model(config: ModelConfig, num_labels: int = 0, dtype: torch.dtype | str = torch.float32) -> nn.Module:
    """The base model in `dtype` ("auto": the checkpoint's own), its dropout as the config says.

    A head that the checkpoint lacks is initialised from torch's global generator.

    Raises:
        InputError: there is no such model, or it cannot do the task.
    """
    model = _load(config, num_labels, dtype)
    if config.dropout is not None:
        set_dropout(model, config.dropout)
    return model


def set_dropout(model: nn.Module, probability: float) -> None:
    """Set every dropout inside `model`: the layers, and the numbers that attention passes to its kernel."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = probability
        for name in DROPOUTS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, probability)


def _load(config: ModelConfig, num_labels: int, dtype: torch.dtype | str) -> nn.Module:
    from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    cut = {} if config.num_hidden_layers is None else {"num_hidden_layers": config.num_hidden_layers}
    if cut:
        _refuse_more_layers(config)
    if config.random_init:
        return _fresh(config, num_labels, dtype, cut)
    if config.task_type == "CAUSAL_LM":
        return _from_checkpoint(AutoModelForCausalLM, config, dtype=dtype, **cut)
    if config.head == "native":
        new_head = {"num_labels": num_labels, "ignore_mismatched_sizes": True, **cut}  # of other classes than these
        model = _from_checkpoint(AutoModelForSequenceClassification, config, dtype=dtype, **new_head)
        pad = load_tokenizer(config).pad_token_id
        saved: Any = model.config
        if saved.pad_token_id != pad:  # decoders classify by the last token that is no padding
            saved.pad_token_id = pad
        return model
    if (saved_config := mean_pool.saved_config(place := assets.resolve(config.name))) is not None:
        model = mean_pool.load(place, saved_config, num_labels, dtype)
        same = len(saved_config["id2label"]) == num_labels
        return _remember(model, [] if same else [f"{mean_pool.HEAD}.weight", f"{mean_pool.HEAD}.bias"])
    encoder: Any = _from_checkpoint(AutoModel, config, dtype=dtype, **cut)
    model = MeanPoolClassifier(encoder, num_labels).to(encoder.dtype)
    lacking = [f"{model.base_model_prefix}.{name}" for name in drawn(encoder)]
    if not mean_pool.load_old_head(model, place):
        lacking += [f"{mean_pool.HEAD}.{name}" for name, _ in model.mean_pool_head.named_parameters()]
    setattr(model, NOTES, notes(encoder))
    return _remember(model, lacking)


def _refuse_more_layers(config: ModelConfig) -> None:
    """InputError where more layers are asked for than the base has: they would be drawn at random, however many."""
    depth, wanted = getattr(load_config(config.name), "num_hidden_layers", None), config.num_hidden_layers
    if isinstance(depth, int) and wanted is not None and wanted > depth:
        raise InputError(
            f"model.num_hidden_layers is more than {config.name} has",
            found=wanted,
            expected=f"at most {depth}",
        )


def _from_checkpoint(auto: Any, config: ModelConfig, **settings: Any) -> nn.Module:
    """The model as the checkpoint has it; what that did not hold is remembered for `drawn`."""
    model, info = _from_pretrained(auto, config, "model", output_loading_info=True, **settings)
    setattr(model, NOTES, tuple(_unknown_keys(config, info["unexpected_keys"])))
    return _remember(model, [*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])])


def _remember(model: nn.Module, names: Iterable[str]) -> nn.Module:
    wanted = set(names)
    there = [name for name, _ in model.named_parameters(remove_duplicate=False) if name in wanted]
    setattr(model, DRAWN, tuple(there))
    return model


def drawn(model: nn.Module) -> tuple[str, ...]:
    """Parameters, by the model's own names, that the checkpoint did not hold (or held in another shape).

    They have random values, drawn when the model was loaded: no file gives them again. Empty of `random_init`, whose
    values are all drawn by the run's seed, and of a model that was not loaded here.
    """
    return getattr(model, DRAWN, ())


def _fresh(config: ModelConfig, num_labels: int, dtype: torch.dtype | str, cut: dict[str, int]) -> nn.Module:
    """The architecture with weights from torch's global generator."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

    wanted = _from_pretrained(AutoConfig, config, "config", **cut)
    dtype = torch.float32 if dtype == "auto" else dtype
    if config.task_type == "CAUSAL_LM":
        return AutoModelForCausalLM.from_config(wanted, dtype=dtype)
    if config.head == "native":
        wanted.num_labels = num_labels
        return AutoModelForSequenceClassification.from_config(wanted, dtype=dtype)
    return MeanPoolClassifier(AutoModel.from_config(wanted, dtype=dtype), num_labels).to(dtype)


def _from_pretrained(auto: Any, config: ModelConfig, what: str, **settings: Any) -> Any:
    place = assets.resolve(config.name)
    _refuse_adapter(config.name, Path(place) / ADAPTER_FILE)
    if config.revision is not None and Path(place).is_dir():
        raise InputError("model.revision is of a hub name", found=f"{config.name}, a folder", hint="leave it out")
    try:
        with _own_words():
            loaded = auto.from_pretrained(place, revision=config.revision or "main", **settings)
    except LorascopeError:
        raise
    except ImportError as error:  # of a quantised base, whose library is not there
        raise InputError(
            f"loading the {what} {config.name!r} needs a package that is not installed",
            found=" ".join(str(error).split())[:300],
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise InputError(
            f"cannot load the {what} {config.name!r}",
            found=" ".join(str(error).split())[:300],
            expected=f"a packaged model ({', '.join(assets.ASSETS)}), a folder, or a hub name for {config.task_type}",
        ) from error
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    if getattr(model, "_hf_peft_config_loaded", False):  # a hub name, of which transformers has opened base and adapter
        raise _is_adapter(config.name, None)
    return loaded


def _refuse_adapter(name: str, file: Path) -> None:
    """InputError where the folder holds an adapter: transformers would open its base with the adapter in it."""
    if not file.is_file():
        return
    try:
        base = read_json(file).get("base_model_name_or_path")
    except InputError:
        base = None
    raise _is_adapter(name, base if isinstance(base, str) else None)


def _is_adapter(name: str, base: str | None) -> InputError:
    return InputError(
        f"model.name is an adapter and no base model: {name}",
        found=ADAPTER_FILE + (f", of an adapter of {base}" if base else ""),
        hint=f"set model.name to {base or 'its base model'} to train a new adapter, or merge this one into its base "
        "with `lorascope merge` and name the merged folder; continuing an adapter's training is not supported",
    )


@contextmanager
def _own_words() -> Iterator[None]:
    """Without progress bars and transformers' words on a new head, which is asked for, and on what the checkpoint did
    not hold, which `drawn` and `notes` say. Its other warnings come through.
    """
    from transformers.utils import logging as transformers_logging

    def kept(record: logging.LogRecord) -> bool:
        return not any(words in record.getMessage() for words in OURS_TO_SAY)

    loggers = [logging.getLogger(f"transformers.{name}_utils") for name in ("modeling", "configuration")]
    shown = transformers_logging.is_progress_bar_enabled()
    for logger in loggers:
        logger.addFilter(kept)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(kept)
        if shown:
            transformers_logging.enable_progress_bar()


def _unknown_keys(config: ModelConfig, unexpected: Iterable[str]) -> list[str]:
    """A sentence where the checkpoint holds tensors of blocks that the model does not have: it may be of another
    architecture. Another task's head, and blocks that `num_hidden_layers` cuts away, are not meant.
    """
    most = config.num_hidden_layers
    numbers = {name: [int(part) for part in name.split(".") if part.isdigit()] for name in unexpected}
    strange = sorted(name for name, found in numbers.items() if found and (most is None or max(found) < most))
    if not strange:
        return []
    return [
        f"the checkpoint {config.name} holds {len(strange)} tensors of its blocks for which {config.task_type}'s model "
        f"has no place, and which are left out: {preview(strange, 3)}"
    ]


def notes(model: nn.Module) -> tuple[str, ...]:
    """What whoever trains the model should know of how it was loaded, in sentences."""
    return getattr(model, NOTES, ())


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """The modules to train and store whole: the classification head, by transformers' names for it, and every other
    module that has a parameter of `drawn`: a pooler, a summary, a head of another name.

    Raises:
        InputError: a parameter that the checkpoint did not hold belongs to the model's own blocks or embeddings, or to
            no module that can be trained as a whole.
    """
    modules = [name for name in CLASSIFIER_HEADS if hasattr(model, name)]
    modules += [_owner(model, name) for name in drawn(model) if not _inside(name, modules)]
    return tuple(dict.fromkeys(modules))


def untrained(model: nn.Module, trained: Sequence[str]) -> tuple[str, ...]:
    """Those of `drawn` that lie in none of the modules `whole`."""
    return tuple(name for name in drawn(model) if not _inside(name, trained))


def _inside(name: str, modules: Sequence[str]) -> bool:
    return any(name.startswith(module + ".") for module in modules)


def _owner(model: nn.Module, name: str) -> str:
    """The module to train whole for a parameter that was drawn: a direct child next to the base model, such as a head;
    in the base model the largest module that was drawn altogether, or a leaf.
    """
    new = set(drawn(model))
    parts = name.split(".")[:-1]
    if parts and _beside_base(model, parts[0]):
        return parts[0]
    for depth in range(2, len(parts) + 1):
        path = ".".join(parts[:depth])
        module = model.get_submodule(path)
        parameters = {f"{path}.{each}" for each, _ in module.named_parameters()}
        leaf = depth == len(parts) and next(module.children(), None) is None
        if (leaf or parameters <= new) and _trainable_whole(module) and not any(part.isdigit() for part in parts):
            return path
    raise InputError(
        f"the checkpoint does not hold {preview([name, *sorted(new - {name})], 3)}, and {name} is not in a new head",
        found="random values in its place",
        hint="name a checkpoint of this architecture, or list what is missing in method.modules_to_save",
    )


def _beside_base(model: nn.Module, child: str) -> bool:
    """Whether the direct child is a head: neither the base model, nor blocks, nor an embedding."""
    module = model.get_submodule(child)
    if child == getattr(model, "base_model_prefix", "") or not _trainable_whole(module):
        return False
    blocks = any(isinstance(each, nn.ModuleList) for each in module.modules())
    return not blocks and not any(module is each for each in embeddings(model))


def _trainable_whole(module: nn.Module) -> bool:
    return not isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Embedding)


def embeddings(model: nn.Module) -> list[nn.Module]:
    """The input and, after it, the output embedding, of a model that has them."""
    holder = model.encoder if isinstance(model, MeanPoolClassifier) else model
    asked = [getattr(holder, f"get_{which}_embeddings", None) for which in ("input", "output")]
    return [answer for each in asked if each is not None and (answer := each()) is not None]


def load_config(name: str) -> Any:
    """A model's config by its packaged name, folder or hub name. InputError where there is none."""
    from transformers import AutoConfig

    return _from_pretrained(AutoConfig, ModelConfig(name), "config")


def load_class(auto: Any, name: str, dtype: torch.dtype | str, **settings: Any) -> nn.Module:
    """The model of that name as the transformers class `auto` opens it; see `load_model`."""
    return _from_checkpoint(auto, ModelConfig(name), dtype=dtype, **settings)
