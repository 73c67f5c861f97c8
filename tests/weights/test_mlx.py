"""MLX's adapters: what is not in the examples of `examples_mlx.py`."""

import copy
import json

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from lorascope.adapt.merge import merge
from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights.io import read, write
from tests.weights.example import double, normal
from tests.weights.examples_mlx import config, folder_of

Q = "model.layers.0.self_attn.q_proj"


def factors(rng):
    return {f"{Q}.lora_a": normal(rng, 10, 3), f"{Q}.lora_b": normal(rng, 3, 6)}


def test_without_a_config_the_scale_is_unknown_and_said(tmp_path):
    tensors = factors(np.random.default_rng(0))
    save_file(tensors, tmp_path / "adapters.safetensors")
    adapter = read(tmp_path)
    expected = (double(tensors[f"{Q}.lora_a"]) @ double(tensors[f"{Q}.lora_b"])).T
    np.testing.assert_allclose(dense(adapter.updates[Q].delta()), expected, rtol=0, atol=1e-13)
    assert "scale unknown" in adapter.notes[0]


def test_a_numbered_checkpoint_takes_the_config_of_its_folder(tmp_path):
    folder_of(tmp_path, factors(np.random.default_rng(0)), config())
    assert read(tmp_path / "0000100_adapters.safetensors").updates[Q].scale == 20.0


def test_alpha_of_old_versions_is_said(tmp_path):
    adapter = read(folder_of(tmp_path, factors(np.random.default_rng(0)), config(alpha=16)))
    assert adapter.updates[Q].scale == 20.0
    assert "alpha/r" in adapter.notes[0]


@pytest.mark.parametrize("tied", [True, False])
def test_a_tied_output_layer_follows_its_embedding(tied, tmp_path):
    """As mlx_lm's LoRAEmbedding computes it (`as_linear`): merged by us, and by PEFT's layers from a file written for
    them. PEFT's own merge adds ΔW twice to a tied weight."""
    name, size = "model.embed_tokens", {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8}
    heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**size, **heads, tie_word_embeddings=tied)).eval()
    rng = np.random.default_rng(0)
    tensors = {f"{name}.lora_a": normal(rng, 16, 2), f"{name}.lora_b": normal(rng, 2, 8)}
    adapter = read(folder_of(tmp_path, tensors, config(scale=0.5)))
    change = 0.5 * double(tensors[f"{name}.lora_a"]) @ double(tensors[f"{name}.lora_b"])
    expected = [model.model.embed_tokens.weight.detach().double().numpy() + change]
    expected.append(expected[0] if tied else model.lm_head.weight.detach().double().numpy().copy())
    write(adapter, tmp_path / "peft")
    theirs = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "peft").eval()
    merge(model, adapter)
    for table, weight in zip((model.model.embed_tokens, model.lm_head), expected, strict=True):
        np.testing.assert_allclose(table.weight.detach().numpy(), weight, rtol=0, atol=1e-6)  # of float32
    ids = torch.arange(16)[None]
    torch.testing.assert_close(theirs(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("shapes", "written", "reason"),
    [
        ({f"{Q}.lora_a": (10, 3)}, config(), "is missing"),
        ({f"{Q}.lora_a": (10, 3), f"{Q}.lora_b": (2, 6)}, config(), "do not fit together"),
        ({f"{Q}.lora_a": (2, 3, 5), f"{Q}.lora_b": (3, 6, 3)}, config(), "do not fit together"),
        ({f"{Q}.lora_a": (10, 3), f"{Q}.lora_b": (3, 6), f"{Q}.m": (5,)}, config("dora"), "does not fit"),
        ({f"{Q}.lora_a": (10, 3), f"{Q}.lora_b": (3, 6), f"{Q}.other": (5,)}, config(), "not understood"),
        ({f"{Q}.lora_a": (10, 3), f"{Q}.lora_b": (3, 6)}, config(scale="much"), "not a number"),
        ({f"{Q}.lora_a": (10, 3), f"{Q}.lora_b": (3, 6)}, {"lora_parameters": [1]}, "not an object"),
    ],
)
def test_contradictions_name_the_key(shapes, written, reason, tmp_path):
    save_file({key: np.ones(shape, np.float32) for key, shape in shapes.items()}, tmp_path / "adapters.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(written))
    with pytest.raises(InputError, match=reason):
        read(tmp_path)
