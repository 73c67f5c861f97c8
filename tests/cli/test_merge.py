import json

import pytest
import torch
from safetensors.torch import load_file

from lorascope.training import run
from lorascope.training.config import parse
from tests.cli.command import here, lorascope, refused
from tests.training.tiny import lm_values

QUIET = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_llama, plain_text):
    return run.train(parse(lm_values(tiny_llama, plain_text)), tmp_path_factory.mktemp("run")).adapter


def test_merge_writes_a_model_and_says_what_rounding_took(adapter, tiny_llama, tmp_path):
    done = lorascope(
        "merge", adapter, "--base", tiny_llama, "--output", tmp_path / "merged", "--dtype", "bfloat16", env=QUIET
    )
    assert done.returncode == 0, done.stderr
    assert "merged 4 updates" in done.stdout
    assert "merge rounding error (bfloat16)" in done.stdout
    facts = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert (facts["dtype"], len(facts["weights"])) == ("bfloat16", 4)
    assert all(0 < weight["rounding_loss"] < 1 for weight in facts["weights"])
    assert load_file(tmp_path / "merged" / "model.safetensors").popitem()[1].dtype == torch.bfloat16
    again = here("merge", adapter, "--base", tiny_llama, "--output", tmp_path / "merged", env=QUIET)
    assert "already exists" in refused(again)


def test_bad_use_is_one_sentence(adapter, tmp_path):
    out = ("--output", tmp_path / "merged")
    assert "cannot load" in refused(here("merge", adapter, "--base", tmp_path / "gone", *out, env=QUIET))
    assert "no such file or folder" in refused(here("merge", tmp_path / "gone", "--base", "minilm", *out, env=QUIET))
    assert not (tmp_path / "merged").exists()
