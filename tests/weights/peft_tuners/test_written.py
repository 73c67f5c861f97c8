"""What is written into PEFT's layout, at the values where that changes."""

import json
import math

import numpy as np
import pytest
from safetensors.numpy import load_file

from lorascope.errors import InputError
from lorascope.updates.base import Update, dense
from lorascope.weights import io
from lorascope.weights.adapter import Adapter, Rows
from lorascope.weights.formats.peft import experts_written, vera
from lorascope.weights.tensors import InMemory

MODEL = "base_model.model."


def array(*shape, seed=0):
    return InMemory(np.random.default_rng(seed).standard_normal(shape).astype("f4"), "F32")


def low_rank(name, rank=2, scale=1.0, **fields):
    return Update(name, "low_rank", {"A": array(rank, 4), "B": array(6, rank)}, scale, **fields)


def written(folder, updates, settings=None, **more):
    """The tensors and the config of what is written of these updates."""
    io.write(Adapter({update.name: update for update in updates}, settings or {}, **more), folder, "peft")
    return load_file(folder / "adapter_model.safetensors"), json.loads((folder / "adapter_config.json").read_text())


# --- AdaLoRA, (IA)³, VeRA ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1, 3, 5, 7, 11, 13, 32])
@pytest.mark.parametrize("init", [3, 7, 12])
def test_adalora_s_alpha_is_the_one_that_gives_the_scale(alpha, init, tmp_path):
    """PEFT divides by init_r + 1e-5; a whole α comes back as the whole number that it was."""
    roles = {"A": array(3, 4), "B": array(6, 3), "E": array(3, 1)}
    update = Update("q", "triplet", roles, alpha / (init + 1e-5))
    _, config = written(tmp_path / "a", [update], {"init_r": init})
    assert (config["lora_alpha"], type(config["lora_alpha"]), config["init_r"]) == (alpha, int, init)
    assert config["total_step"] == 1
    assert config["rank_pattern"] == ({"q.lora_E": [True] * 3 + [False] * (init - 3)} if init > 3 else None)


def test_adalora_has_one_positive_scale(tmp_path):
    roles = {"A": array(3, 4), "B": array(6, 3), "E": array(3, 1)}
    for scales in ((1.0, 2.0), (0.0, 0.0), (-1.0, -1.0)):
        updates = [Update(name, "triplet", roles, scale) for name, scale in zip("qk", scales, strict=True)]
        with pytest.raises(InputError, match="one positive scale"):
            written(tmp_path / "a", updates)


@pytest.mark.parametrize("flags", [(False, False), (True, False), (True, True)])
def test_factors_of_ia3_are_written_as_peft_has_them(flags, tmp_path):
    updates = [
        Update("q", "scaling", {"out_scale": array(6)}, transposed=flags[0]),
        Update("f", "scaling", {"in_scale": array(4)}, transposed=flags[1]),
    ]
    tensors, config = written(tmp_path / "a", updates)
    assert {key.removeprefix(MODEL): value.shape for key, value in tensors.items()} == {
        "q.ia3_l": (6, 1), "f.ia3_l": (1, 4)
    }  # fmt: skip
    assert (config["feedforward_modules"], config["fan_in_fan_out"]) == (["f"], any(flags))
    assert sorted(config["target_modules"]) == ["f", "q"]
    with pytest.raises(InputError, match="IA3 has no scale"):
        written(tmp_path / "b", [Update("q", "scaling", {"out_scale": array(6)}, 2.0)])
    convolution = Update(
        "c", "scaling", {"in_scale": InMemory(np.repeat(np.float32([1, 2, 3]), 4), "F32")}, kernel=(2, 2)
    )
    outputs = Update("d", "scaling", {"out_scale": array(5)}, kernel=(2, 2))
    tensors, config = written(tmp_path / "c", [convolution, outputs])
    np.testing.assert_array_equal(tensors[f"{MODEL}c.ia3_l"], np.float32([1, 2, 3]).reshape(1, 3, 1, 1))
    assert (tensors[f"{MODEL}d.ia3_l"].shape, config["feedforward_modules"]) == ((1, 5, 1, 1), ["c"])


