"""The decompositions on disk: hits, misses, damage, and a folder that cannot be written."""

import numpy as np
import pytest
import torch

from lorascope.weights.base_svd import SvdCache


@pytest.fixture
def weight(rng):
    return rng.standard_normal((12, 20))


def test_computed_once_then_read(tmp_path, weight):
    first, second = SvdCache(tmp_path / "svd"), SvdCache(tmp_path / "svd")
    made, read = first.of(weight), second.of(weight.copy())
    assert (first.computed, first.hits, second.computed, second.hits) == (1, 0, 0, 1)
    np.testing.assert_array_equal(made.basis.dense(), read.basis.dense())  # float64 on disk: the very same
    np.testing.assert_array_equal(made.sigma, read.sigma)
    assert second.read_bytes == first.written_bytes > 8 * 12 * 12
    assert [path.suffix for path in (tmp_path / "svd").iterdir()] == [".safetensors"]  # and no temporary file


def test_another_weight_another_file_and_no_name_counts(tmp_path, weight):
    cache = SvdCache(tmp_path)
    nudged = weight.copy()
    nudged[3, 4] = np.nextafter(nudged[3, 4], 9)
    for one in (weight, nudged, weight[:, :19], weight.T):
        assert cache.of(one).is_of(one)
    assert (cache.computed, cache.hits) == (4, 0)
    assert cache.kept(weight) is not None
    assert cache.kept(weight + 1) is None
    assert cache.computed == 4


@pytest.mark.parametrize("harm", ["cut", "emptied", "a number", "another weight's", "text"])
def test_a_damaged_file_is_computed_again_with_a_word(tmp_path, weight, harm):
    SvdCache(tmp_path).of(weight)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    if harm == "a number":
        content[-40] ^= 0x40  # of a singular vector: the exponent's bits would be seen by anyone
        content[-33] ^= 0x01
    elif harm == "another weight's":
        SvdCache(tmp_path / "other").of(np.random.default_rng(1).standard_normal((12, 20)))
        content = bytearray(next((tmp_path / "other").iterdir()).read_bytes())
    path.write_bytes({"cut": content[:200], "emptied": b"", "text": b"no tensors at all"}.get(harm, bytes(content)))
    said = []
    cache = SvdCache(tmp_path, said.append)
    np.testing.assert_allclose(cache.of(weight).sigma, np.linalg.svd(weight, compute_uv=False))
    assert (cache.damaged, cache.computed, cache.hits) == (1, 1, 0)
    assert len(said) == 1
    assert "damaged" in said[0]
    assert SvdCache(tmp_path, said.append).of(weight).is_of(weight)  # and was written anew
    assert len(said) == 1


def test_no_folder_keeps_nothing(weight):
    cache = SvdCache(None)
    cache.of(weight), cache.of(weight)
    assert (cache.computed, cache.hits, cache.written_bytes) == (2, 0, 0)


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path, weight):
    (tmp_path / "file").write_text("")
    said = []
    cache = SvdCache(tmp_path / "file" / "svd", said.append)
    cache.of(weight), cache.of(weight.T)
    assert cache.computed == 2
    assert len(said) == 1


def test_what_cannot_be_decomposed(tmp_path):
    with pytest.raises(ValueError, match="NaN"):
        SvdCache(tmp_path).of(np.full((3, 4), np.nan))
    assert list(tmp_path.iterdir()) == []


def test_matrices_of_one_shape_are_decomposed_in_one_call_elsewhere(tmp_path):
    rng = np.random.default_rng(3)
    weights = [rng.standard_normal(shape) for shape in ((6, 9), (6, 9), (9, 6), (6, 9))]
    weights[3][0, 0] = np.nan
    stacks = []

    def place(stack):
        stacks.append(stack.shape)
        return torch.from_numpy(stack)

    cache, plain = SvdCache(tmp_path, place=place), SvdCache(None)
    cache.prepare(weights)
    assert stacks == [(2, 6, 9), (1, 6, 9)]  # the longer side last; what is not finite is left to `of`
    for weight in weights[:3]:
        found, wanted = cache.of(weight), plain.of(weight)
        np.testing.assert_allclose(found.sigma, wanted.sigma, rtol=1e-12)  # another LAPACK, in float64
        np.testing.assert_allclose(np.abs(found.basis.dense().T @ wanted.basis.dense()), np.eye(6), atol=1e-9)
    with pytest.raises(ValueError, match="NaN"):
        cache.of(weights[3])
    cache.prepare(weights)  # all of it is on disk now
    assert (len(stacks), cache.computed) == (2, 3)
