"""The spectrum analysis on adapters whose spectra were planted."""

import numpy as np
import pytest

from lorascope.analyses.spectrum import run
from lorascope.analyses.toolkit import medians
from lorascope.architectures import depth, module_types, natural_order
from lorascope.errors import InputError
from lorascope.linalg.rounding import round_to
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Skipped, Source
from lorascope.weights.tensors import InMemory


def orthonormal(rng: np.random.Generator, m: int, k: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((m, k)))[0]


def planted(
    rng: np.random.Generator, name: str, sigma: list[float], shape: tuple[int, int] = (32, 48), scale: float = 2.0
) -> Update:
    """A low-rank update whose singular values are `sigma`, in a gauge of no structure."""
    r = len(sigma)
    gauge = orthonormal(rng, r, r)
    b = orthonormal(rng, shape[0], r) * np.array(sigma) / scale @ gauge
    a = gauge.T @ orthonormal(rng, shape[1], r).T
    return Update(name, "low_rank", {"A": InMemory(a, "F64"), "B": InMemory(b, "F64")}, scale)


def adapter(*updates: Update, **more) -> Adapter:
    return Adapter({u.name: u for u in updates}, {"r": 4}, Source("x.safetensors", "0" * 64, "peft", "LoRA"), **more)


def one(update: Update, **options):
    return run(adapter(update), **options).rows[0]


def texts(result, severity: str) -> str:
    return " | ".join(f"{f.module}: {f.text}" for f in result.findings if f.severity == severity)


def test_planted_singular_values_and_their_measures(rng):
    module = one(planted(rng, "model.layers.3.self_attn.q_proj", [4.0, 3.0, 2.0, 1.0]))
    np.testing.assert_allclose(module.singular_values, [4, 3, 2, 1], rtol=1e-13)
    assert (module.type, module.depth, module.shape, module.rank) == ("q_proj", 3, (32, 48), 4)
    assert module.frobenius_norm == pytest.approx(30**0.5)
    assert module.spectral_norm == pytest.approx(4)
    assert module.nuclear_norm == pytest.approx(10)
    assert module.stable_rank == pytest.approx(30 / 16)
    assert module.rank_utilisation == pytest.approx(30 / 64)
    assert module.participation_ratio == pytest.approx(900 / (256 + 81 + 16 + 1))
    # 25/30 and 29/30 of the energy
    assert module.energy_ranks == {"energy_rank_0.9": 3, "energy_rank_0.95": 3, "energy_rank_0.99": 4}
    assert module.negligible_share == 0
    assert module.b_zero is False


def test_energy_shares_and_the_uniform_rank_is_the_worst_modules(rng):
    flat, steep = planted(rng, "layers.0.a", [1.0] * 4), planted(rng, "layers.1.b", [3.0, 1e-3, 1e-4, 1e-5])
    result = run(adapter(flat, steep))
    assert [result.energy_share(m) for m in result.rows] == pytest.approx([4 / 13, 9 / 13], rel=1e-6)
    assert result.uniform_rank(0.95) == 4
    assert "layers.0.a: needs the highest rank of all modules: 4 for 95 % of its energy" in texts(result, "note")
    assert [result.summary()[f"uniform_rank_{share}"] for share in (0.95, 0.99)] == [4, 4]


