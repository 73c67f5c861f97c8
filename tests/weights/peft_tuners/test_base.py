"""Tuners whose ΔW depends on the base's weight."""

import copy
import json
import types

import numpy as np
import peft
import pytest
import torch
from safetensors.numpy import save_file
from scipy.linalg import block_diag

import lorascope as ls
from lorascope.adapt.merge import merge
from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights import io
from lorascope.weights.checkpoint import open_checkpoint
from tests.weights.peft_tuners.common import Case, Model, check, conv1d, conv2d, embedding, linear, saved, truth

LAYERS = ["q", "up", "down"]
FLOAT32 = 1e-5  # PEFT takes W's singular directions, or rounds what it makes of W, in float32: some 2⁻²³ of W's norm


def in_double(monkeypatch, *modules):
    """PEFT's module with float64 wherever it says float32: its formula without its rounding."""
    double = types.SimpleNamespace(**{name: getattr(torch, name) for name in dir(torch)})
    double.float32, double.float16 = torch.float64, torch.float32  # float32 stays one of the dtypes that are allowed
    for module in modules:
        monkeypatch.setattr(f"peft.tuners.{module}.torch", double)


def on(make, **fields):
    """A config's maker, for the layers that all cases have."""
    return lambda: make(**{"target_modules": LAYERS, **fields})


