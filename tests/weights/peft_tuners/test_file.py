"""Tuners whose ΔW is in the saved file, with its config."""

import pytest
from peft import DeloraConfig

from tests.weights.peft_tuners.common import Case, check

LAYERS = ["q", "up", "down"]

CASES = [
    Case("delora", lambda: DeloraConfig(r=3, target_modules=LAYERS, delora_lambda=7)),
    Case("delora patterns", lambda: DeloraConfig(r=3, target_modules=LAYERS, rank_pattern={"1.q": 5, "up": 2})),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_files_are_what_peft_merges(case, tmp_path):
    check(case, tmp_path)
