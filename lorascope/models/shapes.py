"""A model's shapes without its weights: for counting what a method would train."""

import os
from typing import Any

import torch
from torch import nn

from lorascope.architectures.classes import task_of_class
from lorascope.errors import InputError
from lorascope.models import assets

# Two packaged models by their configs, so that shapes can be had before anything is fetched.
_KNOWN: dict[str, tuple[str, dict[str, Any]]] = {
    "minilm": (
        "bert",
        {
            "vocab_size": 30522,
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
            "max_position_embeddings": 512,
        },
    ),
    "smollm2": (
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "architectures": ["LlamaForCausalLM"],
        },
    ),
}


def model_shapes(name: str) -> nn.Module:
    """The model on torch's meta device: its modules and shapes, and no number.

    A model whose checkpoint is of a language model has its output head. Any other is the encoder without a head and
    without BERT's pooler, which training leaves out too: a head is new, and is counted by its task.

    Args:
        name: a packaged model, a folder, or a hub name; of the first two packaged models nothing is fetched.

    Raises:
        InputError: there is no such model, or transformers does not know its architecture.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    if name in _KNOWN:
        kind, values = _KNOWN[name]
        config = AutoConfig.for_model(kind, **values)
    else:
        config = _config(name)
    causal = any(task_of_class(str(name)) == "CAUSAL_LM" for name in config.architectures or ())
    with torch.device("meta"):
        try:
            model = (AutoModelForCausalLM if causal else AutoModel).from_config(config)
        except (ValueError, KeyError, ImportError) as error:
            raise InputError(
                f"cannot build the shapes of {name!r}", found=" ".join(str(error).split())[:200]
            ) from error
    if isinstance(getattr(model, "pooler", None), nn.Module):
        model.pooler = None
    return model


def _config(name: str):
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(assets.resolve(name))
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"there is no model {os.fspath(name)!r} to count on",
            found=" ".join(str(error).split())[:200],
            expected=f"a packaged model ({', '.join(assets.ASSETS)}), a folder with a config.json, or a hub name",
        ) from error
