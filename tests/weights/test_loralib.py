import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.io import read
from tests.weights.example import normal
from tests.weights.examples_loralib import examples

lora = pytest.importorskip("loralib", reason="the layers are loralib's own")
EXACT = 1e-13  # of ΔW: sums of at most 50 products in float64


def relative(got, expected):
    return np.linalg.norm(np.asarray(got) - np.asarray(expected)) / np.linalg.norm(expected)


@pytest.mark.parametrize("example", examples(), ids=lambda e: e.name)
def test_delta_equals_the_formula(example, tmp_path):
    adapter = read(example.write(tmp_path))
    assert adapter.source.format == "loralib"
    assert set(adapter.updates) == set(example.expected)
    for name, expected in example.expected.items():
        assert adapter.updates[name].shape == expected.shape
        assert relative(dense(adapter.updates[name].delta()), expected) <= EXACT
    assert "stores no alpha" in adapter.notes[0]


def merged_difference(layer):
    """What loralib itself adds to the stored weight on `eval()`, in float64, in the weight's shape."""
    layer = layer.double()
    weight = layer.conv.weight if hasattr(layer, "conv") else layer.weight
    layer.train()
    before = weight.detach().clone()
    layer.eval()
    return (weight.detach() - before).numpy()


def noisy(layer):
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter))
    return layer


LAYERS = {
    "linear": lambda: lora.Linear(10, 6, r=3, lora_alpha=3),
    "fan_in_fan_out": lambda: lora.Linear(10, 6, r=3, lora_alpha=3, fan_in_fan_out=True),
    "embedding": lambda: lora.Embedding(20, 6, r=3, lora_alpha=3),
    "all blocks": lambda: lora.MergedLinear(10, 12, r=2, lora_alpha=2, enable_lora=[True, True, True]),
    "two blocks of three": lambda: lora.MergedLinear(10, 12, r=2, lora_alpha=2, enable_lora=[True, False, True]),
    "one block of three": lambda: lora.MergedLinear(10, 12, r=2, lora_alpha=2, enable_lora=[False, True, False]),
    "gpt2": lambda: lora.MergedLinear(10, 12, r=2, lora_alpha=2, enable_lora=[True, False, True], fan_in_fan_out=True),
    "convolution": lambda: lora.Conv2d(4, 6, 3, r=2, lora_alpha=2),
    "grouped convolution": lambda: lora.Conv2d(4, 6, 3, r=2, lora_alpha=2, groups=2),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("whole", [True, False], ids=["whole state dict", "lora_state_dict"])
def test_delta_equals_what_loralib_merges(name, whole, tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.layer = noisy(LAYERS[name]())
    torch.save(model.state_dict() if whole else lora.lora_state_dict(model), tmp_path / "a.pt")
    adapter = read(tmp_path / "a.pt")
    difference = merged_difference(model.layer)
    update = adapter.updates["layer"]
    if "convolution" in name and not whole:  # the kernel is not in the file: the product is read, with its norm
        assert relative(np.linalg.norm(dense(update.delta())), np.linalg.norm(difference)) < 1e-12
        return
    if whole and name in ("fan_in_fan_out", "embedding"):
        assert update.transposed
    turned = name in ("fan_in_fan_out", "embedding", "gpt2")
    expected = difference.T if turned else difference.reshape(len(difference), -1)
    trained = expected[np.abs(expected).sum(axis=1) > 0]
    # Merging adds ΔW to a weight of size 1 and the test takes it away again: eps of the weight, relative to ΔW.
    assert relative(dense(update.delta()), trained) < 1e-13
    if "block" in name or name == "gpt2":
        assert any("block" in note for note in update.notes) or "one block" in name
    if name in ("two blocks of three", "one block of three", "gpt2") and whole:
        assert any("12 rows" in note and "enable_lora" in note for note in update.notes)


def test_everything_else_in_a_whole_state_dict_is_accounted_for(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(lora.Linear(10, 6, r=3), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 2))
    torch.save(model.state_dict(), tmp_path / "a.pt")
    adapter = read(tmp_path / "a.pt")
    assert set(adapter.updates) == {"0"}
    assert [item.name for item in adapter.skipped] == ["0.weight"]
    rest = {key for key in model.state_dict() if "lora_" not in key} - {"0.weight"}
    assert set(adapter.saved) == rest


def test_the_base_tells_a_convolution(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.stem = noisy(lora.Conv2d(4, 6, 3, r=2, lora_alpha=2))
    torch.save(lora.lora_state_dict(model), tmp_path / "a.pt")
    save_file({"stem.weight": model.stem.conv.weight.detach().numpy()}, tmp_path / "model.safetensors")
    update = read(tmp_path / "a.pt", open_checkpoint(tmp_path / "model.safetensors")).updates["stem"]
    assert (update.kind, update.kernel, update.shape) == ("low_rank", (3, 3), (6, 36))
    expected = merged_difference(model.stem).reshape(6, 36)
    assert relative(dense(update.delta()), expected) < 1e-13


def test_litgpts_fused_projection_is_set_aside(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "transformer.h.0.attn.qkv.lora_A": normal(rng, 6, 8),
        "transformer.h.0.attn.qkv.lora_B": normal(rng, 16, 2),
    }
    tensors |= {"lm_head.lora_A": normal(rng, 2, 8), "lm_head.lora_B": normal(rng, 9, 2)}
    save_file(tensors, tmp_path / "a.safetensors")
    adapter = read(tmp_path / "a.safetensors")
    assert set(adapter.updates) == {"lm_head"}
    assert {item.name.rpartition(".")[0] for item in adapter.skipped} == {"transformer.h.0.attn.qkv"}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"q.lora_A": (3, 10)}, r"q\.lora_B' is missing"),
        ({"q.lora_B": (6, 3)}, r"q\.lora_A' is missing"),
        ({"q.lora_A": (4, 10), "q.lora_B": (6, 3)}, "disagree on the rank"),
        ({"q.lora_A": (6, 10), "q.lora_B": (7, 3)}, "disagree on the rank"),
        ({"q.lora_A": (3,), "q.lora_B": (6, 3)}, "not matrices"),
        ({"q.lora_A": (0, 10), "q.lora_B": (6, 0)}, "not matrices"),
        ({"q.lora_A": (3, 10), "q.lora_B": (6, 3), "q.lora_E": (3, 1)}, r"q\.ranknum' is missing"),
        ({"q.lora_A": (3, 10), "q.lora_B": (6, 3), "q.lora_E": (3, 1), "q.ranknum": (2,)}, "not a single number"),
        ({"q.lora_A": (3, 10), "q.lora_B": (6, 3), "q.weight": (6, 9, 3, 3)}, "do not make this convolution"),
        ({"q.lora_A": (3, 10), "q.lora_B": (6, 3), "q.strange": (1,)}, "not understood"),
    ],
)
def test_contradictions_name_the_key(tensors, said, tmp_path):
    save_file({key: np.ones(shape, np.float32) for key, shape in tensors.items()}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=said):
        read(tmp_path / "a.safetensors")


