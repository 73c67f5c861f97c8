"""Files of other dialects than PEFT's as trainers leave them, and those that are refused by name."""

import numpy as np
import pytest
import torch

from lorascope.errors import InputError
from lorascope.weights.io import read
from tests.weights.test_reading import BA, LORA, A, B, assert_deltas, one, pair, saved


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
@pytest.mark.parametrize("pairs", [("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")])
def test_wan(prefix, pairs, tmp_path):
    """Pairs beside differences of biases, norms, a head and a table of vectors: CausVid, AccVideo, lightx2v."""
    start = f"{prefix}blocks.0."
    tensors = {
        **pair(f"{start}q", *pairs),
        f"{start}q.diff_b": one(1),
        f"{start}norm3.diff": one(1),
        f"{start}norm3.diff_b": one(1),
        f"{start}modulation.diff": np.ones((1, 6, 5), np.float32),
        f"{prefix}head.diff": BA.astype(np.float32),
        f"{prefix}head.diff_b": one(1),
        f"{prefix}patch.diff_b": one(1),
    }
    adapter = read(saved(tmp_path, tensors, name="wan.safetensors"))
    assert_deltas(adapter, {f"{start}q": BA, f"{prefix}head": BA.astype(np.float32).astype(np.float64)})
    aside = {key for key in tensors if "diff" in key.rpartition(".")[2]} - {f"{prefix}head.diff"}
    assert {item.name for item in adapter.skipped} == aside


@pytest.mark.parametrize("mark", ["diff_b", "w_norm", "b_norm"])
@pytest.mark.parametrize(
    "roles",
    [
        {"diff": (6,)},
        {"q_layer.weight": (3, 10), "p_layer.weight": (6, 3), "lambda_layer": (1, 3)},
    ],
    ids=lambda roles: next(iter(roles)),
)
def test_a_module_that_is_set_aside_in_two_steps(mark, roles, tmp_path):
    tensors = {f"x.{role}": np.ones(shape, np.float32) for role, shape in {**roles, mark: (6,)}.items()}
    tensors |= pair("y", "lora_down.weight", "lora_up.weight")
    adapter = read(saved(tmp_path, tensors, name="a.safetensors"))
    assert_deltas(adapter, {"y": BA})


@pytest.mark.parametrize("prefix", ["", "base_model.model.", "unet."])
def test_pairs_with_alpha_in_the_file(prefix, tmp_path):
    tensors = {**pair(f"{prefix}h.0.q"), f"{prefix}h.0.q.alpha": np.array(6, np.float32)}
    adapter = read(saved(tmp_path, tensors, name="a.safetensors"))
    assert_deltas(adapter, {f"{prefix.removeprefix('base_model.model.')}h.0.q": 2 * BA})


def test_a_file_of_peft_with_alphas_besides_is_refused(tmp_path):
    tensors = {**pair("base_model.model.h.0.q"), "base_model.model.h.0.q.alpha": np.array(6, np.float32)}
    with pytest.raises(InputError, match="not understood"):
        read(saved(tmp_path, tensors, LORA))


def test_black_forest_labs_and_comfyui(tmp_path):
    """Norm scales stored whole, biases of B, and the shape to which ComfyUI widens a weight."""
    tensors = {**pair("img_in"), "img_in.lora_B.bias": one(1), "double_blocks.0.norm.key_norm.scale": one(1)}
    adapter = read(saved(tmp_path, tensors, name="a.safetensors"))
    assert_deltas(adapter, {"img_in": BA})
    assert set(adapter.saved) == {"double_blocks.0.norm.key_norm.scale"}
    start = "diffusion_model."
    tensors = {
        **pair(f"{start}img_in", "lora_down.weight", "lora_up.weight"),
        f"{start}img_in.reshape_weight": np.array([6, 10]),
        f"{start}norm.scale.set_weight": one(2),
    }
    adapter = read(saved(tmp_path, tensors, name="b.safetensors"))
    assert_deltas(adapter, {f"{start}img_in": BA})
    assert set(adapter.saved) == {f"{start}norm.scale"}


