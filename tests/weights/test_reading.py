"""Files as PEFT's trainers leave them: wrapped names, whole models with an adapter inside, foreign keys."""

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


def test_peft_files_are_still_read(tmp_path):
    """The rules above leave what PEFT itself writes alone: no key skipped, no note."""
    example = peft.lora(tmp_path)
    adapter = read(example.path)
    assert adapter.notes == ()
    assert len(load_file(example.path / "adapter_model.safetensors")) == 2 * len(adapter.updates)
