"""Tuners whose ΔW is in the saved file, with its config."""

from contextlib import contextmanager
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from peft import (
    BeftConfig,
    C3AConfig,
    DeloraConfig,
    FourierFTConfig,
    GraloraConfig,
    LoraConfig,
    MissConfig,
    PveraConfig,
    RandLoraConfig,
    ShiraConfig,
    SupertuningConfig,
    TinyLoraConfig,
    UniLoraConfig,
    VBLoRAConfig,
    WaveFTConfig,
)
from peft.tuners.c3a.utils import get_circulant_fast
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig, VeloraConfig
from peft.tuners.lora.variants import QALoraLinearVariant
from peft.tuners.vblora.layer import Linear as VBLoRALinear
from safetensors.torch import save_file
from torch import nn

from lorascope.updates.base import dense, kinds
from lorascope.weights import io
from lorascope.weights.formats.peft.vblora import _of_logits
from tests.weights.peft_tuners.common import Case, check, conv1d, embedding, llama, saved

LAYERS = ["q", "up", "down"]


def c3a_in_double():
    return patch("peft.tuners.c3a.layer.get_circulant_fast", lambda kernel: get_circulant_fast(kernel.double()))


def vblora(**options):
    return VBLoRAConfig(**{"r": 2, "num_vectors": 9, "vector_length": 6, "target_modules": LAYERS, **options})


def drawn_randlora(**options):
    return RandLoraConfig(**{"r": 4, "save_projection": False, "target_modules": LAYERS, **options})


def found_supra():
    return SupertuningConfig(sparsity=0.9, r=3, save_precomputed_indices=False, target_modules=LAYERS)


def drawn_tiny(**options):
    modules = ["q_proj", "v_proj", "down_proj"]
    return TinyLoraConfig(**{"r": 2, "u": 8, "save_projection": False, "target_modules": modules, **options})


def waveft(**options):
    return WaveFTConfig(**{"n_frequency": 20, "target_modules": LAYERS, **options})


def patterned_fourier():
    return FourierFTConfig(n_frequency=15, n_frequency_pattern={"0.up": 40}, random_loc_seed=3, target_modules=LAYERS)


@contextmanager
def fourier_in_double():
    """PEFT takes the spectrum to float32 for its transform, whatever it is in."""
    with patch.object(torch.Tensor, "float", torch.Tensor.double):
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