def test_zero_b_is_named_and_says_nothing_else(rng):
    zero = Update(
        "layers.0.q", "low_rank", {"A": InMemory(rng.standard_normal((2, 8))), "B": InMemory(np.zeros((6, 2)))}
    )
    module = one(zero)
    assert module.b_zero
    assert module.frobenius_norm == 0
    assert module.stable_rank is module.effective_rank is module.negligible_share is None
    assert set(module.energy_ranks.values()) == {None}
    assert "changes nothing" in texts(run(adapter(zero)), "error")
    assert "layers.0.q: ΔW = 0 in 1 of 2 modules" in texts(
        run(adapter(zero, planted(rng, "layers.1.q", [1.0]))), "warning"
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_modules_are_reported_and_the_rest_is_analysed(rng, bad):
    a = rng.standard_normal((2, 8))
    a[0, 3] = bad
    broken = Update("layers.0.q", "low_rank", {"A": InMemory(a), "B": InMemory(np.ones((6, 2)))})
    result = run(adapter(broken, planted(rng, "layers.1.q", [2.0, 1.0])))
    assert (result.rows[0].non_finite, result.rows[0].non_finite_in) == (1, ("A",))
    assert result.rows[0].singular_values is None
    assert "layers.0.q: 1 of 2 modules contains NaN or Inf in A (1 value). Excluded" in texts(result, "error")
    assert result.rows[1].spectral_norm == pytest.approx(2)
    assert result.total_energy == pytest.approx(5)


def test_directions_below_the_rounding_of_the_stored_dtype_are_nothing(rng):
    update = planted(rng, "layers.0.q", [1.0, 0.5, 1e-3, 1e-4])
    roles = {name: InMemory(stored.values, "BF16") for name, stored in update.roles.items()}  # u = 2⁻⁸ = 3.9e-3
    assert one(Update("layers.0.q", "low_rank", roles, 2.0)).negligible_share == 0.5


@pytest.mark.parametrize(("moved", "expected"), [(0.0, "kaiming-uniform"), (0.05, None)])
def test_an_a_that_never_left_its_initialisation(rng, moved, expected):
    """A of U(±1/√d_in), and one that moved by 5 % of its own size."""
    d_in = 256
    a = rng.uniform(-1, 1, (8, d_in)) / d_in**0.5
    a += moved * np.linalg.norm(a) / a.size**0.5 * rng.standard_normal(a.shape)
    module = one(Update("layers.0.q", "low_rank", {"A": InMemory(a), "B": InMemory(rng.standard_normal((64, 8)))}))
    assert module.a_at_initialisation == expected


def test_an_outlying_module_is_named(rng):
    normal = [planted(rng, f"layers.{i}.q", [1.0, 0.5]) for i in range(6)]
    result = run(adapter(*normal, planted(rng, "layers.6.q", [40.0, 0.5])))
    assert "layers.6.q: This module alone carries 100 % of the update's energy (σ₁ 40 times" in texts(result, "warning")


def test_selection_by_regex(rng):
    both = adapter(planted(rng, "layers.0.q_proj", [1.0]), planted(rng, "layers.0.v_proj", [1.0]))
    assert [m.name for m in run(both, modules="v_").rows] == ["layers.0.v_proj"]
    with pytest.raises(InputError, match=r"matches none of the 2 modules.*q_proj"):
        run(both, modules="k_proj")
    with pytest.raises(InputError, match="not a regular expression"):
        run(both, modules="(")


def test_kinds_that_depend_on_the_base_say_so_without_it(rng):
    scaling = Update("layers.0.k_proj", "scaling", {"out_scale": InMemory(np.ones(6) * 1.5)})
    result = run(adapter(planted(rng, "layers.0.q_proj", [1.0]), scaling, skipped=(Skipped("x", "y"),)))
    assert [item.name for item in result.skipped] == ["x", "layers.0.k_proj"]
    assert "--base" in result.skipped[1].reason
    with pytest.raises(InputError, match=r"could be analysed.*--base"):
        run(adapter(scaling))


@pytest.fixture
def base(rng, tmp_path):
    from safetensors.numpy import save_file

    from lorascope.weights.checkpoint import open_checkpoint

    w = {f"model.layers.0.{n}.weight": rng.standard_normal((32, 48)).astype(np.float32) for n in ("q", "k", "up")}
    save_file(w, tmp_path / "model.safetensors")
    return open_checkpoint(tmp_path), {name.removesuffix(".weight"): array.astype(float) for name, array in w.items()}


def test_against_the_base_with_formulas_written_out(rng, base):
    checkpoint, weights = base
    low, b, a = planted(rng, "model.layers.0.q", [0.3, 0.1]), rng.standard_normal((32, 2)), rng.standard_normal((2, 48))
    m = rng.uniform(0.5, 2, 32)
    dora = Update("model.layers.0.k", "magnitude", {"A": InMemory(a), "B": InMemory(b), "m": InMemory(m)}, 0.5)
    scale = rng.uniform(0.9, 1.1, 48)
    result = run(
        adapter(low, dora, Update("model.layers.0.up", "scaling", {"in_scale": InMemory(scale)})), base=checkpoint
    )
    w = weights["model.layers.0.k"]
    direction = w + 0.5 * b @ a
    expected = [
        low.delta().dense(),
        m[:, None] * direction / np.linalg.norm(direction, axis=1, keepdims=True) - w,
        weights["model.layers.0.up"] * (scale - 1),
    ]
    for module, delta in zip(result.rows, expected, strict=True):
        sigma = np.linalg.svd(delta, compute_uv=False)
        np.testing.assert_allclose(
            module.singular_values, sigma[: len(module.singular_values)], rtol=0, atol=1e-12 * sigma[0]
        )
        w = weights[module.name]
        beside = module.against_base
        assert beside.relative_norm == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(w))
        lost = (round_to(w + delta, "F32") - w) - delta
        assert beside.rounding_loss == pytest.approx(np.linalg.norm(lost) / np.linalg.norm(delta), rel=1e-9)