@pytest.mark.parametrize("key", ["unet.h.0.q.lora_norm.weight", "unet.h.0.q.norm.weight", "unet.h.0.q.lora_mask"])
def test_a_norm_within_an_adapted_module_refuses_the_file(key, tmp_path):
    with pytest.raises(InputError, match="not understood"):
        read(saved(tmp_path, {**pair("unet.h.0.q"), key: one(2)}, name="a.safetensors"))
    beside = {**pair("unet.h.0.q"), "unet.h.0.norm.weight": one(2)}
    assert set(read(saved(tmp_path, beside, name="a.safetensors")).saved) == {"unet.h.0.norm.weight"}


@pytest.mark.parametrize("component", ["", "diffusion_model.", "transformer."])
def test_xlabs(component, tmp_path):
    names = [f"{component}double_blocks.0.processor.{kind}_lora{n}" for kind in ("qkv", "proj") for n in (1, 2)]
    names.append(f"{component}single_blocks.3.processor.qkv_lora")
    tensors = {k: v for name in names for k, v in pair(name, "down.weight", "up.weight").items()}
    assert_deltas(read(saved(tmp_path, tensors, name="a.safetensors")), dict.fromkeys(names, BA))


@pytest.mark.parametrize("component", ["", "diffusion_model."])
def test_two_spellings_in_one_file(component, tmp_path):
    """ComfyUI reads each module by its own keys; of one module with both only the user can say which is meant."""
    names = [f"{component}blocks.{k}.attn.q" for k in range(2)]
    tensors = pair(names[0], "lora_A.weight", "lora_B.weight") | pair(names[1], "lora_down.weight", "lora_up.weight")
    tensors[f"{names[1]}.alpha"] = np.float32(len(A) / 2)
    assert_deltas(read(saved(tmp_path, tensors, name="a.safetensors")), {names[0]: BA, names[1]: BA / 2})
    twice = tensors | pair(names[0], "lora_down.weight", "lora_up.weight")
    with pytest.raises(InputError, match=r"two adapters of one module.*lora_A.*lora_down.*file of its own"):
        read(saved(tmp_path, twice, name="a.safetensors"))


def test_adapterhubs_lora_has_its_configs_scale(tmp_path):
    tensors = pair("bert.layer.0.query.loras.sst", "lora_A", "lora_B")
    config = {"config": {"architecture": "lora", "alpha": 6, "r": 3, "composition_mode": "add"}, "name": "sst"}
    saved(tmp_path, tensors, config, "pytorch_adapter.bin")
    torch.save({"head": torch.ones(2)}, tmp_path / "pytorch_model_head.bin")
    assert_deltas(read(tmp_path), {"bert.layer.0.query": 2 * BA})
    assert read(tmp_path).settings["alpha"] == 6
    with pytest.raises(InputError, match="contradicts"):
        read(saved(tmp_path, tensors, {**config, "config": {**config["config"], "r": 2}}, "pytorch_adapter.bin"))
    for change in ({"composition_mode": "scale"}, {"use_gating": True}):
        with pytest.raises(InputError, match="composition_mode"):
            read(saved(tmp_path, tensors, {**config, "config": {**config["config"], **change}}, "pytorch_adapter.bin"))
    prefix = "bert.prefix_tuning.prefix_tunings.sst.wte.weight"
    mixed = read(saved(tmp_path, {**tensors, prefix: A}, config, "pytorch_adapter.bin"))
    assert set(mixed.non_weight_tensors) == {prefix}
    gate = {"bert.layer.0.query.loras.sst.gate.weight": A}
    with pytest.raises(InputError, match="not understood"):
        read(saved(tmp_path, {**tensors, **gate}, config, "pytorch_adapter.bin"))


