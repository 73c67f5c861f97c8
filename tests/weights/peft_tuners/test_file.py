"""Tuners whose ΔW is in the saved file, with its config."""

from unittest.mock import patch

import pytest
from peft import C3AConfig, DeloraConfig, GraloraConfig, MissConfig, PveraConfig, RandLoraConfig, VBLoRAConfig
from peft.tuners.c3a.utils import get_circulant_fast

from tests.weights.peft_tuners.common import Case, check, conv1d

LAYERS = ["q", "up", "down"]


def c3a_in_double():
    return patch("peft.tuners.c3a.layer.get_circulant_fast", lambda kernel: get_circulant_fast(kernel.double()))


def vblora(**options):
    return VBLoRAConfig(**{"r": 2, "num_vectors": 9, "vector_length": 6, "target_modules": LAYERS, **options})


def drawn_randlora(**options):
    return RandLoraConfig(**{"r": 4, "save_projection": False, "target_modules": LAYERS, **options})


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
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_files_are_what_peft_merges(case, tmp_path):
    check(case, tmp_path)
