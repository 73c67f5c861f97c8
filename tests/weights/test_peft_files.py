"""PEFT's layout beyond the contract: what PEFT loads of ours, spellings in the wild, configs that contradict."""

import copy
import json
import re
import warnings

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from lorascope.errors import InputError
from lorascope.updates.base import Update, dense
from lorascope.weights.adapter import Adapter
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.formats.peft.config import Pattern
from lorascope.weights.io import read, write
from lorascope.weights.tensors import InMemory
from tests.weights import examples_peft as peft
from tests.weights.examples_peft import build, merged_deltas, randomise, tiny

WRITTEN = [
    peft.lora,
    peft.rslora_with_patterns,
    peft.conv1d_of_gpt2,
    peft.embedding,
    peft.convolutions,
    peft.dora,
    peft.dora_of_conv1d,
    peft.adalora,
    peft.adalora_pruned,
    peft.vera,
    peft.vera_of_several_widths,
    peft.ia3,
    peft.ia3_of_conv1d,
    peft.loha,
    peft.modules_to_save,
]


def load_in_peft(folder):
    """PEFT's model with the adapter in `folder`; any warning about keys is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=".*(missing|unexpected).*")
        return PeftModel.from_pretrained(copy.deepcopy(tiny()), folder)


@pytest.mark.parametrize("builder", WRITTEN, ids=lambda b: b.__name__)
@pytest.mark.parametrize("bare", [False, True], ids=["settings", "no settings"])
def test_peft_loads_what_we_write(builder, bare, tmp_path):
    example = builder(tmp_path / "made")
    adapter = read(example.path, open_checkpoint(example.base) if example.base else None)
    if bare:  # then r, α, the patterns and the flags come from the updates alone
        adapter = Adapter(adapter.updates, {}, saved=adapter.saved)
    write(adapter, tmp_path / "again")
    model = load_in_peft(tmp_path / "again")
    found = {name: d for name, d in merged_deltas(model, tiny()).items() if not name.startswith("classifier")}
    for name, expected in example.deltas.items():
        if np.any(expected):
            # α/r may be rounded once more when it is derived from the scale: a few units in the last place of ΔW.
            np.testing.assert_allclose(found.pop(name), expected, rtol=0, atol=1e-12, err_msg=name)
    assert found == {}


KERNEL_TOLD = [peft.embedding, peft.convolutions, peft.lokr_both_factored, peft.lokr_whole]  # by the tensors' shapes


@pytest.mark.parametrize("builder", KERNEL_TOLD, ids=lambda b: b.__name__)
def test_an_update_says_of_what_layer_it_is(builder, tmp_path):
    adapter = read(builder(tmp_path).path)
    assert adapter.updates
    for name, update in adapter.updates.items():
        layer = tiny().get_submodule(name)
        assert update.kernel == tuple(layer.weight.shape[2:]), name
        assert update.embedding == isinstance(layer, torch.nn.Embedding), name


@pytest.mark.parametrize("transposed", [(False, False), (True, True), (False, True)])
def test_one_flag_says_that_layers_are_stored_the_other_way_round(transposed, tmp_path):
    """PEFT has one for all, and takes it back where a layer is a Linear."""
    names = ("layers.0.q_proj", "layers.1.q_proj")
    roles = {"A": InMemory(np.ones((2, 12), np.float32), "F32"), "B": InMemory(np.ones((16, 2), np.float32), "F32")}
    updates = {n: Update(n, "low_rank", roles, transposed=flag) for n, flag in zip(names, transposed, strict=True)}
    write(Adapter(updates), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] == any(transposed)
    assert set(config["target_modules"]) == set(names)


def triplet(name, rank):
    shapes = {"A": (rank, 12), "B": (16, rank), "E": (rank, 1)}
    roles = {role: InMemory(np.ones(shape, np.float32), "F32") for role, shape in shapes.items()}
    return Update(name, "triplet", roles, scale=0.5)


def test_adalora_s_first_rank_is_that_of_the_widest_module(tmp_path):
    """Where the settings do not say it; modules of less have been pruned to it, and there cannot be more."""
    updates = {name: triplet(name, rank) for name, rank in (("layers.0.q_proj", 2), ("layers.1.q_proj", 4))}
    write(Adapter(updates), tmp_path / "bare")
    config = json.loads((tmp_path / "bare/adapter_config.json").read_text())
    assert config["init_r"] == 4
    assert config["rank_pattern"] == {"layers.0.q_proj.lora_E": [True, True, False, False]}
    write(Adapter(updates, {"init_r": 5}), tmp_path / "five")
    again = read(tmp_path / "five")
    assert [update.scale for update in again.updates.values()] == pytest.approx([0.5, 0.5], rel=1e-12)
    assert json.loads((tmp_path / "five/adapter_config.json").read_text())["init_r"] == 5
    with pytest.raises(InputError, match="one initial rank"):
        write(Adapter(updates, {"init_r": 3}), tmp_path / "three")


def test_weights_of_the_base_are_written_below_the_layer_that_wraps_them(tmp_path):
    build(tmp_path, LoraConfig(r=2, target_modules=["q_proj"]))
    copies = {name: InMemory(np.ones((12, 12), np.float32), "F32") for name in ("layers.0.q_proj.weight", "x.weight")}
    adapter = read(tmp_path / "adapter")
    write(Adapter(adapter.updates, adapter.settings, base=copies), tmp_path / "again")
    found = set(load_file(tmp_path / "again/adapter_model.safetensors"))
    assert {key for key in found if "lora" not in key} == {
        "base_model.model.layers.0.q_proj.base_layer.weight", "base_model.model.x.weight"
    }  # fmt: skip


def test_saved_modules_reach_peft(tmp_path):
    path, _, _, model = build(tmp_path, LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["classifier"]))
    adapter = read(path)
    assert set(adapter.saved) == {"classifier.weight", "classifier.bias"}
    write(adapter, tmp_path / "again")
    again = load_in_peft(tmp_path / "again").base_model.model.classifier.modules_to_save["default"]
    mine = model.base_model.model.classifier.modules_to_save["default"]
    assert torch.equal(again.weight, mine.weight)
    assert torch.equal(again.bias, mine.bias)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_saved_under_plain_names_and_reach_peft(bias, tmp_path):
    path, *_, model = build(tmp_path, LoraConfig(r=2, target_modules=["q_proj"], bias=bias))
    adapter = read(path)
    names = {"layers.0.q_proj.bias", "layers.1.q_proj.bias"}
    assert names <= set(adapter.saved)
    assert (set(adapter.saved) == names) == (bias == "lora_only")
    write(adapter, tmp_path / "again")
    again = load_in_peft(tmp_path / "again")
    for name, value in model.state_dict().items():
        if name.endswith(".bias"):
            assert torch.equal(again.state_dict()[name], value), name


def test_a_raw_state_dict_with_the_adapters_name_in_it_reads_the_same(tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"], modules_to_save=["classifier"])
    path, deltas, _, model = build(tmp_path, config, saved=("classifier",))
    raw = {key: value for key, value in model.state_dict().items() if "lora" in key or "classifier" in key}
    assert any(".lora_A.default.weight" in key for key in raw)
    save_torch(raw, path / "adapter_model.safetensors")
    adapter = read(path)
    assert set(adapter.updates) == set(deltas)
    assert set(adapter.saved) == {"classifier.weight", "classifier.bias"}
    assert {item.name for item in adapter.skipped} == {
        "base_model.model.classifier.original_module.weight",
        "base_model.model.classifier.original_module.bias",
    }


def test_two_adapters_in_one_file_are_an_error(tmp_path):
    a = {f"base_model.model.q.lora_{x}.{n}.weight": np.ones((2, 2), np.float32) for x in "AB" for n in ("one", "two")}
    save_file(a, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="more than one adapter; found one, two"):
        read(tmp_path / "a.safetensors")


def test_a_bare_file_has_scale_one_and_says_so(tmp_path):
    path, *_ = build(tmp_path, LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj"]))
    (path / "adapter_config.json").unlink()
    adapter = read(path / "adapter_model.safetensors")
    assert {update.scale for update in adapter.updates.values()} == {1.0}
    assert "scale unknown" in adapter.notes[0]


def test_dora_with_the_newer_spelling_of_its_key(tmp_path):
    path, _, base, _ = build(tmp_path, LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]))
    checkpoint = open_checkpoint(base)
    before = read(path)
    tensors = load_file(path / "adapter_model.safetensors")
    newer = {re.sub(r"(magnitude_vector)$", r"\1.weight", key): value for key, value in tensors.items()}
    assert newer.keys() != tensors.keys()
    save_file(newer, path / "adapter_model.safetensors")
    for name, update in read(path).updates.items():
        weight = checkpoint.of(update).read()
        np.testing.assert_array_equal(update.delta(weight), before.updates[name].delta(weight))


def test_adalora_with_the_ranks_it_has_after_training_with_peft(tmp_path):
    """PEFT's own allocator chooses the ranks; rows are gone from the file, and the scale still divides by init_r."""

    def train(model):
        model.train()
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        for step in range(1, 12):
            model.base_model.update_and_allocate(step)

    config = AdaLoraConfig(
        init_r=5,
        target_r=2,
        lora_alpha=7,
        tinit=1,
        tfinal=2,
        deltaT=1,
        total_step=12,
        target_modules=["q_proj", "v_proj"],
    )
    path, deltas, *_ = build(tmp_path, config, after=train)
    adapter = read(path)
    assert {update.rank for update in adapter.updates.values()} != {5}
    for name, update in adapter.updates.items():
        expected = deltas.get(name, np.zeros(update.shape))
        np.testing.assert_allclose(dense(update.delta()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "key", ["lin", "0.lin", "layers.0.lin", "layers.*", r"layers\.\d+\.lin", "x|lin", "^layers.1", "q+"]
)
@pytest.mark.parametrize("module", ["layers.0.lin", "layers.1.lin", "lin", "blin", "layers.0.blin", "q+", "layers.0"])
def test_patterns_match_as_pefts_do(key, module):
    patterns = {"nothing": 1, key: 2, ".*": 3}
    expected = patterns.get(get_pattern_key(patterns.keys(), module), 9)
    assert Pattern("rank_pattern", patterns).get(module, 9) == expected


def edited(path, **fields):
    """The config in `path` with some fields changed, or removed where the value is `...`."""
    config = json.loads((path / "adapter_config.json").read_text())
    for field, value in fields.items():
        config.pop(field, None) if value is ... else config.update({field: value})
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 3}, "contradicts the tensors"),
        ({"rank_pattern": {"q_proj": 2}}, "contradicts the tensors"),
        ({"r": ...}, "contradicts the tensors"),  # PEFT's default is 8
        ({"r": "4"}, "r is not a number"),
        ({"r": 0}, "not a positive integer"),
        ({"r": True}, "r is not a number"),
        ({"lora_alpha": None}, "lora_alpha is not a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is not a number"),
        ({"rank_pattern": [1]}, "rank_pattern is not a map"),
        ({"alpha_pattern": {"(": 3}}, "not a regular expression"),
        ({"alpha_pattern": {"q_proj": "x"}}, "is not a number"),
        ({"peft_type": "LOHA"}, "says peft_type LOHA"),
        ({"peft_type": 3}, "no peft_type"),
        ({"modules_to_save": 5}, "not a list of names"),
    ],
)
def test_a_config_that_contradicts_is_an_error(fields, message, tmp_path):
    path, *_ = build(tmp_path, LoraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(InputError, match=message):
        read(edited(path, **fields))


def test_fields_nobody_knows_are_named_and_kept(tmp_path):
    path, *_ = build(tmp_path, LoraConfig(r=4, target_modules=["q_proj"]))
    adapter = read(edited(path, brand_new_option=True))
    assert "brand_new_option" in adapter.notes[0]
    assert adapter.settings["brand_new_option"] is True


def test_configs_of_peft_itself_have_no_unknown_fields():
    from dataclasses import fields

    from peft import IA3Config, LoHaConfig, LoKrConfig, VeraConfig

    from lorascope.weights.formats.peft.recognise import known_fields

    for config in (LoraConfig, AdaLoraConfig, VeraConfig, IA3Config, LoHaConfig, LoKrConfig):
        assert {field.name for field in fields(config)} <= known_fields(), config


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_initialisation_that_changes_the_base_is_noted(init, tmp_path):
    path, *_ = build(tmp_path, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=init))
    assert any("the initial B·A was taken away" in note for note in read(path).notes)


