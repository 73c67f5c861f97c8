"""Checkpoints in shards: PyTorch's distributed ones, and DeepSpeed's folders."""

import json
import pickle
import warnings

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp

from lorascope.errors import InputError, LorascopeError
from lorascope.updates.base import dense
from lorascope.weights.io import read
from tests.weights.example import double, normal

A, B = (normal(np.random.default_rng(0), *shape) for shape in ((3, 10), (6, 3)))
STATE = {
    "base_model.model.h.0.q.lora_A.default.weight": torch.tensor(A),
    "base_model.model.h.0.q.lora_B.default.weight": torch.tensor(B).to(torch.bfloat16),
}
DELTA = 2 * STATE["base_model.model.h.0.q.lora_B.default.weight"].double().numpy() @ double(A)
CONFIG = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}


def save(state, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=str(folder), no_dist=True)


def assert_read(path):
    adapter = read(path)
    np.testing.assert_allclose(dense(adapter.updates["h.0.q"].delta()), DELTA, rtol=0, atol=1e-13)


@pytest.mark.parametrize("root", ["model", "state_dict", "module", None])
def test_a_distributed_checkpoint(root, tmp_path):
    """Of a state dict alone, or within a training state with an optimizer; the config next to it, or above."""
    state = STATE if root is None else {root: STATE, "optimizer": {"exp_avg": torch.ones(4)}, "step": 3}
    save(state, tmp_path / "pytorch_model_fsdp_0")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    assert_read(tmp_path)
    assert_read(tmp_path / "pytorch_model_fsdp_0")


def test_pieces_are_put_together(tmp_path):
    """As two ranks write it: each tensor in two pieces, in files of their own."""
    from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

    save(STATE, tmp_path)
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    key = "base_model.model.h.0.q.lora_A.default.weight"
    entry = metadata.state_dict_metadata[key]
    one = next(index for index in metadata.storage_data if index.fqn == key)
    info = metadata.storage_data.pop(one)
    entry.chunks.clear()
    for start, stop in ((0, 2), (2, 3)):
        torch.save(torch.tensor(A[start:stop]), tmp_path / f"__{start}_0.distcp.new")
        offsets, sizes = torch.Size([start, 0]), torch.Size([stop - start, 10])
        entry.chunks.append(ChunkStorageMetadata(offsets, sizes))
        length = (tmp_path / f"__{start}_0.distcp.new").stat().st_size
        place = type(info)(f"__{start}_0.distcp.new", 0, length)
        metadata.storage_data[MetadataIndex(key, offsets)] = place
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    assert_read(tmp_path)


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_code_is_refused_and_not_executed(tmp_path, capsys):
    save(STATE, tmp_path)
    (tmp_path / ".metadata").write_bytes(pickle.dumps({"x": Evil()}))
    with pytest.raises(InputError, match=r"refused and not executed.*builtins\.print"):
        read(tmp_path)
    assert capsys.readouterr().out == ""


def test_a_missing_shard_is_named(tmp_path):
    save(STATE, tmp_path)
    (tmp_path / "__0_0.distcp").unlink()
    with pytest.raises(InputError, match=r"__0_0\.distcp.*missing"):
        read(tmp_path)


def test_damaged_metadata_is_one_sentence(tmp_path):
    save(STATE, tmp_path)
    content = (tmp_path / ".metadata").read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content)
        for at in rng.integers(0, len(damaged), 3):
            damaged[at] = rng.integers(0, 256)
        (tmp_path / ".metadata").write_bytes(
            damaged[: rng.integers(0, len(damaged) + 1) if rng.random() < 0.3 else None]
        )
        refusal = ""
        try:
            with np.errstate(all="ignore"):
                [dense(update.delta()) for update in read(tmp_path).updates.values()]
        except LorascopeError as error:
            refusal = str(error)
        assert "\n" not in refusal


def test_deepspeeds_folder_of_whole_weights(tmp_path):
    step = tmp_path / "global_step20"
    step.mkdir()
    torch.save({"module": STATE, "ds_version": "0.19", "global_steps": 20}, step / "mp_rank_00_model_states.pt")
    torch.save({"optimizer_state_dict": {}}, step / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    (tmp_path / "latest").write_text("global_step20\n")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    assert_read(tmp_path)
    assert_read(step)


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt"], "ZeRO-3"),
        (["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"], "model parallelism"),
    ],
)
def test_what_has_to_be_gathered_names_the_command(names, reason, tmp_path):
    (tmp_path / "global_step5").mkdir()
    for name in names:
        torch.save({"module": {}}, tmp_path / "global_step5" / name)
    with pytest.raises(InputError, match=rf"{reason}.*python zero_to_fp32\.py"):
        read(tmp_path)