def test_dora_without_the_base_measures_the_direction_and_says_so(rng):
    b, a = rng.standard_normal((32, 2)), rng.standard_normal((2, 48))
    dora = Update("layers.0.k", "magnitude", {"A": InMemory(a), "B": InMemory(b), "m": InMemory(np.ones(32))}, 0.5)
    result = run(adapter(dora))
    expected = np.linalg.svd(0.5 * b @ a, compute_uv=False)[:2]
    np.testing.assert_allclose(result.rows[0].singular_values, expected, rtol=1e-12)
    assert "s·B·A, which is not the full ΔW" in texts(result, "note")


def test_bf16_rounding_of_a_small_update_is_a_finding(rng, tmp_path):
    """‖ΔW‖/‖W‖ = 1e-3 in bfloat16: most of the update is lost (the shared reference measured 78 %)."""
    import torch
    from safetensors.torch import save_file

    from lorascope.weights.checkpoint import open_checkpoint

    w = torch.randn(256, 256, generator=torch.Generator().manual_seed(0)) * 0.02
    save_file({"layers.0.q.weight": w.bfloat16()}, tmp_path / "model.safetensors")
    b, a = rng.standard_normal((256, 8)), rng.standard_normal((8, 256))
    factor = 1e-3 * float(w.norm()) / np.linalg.norm(b @ a)
    update = Update("layers.0.q", "low_rank", {"A": InMemory(a), "B": InMemory(b)}, factor)
    result = run(adapter(update), base=open_checkpoint(tmp_path))
    beside = result.rows[0].against_base
    assert beside.relative_norm == pytest.approx(1e-3, rel=1e-2)
    assert 0.7 < beside.unchanged < 0.85
    assert 0.7 < beside.rounding_loss < 0.85
    assert "Merging into bfloat16 loses" in texts(result, "warning")


def test_saved_modules_are_measured_with_the_base_only(rng, base):
    checkpoint, weights = base
    tuned = weights["model.layers.0.up"] + 0.1
    whole = adapter(
        planted(rng, "model.layers.0.q", [1.0]),
        saved={"model.layers.0.up.weight": InMemory(tuned), "score.bias": InMemory(np.ones(3))},
    )
    assert "--base" in run(whole).skipped[0].reason
    result = run(whole, base=checkpoint)
    assert result.rows[1].spectral_norm == pytest.approx(0.1 * (32 * 48) ** 0.5)  # a constant matrix
    assert [item.name for item in result.skipped] == ["score.bias"]


