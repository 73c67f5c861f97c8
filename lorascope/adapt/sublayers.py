"""Where things are in a transformer: its backbone, its blocks, and in each block the last projections of both sublayers
and the attention. Found by structure, for models as `transformers` builds them; refused in words where it is not there.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from lorascope.architectures import SUBLAYER_OUTPUTS, in_attention
from lorascope.errors import InputError

_BUILT_OTHERWISE = "the blocks are not built as in BERT, Llama or GPT-2"


class Heads(NamedTuple):
    """The sizes of the keys and values of one attention layer."""

    layers: int
    heads: int  # key-value heads
    head_dim: int

    @property
    def width(self) -> int:
        """Numbers of one key (or value) of one token in one layer."""
        return self.heads * self.head_dim


def backbone(model: nn.Module) -> nn.Module:
    """The transformer without its head."""
    prefix = getattr(model, "base_model_prefix", "")
    transformer = getattr(model, prefix, model) if prefix else model
    return transformer if isinstance(transformer, nn.Module) else model


def input_embeddings(model: nn.Module) -> nn.Embedding:
    """The model's table of token embeddings."""
    transformer: Any = model
    return transformer.get_input_embeddings()


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The repeated blocks by their path in `model`, for a method that changes each.

    Raises:
        InputError: there is no such list, or the model is an encoder with a decoder.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise InputError("a model with both an encoder and a decoder is not supported by this method")
    members = repeated_blocks(model)
    if not members:
        raise InputError("the model has no repeated blocks", found=type(model).__name__, expected="a transformer")
    return members


def repeated_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """The members of the list of modules with the most parameters, by path; empty where there is no list.

    Not those of the longest list: that is the experts of one block in a mixture of many.
    """
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        return {}
    path, longest_list = max(lists, key=lambda item: sum(p.numel() for p in item[1].parameters()))
    return {f"{path}.{i}": block for i, block in enumerate(longest_list)}


def sublayer_outputs(model: nn.Module) -> list[tuple[str, str]]:
    """Of every block, the paths of attention's output projection and of the feed-forward layer's second projection.

    Raises:
        InputError: a block has not one of each, or their width is not the hidden size.
    """
    outputs = []
    for path, block in blocks(model).items():
        layers = [name for name, module in block.named_modules() if _width(module)]
        attention = [name for name in layers if in_attention(name)]
        others = [name for name in layers if not in_attention(name)]
        if not attention or not others:
            raise _not_found(path, "a linear layer of attention and one of a feed-forward network", layers)
        pair = attention[-1], others[-1]
        width = _hidden_size(model)
        for name in pair:
            if name.rpartition(".")[2] not in SUBLAYER_OUTPUTS or _width(block.get_submodule(name)) != width:
                raise _not_found(path, f"a last projection to the hidden size, {width}", [name])
        outputs.append((f"{path}.{pair[0]}", f"{path}.{pair[1]}"))
    return outputs


def attentions(model: nn.Module) -> list[nn.Module]:
    """The attention module of every block: the one that takes a cache of keys and values and knows its layer's number.

    Raises:
        InputError: a block has none or several, or attention runs in a kernel that takes no mask.
    """
    modules = []
    for path, block in blocks(model).items():
        candidates = [m for m in block.modules() if hasattr(m, "layer_idx") and "past_key_values" in parameters(m)]
        inner = [m for m in candidates if not any(other is not m and other in set(m.modules()) for other in candidates)]
        if len(inner) != 1:
            sorts = [type(m).__name__ for m in inner or block.children()]
            raise _not_found(path, "one attention that takes past_key_values", sorts)
        modules += inner
    kernel = getattr(getattr(model, "config", None), "_attn_implementation", None)
    if kernel not in ("eager", "sdpa"):
        raise InputError(
            "keys and values cannot be put before this attention's own",
            found=f"attn_implementation {kernel!r}",
            expected="eager or sdpa",
        )
    return modules


def key_value_sizes(model: nn.Module) -> Heads:
    """How many key-value heads of what size each layer has, from the model's config."""
    config = _text_config(model)
    count = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // count
    return Heads(len(blocks(model)), getattr(config, "num_key_value_heads", None) or count, head_dim)


def parameters(module: nn.Module) -> list[str]:
    """The names of the arguments of a module's forward."""
    return list(inspect.signature(type(module).forward).parameters)[1:]


def by_name(names: list[str], args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a call by name."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def learned_positions(module: nn.Module) -> int | None:
    """How many positions the model has an embedding for; None where positions are no embedding."""
    for path, layer in module.named_modules():
        if isinstance(layer, nn.Embedding) and ("position" in path.rpartition(".")[2] or path.endswith("wpe")):
            return layer.num_embeddings
    return None


def require_room(virtual: int, tokens: int, limit: int | None) -> None:
    """InputError where virtual and real tokens together are more than the model has positions for."""
    if limit is not None and virtual + tokens > limit:
        raise InputError(
            "virtual and real tokens are more than the model has positions for",
            found=f"{virtual} + {tokens}",
            expected=f"at most {limit}",
            hint="lower data.max_length or method.num_virtual_tokens",
        )


def quietly(module: nn.Module) -> Callable[[], None]:
    """Put a module into evaluation mode; what is given back restores the mode of each of its parts."""
    before = {part: part.training for part in module.modules()}
    module.eval()

    def restore() -> None:
        for part, training in before.items():
            part.training = training

    return restore


def _hidden_size(model: nn.Module) -> int:
    return _text_config(model).hidden_size


def _text_config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if config is None:
        raise InputError("the model has no config", found=type(model).__name__, expected="a model of transformers")
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _width(module: nn.Module) -> int | None:
    """d_out of a Linear or a Conv1D; None for any other module."""
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, nn.Linear):
        return module.out_features
    return module.nf if isinstance(module, Conv1D) else None


def _not_found(path: str, expected: str, found: list[str]) -> InputError:
    return InputError(
        f"{path} is not a block that this method supports: {_BUILT_OTHERWISE}",
        found=", ".join(found[:6]) or "nothing",
        expected=expected,
        hint="train with lora instead, which adapts any linear layer",
    )
