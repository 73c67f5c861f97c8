"""The safetensors reader and writer against the reference library, and against files that lie."""

import errno
import json
import os
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from lorascope.errors import InputError, LorascopeError
from lorascope.weights import safetensors as ours
from lorascope.weights.dtypes import SIZES, decode_into, encode
from lorascope.weights.safetensors import PIECE, open_safetensors, write_safetensors
from lorascope.weights.tensors import InMemory

TORCH = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def file_of(header, data=b"", length=None):
    """The bytes of a safetensors file with this header (a dict, or bytes as they are)."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


@pytest.mark.parametrize("name", TORCH)
def test_every_dtype_decodes_to_what_torch_says(name, tmp_path):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(37, 11, generator=generator) * 3
    tensor = (
        (values > 0) if name == "BOOL" else values.abs().to(TORCH[name]) if name == "U8" else values.to(TORCH[name])
    )
    save_torch({"x": tensor}, tmp_path / "a.safetensors")
    stored = open_safetensors(tmp_path / "a.safetensors")[0]["x"]
    assert (stored.dtype, stored.shape) == (name, (37, 11))
    found = stored.read()
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, tensor.double().numpy())  # float64 holds every value exactly


@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2", "BF16", "F16"])
def test_every_code_of_the_small_floats(name):
    """All 256 or 65536 codes, NaN and infinities included, against ml_dtypes."""
    reference = {"F8_E4M3": ml_dtypes.float8_e4m3fn, "F8_E5M2": ml_dtypes.float8_e5m2, "BF16": ml_dtypes.bfloat16}
    raw = np.arange(256, dtype=np.uint8) if SIZES[name] == 1 else np.arange(65536, dtype=np.uint16).view(np.uint8)
    with np.errstate(invalid="ignore"):  # numpy's own warning about signalling NaNs
        expected = raw.view(reference.get(name, np.float16)).astype(np.float64)
    found = np.empty(len(expected))
    decode_into(raw, name, found)
    np.testing.assert_array_equal(found, expected)
    back = np.frombuffer(encode(expected, name), np.uint8).view(reference.get(name, np.float16)).astype(np.float64)
    np.testing.assert_array_equal(back, expected)


@pytest.mark.parametrize("name", ["F8_E4M3", "F8_E5M2", "BF16", "F16", "F32"])
def test_encoding_rounds_to_nearest_even(name):
    values = torch.randn(20000, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.1
    values = values.float().double()  # torch rounds float64 to the small types by way of float32
    expected = values.to(TORCH[name]).double().numpy()
    found = np.empty(len(values))
    decode_into(np.frombuffer(encode(values.numpy(), name), np.uint8), name, found)
    np.testing.assert_array_equal(found, expected)


def test_a_tensor_larger_than_a_piece_and_its_rows(tmp_path):
    values = np.random.default_rng(0).standard_normal((7, PIECE // 8 + 3)).astype(np.float32)
    save_file({"x": values, "empty": np.zeros((0, 5), np.float32), "scalar": np.array(2, np.float32)}, tmp_path / "a")
    stored = open_safetensors(tmp_path / "a")[0]
    np.testing.assert_array_equal(stored["x"].read(), values.astype(np.float64))
    np.testing.assert_array_equal(stored["x"].rows(2, 5).read(), values[2:5].astype(np.float64))
    assert stored["empty"].read().shape == (0, 5)
    assert stored["scalar"].read() == 2.0


def test_reading_holds_one_tensor_and_not_the_file(tmp_path):
    names = [f"t{i}" for i in range(20)]
    save_file({name: np.ones((256, 1024), np.float32) for name in names}, tmp_path / "a")  # 1 MiB each
    tracemalloc.start()
    stored, _ = open_safetensors(tmp_path / "a")
    for name in names:
        stored[name].read()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 << 20  # one tensor in float64 (2 MiB), perhaps the one before, and the piece; the file has 20


def test_writing_is_what_the_reference_reads_and_always_the_same(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "b": InMemory(rng.standard_normal((3, 4)).astype(np.float32), "BF16"),
        "a": InMemory(rng.standard_normal((5,)), "F64"),
        "c": InMemory(rng.standard_normal((2, 3)).astype(np.float32), "F8_E4M3"),
    }
    write_safetensors(tmp_path / "one", tensors, {"format": "pt"})
    write_safetensors(tmp_path / "two", dict(reversed(tensors.items())), {"format": "pt"})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with safe_open(tmp_path / "one", "pt") as reference:
        assert reference.metadata() == {"format": "pt"}
        for key, stored in tensors.items():
            expected = torch.tensor(stored.values).to(TORCH[stored.dtype])
            assert torch.equal(reference.get_tensor(key).double(), expected.double())
    assert sorted(os.listdir(tmp_path)) == ["one", "two"]


def test_a_full_disk_leaves_nothing_behind_and_the_old_file_alone(tmp_path, monkeypatch):
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"old")

    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ours.os, "fsync", full)
    with pytest.raises(LorascopeError, match=r"cannot write .*: No space left on device") as caught:
        write_safetensors(target, {"x": InMemory(np.ones(3))}, {})
    assert caught.value.exit_code == 1
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_folder_that_is_a_file_is_a_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LorascopeError, match="cannot write"):
        write_safetensors(tmp_path / "file" / "a", {"x": InMemory(np.ones(3))}, {})


def test_a_file_cut_short_after_it_was_opened(tmp_path):
    save_file({"x": np.ones((100, 100), np.float32)}, tmp_path / "a")
    stored = open_safetensors(tmp_path / "a")[0]["x"]
    os.truncate(tmp_path / "a", 5000)
    with pytest.raises(LorascopeError, match="was truncated while being read"):
        stored.read()


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BAD = {
    "empty": (b"", "is empty"),
    "seven bytes": (b"1234567", "not a safetensors file; found 7 bytes"),
    "header longer than the file": (file_of({"x": ONE}, bytes(8), length=10_000), "a header of 10000 bytes"),
    "header of 2^63 bytes": (file_of({"x": ONE}, bytes(8), length=1 << 63), "a header of"),
    "not JSON": (file_of(b"{nonsense", bytes(8)), "not valid JSON"),
    "not UTF-8": (file_of(b'{"\xff": 1}', bytes(8)), "not valid JSON"),
    "a list": (file_of([1, 2]), "not a JSON object"),
    "nested too deep": (file_of(b'{"a":' * 50_000), "not valid JSON"),
    "duplicate keys": (
        file_of(b'{"x": %b, "x": %b}' % ((json.dumps(ONE).encode(),) * 2), bytes(8)),
        "duplicate keys 'x'",
    ),
    "entry is a number": (file_of({"x": 5}), "the entry of 'x'"),
    "entry lacks a field": (file_of({"x": {"dtype": "F32", "shape": [2]}}), "the entry of 'x'"),
    "unknown dtype": (file_of({"x": {**ONE, "dtype": "F4"}}, bytes(8)), "cannot read; found F4"),
    "dtype is a list": (file_of({"x": {**ONE, "dtype": ["F32"]}}, bytes(8)), "cannot read"),
    "shape lies": (file_of({"x": {**ONE, "shape": [3]}}, bytes(8)), r"has 8 bytes, and F32 \[3\] takes 12"),
    "huge shape": (file_of({"x": {**ONE, "shape": [1 << 60, 1 << 60]}}, bytes(8)), "the shape of 'x'"),
    "huge shape times zero": (
        file_of({"x": {**ONE, "shape": [0, 1 << 62], "data_offsets": [0, 0]}}),
        "the shape of 'x'",
    ),
    "negative shape": (file_of({"x": {**ONE, "shape": [-2]}}, bytes(8)), "the shape of 'x'"),
    "fractional shape": (file_of({"x": {**ONE, "shape": [2.0]}}, bytes(8)), "the shape of 'x'"),
    "boolean shape": (file_of({"x": {**ONE, "shape": [True, 2]}}, bytes(8)), "the shape of 'x'"),
    "too many axes": (file_of({"x": {**ONE, "shape": [1] * 40 + [2]}}, bytes(8)), "the shape of 'x'"),
    "offsets backwards": (file_of({"x": {**ONE, "data_offsets": [8, 0]}}, bytes(8)), "the data_offsets of 'x'"),
    "offsets beyond": (file_of({"x": {**ONE, "data_offsets": [8, 16]}}, bytes(8)), "leaves a gap before it"),
    "gap": (
        file_of({"x": ONE, "y": {**ONE, "data_offsets": [12, 20]}}, bytes(20)),
        "'y' begins at byte 12 and leaves a gap",
    ),
    "overlap": (
        file_of({"x": ONE, "y": {**ONE, "data_offsets": [4, 12]}}, bytes(12)),
        "'y' begins at byte 4 and overlaps",
    ),
    "truncated": (file_of({"x": ONE}, bytes(7)), "the file is truncated"),
    "longer than promised": (file_of({"x": ONE}, bytes(9)), "its header promises"),
    "metadata is not strings": (file_of({"__metadata__": {"a": 1}, "x": ONE}, bytes(8)), "__metadata__"),
    "half a surrogate pair": (file_of(b'{"\\ud800": %b}' % json.dumps(ONE).encode(), bytes(8)), "not valid text"),
    "a pickle": (b"\x80\x04\x95" + bytes(40), "a pickle or a zip"),
    "a zip": (b"PK\x03\x04" + bytes(40), "a pickle or a zip"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_lies_is_one_sentence(case, tmp_path):
    content, message = BAD[case]
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        open_safetensors(tmp_path / "a.safetensors")
    assert "\n" not in str(caught.value)
    assert "a.safetensors" in str(caught.value)


def test_a_header_of_640_bytes_is_no_pickle(tmp_path):
    """Its first two bytes, 80 02, are those of a pickle too."""
    text = json.dumps({"x": ONE}).encode()
    (tmp_path / "a").write_bytes(file_of(text + b" " * (640 - len(text)), bytes(8)))
    assert list(open_safetensors(tmp_path / "a")[0]) == ["x"]


def test_missing_and_folders_are_sentences(tmp_path):
    with pytest.raises(InputError, match="No such file"):
        open_safetensors(tmp_path / "nothing")
    with pytest.raises(LorascopeError):
        open_safetensors(tmp_path)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "a"
    rng = np.random.default_rng(0)
    save_file({f"t{i}": rng.standard_normal((i + 1, 3)).astype(np.float16) for i in range(4)}, path, {"format": "pt"})
    return path.read_bytes()


def survives(content, path):
    """Only an InputError may come out, or every tensor, read and of its shape."""
    path.write_bytes(content)
    try:
        stored, _ = open_safetensors(path)
    except InputError:
        return
    for tensor in stored.values():
        assert tensor.read().shape == tensor.shape


FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@FUZZ
@given(data=st.data())
def test_flipped_bytes(good, tmp_path, data):
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    survives(bytes(content), tmp_path / "a")


@FUZZ
@given(data=st.data())
def test_cut_and_spliced(good, tmp_path, data):
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(good))] * 2)))
    survives(good[:start] + data.draw(st.binary(max_size=20)) + good[stop:], tmp_path / "a")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@FUZZ
@given(data=st.data())
def test_edited_headers(good, tmp_path, data):
    length = int.from_bytes(good[:8], "little")
    header = json.loads(good[8 : 8 + length])
    key = data.draw(st.sampled_from(list(header)))
    field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", None]))
    value = data.draw(JSON)
    if field is None:
        header[key] = value
    else:
        header[key] = {**header[key], field: value}
    survives(file_of(header, good[8 + length :]), tmp_path / "a")
