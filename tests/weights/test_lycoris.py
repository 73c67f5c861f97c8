import json
from importlib.util import find_spec

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorascope.errors import InputError
from lorascope.linalg.kronecker import Kronecker
from lorascope.updates.base import dense
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.formats.lycoris import AMBIGUOUS
from lorascope.weights.io import read
from tests.weights.examples_lycoris import examples, write

by_lycoris = pytest.mark.skipif(find_spec("lycoris") is None, reason="the files are written by lycoris-lora itself")

# ΔW is measured as a difference of float64 layer outputs, some 10 times its own size, over at most 36 terms.
EXACT = 1e-13
# Where saving rounds to float32 (alpha · √r, up · scalar, W' - W): 6e-8 an entry, in sums of a few products.
ROUNDED = 3e-7
CASES = {
    "lora": {"algo": "lora"},
    "rslora": {"algo": "lora", "rs_lora": True},
    "locon tucker": {"algo": "locon", "use_tucker": True},
    "trained scalar": {"algo": "locon", "use_scalar": True},
    "loha": {"algo": "loha"},
    "loha of low rank": {"algo": "loha", "dim": 1},
    "loha tucker": {"algo": "loha", "use_tucker": True},
    "lokr": {"algo": "lokr", "dim": 1},
    "lokr factored twice": {"algo": "lokr", "dim": 1, "decompose_both": True, "factor": 4},
    "lokr tucker": {"algo": "lokr", "dim": 1, "use_tucker": True, "factor": 2},
    "lokr whole": {"algo": "lokr", "full_matrix": True},
    "full": {"algo": "full"},
    "full with norms": {"algo": "full", "train_norm": True},
}
BASED = {
    "dora": {"algo": "lora", "weight_decompose": True},
    "dora of inputs": {"algo": "lora", "weight_decompose": True, "wd_on_out": False},
    "dora of loha": {"algo": "loha", "weight_decompose": True},
    "dora of loha, of inputs, tucker": {
        "algo": "loha",
        "weight_decompose": True,
        "wd_on_out": False,
        "use_tucker": True,
    },
    "dora of lokr": {"algo": "lokr", "dim": 1, "weight_decompose": True},
    "dora of lokr, of inputs": {"algo": "lokr", "dim": 1, "weight_decompose": True, "wd_on_out": False},
    "ia3": {"algo": "ia3"},
    "ia3 of inputs": {"algo": "ia3", "train_on_input": True},
    "oft": {"algo": "diag-oft", "dim": 4},
    "oft with factors and a bound": {"algo": "diag-oft", "dim": 4, "rescaled": True, "constraint": 0.1},
    "boft": {"algo": "boft", "dim": 2},
    "boft with factors": {"algo": "boft", "dim": 2, "rescaled": True, "constraint": 0.1},
    "glora": {"algo": "glora"},
}


@pytest.mark.parametrize("example", examples(), ids=lambda e: e.name)
def test_delta_equals_the_formula(example, tmp_path):
    adapter = read(example.write(tmp_path))
    assert set(adapter.updates) == set(example.expected)
    for name, expected in example.expected.items():
        update = adapter.updates[name]
        assert update.shape == expected.shape
        assert np.linalg.norm(dense(update.delta()) - expected) <= EXACT * np.linalg.norm(expected)


@by_lycoris
@pytest.mark.parametrize("case", CASES)
def test_delta_equals_what_lycoris_layers_do(case, tmp_path):
    written = write(tmp_path, **CASES[case])
    tolerance = ROUNDED if case in ("rslora", "trained scalar", "full", "full with norms") else EXACT
    adapter = read(written.path)
    assert adapter.source.format == "lycoris"
    assert set(adapter.updates) == set(written.expected)
    for name, expected in written.expected.items():
        update = adapter.updates[name]
        assert update.shape == expected.shape
        assert np.linalg.norm(expected) > 0.1
        assert np.linalg.norm(dense(update.delta()) - expected) <= tolerance * np.linalg.norm(expected)


