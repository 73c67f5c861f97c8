"""Truncated adapters against dense SVDs in float64, against PEFT's own merge, and against brute force over budgets."""

import copy
import itertools
import warnings

import numpy as np
import pytest
import torch
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoraConfig, PeftModel, VeraConfig

from lorascope.errors import InputError
from lorascope.updates.base import Update, dense
from lorascope.weights import io, resize
from lorascope.weights.adapter import Adapter
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.resize import Energy, ParameterBudget, RankBudget, Spectrum, Uniform
from lorascope.weights.tensors import InMemory
from tests.weights.examples import case_id, cases
from tests.weights.examples_peft import build, merged_deltas, tiny

TARGETS = ["q_proj", "v_proj", "down_proj", "c_attn"]
RULES = [Uniform(2), Energy(0.9), RankBudget(1.5), ParameterBudget(150), ParameterBudget(150, per_parameter=True)]


def best(matrix: np.ndarray, rank: int) -> np.ndarray:
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vh[:rank]


def cut(adapter: Adapter, rule, base=None, dtype=None) -> tuple[Adapter, dict[str, int], resize.Truncated]:
    spectra = resize.decompose(adapter, base).spectra
    ranks = rule.ranks(spectra)
    truncated = resize.truncate(adapter, ranks, base, dtype)
    return resize.resized(adapter, truncated, base), ranks, truncated


def with_peft(folder) -> dict[str, np.ndarray]:
    """ΔW by module as PEFT merges the folder's adapter into the tiny model."""
    base = tiny()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(copy.deepcopy(base), folder)
    assert not [w for w in said if "missing" in str(w.message) or "unexpected" in str(w.message)]
    return merged_deltas(model, base)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.label)
def test_peft_and_our_reader_give_exactly_the_truncated_update(rule, tmp_path):
    """Linear, Conv1D, convolution and embedding, with ranks and scales that differ: the SVD of the dense ΔW is truth.

    Factors are float32: each entry of ΔW is a sum of at most 6 products, so 1e-6 of its largest covers the rounding.
    """
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        target_modules=[*TARGETS, "embed_tokens", "conv2"],
        rank_pattern={"q_proj": 6, "conv2": 3},
        alpha_pattern={"v_proj": 20},
    )
    path, deltas, *_ = build(tmp_path, config)
    adapter, ranks, _ = cut(io.read(path), rule)
    io.write(adapter, tmp_path / "small")
    ours = {name: dense(update.delta()) for name, update in io.read(tmp_path / "small").updates.items()}
    theirs = with_peft(tmp_path / "small")
    kept = {name for name, rank in ranks.items() if rank}
    assert ours.keys() == theirs.keys() == kept
    assert len(ranks) == len(deltas) == 10
    for name in kept:
        expected = best(deltas[name], ranks[name])
        tolerance = 1e-6 * np.abs(expected).max()
        np.testing.assert_allclose(ours[name], expected, atol=tolerance)
        np.testing.assert_allclose(theirs[name], expected, atol=tolerance)


@pytest.mark.parametrize(
    "config",
    [
        AdaLoraConfig(init_r=5, lora_alpha=7, target_modules=["q_proj", "v_proj"], total_step=10),
        VeraConfig(r=6, target_modules=["q_proj"]),
        LoHaConfig(r=2, alpha=3, target_modules=["q_proj", "v_proj"]),
        LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=["q_proj", "v_proj"]),
        IA3Config(target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]),
    ],
    ids=lambda config: config.peft_type.value + ("-dora" if getattr(config, "use_dora", False) else ""),
)
def test_every_kind_becomes_a_plain_lora(config, tmp_path):
    """Kinds that need their base get it: what is truncated is then the dense ΔW."""
    path, deltas, base, peft_model = build(tmp_path, config)
    checkpoint = open_checkpoint(base)
    adapter, ranks, _ = cut(io.read(path, checkpoint), Uniform(2), checkpoint)
    io.write(adapter, tmp_path / "small")
    assert set(ranks.values()) == {2}
    found = with_peft(tmp_path / "small")
    for name, delta in deltas.items():
        np.testing.assert_allclose(found[name], best(delta, 2), atol=2e-6 * np.abs(delta).max())  # float32 factors
    if config.peft_type == "IA3":  # its scaling acts on the output, the bias included
        loaded = PeftModel.from_pretrained(tiny(), tmp_path / "small").merge_and_unload()
        truth = peft_model.merge_and_unload().layers[0].q_proj.bias
        torch.testing.assert_close(loaded.layers[0].q_proj.bias, truth)


