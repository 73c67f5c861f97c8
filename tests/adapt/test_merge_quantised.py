"""Merging into a quantised base: W + ΔW of the numbers its codes stand for, and what coding the sum again loses."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lorascope.api import merge
from lorascope.errors import InputError
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.codes.requantise import requantised, rounded8

FP8 = torch.float8_e4m3fn


def fp8_rows(weight):
    scale = weight.abs().amax(1, keepdim=True) / 448
    return {"": (weight / scale).to(FP8), "_scale": scale}


def int8_rows(weight):
    scale = weight.abs().amax(1)
    return {"": torch.round(weight / scale[:, None] * 127).to(torch.int8), ".SCB": scale}


NF4 = torch.linspace(-1, 1, 16)


def nf4(weight):
    blocks = weight.reshape(-1, 64)
    largest = blocks.abs().amax(1)
    codes = (blocks / largest[:, None])[..., None].sub(NF4).abs().argmin(-1).reshape(-1)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": list(weight.shape)}
    packed = (codes[0::2] << 4 | codes[1::2]).to(torch.uint8).reshape(-1, 1)
    text = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    parts = {".absmax": largest, ".quant_map": NF4.clone(), ".quant_state.bitsandbytes__nf4": text}
    return {"": packed, **parts}


SCHEMES = {
    "fp8": (fp8_rows, {"quant_method": "compressed-tensors", "format": "float-quantized"}),
    "int8": (int8_rows, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
}


def named(name, parts):
    return {f"{name[: -len('.weight')]}{end}" if end == ".SCB" else name + end: tensor for end, tensor in parts.items()}


@pytest.fixture
def model(tmp_path):
    """A tiny Llama and an adapter of its q_proj: their folders."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(tmp_path / "base")
    folder = tmp_path / "adapter"
    folder.mkdir()
    factors = {}
    for layer in range(2):
        module = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        factors |= {f"{module}.lora_A.weight": torch.randn(4, 64), f"{module}.lora_B.weight": torch.randn(64, 4) / 50}
    save_file(factors, folder / "adapter_model.safetensors")
    said = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    return tmp_path / "base", folder


def quantise(base, folder, scheme):
    """The base with its projections in codes."""
    code, said = SCHEMES[scheme]
    tensors = {}
    for name, tensor in load_file(base / "model.safetensors").items():
        tensors |= named(name, code(tensor)) if "proj" in name else {name: tensor}
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = json.loads((base / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": said}))
    return folder


@pytest.mark.parametrize("scheme", SCHEMES)
def test_merging_into_codes(scheme, model, tmp_path):
    base, adapter = model
    coded = quantise(base, tmp_path / "coded", scheme)
    done = merge(coded, adapter, output=tmp_path / "merged")
    written, stored = load_file(tmp_path / "merged/model.safetensors"), open_checkpoint(coded).stored
    factors = load_file(adapter / "adapter_model.safetensors")
    for name in written:
        expected = stored[name].read()
        if "q_proj" in name:
            path = f"base_model.model.{name.removesuffix('.weight')}"
            a, b = (factors[f"{path}.lora_{side}.weight"].double().numpy() for side in "AB")
            change = 2 * b @ a
            again = SCHEMES[scheme][0](torch.tensor(expected + change, dtype=torch.float32))
            kept = next(one for one in done.report.requantised if one.name == name)
            sum_ = dequantised(again, scheme)
            loss = np.linalg.norm(sum_ - expected - change) / np.linalg.norm(change)
            assert kept.loss == pytest.approx(loss, rel=1e-3)
            expected = expected + change
        np.testing.assert_allclose(written[name].double().numpy(), expected, rtol=1e-6, atol=1e-6)
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert "quantization_config" not in config
    record = json.loads((tmp_path / "merged/merge.json").read_text())
    assert record["requantising"]["loss"] > 0
    assert {one["scheme"] for one in record["requantised"]} == {done.report.requantised[0].scheme}


def dequantised(parts, scheme):
    """Written out in float64."""
    if scheme == "nf4":
        high, low = parts[""].reshape(-1).long() >> 4, parts[""].reshape(-1).long() & 15
        values = NF4[torch.stack([high, low], 1).reshape(-1)].reshape(-1, 64)
        return (values.double() * parts[".absmax"].double()[:, None]).reshape(64, -1).numpy()
    scale = parts["_scale"] if scheme == "fp8" else parts[".SCB"][:, None] / 127
    return (parts[""].double() * scale.double()).numpy()


def test_a_large_update_survives_and_a_small_one_does_not(model, tmp_path):
    base, adapter = model
    coded = quantise(base, tmp_path / "coded", "nf4")
    factors = load_file(adapter / "adapter_model.safetensors")
    shares = []
    for size in (1.0, 1e-4):
        scaled = {name: tensor * (size if "lora_B" in name else 1) for name, tensor in factors.items()}
        save_file(scaled, adapter / "adapter_model.safetensors")
        shares.append(merge(coded, adapter).report.requantising)
    assert shares[0]["survives"] > 0.9
    assert shares[1]["loss"] > 0.9


def test_codes_that_are_not_decoded_are_refused(model, tmp_path):
    base, adapter = model
    coded = quantise(base, tmp_path / "coded", "fp8")
    tensors = load_file(coded / "model.safetensors")
    name = next(name for name in tensors if name.endswith("weight_scale"))
    tensors[name] = torch.ones(3, 5)
    save_file(tensors, coded / "model.safetensors")
    with pytest.raises(InputError, match=r"in a way that lorascope does not read.*does not know"):
        merge(coded, adapter, output=tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("F8_E4M3", FP8), ("F8_E5M2", torch.float8_e5m2)])
def test_rounding_to_float8(dtype, torch_dtype):
    sizes = torch.randn(4000, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 2, 4000)
    sizes = torch.cat(
        [sizes, torch.arange(256, dtype=torch.uint8).view(torch_dtype).float().nan_to_num(0, 0, 0) * 1.0625]
    )
    sizes = sizes.clamp(-448, 448)
    found = rounded8(sizes.numpy(), dtype)
    np.testing.assert_array_equal(found, sizes.to(torch_dtype).float().numpy())


@pytest.mark.parametrize("nested", [False, True])
def test_four_bits_are_what_bitsandbytes_codes(nested, tmp_path):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(64, 192, generator=torch.Generator().manual_seed(0))
    codes, state = functional.quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
    parts = {f"q.weight.{name}": tensor for name, tensor in state.as_dict(packed=True).items()}
    save_file({"q.weight": codes, **parts}, tmp_path / "model.safetensors")
    stored = open_checkpoint(tmp_path).stored["q.weight"]
    again = requantised(stored, weight.numpy())
    expected = stored.read()  # of a nested one a block's largest may lie between two codes, to the last bit
    assert np.linalg.norm(again - expected) <= (1e-4 if nested else 1e-6) * np.linalg.norm(expected)