def of_vera(widths, key=5, moved=0.0):
    """Updates that share PEFT's draw of `key`, of these (d_out, d_in)."""
    a, b = vera.draw_projections(key, 2, max(w for _, w in widths.values()), max(h for h, _ in widths.values()))
    updates = []
    for number, (name, (d_out, d_in)) in enumerate(widths.items()):
        roles = {"A": a[:, :d_in] + moved * number, "B": b[:d_out], "d": np.ones(2, "f4"), "b": np.ones(d_out, "f4")}
        updates.append(Update(name, "vera", {role: InMemory(values, "F32") for role, values in roles.items()}))
    return updates


@pytest.mark.parametrize(
    ("settings", "stored"),
    [
        ({}, True), ({"save_projection": True, "projection_prng_key": 5}, True),
        ({"save_projection": False, "projection_prng_key": 5}, False),
        ({"save_projection": False, "projection_prng_key": 6}, True), ({"save_projection": False}, True),
        ({"projection_prng_key": 5}, True),
    ],
)  # fmt: skip
def test_vera_s_projections_are_stored_unless_their_key_gives_them(settings, stored, tmp_path):
    tensors, config = written(tmp_path, of_vera({"q": (6, 4), "k": (3, 5)}), settings)
    shared = {key: value.shape for key, value in tensors.items() if not key.startswith(MODEL)}
    assert shared == ({"base_model.vera_A": (2, 5), "base_model.vera_B": (6, 2)} if stored else {})
    assert (config["save_projection"], config["r"], config["fan_in_fan_out"]) == (stored, 2, False)
    again = io.read(tmp_path).updates
    assert {name: update.shape for name, update in again.items()} == ({"q": (6, 4), "k": (3, 5)})


def test_vera_shares_one_pair_and_has_no_scale(tmp_path):
    updates = of_vera({"q": (6, 4), "k": (3, 5)}, moved=1.0)
    with pytest.raises(InputError, match="shares one pair of projections"):
        written(tmp_path / "a", updates)
    first, second = of_vera({"q": (6, 4), "k": (3, 5)})
    with pytest.raises(InputError, match="no scale"):
        written(tmp_path / "b", [first, Update("k", "vera", second.roles, 2.0)])


# --- LoRA -------------------------------------------------------------------------------------------------------------


def experts(parameter, numbers, rank=2, d_out=6, d_in=4):
    return [
        Update(
            f"{parameter}[{e}]", "low_rank",
            {"A": array(rank, d_in, seed=e), "B": array(d_out, rank, seed=e + 9)}, base_weight=parameter, expert=e,
        )
        for e in numbers
    ]  # fmt: skip


def test_experts_are_written_in_their_order_whatever_the_file_s(tmp_path):
    """A has expert after expert, B rank after rank with the experts next to each other; wrappers in usual order."""
    updates = experts("l.experts.down_proj", (2, 0, 1)) + experts("l.experts.gate_up_proj", (1, 0, 2), d_out=5)
    tensors, config = written(tmp_path, updates)
    assert config["target_parameters"] == ["l.experts.gate_up_proj", "l.experts.down_proj"]
    assert config["target_modules"] is None
    for parameter, inner in (("down_proj", ""), ("gate_up_proj", ".base_layer")):
        a, b = (tensors[f"{MODEL}l.experts{inner}.lora_{side}.weight"] for side in "AB")
        for update in updates:
            if parameter in update.name:
                e = update.expert
                np.testing.assert_array_equal(a[2 * e : 2 * e + 2], update.read()["A"])
                np.testing.assert_array_equal(b.reshape(len(b), 2, 3)[:, :, e], update.read()["B"])


def test_a_single_parameter_has_one_wrapper_and_a_matrix_is_one_expert():
    update = low_rank("l.attn.in_proj_weight", base_weight="l.attn.in_proj_weight")
    found = experts_written.written_parameters([update])
    assert set(found.tensors) == {f"{MODEL}l.attn.lora_{side}.weight" for side in "AB"}
    assert found.fields == {"target_parameters": ["l.attn.in_proj_weight"]}
    assert experts_written.written_parameters([]).fields == {}


