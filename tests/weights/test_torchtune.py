import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights.io import read
from tests.weights.example import double, normal
from tests.weights.examples_torchtune import examples


@pytest.mark.parametrize("example", examples(), ids=lambda e: e.name)
def test_delta_equals_the_formula(example, tmp_path):
    adapter = read(example.write(tmp_path))
    assert adapter.source.format == "torchtune"
    for name, expected in example.expected.items():
        # the same float32 numbers, multiplied in float64 in another order
        np.testing.assert_allclose(dense(adapter.updates[name].delta()), expected, rtol=1e-12, atol=1e-13)
    assert "alpha" in adapter.notes[0]


def test_dora(tmp_path):
    rng = np.random.default_rng(0)
    a, b, m, w = normal(rng, 3, 10), normal(rng, 6, 3), normal(rng, 6), double(normal(rng, 6, 10))
    save_file({"q.lora_a.weight": a, "q.lora_b.weight": b, "q.magnitude": m}, tmp_path / "a.safetensors")
    turned = w + double(b) @ double(a)
    expected = double(m)[:, None] * turned / np.linalg.norm(turned, axis=1, keepdims=True) - w
    np.testing.assert_allclose(read(tmp_path / "a.safetensors").updates["q"].delta(w), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"q.lora_a.weight": (3, 10)}, r"q\.lora_b\.weight' is missing"),
        ({"q.lora_a.weight": (3, 10), "q.lora_b.weight": (6, 2)}, "disagree on the rank"),
        ({"q.lora_a.weight": (3, 10), "q.lora_b.weight": (6, 3), "q.magnitude": (5,)}, "does not fit"),
        ({"q.lora_a.weight": (3, 10), "q.lora_b.weight": (6, 3), "q.other": (5,)}, "not understood"),
    ],
)
def test_contradictions_name_the_key(shapes, said, tmp_path):
    save_file({key: np.ones(shape, np.float32) for key, shape in shapes.items()}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=said):
        read(tmp_path / "a.safetensors")