WAVES = {"base": True, "says": "drawn again", "tolerance": 1e-11}
BLOCKS = BdLoraConfig(target_modules_bd_a=["down"], target_modules_bd_b=["1.q"], nblocks=2, match_strict=False)
MONTECLORA = MontecloraConfig(num_samples=3, buffer_size=2)
UNILORA = {"r": 3, "theta_d_length": 50, "proj_seed": 9, "target_modules": ["v_proj", "down_proj", "q_proj"]}
FOURIER = {"base": True, "says": "drawn again", "widened": fourier_in_double}
CASES = [
    Case("delora", lambda: DeloraConfig(r=3, target_modules=LAYERS, delora_lambda=7)),
    Case("delora patterns", lambda: DeloraConfig(r=3, target_modules=LAYERS, rank_pattern={"1.q": 5, "up": 2})),
    Case("gralora", lambda: GraloraConfig(r=4, gralora_k=2, alpha=3, target_modules=LAYERS)),
    Case("gralora hybrid", lambda: GraloraConfig(r=6, gralora_k=3, hybrid_r=2, alpha=3, target_modules=LAYERS)),
    Case("gralora conv1d", lambda: GraloraConfig(r=4, gralora_k=4, hybrid_r=1, target_modules=LAYERS), conv1d),
    Case("c3a", lambda: C3AConfig(block_size=4, target_modules=LAYERS), widened=c3a_in_double),
    Case(
        "c3a patterns",
        lambda: C3AConfig(block_size=3, target_modules=LAYERS, block_size_pattern={"up": 12, "q": 1}),
        widened=c3a_in_double,
    ),
    Case("vblora", lambda: vblora()),
    Case("vblora conv1d", lambda: vblora(topk=3, r=3), conv1d),
    # PEFT stores the logarithms of the weights in float32, and takes them from 1 in float32.
    Case("vblora topk", lambda: vblora(save_only_topk_weights=True, topk=3), tolerance=3e-7),
    Case("miss", lambda: MissConfig(r=4, target_modules=LAYERS), base=True),
    Case("miss remainder", lambda: MissConfig(r=5, target_modules=LAYERS, init_weights=False), base=True),
    Case("miss mini", lambda: MissConfig(r=4, mini_r=6, init_weights="mini", target_modules=LAYERS), base=True),
    Case("miss bat", lambda: MissConfig(r=4, init_weights="bat", target_modules=LAYERS), base=True),
    Case("pvera", lambda: PveraConfig(r=4, target_modules=LAYERS), base=True),
    Case("pvera one width", lambda: PveraConfig(r=4, target_modules=["q"], sample_at_inference=True), says="mean"),
    Case("pvera drawn", lambda: PveraConfig(r=4, target_modules=LAYERS, save_projection=False), conv1d, base=True),
    Case("randlora", lambda: RandLoraConfig(r=4, target_modules=LAYERS), base=True),
    Case("randlora square", lambda: RandLoraConfig(r=5, randlora_alpha=3, target_modules=["q"])),
    Case("randlora conv1d", lambda: RandLoraConfig(r=5, target_modules=LAYERS), conv1d, base=True),
    Case("randlora drawn", lambda: drawn_randlora(), base=True, says="drawn again"),
    Case("randlora sparse", lambda: drawn_randlora(sparse=True, projection_prng_key=7), base=True),
    Case("randlora very sparse", lambda: drawn_randlora(very_sparse=True, r=5), base=True),
    Case("shira", lambda: ShiraConfig(r=2, target_modules=LAYERS, random_seed=1), base=True),
    Case("supertuning", lambda: SupertuningConfig(sparsity=0.9, target_modules=LAYERS), base=True),
    Case(
        "supertuning lowest",
        lambda: SupertuningConfig(sparsity=0.5, select_top=False, target_modules=["up"]),
        base=True,
    ),
    Case("supra", lambda: SupertuningConfig(sparsity=0.9, r=3, lora_alpha=5, target_modules=LAYERS)),
    Case("supra found", lambda: found_supra(), base=True, says="found again"),
    Case("beft", lambda: BeftConfig(target_modules=LAYERS)),
    Case("fourierft", lambda: FourierFTConfig(n_frequency=20, target_modules=LAYERS), **FOURIER),
    Case("fourierft patterns", lambda: patterned_fourier(), conv1d, **FOURIER),
    *(  # PEFT's filters are given to about 12 digits
        Case(f"waveft {name}", lambda name=name: waveft(wavelet_family=name), **WAVES)
        for name in ("db1", "db7", "sym4", "coif4")
    ),
    Case("waveft conv1d", lambda: waveft(n_frequency_pattern={"up": 30}, wavelet_family="db3"), conv1d, **WAVES),
    Case("bd-lora", lambda: LoraConfig(r=4, target_modules=LAYERS, use_bdlora=BLOCKS)),
    Case("velora", lambda: LoraConfig(r=4, target_modules=LAYERS, velora_config=VeloraConfig(num_groups=4))),
    Case("monteclora", lambda: LoraConfig(r=4, target_modules=LAYERS, monteclora_config=MONTECLORA), says="mean"),
    # PEFT takes the trailing directions away in float32, which rounds W: 1e-6 of ‖W‖, and ΔW is a part of it.
    Case("kasa", lambda: LoraConfig(r=3, target_modules=LAYERS, kasa_config=KasaConfig()), base=True, tolerance=3e-6),
    Case("unilora", lambda: UniLoraConfig(**UNILORA), base=True, model=llama, says="drawn again"),
    Case("unilora long", lambda: UniLoraConfig(**{**UNILORA, "theta_d_length": 5000}), base=True, model=llama),
    Case("unilora indices", lambda: UniLoraConfig(**UNILORA | {"target_modules": LAYERS}, save_indices=True), conv1d),
    Case("tinylora", lambda: TinyLoraConfig(r=2, u=8, target_modules=LAYERS)),
    Case("tinylora tied", lambda: TinyLoraConfig(r=3, u=2, weight_tying=0.6, target_modules=LAYERS), conv1d),
    Case("tinylora one vector", lambda: TinyLoraConfig(r=1, u=1, weight_tying=1.0, target_modules=LAYERS)),
    Case("tinylora embedding", lambda: TinyLoraConfig(r=2, u=8, target_modules=["embed_tokens", "q"]), embedding),
    Case("tinylora drawn", lambda: drawn_tiny(), base=True, model=llama, says="drawn again"),
    Case("tinylora drawn, tied", lambda: drawn_tiny(weight_tying=0.5), base=True, model=llama),
    Case("waveft sparse", lambda: waveft(use_idwt=False, proportional_parameters=True), base=True),
]