def test_types_and_depths_from_paths():
    names = {
        "model.layers.7.self_attn.q_proj": (7, "q_proj"),
        "model.layers.7.mlp.experts.3.up_proj": (7, "up_proj"),
        "bert.encoder.layer.2.attention.output.dense": (2, "attention.output.dense"),
        "bert.encoder.layer.2.output.dense": (2, "output.dense"),
        "transformer.h.11.attn.c_attn": (11, "c_attn"),
        "lm_head": (None, "lm_head"),
        "lora_unet_down_blocks_1_attentions_0_proj_in": (1, "proj_in"),
    }
    types = module_types(names)
    assert {name: (depth(name), types[name]) for name in names} == names


def test_types_of_flat_names_are_as_short_as_dotted_ones_and_in_the_order_of_a_block():
    block = "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_"
    tails = ("attn1_to_k", "attn1_to_out_0", "attn1_to_q", "attn1_to_v", "ff_net_0_proj", "ff_net_2")
    middle = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    types = module_types([*(block + tail for tail in tails), middle])
    assert natural_order(types.values()) == ["to_q", "to_k", "to_v", "to_out", "ff_net_*_proj", "ff_net_*"]
    both = module_types([block + "attn1_to_q", block + "attn2_to_q", block + "attn2_to_k"])
    assert list(both.values()) == ["attn1_to_q", "attn2_to_q", "to_k"]
    t5 = [f"decoder.block.0.layer.{i}.{part}.q" for i, part in enumerate(("SelfAttention", "EncDecAttention"))]
    assert list(module_types(t5).values()) == ["SelfAttention.q", "EncDecAttention.q"]


def test_table_rows_match_the_json(rng):
    result = run(adapter(planted(rng, "layers.0.q", [2.0, 1.0]), planted(rng, "layers.1.q", [1.0, 1.0])))
    frame = result.table()
    assert list(frame["name"]) == ["layers.0.q", "layers.1.q"]
    assert frame["energy_rank_0.95"].tolist() == [2, 2]
    assert frame["d_out"].tolist() == [32, 32]
    assert frame["frobenius_norm"].tolist() == [m["frobenius_norm"] for m in result.to_json()["modules"]]


def test_the_uniform_rank_is_the_worst_of_three_modules(rng):
    """One of three: neither the median nor its upper neighbour is the largest."""
    steep = [planted(rng, f"layers.{i}.b", [3.0, 1e-3, 1e-4, 1e-5]) for i in range(2)]
    result = run(adapter(planted(rng, "layers.2.a", [1.0] * 4), *steep))
    assert result.uniform_rank(0.95) == result.uniform_rank(0.99) == 4


@pytest.mark.parametrize(("factor", "expected"), [(1.0, "kaiming-uniform"), (0.9, None), (0.5, None)])
def test_an_a_that_shrank_is_not_at_its_initialisation(factor, expected):
    """Within U(±1/√d_in)'s box, but narrower: weight decay. 2048 entries know their deviation to 1 %."""
    a = np.random.default_rng(1).uniform(-factor, factor, (8, 256)) / 16
    module = one(Update("layers.0.q", "low_rank", {"A": InMemory(a), "B": InMemory(np.ones((64, 8)))}))
    assert module.a_at_initialisation == expected


@pytest.mark.parametrize("scale", [-3.0, 0.5, 0.0])
def test_the_scale_multiplies_the_values_whatever_its_sign(rng, scale):
    a, b = rng.standard_normal((3, 20)), rng.standard_normal((30, 3))
    module = one(Update("layers.0.q_proj", "low_rank", {"A": InMemory(a, "F64"), "B": InMemory(b, "F64")}, scale))
    np.testing.assert_allclose(module.singular_values, np.linalg.svd(scale * b @ a, compute_uv=False)[:3], atol=1e-12)
    assert (module.stable_rank is None) == (scale == 0)


@pytest.mark.parametrize("rows", [1, 2, 5, 6])
def test_medians_are_numpys(rng, rows):
    values = rng.standard_normal((rows, 3))
    assert medians(values).tolist() == np.median(values, axis=0).tolist()
    assert float(medians(values[:, 0].tolist())) == np.median(values[:, 0])
    values[rows // 2, 1] = np.nan
    assert np.isnan(medians(values)).tolist() == [False, True, False]