def test_an_alpha_next_to_bare_factors_is_their_scale(tmp_path):
    """ComfyUI reads bare factors and a module's `.alpha` (comfy/weight_adapter/lora.py)."""
    a, b = np.ones((2, 5), np.float32), np.ones((4, 2), np.float32)
    save_file(
        {"blocks.0.q.lora_A": a, "blocks.0.q.lora_B": b, "blocks.0.q.alpha": np.array(3, np.float32)},
        tmp_path / "a.safetensors",
    )
    adapter = read(tmp_path / "a.safetensors")
    assert adapter.notes == ()
    np.testing.assert_array_equal(adapter.updates["blocks.0.q"].delta().dense(), np.full((4, 5), 3.0))


FURTHER, MATRIX = "whether the layer has further", "read as a matrix"


@pytest.mark.parametrize(
    ("name", "blocks", "weight", "notes"),
    [
        ("q", 1, None, []),
        ("conv1", 1, None, [MATRIX]),
        ("conv1.q", 1, None, []),
        ("conv1", 1, (4, 10), []),
        ("q", 1, (10, 4), []),
        ("q", 1, (12, 10), ["a fused layer of 12 rows of which 4"]),
        ("q", 2, None, ["2 fused blocks of 4 rows, each of rank 3", FURTHER]),
        ("conv1", 2, None, ["2 fused blocks of 4 rows, each of rank 3", FURTHER]),
        ("q", 2, (8, 10), ["2 fused blocks of 4 rows, each of rank 3"]),
        ("q", 2, (12, 10), ["2 fused blocks of 4 rows, each of rank 3", "a fused layer of 12 rows of which 8"]),
        ("q", 2, (10, 12), ["2 fused blocks of 4 rows, each of rank 3", "a fused layer of 12 rows of which 8"]),
    ],
)
def test_what_is_said_of_blocks_and_of_rows_that_were_not_trained(name, blocks, weight, notes, tmp_path):
    tensors = {f"{name}.lora_A": (3 * blocks, 10), f"{name}.lora_B": (4 * blocks, 3)}
    tensors |= {f"{name}.weight": weight} if weight else {}
    save_file({key: np.ones(shape, np.float32) for key, shape in tensors.items()}, tmp_path / "a.safetensors")
    update = read(tmp_path / "a.safetensors").updates[name]
    assert len(update.notes) == len(notes)
    assert all(note.startswith(start) for note, start in zip(update.notes, notes, strict=True))
    assert update.transposed == (weight == (10, 4 * blocks))
