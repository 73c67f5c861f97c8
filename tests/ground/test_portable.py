"""What Windows has not: lorascope reads files and locks folders without it."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorascope import portable
from lorascope.locks import NAME, owning
from lorascope.weights.safetensors import open_safetensors

WINDOWS = """
import os, sys
for module in ("fcntl", "pwd", "grp", "resource"):
    sys.modules[module] = None
for name in ("preadv", "pread", "pwrite", "O_NONBLOCK", "O_CLOEXEC", "O_NOFOLLOW"):
    delattr(os, name)
from pathlib import Path
from lorascope.locks import owning
from lorascope.weights.io import read
adapter = read(sys.argv[1])
with owning(Path(sys.argv[2])):
    print(sum(update.delta().frobenius_norm() for update in adapter.updates.values()))
"""


def test_an_adapter_is_read_and_a_folder_locked_without_what_windows_lacks(lora_folder, tmp_path):
    from lorascope.weights.io import read

    command = [sys.executable, "-c", WINDOWS, str(lora_folder), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    norms = sum(update.delta().frobenius_norm() for update in read(lora_folder).updates.values())
    assert float(done.stdout) == norms
    assert list(tmp_path.iterdir()) == []


def test_threads_read_one_file_without_positional_reads(tmp_path, monkeypatch):
    monkeypatch.delattr("os.preadv")
    rng = np.random.default_rng(0)
    arrays = {f"t{i}": rng.standard_normal((40, 1000)).astype(np.float32) for i in range(12)}
    save_file(arrays, tmp_path / "a.safetensors")
    stored, _ = open_safetensors(tmp_path / "a.safetensors")
    with ThreadPoolExecutor(8) as pool:
        for name, values in zip(stored, pool.map(lambda name: stored[name].read(), stored), strict=True):
            np.testing.assert_array_equal(values, arrays[name])
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(Exception, match="was truncated"):
        stored["t0"].read()


@pytest.mark.parametrize(("text", "free"), [("", True), ("1 elsewhere\n", False)])
def test_without_locks_the_text_of_the_file_decides(text, free, tmp_path, monkeypatch):
    monkeypatch.setattr(portable, "fcntl", None)
    (tmp_path / NAME).write_text(text)
    if free:
        with owning(tmp_path):
            pass
    else:
        with pytest.raises(Exception, match="process 1 on elsewhere"), owning(tmp_path):
            pass