@pytest.mark.parametrize("name", ["model", "state_dict", "module", "model_state_dict"])
def test_a_state_dict_inside_a_training_state(name, tmp_path):
    inner = {"h.0.q.lora_A": torch.tensor(A), "h.0.q.lora_B": torch.tensor(B)}
    torch.save({name: inner, "iter_num": 3}, tmp_path / "lit_model.pth.lora")
    assert_deltas(read(tmp_path), {"h.0.q": BA})
    torch.save(
        {name: inner, "state_dict" if name != "state_dict" else "model": {"x": torch.ones(2)}}, tmp_path / "a.pt"
    )
    with pytest.raises(InputError, match="several state dicts"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.keras", "Keras"),
        ("flax_model.msgpack", "Flax"),
        ("adapters.npz", "numpy"),
        ("adapter.ggla", "before GGUF"),
        ("model.onnx", "ONNX"),
        ("bert.ckpt.index", "TensorFlow"),
        ("bert.ckpt.data-00000-of-00001", "TensorFlow"),
        ("__0_0.distcp", "distributed"),
        ("run.nemo", "archive"),
    ],
)
@pytest.mark.parametrize("by_folder", [False, True])
def test_foreign_files_are_named_for_what_they_are(name, said, by_folder, tmp_path):
    (tmp_path / name).write_bytes(b"whatever")
    with pytest.raises(InputError, match=said):
        read(tmp_path if by_folder else tmp_path / name)


@pytest.mark.parametrize(
    ("keys", "config", "said"),
    [
        (["l.0.q.weight"], {"config": {"reduction_factor": 4}, "name": "x"}, "AdapterHub"),
        (["lora_unet_x.oft_diag"], None, "first versions"),
        (["lora_controlnet", "input_blocks.1.0.up"], None, "Control-LoRA"),
        (["medusa_head.0.0.linear.weight", "medusa_head.0.1.weight"], None, "Medusa"),
        (["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], None, "IP-Adapter"),
        (["emb_params"], None, "textual inversion"),
        (["base_model.model.l.0.q.weight"], {"lora_alpha": 32, "r": 8}, "no peft_type"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_dialects_that_are_not_read_are_named_and_are_no_full_model(keys, config, said, tmp_path):
    with pytest.raises(InputError, match=said) as caught:
        read(saved(tmp_path, dict.fromkeys(keys, A), config, "a.safetensors"))
    assert "full model" not in str(caught.value)


def test_what_speaks_of_an_adapter_is_no_full_model(tmp_path):
    keys = [f"model.layers.{n}.{part}.weight" for n in range(8) for part in ("q", "some_adapter.down")]
    with pytest.raises(InputError, match="unknown adapter format"):
        read(saved(tmp_path, dict.fromkeys(keys, A), name="a.safetensors"))


@pytest.mark.parametrize(
    ("key", "dialect"),
    [
        ("h.0.q.lora_A.a.b.c", "PEFT's"),
        ("h.0.q.hada_w9_z", "LyCORIS"),
        ("h.0.q.lora_down.some", "kohya's"),
        ("h.0.q.lora_a.some", "MLX's"),
        ("h.0.linear_in.some", "NeMo's"),
    ],
)
def test_an_unknown_file_gets_its_nearest_dialect_and_what_did_not_fit(key, dialect, tmp_path):
    with pytest.raises(InputError, match=f"{dialect}.* dialect is the nearest, and 1 of 2 keys.*odd_one"):
        read(saved(tmp_path, {key: A, "odd_one.0.x": A}, name="a.safetensors"))


def test_a_file_by_a_models_name_is_a_full_model_only_where_it_is_one(tmp_path):
    with pytest.raises(InputError, match="full model"):
        read(saved(tmp_path, {"h.0.q.weight": A, "h.0.q.qweight": A}, name="model.safetensors"))
    with pytest.raises(InputError, match="unknown adapter format"):
        read(saved(tmp_path, {"h.0.q.lora_A.a.b.c": A}, name="model.safetensors"))