@pytest.mark.parametrize(
    "updates",
    [experts("l.e.up", (0, 2)), experts("l.e.up", (1, 2)), experts("l.e.up", (0,)) + experts("l.e.up", (1,), rank=3)],
)
def test_experts_that_are_not_all_there_are_refused(updates):
    more = experts("l.e.aa", (0, 1))
    with pytest.raises(InputError, match=r"all experts of l\.e\.up at one rank, or none"):
        experts_written.written_parameters([*updates, *more])


def test_what_is_on_a_parameter_and_its_name_for_patterns():
    for weight, on, name in (
        (None, False, "q"), ("q.weight", False, "q"), ("q.in_proj_weight", True, "q.in_proj_weight")
    ):  # fmt: skip
        update = low_rank("q", base_weight=weight)
        assert experts_written.on_parameter(update) is on
        assert experts_written.by_parameter(update).name == name
    assert experts_written.on_parameter(experts("l.e", (0,))[0])


def test_experts_in_float64_stay_in_float64():
    roles = {"A": InMemory(np.full((1, 2), 1 / 3), "F64"), "B": InMemory(np.full((2, 1), 1 / 3), "F64")}
    update = Update("l.e[0]", "low_rank", roles, base_weight="l.e", expert=0)
    for stored in experts_written.written_parameters([update]).tensors.values():
        assert stored.dtype == "F64"
        assert (stored.read() == 1 / 3).all()


@pytest.mark.parametrize(
    ("update", "keys"),
    [
        (low_rank("q"), {"q.lora_A.weight": (2, 4), "q.lora_B.weight": (6, 2)}),
        (low_rank("q", kernel=(2,)), {"q.lora_A.weight": (2, 2, 2), "q.lora_B.weight": (6, 2, 1)}),
        (low_rank("q", kernel=(2, 2)), {"q.lora_A.weight": (2, 1, 2, 2), "q.lora_B.weight": (6, 2, 1, 1)}),
        (low_rank("e", embedding=True), {"e.lora_embedding_A": (2, 4), "e.lora_embedding_B": (6, 2)}),
        (low_rank("m.wte", transposed=True), {"m.wte.lora_embedding_A": (2, 4), "m.wte.lora_embedding_B": (6, 2)}),
        (low_rank("m.wte"), {"m.wte.lora_A.weight": (2, 4), "m.wte.lora_B.weight": (6, 2)}),
        (low_rank("m.c_attn", transposed=True), {"m.c_attn.lora_A.weight": (2, 4), "m.c_attn.lora_B.weight": (6, 2)}),
        (low_rank("m.pos_embedding", transposed=True),
         {"m.pos_embedding.lora_embedding_A": (2, 4), "m.pos_embedding.lora_embedding_B": (6, 2)}),
    ],
)  # fmt: skip
def test_the_keys_of_a_layer(update, keys, tmp_path):
    tensors, config = written(tmp_path, [update])
    assert {key.removeprefix(MODEL): value.shape for key, value in tensors.items()} == keys
    assert config["fan_in_fan_out"] is ("c_attn" in update.name)
    assert (config["r"], config["lora_alpha"], config["use_dora"]) == (2, 2, False)


@pytest.mark.parametrize(("kernel", "shape"), [((), (6,)), ((2,), (1, 6, 1)), ((2, 2), (1, 6, 1, 1))])
def test_the_magnitudes_of_a_layer(kernel, shape, tmp_path):
    roles = {**low_rank("q").roles, "m": array(6)}
    tensors, config = written(tmp_path / "a", [Update("q", "magnitude", roles, kernel=kernel)])
    assert tensors[f"{MODEL}q.lora_magnitude_vector"].shape == shape
    assert config["use_dora"] is True
    with pytest.raises(InputError, match="mixes both"):
        written(tmp_path / "b", [Update("q", "magnitude", roles), low_rank("k")])