def test_qalora_is_what_peft_s_layer_computes(tmp_path):
    """PEFT has it for GPTQ's layers alone, and does not merge it: the layer's own forward, asked for each input."""
    torch.manual_seed(0)
    a, b = nn.Linear(3, 2, bias=False).double(), nn.Linear(2, 8, bias=False).double()
    layer = SimpleNamespace(
        lora_A={"x": a}, lora_B={"x": b}, lora_dropout={"x": nn.Identity()}, scaling={"x": 1.5},
        qalora_group_size={"x": 4}, in_features=12, training=False,
    )  # fmt: skip
    inputs = torch.eye(12, dtype=torch.float64)
    expected = QALoraLinearVariant.forward(layer, "x", inputs, torch.zeros(12, 8, dtype=torch.float64)).T
    keys = {"base_model.model.q.lora_A.weight": a.weight, "base_model.model.q.lora_B.weight": b.weight}
    save_file({key: value.detach() for key, value in keys.items()}, tmp_path / "adapter_model.safetensors")
    options = {"use_qalora": True, "qalora_group_size": 4}
    LoraConfig(r=2, lora_alpha=3, target_modules=["q"], **options).save_pretrained(tmp_path)
    adapter = io.read(tmp_path)
    assert adapter.source.method == "QALoRA"
    found = dense(adapter.updates["q"].delta())
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=0, atol=1e-15)


def test_kasa_is_known_without_its_config_and_without_the_base(tmp_path):
    """Then its trained part alone is B·diag·A, not B·A."""
    config = LoraConfig(r=3, lora_alpha=3, target_modules=["q"], kasa_config=KasaConfig())
    written = saved(Case("kasa", lambda: config), tmp_path)
    (written.adapter_folder / "adapter_config.json").unlink()
    adapter = io.read(written.adapter_folder)
    for name, update in adapter.updates.items():
        layer = written.model.get_submodule(f"base_model.model.{name}")
        trained = layer.lora_variant["default"]._get_delta_weight(layer, "default").detach().numpy()
        found = kinds.get(update.kind).direction(update.read(), update.scale).dense()
        np.testing.assert_allclose(found, trained, rtol=0, atol=1e-6)  # which PEFT computes in float32
    assert len(adapter.updates) == 2
    assert adapter.source.method == "KaSA"


@pytest.mark.parametrize("topk_only", [False, True])
def test_vb_lora_s_factors_are_pefts_and_not_only_their_product(topk_only, tmp_path):
    written = saved(Case("vblora", lambda: vblora(topk=3, save_only_topk_weights=topk_only)), tmp_path)
    adapter = io.read(written.adapter_folder)
    assert len(adapter.updates) == 6
    for name, update in adapter.updates.items():
        layer = written.model.get_submodule(f"base_model.model.{name}")
        for role, expected in zip("AB", layer._get_lora_matrices("default"), strict=True):
            # PEFT mixes three vectors with weights of at most 1 in float32
            np.testing.assert_allclose(update.read()[role], expected.detach().numpy(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_files_are_what_peft_merges(case, tmp_path):
    check(case, tmp_path)


def test_vbloras_equal_logits_are_mixed_as_torch_takes_them():
    """In bfloat16 some of a row's largest logits are often equal; which of them PEFT mixes is torch's choice."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(0, 4, (3, 5, 40), generator=generator).bfloat16()
    bank = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    expected = VBLoRALinear._get_low_rank_matrix(None, logits, bank, 3)  # whose softmax is in bfloat16
    found = _of_logits(3)(logits.double().numpy(), bank.numpy())
    np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=2**-7)