def drawn(seed):
    """Options of one of LyCORIS's modules, as its trainers accept them."""
    rng = np.random.default_rng(seed)
    flags = ["rs_lora", "use_tucker", "use_scalar"]
    algo = str(rng.choice(["lora", "locon", "loha", "lokr", "lokr", "lokr"]))
    if algo == "lokr":
        flags += ["decompose_both", "full_matrix", "unbalanced_factorization"]
    options = {flag: True for flag in flags if rng.integers(2)}
    factor = {"factor": int(rng.choice([-1, 2, 4]))} if algo == "lokr" else {}
    return {"algo": algo, "dim": int(rng.integers(1, 6)), "alpha": float(rng.choice([0, 1, 2.5])), **factor, **options}


@by_lycoris
@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(n, marks=pytest.mark.slow) for n in range(12, 150))])
def test_drawn_options_give_what_the_layers_do(seed, tmp_path):
    """ΔW of a file that lycoris-lora wrote against its layers' own forward, but for the one that no file can tell."""
    options = drawn(seed)
    written = write(tmp_path, **options)
    adapter = read(written.path)
    doubtful = any(AMBIGUOUS in note for note in adapter.notes)
    assert set(adapter.updates) == set(written.expected), options
    for name, expected in written.expected.items():
        update = adapter.updates[name]
        got = dense(update.delta())
        if AMBIGUOUS in update.notes:  # r = 4 with rs_lora is stored as r = 8 without
            assert doubtful
            assert options["dim"] == 4, options
            expected = expected / (options["dim"] ** 0.5 if options.get("rs_lora") else 1)
        assert np.linalg.norm(got - expected) <= ROUNDED * np.linalg.norm(expected), (name, options)


@pytest.mark.parametrize(
    ("alpha", "others", "metadata", "factor"),
    [
        (5**1.5, {}, {}, 5**0.5),  # no whole number: r^1.5
        (5.0, {}, {}, 1.0),  # r itself
        (8.0, {}, {}, None),  # r = 8, or r = 4 with rs_lora
        (8.0, {"lokr_w2_b": (4, 3)}, {}, 2.0),
        (8.0, {"lokr_w2_b": (8, 3)}, {}, 1.0),
        (8.0, {}, {"ss_network_dim": "4"}, 2.0),
        (8.0, {}, {"ss_network_args": '{"rs_lora": "True"}'}, 2.0),
        (8.0, {}, {"ss_network_args": '{"algo": "lokr"}'}, 1.0),
        (9999999999.0, {}, {}, 1.0),  # ai-toolkit's lokr_full_rank
    ],
)
def test_the_scale_of_whole_operands(alpha, others, metadata, factor, tmp_path):
    tensors = {f"lycoris_a.lokr_{name}": np.ones((2, 2), np.float32) for name in ("w1", "w2")}
    tensors["lycoris_a.alpha"] = np.array(alpha, np.float32)
    if others:
        tensors["lycoris_b.lokr_w1"] = np.ones((2, 2), np.float32)
        tensors["lycoris_b.lokr_w2_a"] = np.ones((3, others["lokr_w2_b"][0]), np.float32)
        tensors["lycoris_b.lokr_w2_b"] = np.ones(others["lokr_w2_b"], np.float32)
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    adapter = read(tmp_path / "a.safetensors")
    assert adapter.updates["lycoris_a"].scale == pytest.approx(factor or 1.0)
    assert any(AMBIGUOUS in note for note in adapter.notes) == (factor is None)


@by_lycoris
@pytest.mark.parametrize("options", BASED.values(), ids=BASED)
def test_delta_that_needs_the_base(options, tmp_path):
    written = write(tmp_path, **options)
    base = open_checkpoint(written.base)
    adapter = read(written.path, base)
    weights = load_file(written.base)
    assert set(adapter.updates) == {"block.proj", "conv_in", "point"}
    for name, update in adapter.updates.items():
        assert update.needs_base
        weight = weights[f"{name}.weight"]
        got = update.delta(weight.reshape(len(weight), -1).astype(np.float64))
        expected = written.expected[f"lycoris_{name.replace('.', '_')}"]
        # LyCORIS keeps dora_scale in float32, adds float32's eps to the norms, which are of order 1, and inverts in
        # float32.
        assert np.linalg.norm(expected) > 0.1
        np.testing.assert_allclose(dense(got), expected, rtol=1e-5, atol=1e-5)


