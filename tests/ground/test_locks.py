"""One process at a time in a folder: whose it is is said, and what a dead one left does not matter."""

import os
import subprocess
import sys

import pytest

from lorascope.errors import InputError
from lorascope.locks import NAME, owning

HOLD = """
import sys, time; from pathlib import Path; from lorascope.locks import owning
with owning(Path(sys.argv[1])):
    print("mine", flush=True); time.sleep(60)
"""


def test_a_second_process_is_told_whose_it_is(tmp_path):
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(InputError, match=rf"process {other.pid} on "), owning(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    with owning(tmp_path):  # the system let go of it
        assert (tmp_path / NAME).read_text().split()[0] == str(os.getpid())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "x", "999999 elsewhere\n", "1 2 3", "\xff" * 300])
def test_a_stale_file_is_no_lock(text, tmp_path):
    (tmp_path / NAME).write_text(text)
    with owning(tmp_path):
        pass
    assert not (tmp_path / NAME).exists()


def test_within_one_process_too(tmp_path):
    with owning(tmp_path), pytest.raises(InputError, match=str(os.getpid())), owning(tmp_path):
        pass
