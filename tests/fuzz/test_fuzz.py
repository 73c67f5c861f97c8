"""Whatever an adapter is made of, it is read, or refused in one sentence; `run_one.py` says all that this means."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorascope.errors import InputError
from lorascope.weights.io import read
from tests.fuzz import adapters, campaign
from tests.fuzz.mutate import write_mutated
from tests.fuzz.run_one import SHM, check
from tests.fuzz.writing import write

CASES = int(os.environ.get("LORASCOPE_FUZZ_CASES", "100000"))
SEED = int(os.environ.get("LORASCOPE_FUZZ_SEED", "0"))
ROOT = Path(__file__).parents[2]
QUICK = settings(
    max_examples=150,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Or every decomposition of a 3 × 3 matrix asks BLAS for its threads first, which takes longer than all else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        yield


def test_every_format_and_every_family_of_peft_is_drawn():
    adapters.complain_of_gaps()


@pytest.mark.parametrize("name", adapters.FAMILIES)
@settings(QUICK, max_examples=3)
@given(st.data())
def test_what_is_drawn_is_valid(name, data):
    files = data.draw(adapters.adapters(name))
    with tempfile.TemporaryDirectory(dir=SHM) as folder:
        path = write(files, Path(folder))
        try:
            assert read(path).source.format == files.format
        except InputError as error:  # of a tuner whose files tell too little to be read without their base
            if not name.startswith("peft_") or "pass --base" not in str(error):
                raise
        check(path)


@QUICK
@given(adapters.CHANCE)
def test_a_changed_adapter_is_read_or_refused(chance):
    with tempfile.TemporaryDirectory(dir=SHM) as folder:
        check(write_mutated(chance, Path(folder)))


@pytest.mark.slow
def test_many_changed_adapters(capsys):
    counts = campaign.run(CASES, SEED, workers=os.cpu_count() or 1)
    with capsys.disabled():
        print(f"\n{counts}")
    assert counts.outcomes["cases"] == CASES
    assert not counts.outcomes["uncaught"] + counts.outcomes["hangs"], str(counts)


@pytest.mark.slow
def test_bytes_that_coverage_guides(capsys):
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.fuzz.coverage_guided", "--cases", str(CASES), "--seed", str(SEED)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = re.search(r"^(\d+) cases, .* (\d+) uncaught, (\d+) hangs(\n.+: .*)*", done.stdout, re.M)
    assert said, done.stdout + done.stderr
    with capsys.disabled():
        print(f"\n{said[0]}")
    assert said[2] == said[3] == "0", said[0]
