"""Whatever becomes of the files of a run, a sweep, a store or a report: every command works, or refuses in one
sentence; `open_run.py` says all that this means.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from tests.fuzz import run_campaign
from tests.fuzz.adapters import CHANCE
from tests.fuzz.open_run import CHEAP, NEEDED, OPENERS, check
from tests.fuzz.run_folders import scene

CASES = int(os.environ.get("LORASCOPE_FUZZ_RUN_CASES", "3000"))
SEED = int(os.environ.get("LORASCOPE_FUZZ_SEED", "0"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENBLAS_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("command", run_campaign.COMMANDS)
def test_what_nobody_damaged_is_opened(command, tmp_path):
    name = next(name for name, each in OPENERS.items() if command in each)
    assert check(scene(), command, scene().copy(name, tmp_path), {}) == "works"


def test_the_tables_name_commands():
    assert {*CHEAP, *NEEDED} <= {*run_campaign.COMMANDS}


@settings(
    max_examples=100,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(CHANCE)
def test_a_damaged_folder_is_opened_or_refused(chance):
    run_campaign.run_case(chance, CHEAP)


@pytest.mark.slow
def test_many_damaged_folders(capsys):
    counts, by_command = run_campaign.run(CASES, SEED)
    with capsys.disabled():
        print(f"\n{counts}\n{dict(sorted(by_command.items()))}")
    assert counts.outcomes["cases"] == CASES
    assert not counts.outcomes["uncaught"] + counts.outcomes["hangs"], str(counts)
