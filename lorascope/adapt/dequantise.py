"""Linear layers whose weight is stored in codes, as frozen bases: bitsandbytes' 4 and 8 bit, torchao's, GPTQ's, AWQ's.

One function gives any of them as numbers, and all that needs W itself goes through it: DoRA's row lengths, PiSSA's
start, merging. bitsandbytes and torchao dequantise by themselves; of other modules W is what they make of the identity
matrix. No library of theirs is imported unless a layer of it is there.
"""

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn

from lorascope.adapt.layers import bias_of, of_torchao, weight_of
from lorascope.linalg.arrays import Float

_AT_ONCE = 1024  # rows of the identity that go through a layer together


def is_quantised(layer: nn.Module) -> bool:
    """Whether the layer is a linear map whose weight is in codes."""
    if isinstance(layer, nn.Linear):
        return not weight_of(layer).is_floating_point() or of_torchao(weight_of(layer))
    weight = getattr(layer, "weight", None)
    sizes = all(isinstance(getattr(layer, name, None), int) for name in ("in_features", "out_features"))
    coded = isinstance(getattr(layer, "qweight", None), Tensor)
    return sizes and (coded or (isinstance(weight, Tensor) and not weight.is_floating_point()))


def computes_in(layer: nn.Module) -> torch.dtype | None:
    """The dtype of a 4-bit layer's products, where they are products with the dequantised weight and nothing else."""
    if type(layer).__name__ != "Linear4bit" or layer._forward_hooks or layer._forward_pre_hooks:
        return None
    return cast(Any, layer).compute_dtype


@torch.no_grad()
def dense_weight(layer: nn.Module) -> Float[Tensor, "d_out d_in"]:
    """The weight of a layer as numbers, in the layout in which it is stored; a new tensor where it is in codes."""
    if not is_quantised(layer):
        return weight_of(layer).detach()
    weight: Any = weight_of(layer)
    sort = type(weight).__name__
    if sort == "Params4bit":
        return _four_bit(weight)
    if sort == "Int8Params":
        scales = weight.SCB if weight.SCB is not None else cast(Any, layer).state.SCB
        codes = weight.CB if getattr(weight, "CB", None) is not None else weight.data
        return codes.float() * (scales.view(-1, 1) / 127)
    if of_torchao(weight):
        return weight.dequantize()
    return _through(layer)


def _four_bit(weight: Any) -> Tensor:
    from bitsandbytes import functional as bnb

    state, codes = weight.quant_state, weight.data
    if getattr(state, "packing_format_for_cpu", False):  # after a forward pass in evaluation on some CPUs
        codes, state = bnb._convert_weight_packed_for_cpu_inverse(codes.clone(), copy.deepcopy(state))
    return bnb.dequantize_4bit(codes, state)


def _through(layer: nn.Module) -> Tensor:
    """W, row by row of the identity: (1 · Wᵀ + bias) − bias."""
    module: Any = layer
    dtype = next((t.dtype for t in [*layer.parameters(), *layer.buffers()] if t.is_floating_point()), torch.float32)
    bias, d_in = bias_of(layer), module.in_features
    device = weight_of(layer).device
    parts = []
    for start in range(0, d_in, _AT_ONCE):
        rows = torch.zeros(min(_AT_ONCE, d_in - start), d_in, dtype=dtype, device=device)
        rows.diagonal(offset=start).fill_(1)
        out = module(rows).float()
        parts.append(out if bias is None else out - bias.float())
    return torch.cat(parts).t().contiguous()


@torch.no_grad()
def plain_linear(layer: nn.Module, weight: Float[Tensor, "d_out d_in"]) -> nn.Linear:
    """A Linear of this weight with the layer's bias: what a quantised layer is after a merge."""
    bias = bias_of(layer)
    d_out, d_in = weight.shape
    linear = nn.Linear(d_in, d_out, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().to(weight.dtype), requires_grad=False)
    return linear.train(layer.training)


@torch.no_grad()
def requantising_loss(layer: nn.Module, merged: Tensor, delta: Tensor) -> float | None:
    """‖Q(W + ΔW) − (W + ΔW)‖_F / ‖ΔW‖_F by the layer's own scheme; None of one that is not computed, or of ΔW = 0."""
    weight: Any = weight_of(layer)
    size, sort = float(torch.linalg.vector_norm(delta)), type(weight).__name__
    if not size or sort not in ("Params4bit", "Int8Params"):
        return None
    if sort == "Params4bit":
        from bitsandbytes import functional as bnb

        state = weight.quant_state
        coded = bnb.quantize_4bit(
            merged.to(state.dtype).contiguous(),
            blocksize=state.blocksize,
            compress_statistics=state.nested,
            quant_type=state.quant_type,
        )
        again = bnb.dequantize_4bit(*coded)
    else:
        largest = merged.abs().amax(dim=1, keepdim=True).float()
        again = torch.round(merged.float() * (127 / largest)) * (largest / 127)
    return float(torch.linalg.vector_norm(again.float() - merged.float())) / size


def leave_config(model: nn.Module, plain: list[str]) -> None:
    """Let the config say what of a quantised model is not any more: nothing is, or all but these layers."""
    config: Any = getattr(model, "config", None)
    settings = getattr(config, "quantization_config", None)
    if settings is None or not plain:
        return
    if any(is_quantised(module) for module in model.modules()):
        skipped = getattr(settings, "llm_int8_skip_modules", None)
        if hasattr(settings, "llm_int8_skip_modules"):
            settings.llm_int8_skip_modules = [*(skipped or []), *plain]
        return
    del config.quantization_config
    for name, value in (("is_quantized", False), ("hf_quantizer", None), ("quantization_method", None)):
        if hasattr(model, name):
            setattr(model, name, value)