def test_methods_that_are_not_analysed_are_named(tmp_path):
    path, *_ = build(tmp_path, LoraConfig(r=4, target_modules=["q_proj"]))
    with pytest.raises(InputError, match=r"no weight update that can be analysed; found LLaMA-Adapter: learned"):
        read(edited(path, peft_type="ADAPTION_PROMPT"))


def test_trained_tokens_are_set_aside_and_named(tmp_path):
    path, *_ = build(
        tmp_path, LoraConfig(r=2, target_modules=["q_proj"], trainable_token_indices={"embed_tokens": [1, 3]})
    )
    adapter = read(path)
    assert len(adapter.updates) == 2
    (item,) = adapter.skipped
    assert item.name.endswith("trainable_tokens_delta")
    assert adapter.source.method == "LoRA + trainable tokens"


def test_vera_needs_the_base_where_widths_differ(tmp_path):
    example = peft.vera_of_several_widths(tmp_path / "a")
    with pytest.raises(InputError, match="pass --base MODEL"):
        read(example.path)
    example = peft.vera_without_projections(tmp_path / "b")
    with pytest.raises(InputError, match=r"projection_prng_key .* pass --base MODEL"):
        read(example.path)


def test_a_factor_without_its_partner(tmp_path):
    path, *_ = build(tmp_path, LoraConfig(r=4, target_modules=["q_proj"]))
    tensors = load_file(path / "adapter_model.safetensors")
    del tensors["base_model.model.layers.0.q_proj.lora_B.weight"]
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"layers\.0\.q_proj has .* without its partner"):
        read(path)


