"""Keras's HDF5 files: as KerasHub writes them, and what is refused."""

import sys

import numpy as np
import pytest

from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights.io import read
from tests.weights.example import double, normal


def test_without_h5py_it_is_said(tmp_path, monkeypatch):
    (tmp_path / "a.lora.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match="pip install h5py"):
        read(tmp_path)


def test_kerashubs_lora(tmp_path):
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(0)
    a, b = normal(rng, 10, 3), normal(rng, 3, 6)
    with h5py.File(tmp_path / "a.lora.h5", "w") as file:
        file["lora/vars/rank"] = 3
        file["lora/7/vars/lora_kernel_a"], file["lora/7/vars/lora_kernel_b"] = a, b
    adapter = read(tmp_path / "a.lora.h5")
    np.testing.assert_allclose(dense(adapter.updates["lora.7"].delta()), (double(a) @ double(b)).T, rtol=0, atol=1e-13)
    assert any("layer number" in note for note in adapter.notes)


def test_what_lies_elsewhere_is_refused(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = np.ones(3)
    for name, link in (("a.h5", h5py.ExternalLink("b.h5", "/x")), ("c.h5", h5py.SoftLink("/elsewhere"))):
        with h5py.File(tmp_path / name, "w") as file:
            file["lora/0/vars/lora_kernel_a"] = link
        with pytest.raises(InputError, match="link"):
            read(tmp_path / name)
    with h5py.File(tmp_path / "d.h5", "w") as file:
        file.create_dataset("lora/0/vars/lora_kernel_a", (2, 2), "f4", external=[("/etc/hostname", 0, 16)])
    with pytest.raises(InputError, match="another file"):
        read(tmp_path / "d.h5")


def test_a_damaged_file_is_one_sentence(tmp_path):
    pytest.importorskip("h5py")
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(InputError, match="damaged"):
        read(tmp_path / "a.h5")
