"""A full model on disk, found by the names adapters use."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.tensors import InMemory


def model(rng: np.random.Generator, tmp_path, config=None, **shapes):
    """A checkpoint of these parameters (`__` for a dot); the folder and the values."""
    values = {name.replace("__", "."): rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(values, tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    return open_checkpoint(tmp_path), values


def low_rank(name, d_out, d_in, **fields):
    return Update(name, "low_rank", {"A": InMemory(np.ones((2, d_in))), "B": InMemory(np.ones((d_out, 2)))}, **fields)


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("model.layers.0.q.weight", "model.layers.0.q"),
        ("model.layers.0.q.weight", "model.layers.0.q.weight"),
        ("layers.0.q.weight", "model.layers.0.q"),
        ("model.layers.0.q.weight", "layers.0.q"),
        ("bert.encoder.layer.0.query.weight", "encoder.layer.0.query"),
        ("encoder.layer.0.query.weight", "bert.encoder.layer.0.query"),
        ("layers.0.q.weight", "base_model.model.layers.0.q"),
        ("base_model.model.layers.0.q.weight", "layers.0.q"),
    ],
)
def test_prefixes_of_either_side(rng, stored, asked, tmp_path):
    checkpoint, values = model(rng, tmp_path, **{stored.replace(".", "__"): (3, 4)})
    np.testing.assert_array_equal(checkpoint.weight(asked).read(), values[stored])


def test_an_ambiguous_or_unknown_name_is_not_guessed(rng, tmp_path):
    checkpoint, _ = model(rng, tmp_path, encoder__layers__0__q__weight=(3, 4), decoder__layers__0__q__weight=(3, 4))
    assert checkpoint.find("layers.0.q") is None
    assert checkpoint.find("weight") is None
    with pytest.raises(InputError, match=r"no parameter for 'layers\.0\.q'.*is it the base model"):
        checkpoint.weight("layers.0.q")


def test_tied_names(rng, tmp_path):
    checkpoint, values = model(rng, tmp_path, config={}, model__embed_tokens__weight=(9, 4), model__norm__weight=(4,))
    np.testing.assert_array_equal(checkpoint.weight("lm_head").read(), values["model.embed_tokens.weight"])
    checkpoint, _ = model(rng, tmp_path, config={"tie_word_embeddings": False}, model__embed_tokens__weight=(9, 4))
    assert checkpoint.find("lm_head") is None


def test_names_and_dtype(tmp_path):
    save_file({"a": np.ones((9, 9), np.float16), "b": np.ones(3, np.float32)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert sorted(checkpoint.names()) == ["a", "b"]
    assert checkpoint.dtype == "F16"


def test_the_base_of_an_update_is_the_map(rng, tmp_path):
    checkpoint, values = model(
        rng, tmp_path, q__weight=(3, 4), conv__weight=(6, 2, 3, 3), c_attn__weight=(4, 5), experts__up=(3, 5, 4)
    )
    np.testing.assert_array_equal(checkpoint.of(low_rank("q", 3, 4)).read(), values["q.weight"])
    conv = checkpoint.of(low_rank("conv", 6, 18, kernel=(3, 3)))
    np.testing.assert_array_equal(conv.read(), values["conv.weight"].reshape(6, 18))
    turned = checkpoint.of(low_rank("c_attn", 5, 4, transposed=True))
    np.testing.assert_array_equal(turned.read(), values["c_attn.weight"].T)
    expert = low_rank("experts.up[2]", 5, 4, base_weight="experts.up", expert=2)
    np.testing.assert_array_equal(checkpoint.of(expert).read(), values["experts.up"][2])
    turned = low_rank("experts.up[1]", 4, 5, base_weight="experts.up", expert=1, transposed=True)
    np.testing.assert_array_equal(checkpoint.of(turned).read(), values["experts.up"][1].T)


def test_a_base_that_does_not_fit(rng, tmp_path):
    checkpoint, _ = model(rng, tmp_path, q__weight=(3, 4), up=(3, 5, 4), v=(4,))
    with pytest.raises(InputError, match=r"does not fit the adapter at q; .*found \(3, 4\), expected \(4, 3\)"):
        checkpoint.of(low_rank("q", 4, 3))
    with pytest.raises(InputError, match="has 3 experts"):
        checkpoint.of(low_rank("up[7]", 5, 4, base_weight="up", expert=7))
    with pytest.raises(InputError, match=r"does not fit the adapter at v; .*found \(4, 1\), expected \(4, 3\)"):
        checkpoint.of(low_rank("v", 4, 3))


def test_shards_and_pytorch_files(tmp_path):
    values = {"a.weight": torch.randn(3, 4), "b.weight": torch.randn(2, 4)}
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    for (key, value), name in zip(values.items(), names, strict=True):
        torch.save({key: value}, tmp_path / name)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": dict(zip(values, names, strict=True))}))
    for path in (tmp_path, index):
        checkpoint = open_checkpoint(path)
        for key, value in values.items():
            np.testing.assert_array_equal(checkpoint.weight(key).read(), value.double().numpy())


def test_a_single_file(rng, tmp_path):
    model(rng, tmp_path, q__weight=(3, 4))
    assert open_checkpoint(tmp_path / "model.safetensors").names() == ["q.weight"]


@pytest.mark.parametrize(
    ("name", "message"),
    [("no/such-model", "local Hugging Face cache"), ("/no/such/folder", "no such file or folder")],
)
def test_what_is_not_here(name, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=message):
        open_checkpoint(name)


def test_folders_that_hold_something_else(tmp_path):
    with pytest.raises(InputError, match="holds no model; found an empty folder"):
        open_checkpoint(tmp_path)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text("{}")  # of a pipeline of diffusers
    with pytest.raises(InputError, match=r"holds no model.*give the folder of one of its models: .*unet"):
        open_checkpoint(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="holds an adapter, not a full model"):
        open_checkpoint(tmp_path)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match="GGUF"):
        open_checkpoint(tmp_path / "m.gguf")


NEVER = [
    ("model.decoder.layers.0.q.weight", "model.encoder.layers.0.q"),
    ("model.decoder.layers.0.q.weight", "layers.0.q"),
    ("decoder.block.0.q.weight", "encoder.block.0.q"),
    ("vision_model.encoder.layers.0.q.weight", "text_model.encoder.layers.0.q"),
    ("language_model.layers.0.q.weight", "vision_tower.layers.0.q"),
    ("blocks.0.q.weight", "transformer_2.blocks.0.q"),
    ("transformer.blocks.0.q.weight", "transformer_2.blocks.0.q"),
    ("text_model.layers.0.q.weight", "text_encoder_2.text_model.layers.0.q"),
    ("bert.layer.0.q.weight", "roberta.layer.0.q"),
    ("model.layers.1.q.weight", "model.layers.0.q"),
    ("model.layers.10.q.weight", "model.layers.0.q"),
]


@pytest.mark.parametrize(("stored", "asked"), NEVER)
def test_another_part_of_a_model_is_never_taken(rng, stored, asked, tmp_path):
    checkpoint, _ = model(rng, tmp_path, **{stored.replace(".", "__"): (3, 4)})
    assert checkpoint.resolve(asked) is None
    assert checkpoint.lookup(low_rank(asked, 3, 4)) == "the base has no such weight"


def test_a_pipeline_s_component_is_that_of_its_folder(rng, tmp_path):
    for folder in ("transformer", "transformer_2"):
        (tmp_path / folder).mkdir()
        checkpoint, _ = model(rng, tmp_path / folder, blocks__0__q__weight=(3, 4))
        for component in ("transformer", "transformer_2", "text_encoder"):
            assert (checkpoint.find(f"{component}.blocks.0.q") is not None) == (component == folder)


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("model.layers.0.q.weight", "_orig_mod.model.layers.0._checkpoint_wrapped_module.q"),
        ("module.model.layers.0.q.weight", "model.layers.0.q"),
        ("language_model.model.layers.0.q.weight", "model.language_model.layers.0.q"),
        ("model.language_model.layers.0.q.weight", "language_model.model.layers.0.q"),
        ("blocks.0.q.weight", "transformer.blocks.0.q"),
        ("h.0.attn.c_attn.weight", "transformer.h.0.attn.c_attn"),
    ],
)
def test_wrappers_and_known_renamings_are_followed(rng, stored, asked, tmp_path):
    checkpoint, values = model(rng, tmp_path, **{stored.replace(".", "__"): (3, 4)})
    np.testing.assert_array_equal(checkpoint.weight(asked).read(), values[stored])


def test_experts_that_files_keep_apart_are_the_fused_parameter_of_transformers(tmp_path):
    import transformers

    size = {
        "hidden_size": 8,
        "intermediate_size": 6,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 16,
    }
    config = transformers.MixtralConfig(num_local_experts=3, num_key_value_heads=1, **size)
    live = transformers.MixtralForCausalLM(config)
    live.save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    for name in ("gate_up_proj", "down_proj"):
        path = f"model.layers.0.mlp.experts.{name}"
        expected = live.get_parameter(path).detach().double().numpy()
        np.testing.assert_array_equal(checkpoint.weight(path).read(), expected)
        one = low_rank(f"{path}[2]", *expected.shape[1:], base_weight=path, expert=2)
        np.testing.assert_array_equal(checkpoint.of(one).read(), expected[2])


def test_a_grouped_convolution_is_the_map_with_zeros_between_its_groups(rng, tmp_path):
    checkpoint, values = model(rng, tmp_path, conv__weight=(6, 2, 3))
    layer = torch.nn.Conv1d(4, 6, 3, groups=2, bias=False)
    layer.weight.data = torch.from_numpy(values["conv.weight"])
    matrix = checkpoint.of(low_rank("conv", 6, 12, kernel=(3,))).read()
    x = torch.randn(1, 4, 3)
    expected = layer(x).detach().numpy().ravel()
    np.testing.assert_allclose(matrix @ x.numpy().reshape(-1), expected, rtol=1e-5, atol=1e-6)  # float32 sums


def test_a_grown_vocabulary_concerns_its_own_module(rng, tmp_path):
    checkpoint, values = model(rng, tmp_path, model__embed_tokens__weight=(10, 4), lm_head__weight=(10, 4))
    grown = low_rank("model.embed_tokens", 4, 12, transposed=True, embedding=True)
    assert checkpoint.lookup(grown) == "the vocabulary was resized: 12 tokens in the adapter, 10 in the base"
    fewer = Update("lm_head", "tuned", {"tuned": InMemory(np.ones((8, 4)))}, base_weight="lm_head.weight")
    np.testing.assert_array_equal(checkpoint.of(fewer).read(), values["lm_head.weight"][:8])


def test_the_models_that_transpose_experts_are_those_whose_class_says_so():
    """transformers' own flag, over all model files of the installed version."""
    import re
    from pathlib import Path

    import transformers

    from lorascope import architectures

    folder = Path(transformers.__file__).parent / "models"
    flagged = {
        path.parent.name
        for path in folder.glob("*/modeling_*.py")
        if re.search(r"use_experts_implementation\([^)]*is_transposed=True", path.read_text(encoding="utf-8"))
    }
    assert flagged <= set(architectures._TRANSPOSED_EXPERTS)
    users = {
        path.parent.name
        for path in folder.glob("*/modeling_*.py")
        if re.search(r"import .*\bConv1D\b", path.read_text())
    }
    known = {name.replace("openai-gpt", "openai") for name in architectures._CONV1D_MODELS}
    assert users <= known
