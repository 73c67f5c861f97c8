"""Merging into a quantised base: W + ΔW of the numbers its codes stand for, and what coding the sum again loses."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lorascope.adapt.merge import Merge
from lorascope.adapt.requantising import Requantised, measure
from lorascope.api import merge
from lorascope.cli.merge import summary
from lorascope.errors import InputError
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.codes.nearest import rounded
from lorascope.weights.codes.requantise import requantised
from tests.weights.test_quantised_words import words

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


def gptq(weight):
    groups = weight.reshape(len(weight), -1, 32)
    scale = (2 * groups.abs().amax(-1) / 15).half()
    codes = (torch.round(groups / scale.float()[..., None]) + 8).clamp(0, 15).reshape(weight.shape).int()
    zeros = np.full((groups.shape[1], len(weight)), 7)
    return {".qweight": words(codes.tolist(), 4).T, ".scales": scale.T, ".qzeros": words(zeros, 4)}


SCHEMES = {
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4, "group_size": 32}),
    "fp8": (fp8_rows, {"quant_method": "compressed-tensors", "format": "float-quantized"}),
    "int8": (int8_rows, {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
}


def named(name, parts):
    of_module = (".SCB", ".qweight", ".scales", ".qzeros")
    return {
        f"{name[: -len('.weight')]}{end}" if end in of_module else name + end: tensor for end, tensor in parts.items()
    }


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
    said = summary(done.report, "float32")
    assert f"add an error of {record['requantising']['loss']:.3g} times its norm" in said
    assert ("calibration data" in said) == (scheme == "gptq")


def dequantised(parts, scheme):
    """Written out in float64."""
    if scheme == "nf4":
        high, low = parts[""].reshape(-1).long() >> 4, parts[""].reshape(-1).long() & 15
        values = NF4[torch.stack([high, low], 1).reshape(-1)].reshape(-1, 64)
        return (values.double() * parts[".absmax"].double()[:, None]).reshape(64, -1).numpy()
    if scheme == "gptq":
        codes = (parts[".qweight"].T[..., None] >> torch.arange(0, 32, 4)) & 15
        scale = parts[".scales"].T.double().repeat_interleave(32, 1)
        return ((codes.reshape(scale.shape) - 8).double() * scale).numpy()
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
    found = rounded(sizes.numpy(), dtype)
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


def test_what_cannot_be_quantised_again_is_said():
    unknown = Requantised("q.weight", "GGUF Q4_K", None, None, 1.0)
    said = summary(Merge(requantised=[unknown]), "float32")
    assert "what quantising 1 of them again would lose is not computed: lorascope does not quantise to GGUF Q4" in said


def test_experts_of_a_file_that_keeps_them_apart(tmp_path):
    """Two quantised projections of an expert, as the model fuses them: the error of both."""
    torch.manual_seed(0)
    parts = {f"experts.{k}.{part}_proj.weight": torch.randn(32, 64) for k in range(2) for part in ("gate", "up")}
    tensors = {}
    for name, weight in parts.items():
        tensors |= named(f"m.{name}", {end: part.contiguous() for end, part in gptq(weight).items()})
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": SCHEMES["gptq"][1]}))
    stored = open_checkpoint(tmp_path).find("m.experts.gate_up_proj")
    delta = torch.randn(64, 64) / 10
    found = measure("gate_up_proj[1]", stored, delta, 1)
    weight = torch.tensor(stored.read()[1]).float()
    again = [dequantised(gptq(half), "gptq") for half in (weight + delta).split(32)]
    error = np.linalg.norm(np.concatenate(again) - (weight + delta).double().numpy())
    assert found.loss == pytest.approx(error / delta.norm().item(), rel=1e-4)
    assert found.scheme == "GPTQ 4-bit"