def test_what_needs_a_base_says_so(tmp_path):
    path, *_ = build(tmp_path, LoraConfig(use_dora=True, target_modules=["q_proj"]))
    with pytest.raises(InputError, match=r"known with the base only.*--base MODEL"):
        resize.decompose(io.read(path))


def test_heads_and_trained_biases_are_carried_over(tmp_path):
    config = LoraConfig(r=3, target_modules=["q_proj"], modules_to_save=["classifier"], bias="lora_only")
    path, *_, model = build(tmp_path, config, saved=("classifier",))
    adapter, *_ = cut(io.read(path), Uniform(1))
    io.write(adapter, tmp_path / "small")
    loaded = PeftModel.from_pretrained(tiny(), tmp_path / "small").merge_and_unload()
    merged = model.merge_and_unload()
    for get in (lambda m: m.classifier.weight, lambda m: m.classifier.bias, lambda m: m.layers[1].q_proj.bias):
        assert torch.equal(get(loaded), get(merged))


def test_the_dtype_is_the_sources_and_its_rounding_is_measured(tmp_path):
    rng = np.random.default_rng(3)
    roles = {"A": rng.standard_normal((6, 40)), "B": rng.standard_normal((30, 6))}
    stored = {name: InMemory(resize.round_to(values, "BF16"), "BF16") for name, values in roles.items()}
    adapter = Adapter({"m": Update("m", "low_rank", stored, 0.5)})
    small, _, truncated = cut(adapter, Uniform(3))
    exact = best(dense(adapter.updates["m"].delta()), 3)
    written = dense(small.updates["m"].delta())
    assert small.updates["m"].roles["A"].dtype == "BF16"
    assert truncated.rounding["m"] == pytest.approx(np.linalg.norm(written - exact), rel=1e-9)  # both in float64
    assert 1e-3 < truncated.rounding["m"] / np.linalg.norm(exact) < 1e-2  # bfloat16 keeps 8 bits
    wide, _, truncated = cut(adapter, Uniform(3), dtype="F64")
    assert wide.updates["m"].roles["A"].dtype == "F64"
    assert truncated.rounding["m"] < 1e-13 * np.linalg.norm(exact)  # nothing but that of the difference itself
    huge = Adapter({"m": Update("m", "low_rank", stored, 1e12)})
    with pytest.raises(InputError, match="does not fit into F16"):
        cut(huge, Uniform(3), dtype="F16")


def spectra_of(*values, shapes=None) -> list[Spectrum]:
    shapes = shapes or [(20, 30)] * len(values)
    return [Spectrum(f"m{i}", s, np.array(v, float), True) for i, (v, s) in enumerate(zip(values, shapes, strict=True))]


