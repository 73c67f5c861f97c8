"""Tuners whose ΔW is in the saved file, with its config."""

from unittest.mock import patch

import pytest
from peft import C3AConfig, DeloraConfig, GraloraConfig
from peft.tuners.c3a.utils import get_circulant_fast

from tests.weights.peft_tuners.common import Case, check, conv1d

LAYERS = ["q", "up", "down"]


def c3a_in_double():
    return patch("peft.tuners.c3a.layer.get_circulant_fast", lambda kernel: get_circulant_fast(kernel.double()))


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
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_files_are_what_peft_merges(case, tmp_path):
    check(case, tmp_path)