@by_lycoris
def test_norms_and_biases_are_set_aside_with_the_reason(tmp_path):
    adapter = read(write(tmp_path, "full", train_norm=True).path)
    aside = {item.name: item.reason for item in adapter.skipped}
    assert {"lycoris_norm.w_norm", "lycoris_norm.b_norm", "lycoris_block_proj.diff_b"} <= set(aside)
    assert all("vector" in reason for reason in aside.values())


@by_lycoris
def test_lokr_is_kept_as_a_product(tmp_path):
    update = read(write(tmp_path, "lokr", dim=1).path).updates["lycoris_block_proj"]
    delta = update.delta()
    assert isinstance(delta, Kronecker)
    full = np.linalg.svd(delta.dense(), compute_uv=False)
    values = delta.singular_values()
    assert len(values) == update.rank
    np.testing.assert_allclose(values, full[: len(values)], rtol=1e-10, atol=1e-13)  # dense SVD's own rounding
    np.testing.assert_allclose(full[len(values) :], 0, rtol=0, atol=1e-13)


@by_lycoris
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"algo": "tlora"}, "T-LoRA"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_what_is_not_modelled_says_so(options, said, tmp_path):
    """A whole file of it is an error with the reason; beside a module that is analysed, each key is set aside."""
    written = write(tmp_path, measure=False, **options)
    with pytest.raises(InputError, match=said):
        read(written.path)
    tensors = load_file(written.path)
    extra = {
        "lycoris_x.lora_down.weight": np.ones((1, 3), np.float32),
        "lycoris_x.lora_up.weight": np.ones((2, 1), np.float32),
    }
    save_file({**tensors, **extra}, tmp_path / "mixed.safetensors")
    adapter = read(tmp_path / "mixed.safetensors")
    assert list(adapter.updates) == ["lycoris_x"]
    assert {item.name for item in adapter.skipped} == set(tensors)


def test_a_stored_scalar_multiplies(tmp_path):
    tensors = {f"lycoris_a.hada_{n}": np.ones(s, np.float32) for n, s in _loha_shapes().items()}
    save_file({**tensors, "lycoris_a.scalar": np.array(0.25, np.float32)}, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(
        dense(read(tmp_path / "a.safetensors").updates["lycoris_a"].delta()), np.full((6, 5), 1.0)
    )


def test_the_scalar_of_lokr_multiplies(tmp_path):
    tensors = {f"lycoris_a.lokr_{n}": np.ones((2, 2), np.float32) for n in ("w1", "w2")}
    save_file({**tensors, "lycoris_a.scalar": np.array(0.25, np.float32)}, tmp_path / "a.safetensors")
    np.testing.assert_array_equal(
        dense(read(tmp_path / "a.safetensors").updates["lycoris_a"].delta()), np.full((4, 4), 0.25)
    )


def test_lokr_of_diffusers_has_pefts_scale(tmp_path):
    """`lora_adapter_metadata` is PEFT's config, and PEFT scales by alpha/r where LyCORIS would not."""
    tensors = {f"transformer.q.lokr_{n}": np.ones((2, 2), np.float32) for n in ("w1", "w2")}
    config = {"transformer.peft_type": "LOKR", "transformer.r": 8, "transformer.alpha": 4}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    update = read(tmp_path / "a.safetensors").updates["transformer.q"]
    assert (update.scale, update.notes) == (0.5, ())
    save_file(tensors, tmp_path / "b.safetensors")
    update = read(tmp_path / "b.safetensors").updates["transformer.q"]
    assert update.scale == 1
    assert "whole" in update.notes[0]


@pytest.mark.parametrize(("alpha", "scale"), [(None, 2.0), (4.0, 2.0), (2.0, None)])
def test_a_files_alpha_and_its_metadata_agree(alpha, scale, tmp_path):
    """LoHa of rank 2 with PEFT's alpha 4 in the metadata: the file's own alpha has to say the same, or be absent."""
    tensors = {f"transformer.q.hada_{n}": np.ones(s, np.float32) for n, s in _loha_shapes().items()}
    if alpha is not None:
        tensors["transformer.q.alpha"] = np.array(alpha, np.float32)
    config = {"transformer.peft_type": "LOHA", "transformer.r": 2, "transformer.alpha": 4}
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(config)})
    if scale is None:
        with pytest.raises(InputError, match="two sources for one scale"):
            read(tmp_path / "a.safetensors")
    else:
        assert read(tmp_path / "a.safetensors").updates["transformer.q"].scale == scale