def test_budgets_against_every_other_choice():
    """Brute force over all ranks: no choice of as many directions, or (but for the last one) parameters, loses less."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        shapes = [(10, 10), (10, 40), (30, 40)]
        spectra = spectra_of(*(np.sort(rng.exponential(size=4))[::-1] for _ in shapes), shapes=shapes)
        choices = list(itertools.product(range(5), repeat=3))

        def lost(ranks, spectra=spectra):
            return sum(one.lost(rank) ** 2 for one, rank in zip(spectra, ranks, strict=True))

        def cost(ranks, spectra=spectra):
            return sum(one.cost * rank for one, rank in zip(spectra, ranks, strict=True))

        ranks = list(RankBudget(5 / 3).ranks(spectra).values())
        assert sum(ranks) == 5
        assert lost(ranks) == pytest.approx(min(lost(c) for c in choices if sum(c) == 5), rel=1e-12)
        for rule in (ParameterBudget(300), ParameterBudget(300, per_parameter=True)):
            assert cost(list(rule.ranks(spectra).values())) <= 300
        ranks = list(ParameterBudget(300, per_parameter=True).ranks(spectra).values())
        # What the greedy has spent no other choice of that cost or less spends better, up to what skipping bought.
        assert lost(ranks) <= min(lost(c) for c in choices if cost(c) <= 300 - max(one.cost for one in spectra)) + 1e-12


def test_rules_on_known_spectra():
    spectra = spectra_of([8, 4, 2, 1], [3, 3, 3, 3], [0, 0, 0, 0])
    assert Uniform(3).ranks(spectra) == {"m0": 3, "m1": 3, "m2": 3}  # one rank for all, though m2 has nothing
    assert Uniform(9).ranks(spectra) == {"m0": 4, "m1": 4, "m2": 4}
    assert Energy(0.9).ranks(spectra) == {"m0": 2, "m1": 4, "m2": 0}  # 80/85 = 94 %; 3/4 of equal values is 75 %
    assert Energy(1.0).ranks(spectra) == {"m0": 4, "m1": 4, "m2": 0}
    assert RankBudget(4 / 3).ranks(spectra) == {"m0": 2, "m1": 2, "m2": 0}  # equal values: some two of them
    assert RankBudget(100).ranks(spectra) == {"m0": 4, "m1": 4, "m2": 0}  # zeros are never bought
    assert ParameterBudget(100).ranks(spectra) == {"m0": 2, "m1": 0, "m2": 0}


def test_a_direction_that_does_not_fit_ends_its_module_and_cheaper_ones_follow():
    spectra = spectra_of([9, 1], [8, 7, 6], shapes=[(50, 50), (5, 5)])
    assert ParameterBudget(25).ranks(spectra) == {"m0": 0, "m1": 2}
    assert ParameterBudget(120).ranks(spectra) == {"m0": 1, "m1": 2}
    assert ParameterBudget(120, per_parameter=True).ranks(spectra) == {"m0": 0, "m1": 3}


def test_a_residual_base_is_refused():
    roles = {"A": InMemory(np.ones((2, 3))), "B": InMemory(np.ones((4, 2)))}
    adapter = Adapter({"m": Update("m", "low_rank", roles)}, {"init_lora_weights": "pissa_niter_4"})
    with pytest.raises(InputError, match="from which their beginning was taken away"):
        resize.decompose(adapter)


def test_non_finite_entries_are_named():
    roles = {"A": InMemory(np.full((2, 3), np.nan)), "B": InMemory(np.ones((4, 2)))}
    with pytest.raises(InputError, match=r"layers\.3 cannot be decomposed"):
        resize.decompose(Adapter({"layers.3": Update("layers.3", "low_rank", roles)}))


# What PEFT's layout has no place for; everything else that is read can be resized.
UNWRITABLE = {
    "loralib": "would lose what was not analysed",
    "every_sort": "fused experts is not supported",
    "only_parts": "holds no ΔW to resize",
    "fused_experts": "fused experts is not supported",
    "fused_experts_two_parameters": "fused experts is not supported",
    "lora_bias": "would lose what was not analysed",
}


@pytest.mark.parametrize(("format", "builder"), cases(), ids=case_id)
def test_every_format_resized_and_read_again(format, builder, tmp_path):
    """The best rank 1 of the example's own truth, in float64 factors; tolerance is the example's, for the input."""
    (tmp_path / "in").mkdir()
    example = builder(tmp_path / "in")
    base = open_checkpoint(example.base) if example.base else None
    adapter = io.read(example.path, base)
    if why := UNWRITABLE.get(builder.__name__):
        with pytest.raises(InputError, match=why):
            io.write(cut(adapter, Uniform(1), base, "F64")[0], tmp_path / "small")
        return
    small, ranks, _ = cut(adapter, Uniform(1), base, "F64")
    io.write(small, tmp_path / "small")
    again = io.read(tmp_path / "small", base).updates
    assert {name for name, rank in ranks.items() if rank} == again.keys()
    for name in again:
        delta = example.deltas[name]
        expected = best(delta, 1)
        scale = np.abs(delta).max()
        np.testing.assert_allclose(dense(again[name].delta()), expected, atol=10 * example.tolerance + 1e-9 * scale)
