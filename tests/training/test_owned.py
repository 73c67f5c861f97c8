"""One process at a time in a run's folder; who comes second is told who has it."""

import subprocess
import sys
from pathlib import Path

import pytest

from lorascope import locks
from lorascope.errors import InputError
from lorascope.training import quickstart, run, sweep
from lorascope.training.config import parse, resolved
from lorascope.training.run_folder import working_in
from lorascope.training.search import SubspaceRuns
from tests.training.tiny import classifier_values

HOLDS = (
    "import sys; from pathlib import Path; from lorascope import locks\n"
    "with locks.owning(Path(sys.argv[1])):\n"
    "    print('mine', flush=True); sys.stdin.read()\n"
)


@pytest.fixture
def owned(tmp_path):
    """(folder, process): a folder that another process holds until it is killed."""
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLDS, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "mine\n"
        yield folder, process
        process.kill()


def refused(action, folder: Path, process) -> None:
    with pytest.raises(InputError, match=f"process {process.pid} on ") as error:
        action()
    assert str(folder) in str(error.value)
    assert error.value.exit_code == 2
    assert {path.name for path in folder.iterdir()} == {locks.NAME}  # nothing was written


def test_the_second_process_is_told_whose_the_folder_is(owned, classifier, tiny_bert, labelled):
    folder, process = owned
    config = classifier()
    plan = sweep.plan({**classifier_values(tiny_bert, labelled), "sweep": {"method.rank": [1, 2]}})
    refused(lambda: run.train(config, folder), folder, process)
    refused(lambda: run.train(config, folder, resume=True), folder, process)
    refused(lambda: sweep.train(plan, folder), folder, process)
    refused(lambda: sweep.train(plan, folder, resume=True), folder, process)
    refused(lambda: quickstart.go(quickstart.config_for("minilm", 0, "cpu"), folder, []), folder, process)
    full = resolved(parse({**resolved(config), "method": {"name": "full"}}))
    search = SubspaceRuns(full, folder, lambda _: 0.0, rates=[1e-2])
    refused(lambda: search(8, 0), folder, process)


def test_a_lock_whose_owner_was_killed_is_free_and_none_is_left(owned):
    folder, process = owned
    process.kill()
    process.wait()
    assert (folder / locks.NAME).exists()
    with working_in(folder):
        (folder / "something").touch()
    assert {path.name for path in folder.iterdir()} == {"something"}


def test_a_run_that_is_refused_leaves_no_folder(classifier, tmp_path):
    with pytest.raises(InputError, match="is not a run directory"):
        run.train(classifier(), tmp_path / "new", resume=True)
    assert not list(tmp_path.iterdir())
