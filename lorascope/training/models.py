"""Base models by name, folder or hub name, with their tokenizers."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lorascope.errors import InputError, LorascopeError
from lorascope.training import assets
from lorascope.training.config import ModelConfig

HEAD_FILE = "mean_pool_head.safetensors"
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout", "dropout_prob")  # where modules keep it as a number


class MeanPoolClassifier(nn.Module):
    """An encoder, the mean of its last hidden states over the tokens that are no padding, and one linear layer.

    The encoder sits under the attribute its family uses (`bert`, `roberta`, ...) and the head under `classifier`, so
    that module paths, and with them an adapter's keys, are those of the family's own sequence classifier. The pooler,
    which nothing here calls, is left out.

    Args:
        encoder: a transformers encoder, as `AutoModel` gives it.
        num_labels: how many classes. The head starts at N(0, 0.02²), its bias at zero.
    """

    def __init__(self, encoder: nn.Module, num_labels: int):
        super().__init__()
        if isinstance(getattr(encoder, "pooler", None), nn.Module):
            encoder.pooler = None
        self.base_model_prefix = encoder.base_model_prefix
        setattr(self, self.base_model_prefix, encoder)
        self.classifier = nn.Linear(encoder.config.hidden_size, num_labels)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)
        self.config = encoder.config
        self.config.num_labels = num_labels

    @property
    def encoder(self) -> nn.Module:
        return getattr(self, self.base_model_prefix)

    def features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Mean-pooled hidden states, (batch, hidden_size)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (b, t, h)
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # (b, t, 1)
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **_: Any) -> Any:
        """Logits (batch, num_labels), in transformers' output object."""
        from transformers.modeling_outputs import SequenceClassifierOutput

        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return SequenceClassifierOutput(logits=self.classifier(self.features(input_ids, mask)))

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        self.encoder.gradient_checkpointing_enable(**settings)

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """The encoder as transformers saves it, and the head in a file beside it."""
        from safetensors.torch import save_file

        self.encoder.save_pretrained(folder)
        head = {name: tensor.detach().contiguous() for name, tensor in self.classifier.state_dict().items()}
        save_file(head, Path(folder) / HEAD_FILE)


def load_tokenizer(config: ModelConfig) -> Any:
    """The model's tokenizer, with a padding token. InputError where there is none."""
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, config, "tokenizer")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise InputError(f"the tokenizer of {config.name} has neither a padding nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


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
    if config.random_init:
        return _fresh(config, num_labels, dtype, cut)
    if config.task_type == "CAUSAL_LM":
        return _from_pretrained(AutoModelForCausalLM, config, "model", dtype=dtype, **cut)
    if config.head == "native":
        new_head = {"num_labels": num_labels, "ignore_mismatched_sizes": True, **cut}  # of other classes than these
        model = _from_pretrained(AutoModelForSequenceClassification, config, "model", dtype=dtype, **new_head)
        if model.config.pad_token_id is None:  # decoders classify by the last token that is no padding
            model.config.pad_token_id = load_tokenizer(config).pad_token_id
        return model
    encoder = _from_pretrained(AutoModel, config, "model", dtype=dtype, **cut)
    model = MeanPoolClassifier(encoder, num_labels).to(encoder.dtype)
    head = Path(assets.resolve(config.name)) / HEAD_FILE
    if head.is_file():
        from safetensors.torch import load_file

        model.classifier.load_state_dict(load_file(head))
    return model


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
    from transformers.utils import logging

    place = assets.resolve(config.name)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a new head is what was asked for, and needs no warning
    logging.disable_progress_bar()
    try:
        return auto.from_pretrained(place, revision=config.revision or "main", **settings)
    except LorascopeError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(
            f"cannot load the {what} {config.name!r}",
            found=" ".join(str(error).split())[:300],
            expected=f"a packaged model ({', '.join(assets.ASSETS)}), a folder, or a hub name for {config.task_type}",
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def head_modules(model: nn.Module) -> tuple[str, ...]:
    """The direct children that are a classification head, by transformers' names for them."""
    return tuple(name for name in ("classifier", "score", "pre_classifier") if hasattr(model, name))
