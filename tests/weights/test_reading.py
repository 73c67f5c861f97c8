"""Files as trainers leave them: wrapped names, whole models with an adapter inside, foreign keys, other dialects."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights.io import read, write
from tests.weights import examples_peft as peft

A, B = (np.random.default_rng(n).standard_normal(s).astype(np.float32) for n, s in enumerate([(3, 10), (6, 3)]))
BA = B.astype(np.float64) @ A.astype(np.float64)
LORA = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}


def one(values, size=6):
    return np.full(size, values, np.float32)


def saved(folder, tensors, config=None, name="adapter_model.safetensors"):
    """A file of these tensors, with a config beside it; its path."""
    folder.mkdir(exist_ok=True)
    if config is not None:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    if name.endswith(".safetensors"):
        save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, folder / name)
    else:
        torch.save({key: torch.tensor(value) for key, value in tensors.items()}, folder / name)
    return folder / name


def pair(module, down="lora_A.weight", up="lora_B.weight"):
    return {f"{module}.{down}": A, f"{module}.{up}": B}


def assert_deltas(adapter, expected):
    assert set(adapter.updates) == set(expected)
    for name, delta in expected.items():
        # Factors are exact in float64; only the scale's division and the order of sums differ.
        np.testing.assert_allclose(dense(adapter.updates[name].delta()), delta, rtol=1e-13, atol=1e-13, err_msg=name)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "_orig_mod.base_model.model.h.0.q",
        "module.base_model.model.h.0.q",
        "module._orig_mod.base_model.model.h.0.q",
        "base_model.model._orig_mod.h.0.q",
        "base_model.model.h.0._fsdp_wrapped_module.q",
        "base_model.model.h.0._fsdp_wrapped_module._checkpoint_wrapped_module.q",
        "base_model.model.base_model.model.h.0.q",
    ],
)
def test_wrappers_are_no_part_of_a_name(key, tmp_path):
    adapter = read(saved(tmp_path, pair(key), LORA))
    assert_deltas(adapter, {"h.0.q": 2 * BA})
    assert any("wrappers' segments" in note for note in adapter.notes)


@pytest.mark.parametrize("component", ["thinker", "transformer", "module.thinker"])
def test_a_peft_model_within_another(component, tmp_path):
    adapter = read(saved(tmp_path, pair(f"{component}.base_model.model.h.0.q"), LORA))
    assert_deltas(adapter, {f"{component.removeprefix('module.')}.h.0.q": 2 * BA})


@pytest.mark.parametrize("pattern", ["h.0._orig_mod.q", r"^h\.0\._orig_mod\.q", "h.0.q", "_fsdp_wrapped_module.q"])
def test_patterns_of_a_wrapped_model(pattern, tmp_path):
    config = {**LORA, "alpha_pattern": {pattern: 9}}
    assert_deltas(read(saved(tmp_path, pair("base_model.model.h.0._orig_mod.q"), config)), {"h.0.q": 3 * BA})


def test_wrappers_in_every_format(tmp_path):
    kohya = pair("diffusion_model._orig_mod.blocks.0.q", "lora_down.weight", "lora_up.weight")
    assert_deltas(read(saved(tmp_path, kohya, name="a.safetensors")), {"diffusion_model.blocks.0.q": BA})
    plain = pair("module.h.0.q", "lora_A", "lora_B")
    assert_deltas(read(saved(tmp_path, plain, name="b.pt")), {"h.0.q": BA})


def test_two_keys_that_differ_by_a_wrapper_alone(tmp_path):
    tensors = {**pair("base_model.model.h.0.q"), **pair("base_model.model._orig_mod.h.0.q")}
    with pytest.raises(InputError, match="two keys mean the same"):
        read(saved(tmp_path, tensors, LORA))


# --- keys that nobody understands ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.h.0.q.mask",
        "base_model.model.h.0.q.lora_C.weight",
        "base_model.model.h.0.q.scaling",
        "base_model.model.h.0.q.gate.weight",
        "base_model.model.h.0.q.base_layer.mystery",
        "h.0.q.mask",  # the same module, without PEFT's prefix
        "scaling",
        "base_model.model.h.1.lora_gate",
        "base_model.model.adapter_scale.value",
    ],
)
def test_what_might_change_the_update_refuses_the_file(key, tmp_path):
    with pytest.raises(InputError, match=r"not understood"):
        read(saved(tmp_path, {**pair("base_model.model.h.0.q"), key: one(2)}, LORA))


@pytest.mark.parametrize("key", ["base_model.model.h.0.norm.gamma_2", "base_model.model.extra.table", "h.9.thing.x"])
def test_what_stands_elsewhere_is_skipped_by_name(key, tmp_path):
    adapter = read(saved(tmp_path, {**pair("base_model.model.h.0.q"), key: one(2)}, LORA))
    assert_deltas(adapter, {"h.0.q": 2 * BA})
    assert key in {item.name for item in adapter.skipped}
    assert any(key in note and "skipped" in note for note in adapter.notes)


def test_a_variant_without_its_config_is_no_plain_lora(tmp_path):
    tensors = {**pair("base_model.model.h.0.q"), "base_model.model.h.0.q.lora_arrow.prototypes": one(2, 3)}
    with pytest.raises(InputError, match="Arrow"):
        read(saved(tmp_path, tensors))
    adapter = read(saved(tmp_path, {**tensors, **pair("base_model.model.h.1.q")}))
    assert list(adapter.updates) == ["h.1.q"]  # the plain one beside it


# --- PEFT: what stands beside the updates ----------------------------------------------------------------------------


def test_a_head_that_is_stored_under_two_keys(tmp_path):
    """`bias="all"` stores the head's bias as a bias and with the module that was trained whole."""
    tensors = {
        **pair("base_model.model.h.0.q"),
        "base_model.model.classifier.weight": A,
        "base_model.model.classifier.bias": one(1),
        "base_model.model.classifier.modules_to_save.bias": one(1),
        "base_model.model.classifier.original_module.bias": one(0),
    }
    config = {**LORA, "bias": "all", "task_type": "TOKEN_CLS", "modules_to_save": ["classifier", "score"]}
    adapter = read(saved(tmp_path, tensors, config))
    assert set(adapter.saved) == {"classifier.weight", "classifier.bias"}
    np.testing.assert_array_equal(adapter.saved["classifier.bias"].read(), one(1))
    tensors["base_model.model.classifier.modules_to_save.bias"] = one(3)
    with pytest.raises(InputError, match="hold different values"):
        read(saved(tmp_path, tensors, config))


