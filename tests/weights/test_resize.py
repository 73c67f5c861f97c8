"""Truncated adapters against dense SVDs in float64, against PEFT's own merge, and against brute force over budgets."""

import copy
import itertools
import json
import re
import warnings

import numpy as np
import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from peft.utils.other import get_pattern_key
from safetensors.torch import save_file as save_model

from lorascope.analyses import truncate as resize
from lorascope.analyses.truncate import Energy, ParameterBudget, RankBudget, Spectrum, Uniform
from lorascope.errors import InputError
from lorascope.updates.base import Update, dense
from lorascope.weights import io
from lorascope.weights.adapter import Adapter
from lorascope.weights.checkpoint import open_checkpoint
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
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=tolerance)
        np.testing.assert_allclose(theirs[name], expected, rtol=0, atol=tolerance)


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
        np.testing.assert_allclose(
            found[name], best(delta, 2), rtol=0, atol=2e-6 * np.abs(delta).max()
        )  # float32 factors
    if config.peft_type == "IA3":  # its scaling acts on the output, the bias included
        loaded = PeftModel.from_pretrained(tiny(), tmp_path / "small").merge_and_unload()
        truth = peft_model.merge_and_unload().layers[0].q_proj.bias
        torch.testing.assert_close(loaded.layers[0].q_proj.bias, truth)


def test_what_needs_a_base_says_so(tmp_path):
    path, *_ = build(tmp_path, LoraConfig(use_dora=True, target_modules=["q_proj"]))
    with pytest.raises(InputError, match=r"depends on the base weights.*--base MODEL"):
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
    "every_sort": "all experts of .* at one rank, or none",
    **dict.fromkeys(("only_parts", "adapterhub_bottleneck", "nemo_bottleneck"), "holds no ΔW to resize"),
    **dict.fromkeys(("gguf_llama", "nunchaku", "tinker"), "would lose what was not analysed"),
    "lora_bias": "would lose what was not analysed",
    "lily": "mixes its experts",
    "poly": "mixes its skills",
    # Without their base: a kernel that their factors do not show.
    "tuner_beft": "a vector: no rank to reduce",
    **dict.fromkeys(("loha", "loha_of_convolutions", "lokr", "lokr_of_convolutions"), "kernels of convolutions"),
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
        allowed = 10 * example.tolerance + 1e-9 * np.abs(delta).max()
        found, sigma = dense(again[name].delta()), np.linalg.svd(delta, compute_uv=False)
        if np.isclose(*sigma[:2], rtol=1e-9):  # any of the equal directions is the best, as for circulant blocks
            np.testing.assert_allclose(np.linalg.norm(delta - found), np.linalg.norm(sigma[1:]), rtol=1e-6)
        else:
            np.testing.assert_allclose(found, expected, rtol=0, atol=allowed)


class Convolutions(torch.nn.Module):
    """Kernels of one, two and three sides, one of a single point, and a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1d = torch.nn.Conv1d(6, 10, 3)
        self.conv2d = torch.nn.Conv2d(6, 10, (3, 2))
        self.conv1x1 = torch.nn.Conv2d(6, 10, 1)
        self.fc = torch.nn.Linear(6, 5)

    def forward(self, x):
        return x


CONVOLUTIONS = ["conv1d", "conv2d", "conv1x1", "fc"]


@pytest.mark.parametrize(
    "config",
    [
        LoraConfig(r=2, lora_alpha=7, target_modules=CONVOLUTIONS),
        LoHaConfig(r=2, alpha=7, target_modules=CONVOLUTIONS),
        LoHaConfig(r=2, alpha=7, target_modules=CONVOLUTIONS, use_effective_conv2d=True),
        LoKrConfig(r=2, alpha=7, target_modules=CONVOLUTIONS),
        LoKrConfig(r=2, alpha=7, target_modules=CONVOLUTIONS, use_effective_conv2d=True, decompose_both=True),
        LoKrConfig(r=8, alpha=7, target_modules=CONVOLUTIONS),
        IA3Config(target_modules=["conv2d", "conv1x1", "fc"], feedforward_modules=["fc"]),
    ],
    ids=["lora", "loha", "loha effective", "lokr", "lokr effective", "lokr whole", "ia3"],
)
def test_kernels_of_convolutions_reach_peft(config, tmp_path):
    """At full rank, written as LoRA: PEFT loads it and merges the same weights as of what was resized."""
    torch.manual_seed(0)
    model = Convolutions()
    save_model(model.state_dict(), tmp_path / "model.safetensors")
    trained = get_peft_model(copy.deepcopy(model), config)
    with torch.no_grad():
        for name, parameter in trained.named_parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter), alpha=1.0 if "ia3" in name else 2.0)
    trained.save_pretrained(tmp_path / "adapter")
    base = open_checkpoint(tmp_path / "model.safetensors")
    adapter, *_ = cut(io.read(tmp_path / "adapter", base), Uniform(64), base)
    io.write(adapter, tmp_path / "small")
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "small").merge_and_unload().state_dict()
    for name, expected in trained.merge_and_unload().state_dict().items():
        # float32 factors and float32 merges on both sides
        torch.testing.assert_close(loaded[name], expected, atol=2e-5 * float(expected.abs().max()), rtol=0)
    if config.peft_type in ("LOHA", "LOKR"):
        with pytest.raises(InputError, match=r"kernels.*pass --base"):
            cut(io.read(tmp_path / "adapter"), Uniform(64))


def older(keys, path):
    """PEFT's rule for a pattern up to 0.13: tuners/lora/model.py, `target_name_key`."""
    return next((key for key in keys if re.match(rf".*\.{key}$", path)), path)


