"""Nunchaku's files with a base: its own low-rank branch is taken off where it stands in front of both factors."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.errors import InputError
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.formats import nunchaku
from lorascope.weights.io import read
from tests.weights.example import check_roles
from tests.weights.examples_nunchaku import packed

NAME = "transformer_blocks.0.out_proj"


def of(folder, parts, **others):
    folder.mkdir()
    tensors = {f"{NAME}.{side}": packed(part, side == "lora_down") for side, part in parts.items()}
    save_file(tensors | others, folder / "model.safetensors")
    return folder / "model.safetensors"


def half(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


A, B = half(16, 32, seed=0), half(48, 16, seed=1)  # the LoRA
BASE_A, BASE_B = half(16, 32, seed=2), half(48, 16, seed=3)  # the base's branch
OTHER = {"lora_down": half(16, 32, seed=4), "lora_up": half(48, 16, seed=5)}
BASES = {  # what the base has, and what is left: rank, and whether the branch was looked at
    "the branch": ({"lora_down": BASE_A, "lora_up": BASE_B}, 16, True),
    "another A": ({"lora_down": OTHER["lora_down"], "lora_up": BASE_B}, 32, True),
    "another B": ({"lora_down": BASE_A, "lora_up": OTHER["lora_up"]}, 32, True),
    "all there is": ({"lora_down": np.concatenate([BASE_A, A]), "lora_up": np.concatenate([BASE_B, B], 1)}, 32, True),
    "a longer branch": ({"lora_down": half(48, 32, seed=6), "lora_up": half(48, 48, seed=7)}, 32, True),
    "narrower inputs": ({"lora_down": BASE_A[:, :16], "lora_up": BASE_B}, 32, True),
    "fewer outputs": ({"lora_down": BASE_A, "lora_up": BASE_B[:16]}, 32, True),
    "no up": ({"lora_down": BASE_A}, 32, False),
    "no down": ({"lora_up": BASE_B}, 32, False),
    "nothing": ({}, 32, False),
}


@pytest.mark.parametrize("case", BASES)
def test_only_the_base_s_own_branch_is_taken_off(case, tmp_path):
    parts, rank, looked_at = BASES[case]
    both = {"lora_down": np.concatenate([BASE_A, A]), "lora_up": np.concatenate([BASE_B, B], axis=1)}
    path = of(tmp_path / "lora", both)
    base = open_checkpoint(of(tmp_path / "base", parts, **{f"{NAME}.qweight": np.zeros((48, 16), np.int8)}).parent)
    adapter = read(path, base)
    update = adapter.updates[NAME]
    assert update.rank == rank
    check_roles(update)
    whole = B.astype(float) @ A.astype(float)
    if rank == 32:
        whole += BASE_B.astype(float) @ BASE_A.astype(float)
    np.testing.assert_allclose(update.delta().dense(), whole, rtol=0, atol=1e-12)
    assert update.notes == ((nunchaku.BRANCH.format(rank=16, all=32),) if rank == 16 else ())
    assert adapter.notes == (() if looked_at else (nunchaku.MAYBE_BRANCH,))
    assert read(path).notes == (nunchaku.MAYBE_BRANCH,)


@pytest.mark.parametrize("flat", ["lora_down", "lora_up"])
def test_a_branch_of_the_base_that_is_no_pair_of_matrices_is_refused(flat, tmp_path):
    path = of(tmp_path / "lora", {"lora_down": A, "lora_up": B})
    branch = {f"{NAME}.lora_down": BASE_A, f"{NAME}.lora_up": BASE_B}
    branch[f"{NAME}.{flat}"] = branch[f"{NAME}.{flat}"].ravel()
    base = of(tmp_path / "base", {}, **branch, **{f"{NAME}.qweight": np.zeros((48, 16), np.int8)})
    with pytest.raises(InputError, match="are not matrices"):
        read(path, open_checkpoint(base.parent))