@pytest.mark.parametrize(
    ("task", "head"),
    [("SEQ_CLS", "score"), ("SEQ_CLS", "classifier"), ("TOKEN_CLS", "classifier"), ("QUESTION_ANS", "qa_outputs")],
)
def test_heads_that_peft_saves_by_task_raise_no_alarm(task, head, tmp_path):
    tensors = {**pair("base_model.model.h.0.q"), f"base_model.model.{head}.weight": A}
    assert read(saved(tmp_path, tensors, {**LORA, "task_type": task})).notes == ()
    assert (
        "not listed in modules_to_save" in read(saved(tmp_path, tensors, {**LORA, "task_type": "CAUSAL_LM"})).notes[0]
    )


def test_embeddings_of_a_grown_vocabulary_have_a_plain_note(tmp_path):
    names = ("model.embed_tokens", "lm_head")
    tensors = {**pair("base_model.model.h.0.q"), **{f"base_model.model.{name}.weight": A for name in names}}
    adapter = read(saved(tmp_path, tensors, LORA))
    assert set(adapter.saved) == {f"{name}.weight" for name in names}
    (note,) = adapter.notes
    assert "resized vocabulary" in note


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_whole_peft_model_beside_its_config(name, tmp_path):
    """DeepSpeed's zero_to_fp32 and FSDP leave the base in the file: its parameters were not trained."""
    start = "base_model.model."
    tensors = {
        f"{start}h.0.q.base_layer.weight": BA.astype(np.float32),
        f"{start}h.0.q.lora_A.default.weight": A,
        f"{start}h.0.q.lora_B.default.weight": B,
        f"{start}h.0.norm.weight": one(1),
        f"{start}h.0.up.weight": A,
        f"{start}lm_head.weight": A,
        f"{start}score.modules_to_save.default.weight": B,
        f"{start}score.original_module.weight": B,
    }
    saved(tmp_path, tensors, LORA, name)
    adapter = read(tmp_path)
    assert_deltas(adapter, {"h.0.q": 2 * BA})
    assert set(adapter.saved) == {"score.weight"}
    assert adapter.notes == ()
    saved(tmp_path, {"model.layers.0.q.weight": A, "model.norm.weight": one(1)}, LORA, name)
    with pytest.raises(InputError, match="full model"):
        read(tmp_path)


def test_a_model_into_which_lora_was_put_without_a_prefix(tmp_path):
    """transformers' `add_adapter` and others wrap the layers and not the model."""
    tensors = {
        **pair("model.h.0.q", "lora_A.default.weight", "lora_B.default.weight"),
        "model.h.0.q.base_layer.weight": BA.astype(np.float32),
        "model.norm.weight": one(1),
        "lm_head.weight": A,
    }
    saved(tmp_path, tensors, name="model.safetensors")
    adapter = read(tmp_path)
    assert_deltas(adapter, {"model.h.0.q": BA})
    assert not adapter.saved