def test_factors_of_different_rank(tmp_path):
    path, *_ = build(tmp_path, LoraConfig(r=4, target_modules=["q_proj"]))
    tensors = load_file(path / "adapter_model.safetensors")
    key = "base_model.model.layers.0.q_proj.lora_B.weight"
    tensors[key] = tensors[key][:, :3].copy()
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"q_proj\.lora_A\.weight \(4, 12\) and .*q_proj\.lora_B\.weight \(16, 3\)"):
        read(path)


def test_nan_and_infinity_are_read(tmp_path):
    path, *_ = build(tmp_path, LoraConfig(r=4, target_modules=["q_proj"]))
    tensors = load_file(path / "adapter_model.safetensors")
    tensors["base_model.model.layers.0.q_proj.lora_A.weight"][0, :2] = np.nan, np.inf
    save_file(tensors, path / "adapter_model.safetensors")
    values = read(path).updates["layers.0.q_proj"].read()["A"]
    assert np.isnan(values[0, 0])
    assert np.isinf(values[0, 1])


def test_grouped_convolution_equals_its_layers(tmp_path):
    """PEFT cannot merge it, so the truth is what its two layers compute of every unit input."""
    base = torch.nn.Sequential(torch.nn.Conv2d(8, 6, 3, groups=2, padding=1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = randomise(get_peft_model(base, LoraConfig(r=4, lora_alpha=6, target_modules=["0"])), 5)
    layer = model.base_model.model[0]
    if layer.lora_A["default"].weight.shape[1] != 8:
        pytest.skip("this PEFT's LoRA of a grouped convolution cannot run: its A reads one group's channels only")
    model.save_pretrained(tmp_path)
    update = read(tmp_path).updates["0"]
    x = torch.randn(2, 8, 7, 7)
    expected = layer.lora_B["default"](layer.lora_A["default"](x)) * layer.scaling["default"]
    kernel = torch.tensor(dense(update.delta())).float().reshape(6, 8, 3, 3)
    torch.testing.assert_close(torch.conv2d(x, kernel, padding=1), expected, rtol=1e-5, atol=1e-5)  # float32 sums


def test_what_peft_has_no_place_for_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    roles = {"A": InMemory(rng.random((2, 3))), "B": InMemory(rng.random((4, 2))), "E": InMemory(rng.random((2, 1)))}
    pair = {name: roles[name] for name in "AB"}
    mixed = Adapter({"a": Update("a", "low_rank", pair), "b": Update("b", "triplet", roles)})
    with pytest.raises(InputError, match="one method in a file"):
        write(mixed, tmp_path)
    m = {**pair, "m": InMemory(rng.random(4))}
    with pytest.raises(InputError, match="mixes both"):
        write(Adapter({"a": Update("a", "low_rank", pair), "b": Update("b", "magnitude", m)}), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_dtypes_are_kept_bit_for_bit(dtype, tmp_path):
    path, *_ = build(tmp_path, LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"]))
    file = path / "adapter_model.safetensors"
    tensors = {key: torch.tensor(value).to(dtype) for key, value in load_file(file).items()}
    save_torch(tensors, file)
    adapter = read(path)
    a = tensors["base_model.model.layers.0.q_proj.lora_A.weight"]
    np.testing.assert_array_equal(adapter.updates["layers.0.q_proj"].read()["A"], a.double().numpy())
    write(adapter, tmp_path / "again")
    from safetensors.torch import load_file as load_torch

    for key, value in load_torch(tmp_path / "again" / "adapter_model.safetensors").items():
        assert value.dtype == dtype
        assert torch.equal(value.view(torch.uint8), tensors[key].view(torch.uint8))