PATHS = [
    {"layers.1.q": 2, "enc.layers.1.q": 4, "layers.0.q": 4, "layers.2.q": 4},
    {"layers.1.q": 2, "enc.layers.1.q": 3, "x.enc.layers.1.q": 4, "y.q": 4},
    {"q": 2, "a.q": 3, "b.a.q": 4, "c.q": 4, "d.q": 4},
    {"a.b": 2, "x.a_b": 4, "y.a_b": 4},
    {"enc.layers.1.q": 2, "layers.1.q": 4, "layers.2.q": 4},
    {"model.layers.1.q": 2, "model.layers.11.q": 3, "model.layers.21.q": 3, "layers.1.q": 3},
]


@pytest.mark.parametrize("ranks", PATHS)
@pytest.mark.parametrize("rule", [get_pattern_key, older], ids=["0.21", "0.13"])
def test_every_peft_finds_each_modules_own_rank(rule, ranks, tmp_path):
    """Also where one module's path is the end of another's; and our reader, from what was written."""
    updates = {
        name: Update(name, "low_rank", {"A": InMemory(np.ones((rank, 5))), "B": InMemory(np.ones((6, rank)))}, 1.0)
        for name, rank in ranks.items()
    }
    io.write(Adapter(updates), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for field, usual in (("rank_pattern", config["r"]), ("alpha_pattern", config["lora_alpha"])):
        pattern = config[field]
        for name, rank in ranks.items():
            assert pattern.get(rule(list(pattern), name), usual) == rank, (field, name)
    again = io.read(tmp_path)
    assert {name: (u.roles["A"].shape[0], u.scale) for name, u in again.updates.items()} == {
        name: (rank, 1.0) for name, rank in ranks.items()
    }


def test_patterns_are_plain_paths_where_nothing_collides(tmp_path):
    ranks = {"model.layers.0.q_proj": 2, "model.layers.1.q_proj": 4, "model.layers.10.q_proj": 4}
    updates = {
        name: Update(name, "low_rank", {"A": InMemory(np.ones((rank, 5))), "B": InMemory(np.ones((6, rank)))}, 1.0)
        for name, rank in ranks.items()
    }
    io.write(Adapter(updates), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["rank_pattern"] == {"model.layers.0.q_proj": 2}


def test_the_dtype_of_factors_stored_in_two_is_the_wider_one():
    """bfloat16 would lose half of A's digits; fp8, which nothing is rounded to, does not count."""
    rng = np.random.default_rng(4)
    a, b = InMemory(rng.standard_normal((2, 9)), "F32"), InMemory(rng.standard_normal((7, 2)), "BF16")
    for roles in ({"A": a, "B": b}, {"B": b, "A": a}):
        assert resize.storage(Update("m", "low_rank", roles)) == "F32"
    assert resize.storage(Update("m", "low_rank", {"A": InMemory(np.ones((2, 9)), "F8_E4M3"), "B": b})) == "BF16"