def test_an_adapter_under_a_models_name(tmp_path):
    tensors = pair("diffusion_model.q", "lora_down.weight", "lora_up.weight")
    saved(tmp_path, tensors, name="model.safetensors")
    assert_deltas(read(tmp_path), {"diffusion_model.q": BA})


def test_a_whole_model_whose_base_is_quantised(tmp_path):
    start = "base_model.model.h.0."
    tensors = {
        **pair(f"{start}q", "lora_A.default.weight", "lora_B.default.weight"),
        f"{start}q.base_layer.weight": np.zeros((30, 1), np.uint8),
        f"{start}q.base_layer.weight.absmax": one(1),
        f"{start}q.base_layer.weight.quant_state.bitsandbytes__nf4": np.zeros(4, np.uint8),
        f"{start}k.weight": np.zeros((30, 1), np.uint8),
        f"{start}k.weight.nested_absmax": one(1),
        f"{start}v.SCB": one(1),
        f"{start}norm.weight": one(1),
    }
    adapter = read(saved(tmp_path, tensors, LORA, "adapter_model.bin"))
    assert_deltas(adapter, {"h.0.q": 2 * BA})
    assert (dict(adapter.saved), adapter.notes) == ({}, ())


def test_enable_lora_of_old_peft(tmp_path):
    """Blocks 0 and 2 of three: a grouped convolution, as PEFT 0.2's MergedLinear computes it with torch."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((8, 16)).astype(np.float32), rng.standard_normal((10, 4, 1)).astype(np.float32)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "enable_lora": [True, False, True]}
    start = "base_model.model.h.0.attn.c_attn"
    path = saved(tmp_path, {f"{start}.lora_A.weight": a, f"{start}.lora_B.weight": b}, config)
    hidden = torch.tensor(a, dtype=torch.float64)  # x = identity, transposed
    out = torch.nn.functional.conv1d(hidden[None], torch.tensor(b, dtype=torch.float64), groups=2)[0]
    whole = np.zeros((15, 16))
    whole[:5], whole[10:] = 2 * out[:5].numpy(), 2 * out[5:].numpy()
    adapter = read(path)
    assert_deltas(adapter, {"h.0.attn.c_attn": whole})
    write(adapter, tmp_path / "again")  # today's PEFT has one pair for the whole layer
    assert_deltas(read(tmp_path / "again"), {"h.0.attn.c_attn": whole})
    assert "enable_lora" not in json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    with pytest.raises(InputError, match="enable_lora"):
        read(saved(tmp_path, pair(start), {**config, "enable_lora": [True, True]}))


def test_velora_is_plain_lora(tmp_path):
    tensors = {**pair("base_model.model.h.0.q"), "base_model.model.h.0.q.lora_velora_embed": one(3)}
    assert_deltas(read(saved(tmp_path, tensors, {**LORA, "velora_config": {"num_groups": 4}})), {"h.0.q": 2 * BA})


def test_multitask_prompts_are_no_update(tmp_path):
    tensors = {
        "prompt_embeddings": np.ones((4, 8), np.float32),
        "prefix_task_cols": np.ones((2, 4, 1), np.float32),
        "prefix_task_rows": np.ones((2, 1, 8), np.float32),
    }
    config = {"peft_type": "MULTITASK_PROMPT_TUNING", "num_virtual_tokens": 4, "num_tasks": 2, "num_ranks": 1}
    adapter = read(saved(tmp_path, tensors, config))
    assert set(adapter.non_weight_tensors) == set(tensors)
    assert not adapter.updates


@pytest.mark.parametrize("name", ["XLORA", "TOMORROW"])
def test_another_methods_factors_are_no_lora(name, tmp_path):
    with pytest.raises(InputError, match=name):
        read(saved(tmp_path, pair("base_model.model.h.0.q"), {**LORA, "peft_type": name}))


@pytest.mark.parametrize("shape", [(0,), (30,)])
def test_shards_that_were_not_gathered(shape, tmp_path):
    tensors = {f"base_model.model.h.0.q.lora_{side}.weight": np.zeros(shape, np.float32) for side in "AB"}
    with pytest.raises(InputError, match="not gathered"):
        read(saved(tmp_path, tensors, LORA))


# --- other dialects --------------------------------------------------------------------------------------------------


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


def test_peft_files_are_still_read(tmp_path):
    """The rules above leave what PEFT itself writes alone: no key skipped, no note."""
    example = peft.lora(tmp_path)
    adapter = read(example.path)
    assert adapter.notes == ()
    assert len(load_file(example.path / "adapter_model.safetensors")) == 2 * len(adapter.updates)
