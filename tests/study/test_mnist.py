"""MNIST's files: read as they are published, and refused where they are not."""

import hashlib

import numpy as np
import pytest

from lorascope.errors import LorascopeError
from lorascope.models.assets import CACHE_VARIABLE
from lorascope.study import mnist


def idx_file(array: np.ndarray) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Three training images and two test ones of 2 × 2 pixels take MNIST's place."""
    arrays = {
        "train-images-idx3-ubyte": np.arange(12).reshape(3, 2, 2) * 20,
        "train-labels-idx1-ubyte": np.array([7, 0, 9]),
        "t10k-images-idx3-ubyte": np.full((2, 2, 2), 255),
        "t10k-labels-idx1-ubyte": np.array([1, 2]),
    }
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, array in arrays.items():
        (folder / name).write_bytes(idx_file(array))
    hashes = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in arrays}
    monkeypatch.setattr(mnist, "FILES", hashes)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    mnist.digits.cache_clear()
    yield folder
    mnist.digits.cache_clear()


def test_images_and_classes(published):
    images, classes, test_images, test_classes = mnist.digits()
    assert images.shape == (3, 4)
    assert images[0].tolist() == pytest.approx([0, 20 / 255, 40 / 255, 60 / 255])
    assert classes.tolist() == [7, 0, 9]
    assert test_images.tolist() == [[1.0] * 4] * 2
    assert test_classes.tolist() == [1, 2]


def test_without_npm_the_error_says_where_files_go(published, monkeypatch):
    (published / "t10k-labels-idx1-ubyte").write_bytes(b"damaged")
    monkeypatch.setattr(mnist, "which", lambda name: None)
    with pytest.raises(LorascopeError, match="no npm") as raised:
        mnist.digits()
    assert str(published) in str(raised.value)
    assert (published / "t10k-labels-idx1-ubyte").read_bytes() == b"damaged"  # nothing half-written


@pytest.mark.parametrize("data", [b"", b"\0\0\x08\x01", b"\0\0\x0d\x01\0\0\0\x01\0", idx_file(np.zeros(3))[:-1]])
def test_what_is_no_idx_file(data):
    with pytest.raises(ValueError, match="not an idx file"):
        mnist.idx(data)
