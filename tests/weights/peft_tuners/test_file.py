"""Tuners whose ΔW is in the saved file, with its config."""

from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
from peft import (
    BeftConfig,
    C3AConfig,
    DeloraConfig,
    FourierFTConfig,
    GraloraConfig,
    MissConfig,
    PveraConfig,
    RandLoraConfig,
    ShiraConfig,
    SupertuningConfig,
    VBLoRAConfig,
    WaveFTConfig,
)
from peft.tuners.c3a.utils import get_circulant_fast

from tests.weights.peft_tuners.common import Case, check, conv1d

LAYERS = ["q", "up", "down"]


def c3a_in_double():
    return patch("peft.tuners.c3a.layer.get_circulant_fast", lambda kernel: get_circulant_fast(kernel.double()))


def vblora(**options):
    return VBLoRAConfig(**{"r": 2, "num_vectors": 9, "vector_length": 6, "target_modules": LAYERS, **options})


def drawn_randlora(**options):
    return RandLoraConfig(**{"r": 4, "save_projection": False, "target_modules": LAYERS, **options})


def found_supra():
    return SupertuningConfig(sparsity=0.9, r=3, save_precomputed_indices=False, target_modules=LAYERS)


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
        for name in ("db1", "db2", "db7", "sym4", "coif1", "coif4")
    ),
    Case("waveft conv1d", lambda: waveft(n_frequency_pattern={"up": 30}, wavelet_family="db3"), conv1d, **WAVES),
    Case("waveft sparse", lambda: waveft(use_idwt=False, proportional_parameters=True), base=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_files_are_what_peft_merges(case, tmp_path):
    check(case, tmp_path)