CASES = [
    Case("oft", on(peft.OFTConfig, oft_block_size=4), base=True),
    Case("oft by r", on(peft.OFTConfig, r=3, oft_block_size=0), base=True),
    Case("oft exact", on(peft.OFTConfig, oft_block_size=6, use_cayley_neumann=False), base=True),
    Case("oft shared", on(peft.OFTConfig, oft_block_size=4, block_share=True), base=True),
    # PEFT computes the bound of the norm, eps/√blocks, in float32
    Case("oft constrained", on(peft.OFTConfig, oft_block_size=4, coft=True, eps=0.3), base=True, tolerance=1e-7),
    Case("oft of convolutions", on(peft.OFTConfig, oft_block_size=4, target_modules=["q", "up"]), conv2d, True),
    Case("oft of an embedding", on(peft.OFTConfig, oft_block_size=4, target_modules=["embed_tokens"]), embedding, True),
    *(
        Case(f"oft of {n} terms", on(peft.OFTConfig, oft_block_size=3, num_cayley_neumann_terms=n), base=True)
        for n in (2, 3, 7)
    ),
    Case("boft", on(peft.BOFTConfig, boft_block_size=4), base=True),
    Case("boft by number", on(peft.BOFTConfig, boft_block_size=0, boft_block_num=3), base=True),
    Case("boft of convolutions", on(peft.BOFTConfig, boft_block_size=4, target_modules=["q", "up"]), conv2d, True),
    Case("hra", on(peft.HRAConfig, r=4), base=True),
    Case("hra orthonormal", on(peft.HRAConfig, r=3, apply_GS=True), base=True),
    Case("hra of convolutions", on(peft.HRAConfig, r=4, target_modules=["q", "up"]), conv2d, True),
    *(Case(v, on(peft.RoadConfig, variant=v, group_size=4), base=True) for v in ("road_1", "road_2", "road_4")),
    Case("hira", on(peft.HiraConfig, r=3), base=True),
    Case("hira of conv1d", on(peft.HiraConfig, r=3, fan_in_fan_out=True), conv1d, True),
    Case("hira of convolutions", on(peft.HiraConfig, r=3, target_modules=["q", "up"]), conv2d, True),
    Case("hira of an embedding", on(peft.HiraConfig, r=3, target_modules=["embed_tokens"]), embedding, True),
    Case("glora", on(peft.GloraConfig, r=3), base=True),
    *(
        Case(f"glora {ab} {c} {de}", on(peft.GloraConfig, r=3, config_A_B=ab, config_C=c, config_D_E=de), base=True)
        for ab, c, de in (("vector", "vector", "vector"), ("constant", "lora", "constant"), ("lora", "none", "none"))
    ),
    *(
        Case(f"peanut {act} {depth}", on(peft.PeanutConfig, r=3, depth=depth, act_fn=act, scaling=1.5), base=True)
        for act, depth in (("relu", 0), ("silu", 1), ("gelu", 2), ("gelu_new", 1), ("tanh", 2))
    ),
    Case("frod", on(peft.FrodConfig, sparse_rate=0.1, progressbar=False), base=True, tolerance=FLOAT32),
    Case("frod of conv1d", on(peft.FrodConfig, sparse_rate=0.1, progressbar=False), conv1d, True, tolerance=FLOAT32),
    Case("osf", on(peft.OSFConfig, effective_rank=5), base=True, tolerance=FLOAT32),
    Case("osf by share", on(peft.OSFConfig), base=True, tolerance=FLOAT32),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_files_are_what_peft_merges(case, tmp_path):
    check(case, tmp_path)


ADAMSS = [
    Case("adamss", on(peft.AdamssConfig, r=6, num_subspaces=3, subspace_rank=2), base=True, says="found again"),
    Case(
        "adamss dynamic", on(peft.AdamssConfig, r=5, num_subspaces=2, subspace_rank=3, use_dynamic_rank=True), base=True
    ),
]


@pytest.mark.slow  # importing scikit-learn takes seconds
@pytest.mark.parametrize("case", ADAMSS, ids=str)
def test_adamss_finds_its_clusters_again(case, tmp_path):
    pytest.importorskip("sklearn", reason="PEFT's clusters are scikit-learn's")
    adapter = check(case, tmp_path)
    biases = {name: change for name, change in truth(Model(linear), tmp_path / "adapter").items() if change.ndim == 1}
    assert set(biases) == {f"{name}.bias" for name in adapter.updates}
    for name, update in adapter.updates.items():
        np.testing.assert_allclose(update.bias.read(), biases[f"{name}.bias"], rtol=0, atol=1e-13)  # sums of products


DOUBLE = [
    Case("deft", on(peft.DeftConfig, r=3), base=True),
    Case("deft qr", on(peft.DeftConfig, r=3, decomposition_method="qr", alpha=5), base=True),
    Case("para", on(peft.DeftConfig, r=3, decomposition_method="qr", para=True), base=True),
    Case("deft of conv1d", on(peft.DeftConfig, r=3, decomposition_method="qr"), conv1d, True),
    Case("psoft", on(peft.PsoftConfig, r=4, psoft_alpha=6), base=True),
    Case("psoft halved", on(peft.PsoftConfig, r=4, ab_svd_init="pissa_init", psoft_mag_a=False), base=True),
    Case("psoft free", on(peft.PsoftConfig, r=4, psoft_orth=False, psoft_mag_b=False), base=True),
    Case("psoft series", on(peft.PsoftConfig, r=4, use_cayley_neumann=True, cayley_neumann_eps=0.5), base=True),
]  # fmt: skip


@pytest.mark.parametrize("case", DOUBLE, ids=str)
def test_the_files_are_what_peft_merges_without_its_rounding(case, tmp_path, monkeypatch):
    in_double(monkeypatch, "deft.layer", "psoft.layer")
    check(case, tmp_path)


MERGED = [
    "oft",
    "boft",
    "hra",
    "road_4",
    "hira of an embedding",
    "glora",
    "glora vector vector vector",
    "peanut gelu 2",
]


@pytest.mark.parametrize("name", MERGED)
def test_merging_gives_what_peft_merges(name, tmp_path):
    """Into a base in float64: weights, and the biases that go with them."""
    case = next(case for case in CASES if case.name == name)
    written = saved(case, tmp_path)
    expected, before = truth(written.base, written.adapter_folder), written.base.double().state_dict()
    model = copy.deepcopy(written.base).double()
    merge(model, io.read(written.adapter_folder, written.checkpoint))
    changes = {key: (value - before[key]).numpy() for key, value in model.state_dict().items()}
    assert {key for key, change in changes.items() if change.any()} == set(expected)
    for key, change in expected.items():
        np.testing.assert_allclose(changes[key], change, rtol=0, atol=1e-12)  # sums in float64


class OnCPU:
    """BOFT's extension for CUDA, without which PEFT takes one factor: block-diagonal matrices (N, d, d) of blocks."""

    @staticmethod
    def forward(blocks):
        return [torch.stack([torch.block_diag(*one) for one in blocks])]


@pytest.mark.parametrize(("factors", "side"), [(2, 4), (3, 2), (2, 6)])
def test_boft_of_several_factors(factors, side, tmp_path, monkeypatch):
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: OnCPU)
    layers = ["q"] if side * 2 ** (factors - 1) > 8 else ["down"]
    config = on(peft.BOFTConfig, boft_block_size=side, boft_n_butterfly_factor=factors, target_modules=layers)
    adapter = check(Case("boft", config, base=True), tmp_path)
    assert next(iter(adapter.updates.values())).roles["R"].shape[0] == factors


def test_psoft_of_a_randomised_svd(tmp_path):
    """PEFT's directions are drawn again, in float32 as it draws them."""
    config = on(peft.PsoftConfig, r=4, psoft_svd="lowrank", psoft_svd_lowrank_niter=3, random_seed=5)
    check(Case("psoft", config, base=True, tolerance=FLOAT32, says="drawn again"), tmp_path)


