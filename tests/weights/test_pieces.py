"""Updates that are too large to hold: the same numbers from pieces, or a sentence, and memory that stays flat."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.analyses.spectrum import module as spectrum
from lorascope.linalg.factored import Factored
from lorascope.updates import base as updates
from lorascope.updates.base import Update
from lorascope.weights import pieces
from lorascope.weights.safetensors import open_safetensors
from lorascope.weights.tensors import InMemory, Mapped

PATH = "base_model.model.model.embed"
CLOSE = 1e-12  # relative: two orders of the same float64 sums, over some thousand terms


@pytest.fixture
def small_pieces(monkeypatch):
    """Everything is large, and read a few rows at a time."""
    monkeypatch.setattr(pieces, "WHOLE", 200)
    monkeypatch.setattr(pieces, "PIECE", 64)
    monkeypatch.setattr(spectrum, "WHOLE", 200)
    monkeypatch.setattr(spectrum, "PIECE", 64)


def on_disk(folder, dtype=np.float32, **arrays):
    save_file({name: values.astype(dtype) for name, values in arrays.items()}, folder / "a.safetensors")
    return open_safetensors(folder / "a.safetensors")[0]


def lora(folder, rng, dtype=np.float32):
    return on_disk(folder, dtype, A=rng.standard_normal((4, 301)), B=rng.standard_normal((97, 4)))


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_triangle_has_the_products_singular_values(axis, dtype, tmp_path, small_pieces):
    stored = lora(tmp_path, np.random.default_rng(0), dtype)
    name = "B" if axis == 0 else "A"
    found, whole = pieces.condensed(stored[name], axis), stored[name].read()
    np.testing.assert_allclose(
        np.linalg.svd(found.triangle, compute_uv=False), np.linalg.svd(whole, compute_uv=False), rtol=CLOSE
    )
    assert found.top == np.abs(whole).max()
    assert found.mean_square == pytest.approx(np.mean(whole**2), rel=CLOSE)


@pytest.mark.parametrize("kind", ["low_rank", "triplet", "core", "magnitude", "dense", "tall"])
def test_the_record_is_the_one_of_the_whole(kind, tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    arrays = {"A": rng.standard_normal((4, 301)), "B": rng.standard_normal((97, 4))}
    more = {"triplet": {"E": (4, 1)}, "core": {"R": (4, 4)}, "magnitude": {"m": (97,)}}.get(kind, {})
    arrays |= {name: rng.standard_normal(shape) for name, shape in more.items()}
    if kind in ("dense", "tall"):
        arrays = {"delta": rng.standard_normal((97, 301) if kind == "dense" else (301, 97))}
    update = Update("x", "dense" if kind == "tall" else kind, on_disk(tmp_path, **arrays), scale=0.7)
    whole = spectrum.measure(update, type="x", depth=None, base=None)
    for module in (pieces, spectrum):
        monkeypatch.setattr(module, "WHOLE", 200)
        monkeypatch.setattr(module, "PIECE", 64)
    assert pieces.is_large(update)
    found = spectrum.measure(update, type="x", depth=None, base=None)
    np.testing.assert_allclose(found.singular_values, whole.singular_values, rtol=1e-11)
    same = ("shape", "rank", "dtype", "b_zero", "a_at_initialisation", "notes", "non_finite", "energy_ranks", "null")
    assert {name: getattr(found, name) for name in same} == {name: getattr(whole, name) for name in same}


def test_w_is_compared_in_rows(tmp_path, small_pieces):
    rng = np.random.default_rng(2)
    stored = on_disk(tmp_path, W=rng.standard_normal((97, 301)), T=rng.standard_normal((97, 301)))
    update = Update("x", "tuned", {"tuned": stored["T"]})
    found = spectrum.measure(update, type="x", depth=None, base=stored["W"])
    w, change = stored["W"].read(), stored["T"].read() - stored["W"].read()
    np.testing.assert_allclose(found.singular_values, np.linalg.svd(change, compute_uv=False), rtol=1e-11)
    assert found.against_base.relative_norm == pytest.approx(np.linalg.norm(change) / np.linalg.norm(w), rel=CLOSE)
    kept = (w + change).astype(np.float32).astype(float) - w
    lost = np.linalg.norm(kept - change) / np.linalg.norm(change)
    assert found.against_base.rounding_loss == pytest.approx(lost, rel=1e-9, abs=1e-20)


def test_nan_in_a_piece_is_counted(tmp_path, small_pieces):
    a = np.ones((4, 301))
    a[2, 7] = np.nan
    a[0, 300] = np.inf
    update = Update("x", "low_rank", on_disk(tmp_path, A=a, B=np.ones((97, 4))))
    found = spectrum.measure(update, type="x", depth=None, base=None)
    assert (found.singular_values, found.non_finite) == (None, 2)


class Announced:
    """An array that says a shape and holds nothing: reading it fails the test."""

    dtype = "F32"

    def __init__(self, *shape):
        self.shape = shape

    def read(self):
        raise AssertionError("read")


@pytest.mark.parametrize(
    ("kind", "roles", "said"),
    [
        ("dense", {"delta": Announced(1 << 15, 1 << 15)}, "too large to decompose"),
        ("low_rank", {"A": Announced(20_000, 64), "B": Announced(64, 20_000)}, "rank of 20,000"),
        ("kronecker", {"w1": Announced(1 << 15, 1 << 15), "w2": Announced(2, 2)}, "too large"),
        ("hadamard", dict.fromkeys(("w1_a", "w2_a"), Announced(1 << 20, 64))
         | dict.fromkeys(("w1_b", "w2_b"), Announced(64, 1 << 20)), "too large"),
        ("low_rank", {"A": Announced(1024, 8), "B": Mapped(InMemory(np.zeros((1 << 17, 1))), (1 << 17, 1024), None)},
         "B is too large to write out"),
    ],
)  # fmt: skip
def test_a_shape_that_no_machine_can_hold_is_a_sentence(kind, roles, said):
    update = Update("x", kind, roles)
    assert said in update.excess()
    with pytest.raises(updates.InputError, match=said):
        update.read()


@pytest.mark.parametrize("size", [1e-168, 1e-250, 1e168, 1.0])
def test_singular_values_far_from_one(size):
    rng = np.random.default_rng(3)
    left, right = rng.standard_normal((9, 3)), rng.standard_normal((3, 7))
    expected = np.linalg.svd(left @ right, compute_uv=False)[:3]
    for one, other in (
        (size, 1.0),
        (1.0, size),
        (size**0.5, size**0.5),
        (1e-200, size * 1e200 if size < 1e100 else 1e200),
    ):
        found = Factored(left * one, right * other)
        np.testing.assert_allclose(found.singular_values() / one / other, expected, rtol=1e-12)
        np.testing.assert_allclose(found.svd()[1] / one / other, expected, rtol=1e-12)
        assert found.frobenius_norm() / one / other == pytest.approx(np.linalg.norm(expected), rel=1e-12)


LARGE = """
import json, sys; import numpy as np; from safetensors.numpy import save_file
rng, dtype = np.random.default_rng(0), getattr(np, sys.argv[2])
columns = 3 * 2**28 // (16 * np.dtype(dtype).itemsize)
a = np.concatenate([rng.standard_normal((16, columns // 64), dtype=np.float32).astype(dtype)] * 64, axis=1)
tensors = {"PATH.lora_A.weight": a, "PATH.lora_B.weight": np.ones((64, 16), dtype)}
if sys.argv[3] == "dense":
    tensors = {"lora_unet_x.diff": a.reshape(512, -1)}
else:
    json.dump({"peft_type": "LORA", "r": 16, "lora_alpha": 16}, open(sys.argv[1] + "/adapter_config.json", "w"))
save_file(tensors, sys.argv[1] + "/adapter_model.safetensors")
""".replace("PATH", PATH)
MEASURED = """
import resource, subprocess, sys
command = [sys.executable, "-m", "lorascope", "analyze", sys.argv[1], "--json", "-"]
done = subprocess.run(command, stdout=subprocess.DEVNULL)
print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dense"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_one_large_module_takes_twice_its_bytes_at_most(kind, dtype, tmp_path, capsys):
    """768 MB in one module; the fixed sum is Python with numpy, and the pieces."""
    subprocess.run([sys.executable, "-c", LARGE, tmp_path, dtype, kind], check=True)
    size = (tmp_path / "adapter_model.safetensors").stat().st_size
    done = subprocess.run([sys.executable, "-c", MEASURED, tmp_path], check=True, capture_output=True, text=True)
    code, peak = map(int, done.stdout.split())
    with capsys.disabled():
        print(f"\n{kind} {dtype}: {size >> 20} MiB on disk, {peak >> 20} MiB at most")
    assert code == 0
    assert peak <= 2 * size + (1 << 29)
    assert peak <= 1 << 30  # it does not grow with the file


def test_a_header_has_limits(tmp_path):
    from lorascope.errors import InputError
    from lorascope.weights import safetensors

    many = {f"{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(safetensors.MAX_TENSORS + 1)}
    large = {"__metadata__": {"x": "y" * (67 << 20)}}
    long = {"k" * 5000: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}
    for header, said in ((many, "more tensors"), (large, "larger header"), (long, "longer key")):
        text = json.dumps(header).encode()
        (tmp_path / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
        with pytest.raises(InputError, match=said) as error:
            open_safetensors(tmp_path / "a.safetensors")
        assert len(str(error.value)) < 1500