def test_keys_of_peft_are_not_claimed():
    from lorascope.weights.formats.kohya import claimed_by_lycoris

    assert not claimed_by_lycoris(["base_model.model.q.hada_w1_a", "base_model.model.q.lokr_w1"])
    assert not claimed_by_lycoris(
        ["branch.a1.weight", "branch.b1.weight", "attn.q_layer.weight"]
    )  # some model's layers


def _loha_shapes() -> dict[str, tuple[int, ...]]:
    return {"w1_a": (6, 2), "w1_b": (2, 5), "w2_a": (6, 2), "w2_b": (2, 5)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hada_w2_b": None}, "a.hada_w2_b' is missing"),
        ({"hada_w2_b": (3, 5)}, "disagree on r"),
        ({"hada_t1": (2, 2, 3, 3)}, "a.hada_t2' is missing"),
        ({"hada_t1": (9, 9), "hada_t2": (9, 9)}, "Tucker core"),
        ({"lokr_w1": (2, 2)}, "several LyCORIS algorithms"),
        ({"diff": (6, 5)}, "several LyCORIS algorithms"),
        ({"weight": (6, 5)}, "not understood"),
        ({"hada_w3_a": (6, 5)}, "not understood"),
    ],
)
def test_contradictions_name_the_module(change, said, tmp_path):
    shapes = {f"hada_{name}": shape for name, shape in _loha_shapes().items()} | change
    tensors = {f"lycoris_a.{name}": np.ones(shape, np.float32) for name, shape in shapes.items() if shape}
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=said) as error:
        read(tmp_path / "a.safetensors")
    assert "lycoris_a" in str(error.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("lokr_w1_a", "lokr_w2"), "lokr_w1_b' is missing"),
        (("lokr_w1",), "lokr_w2' is missing"),
        (("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2"), "both whole and factored"),
        (("lokr_w1", "lokr_w2", "lokr_t2"), "no lokr_w2_a"),
    ],
)
def test_incomplete_lokr_is_an_error(names, said, tmp_path):
    save_file({f"lycoris_a.{name}": np.ones((2, 2), np.float32) for name in names}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=said):
        read(tmp_path / "a.safetensors")


def test_of_two_ranks_in_a_lokr_the_scale_is_over_that_of_w2(tmp_path):
    """ComfyUI (weight_adapter/lokr.py) takes the last rank that it meets. LyCORIS itself writes one rank alone."""
    rng = np.random.default_rng(0)
    shapes = {"w1_a": (4, 3), "w1_b": (3, 2), "w2_a": (6, 2), "w2_b": (2, 5)}
    factors = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    tensors = {f"lycoris_a.lokr_{name}": factor for name, factor in factors.items()}
    save_file({**tensors, "lycoris_a.alpha": np.array(4.0)}, tmp_path / "a.safetensors")

    (update,) = read(tmp_path / "a.safetensors").updates.values()
    expected = 4 / 2 * np.kron(factors["w1_a"] @ factors["w1_b"], factors["w2_a"] @ factors["w2_b"])
    np.testing.assert_allclose(dense(update.delta()), expected, rtol=1e-13, atol=1e-13)