def test_what_peft_has_no_place_for(tmp_path):
    for update, said in (
        (low_rank("q", kernel=(3,)), "does not divide by the kernel"),
        (low_rank("q", kernel=(2,), notes=("a grouped convolution: x",)), "grouped convolution is not written"),
    ):
        with pytest.raises(InputError, match=said):
            written(tmp_path / "a", [update])
    roles = {"w1_a": array(6, 2), "w1_b": array(2, 4), "w2_a": array(6, 2), "w2_b": array(2, 4)}
    with pytest.raises(InputError, match="Tucker core"):
        written(tmp_path / "a", [Update("q", "hadamard", roles, kernel=(2,))])
    with pytest.raises(InputError, match="one method in a file"):
        written(tmp_path / "a", [low_rank("q"), Update("k", "scaling", {"out_scale": array(6)})])
    with pytest.raises(InputError, match="reads PEFT's OFT and does not write it"):
        written(tmp_path / "a", [low_rank("q")], {"peft_type": "OFT"})


def test_what_is_passed_on_of_the_settings(tmp_path):
    settings = {
        "peft_type": "LORA", "bias": "all", "task_type": "CAUSAL_LM", "auto_mapping": {}, "unheard_of": 1,
        "enable_lora": [True], "use_bdlora": {"nblocks": 1}, "init_lora_weights": "gaussian", "r": 2, "lora_alpha": 2,
    }  # fmt: skip
    _, config = written(tmp_path / "a", [low_rank("q")], settings)
    assert (config["bias"], config["task_type"], config["init_lora_weights"]) == ("all", "CAUSAL_LM", "gaussian")
    assert config["use_bdlora"] is None
    assert not {"auto_mapping", "unheard_of", "enable_lora"} & set(config)
    assert config["base_model_name_or_path"] is None
    assert written(tmp_path / "b", [low_rank("q")])[1]["init_lora_weights"] is True


@pytest.mark.parametrize("bias", ["none", "all"])
def test_parameters_stored_whole(bias, tmp_path):
    """A trained bias of an adapted module lies below its wrapper; of every other module a name is announced once."""
    saved = {name: array(3) for name in ("q.bias", "n.bias", "h.a.weight", "h.b.weight", "score.weight")}
    tensors, config = written(tmp_path, [low_rank("q")], {"bias": bias, "modules_to_save": ["h"]}, saved=saved)
    inner = "q.base_layer.bias" if bias == "all" else "q.bias"
    assert {key.removeprefix(MODEL) for key in tensors if "lora" not in key} == {
        inner, "n.bias", "h.a.weight", "h.b.weight", "score.weight"
    }  # fmt: skip
    assert config["modules_to_save"] == (["h", "score"] if bias == "all" else ["h", "q", "n", "score"])


def test_trained_rows_and_copies_of_the_base(tmp_path):
    rows = {"m.embed.weight": Rows((3, 1), array(2, 4))}
    base = {"q.weight": array(6, 4), "x.weight": array(2, 2)}
    tensors, config = written(tmp_path, [low_rank("q")], rows=rows, base=base)
    assert config["trainable_token_indices"] == {"embed": [3, 1]}
    others = {key.removeprefix(MODEL): value.shape for key, value in tensors.items() if "lora" not in key}
    assert others == {
        "m.embed.token_adapter.trainable_tokens_delta": (2, 4), "q.base_layer.weight": (6, 4), "x.weight": (2, 2)
    }  # fmt: skip
    _, plain = written(tmp_path / "plain", [low_rank("q")])
    assert (plain["modules_to_save"], "trainable_token_indices" in plain) == (None, False)


@pytest.mark.parametrize("scale", [0.25, 1 / 3, math.pi, 2.0])
def test_a_scale_comes_back_as_it_was(scale, tmp_path):
    update = low_rank("q", rank=3, scale=scale)
    written(tmp_path, [update])
    again = io.read(tmp_path).updates["q"]
    assert again.scale == scale
    np.testing.assert_array_equal(dense(again.delta()), dense(update.delta()))