def old_oft(folder, config, **tensors):
    """An adapter of PEFT before 0.16 on one square layer, and the base's W in float64."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((10, 12)).astype(np.float32)
    (folder / "base").mkdir()
    save_file({"l.0.q.weight": weight}, folder / "base/model.safetensors")
    save_file({f"base_model.model.l.0.q.{name}": value for name, value in tensors.items()}, folder / "a.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "OFT", **config}))
    base = open_checkpoint(folder / "base")
    (update,) = io.read(folder / "a.safetensors", base).updates.values()
    return dense(update.delta(base.of(update).read())), weight.astype(np.float64)


def cayley(blocks):
    skew = (blocks.astype(np.float64) - blocks.astype(np.float64).swapaxes(1, 2)) / 2
    one = np.eye(blocks.shape[1])
    return block_diag(*[(one - block) @ np.linalg.inv(one + block) for block in skew])


def test_oft_of_peft_0_15_rotates_inputs_and_stretches_rows(tmp_path):
    rng = np.random.default_rng(1)
    blocks, s = rng.standard_normal((3, 4, 4)).astype(np.float32), rng.standard_normal((10, 1)).astype(np.float32)
    found, weight = old_oft(tmp_path, {"r": 3, "oft_block_size": 0}, oft_r=blocks, oft_s=s)
    np.testing.assert_allclose(found, weight @ cayley(blocks).T * s - weight, rtol=0, atol=1e-12)  # sums in float64


def test_oft_of_peft_0_13_rotates_outputs_and_is_cut_to_them(tmp_path):
    blocks = np.random.default_rng(2).standard_normal((3, 4, 4)).astype(np.float32)
    found, weight = old_oft(tmp_path, {"r": 3}, oft_r=blocks)
    expected = cayley(blocks)[:10, :10].T @ weight - weight
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)  # sums in float64


@pytest.mark.parametrize("version", ["0.13", "0.15"])
def test_old_oft_s_blocks_are_held_within_a_norm(version, tmp_path):
    """eps·⌈d_out/blocks⌉²/√blocks, of 10 outputs and 3 blocks: longer blocks are cut to it, the short one stays."""
    rng = np.random.default_rng(4)
    blocks = (rng.standard_normal((3, 4, 4)) * np.array([3.0, 0.01, 2.0])[:, None, None]).astype(np.float32)
    tensors = {"oft_r": blocks} | ({"oft_s": np.ones((10, 1), np.float32)} if version == "0.15" else {})
    found, weight = old_oft(tmp_path, {"r": 3, "coft": True, "eps": 0.05}, **tensors)
    longest = 0.05 * 4**2 / np.sqrt(3)
    lengths = np.linalg.norm(blocks.astype(np.float64), axis=(1, 2), keepdims=True)
    assert (lengths > longest).ravel().tolist() == [True, False, True]
    turn = cayley(np.where(lengths > longest, blocks * (longest / lengths), blocks))
    expected = turn[:10, :10].T @ weight if version == "0.13" else weight @ turn.T
    np.testing.assert_allclose(found, expected - weight, rtol=0, atol=1e-12)  # sums in float64


def test_oft_trained_before_peft_0_18_ends_its_series_otherwise(tmp_path):
    vectors = (np.random.default_rng(3).standard_normal((3, 6)) * 0.2).astype(np.float32)
    config = {"oft_block_size": 4, "r": 0, "use_cayley_neumann": True, "num_cayley_neumann_terms": 4}
    found, weight = old_oft(tmp_path, config, **{"oft_R.weight": vectors})
    turned = []
    for triangle in vectors.astype(np.float64):
        skew = np.zeros((4, 4))
        skew[np.triu_indices(4, 1)] = triangle
        skew -= skew.T
        turned.append(np.eye(4) + 2 * (skew + skew @ skew + skew @ skew @ skew))
    np.testing.assert_allclose(found, weight @ block_diag(*turned).T - weight, rtol=0, atol=1e-12)


def test_trained_tokens_are_an_update_of_the_embedding(tmp_path):
    """PEFT's merge, for the tuner and for LoRA with trained tokens; without the base it is said what is needed."""
    configs = {
        "embed_tokens": on(peft.TrainableTokensConfig, token_indices=[7, 2], target_modules=["embed_tokens"]),
        "q": on(peft.LoraConfig, r=2, target_modules=["q"], trainable_token_indices={"embed_tokens": [7, 2]}),
    }
    for name, config in configs.items():
        written = saved(Case(name, config, embedding), tmp_path / name)
        expected = truth(written.base, written.adapter_folder)
        result = ls.analyze(written.adapter_folder, base=written.base_folder)
        found = {module.name: module.singular_values for module in result.spectrum.rows}
        for layer in (0, 1):
            values = np.linalg.svd(expected[f"layers.{layer}.embed_tokens.weight"], compute_uv=False)[:2]
            np.testing.assert_allclose(found[f"layers.{layer}.embed_tokens"], values, rtol=1e-12)
    with pytest.raises(InputError, match="depends on W"):
        ls.analyze(tmp_path / "embed_tokens/adapter")
