"""Runs that are killed at any write, left with what dead processes leave, met by a second process, and resumed: files
are whole or absent at every moment, and the end is that of a run without a break, byte for byte.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from lorascope import locks
from lorascope.errors import InputError
from lorascope.models.card import read_card
from lorascope.training import run
from lorascope.training.reopen import finished_config
from lorascope.training.run_folder import read_facts, read_summary
from lorascope.weights import io
from tests.fuzz.run_folders import adapter_bytes, scene
from tests.fuzz.run_one import SHM

DEAD = 999_999_999  # no process has this number
WRITES = 140  # a run of the scene makes some 130 changes in its folder
CALLS = ("replace", "rename", "unlink", "mkdir", "rmdir", "fsync")
EXAMPLES = int(os.environ.get("LORASCOPE_FUZZ_KILLS", "100"))
QUICK = settings(
    max_examples=3,
    stateful_step_count=6,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
HOLDS = (
    "import sys; from pathlib import Path; from lorascope import locks\n"
    "with locks.owning(Path(sys.argv[1])):\n"
    "    print('mine', flush=True); sys.stdin.read()\n"
)


class Killed(BaseException):
    """The process is no more: whoever wants to clean up gets this again."""


@contextlib.contextmanager
def killed_at(number: int, before: bool, folder: Path) -> Iterator[list[int]]:
    """Within, this process is another one, which dies at its `number`-th change in the folder; yields their count."""
    count, dead, held = [0], [False], []

    def guarded(name: str, real: Any) -> Any:
        def call(first: Any, *more: Any, **options: Any) -> Any:
            if name != "fsync" and not str(first).startswith(str(folder)):
                return real(first, *more, **options)
            count[0] += not dead[0]
            if dead[0] or (before and count[0] == number):
                dead[0] = True
                raise Killed
            result = real(first, *more, **options)
            if count[0] == number:
                dead[0] = True
                raise Killed
            return result

        return call

    def opening(path: Any, *more: Any, real: Any = os.open, **options: Any) -> int:
        descriptor = real(path, *more, **options)
        if str(path).endswith(locks.NAME):
            held.append(descriptor)
        return descriptor

    with contextlib.ExitStack() as patches:
        for name in CALLS:
            patches.enter_context(mock.patch.object(os, name, guarded(name, getattr(os, name))))
        patches.enter_context(mock.patch.object(os, "open", opening))
        patches.enter_context(mock.patch.object(os, "getpid", return_value=DEAD))
        patches.callback(_close_locks, held)
        yield count


def _close_locks(descriptors: list[int]) -> None:
    """As the system does with a dead process's files."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            if locks.NAME in os.readlink(f"/proc/self/fd/{descriptor}"):
                os.close(descriptor)


def train(folder: Path) -> None:
    """What a user does: resume where there is a run, start where there is none."""
    resume = (folder / "config.yaml").exists()
    run.train(scene().configs["broken"], folder, resume=resume, say=lambda _: None)


def check_whole(folder: Path) -> None:
    """Every file that is there is whole."""
    if (folder / "config.yaml").exists() and (folder / "summary.json").exists():
        assert finished_config(folder) == scene().configs["broken"]
    read_summary(folder)
    read_facts(folder)
    if (folder / "checkpoint.pt").exists():
        torch.load(folder / "checkpoint.pt", weights_only=True)
    if (folder / "adapter").exists():
        assert read_card(folder / "adapter")["labels"] == ["no", "yes"]
        for update in io.read(folder / "adapter").updates.values():
            for stored in update.roles.values():
                stored.read()
        assert adapter_bytes(folder) == scene().whole


def check_finished(folder: Path) -> None:
    check_whole(folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in (scene().root / "whole").iterdir()}, "something is left"
    assert adapter_bytes(folder) == scene().whole
    assert _metrics(folder) == _metrics(scene().root / "whole")


def _metrics(folder: Path) -> list[dict[str, Any]]:
    from lorascope.inputs import read_json_lines

    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_json_lines(folder / "metrics.jsonl")]


class Runs(RuleBasedStateMachine):
    """One folder, and all that happens to it."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="lorascope-kill-", dir=SHM))
        self.folder = self.root / "run"

    @rule(number=st.integers(1, WRITES), before=st.booleans(), share=st.floats(0, 1))
    def is_killed(self, number: int, before: bool, share: float) -> None:
        with contextlib.suppress(Killed), killed_at(number, before, self.folder):
            train(self.folder)
        for part in self.folder.glob(".*.part"):  # it was being written
            if part.is_file():
                os.truncate(part, int(part.stat().st_size * share))

    @rule(cut=st.integers(1, 60))
    def loses_the_end_of_its_log(self, cut: int) -> None:
        """As where the last line was being written."""
        path = self.folder / "metrics.jsonl"
        if path.exists() and not (self.folder / "summary.json").exists():
            size = path.stat().st_size
            last = len(path.read_bytes().splitlines(keepends=True)[-1]) if size else 0
            os.truncate(path, size - min(cut, max(0, last - 1)))

    @rule(name=st.sampled_from(("config.yaml", "checkpoint.pt", "adapter", "summary.json", "run.json")))
    def meets_what_the_dead_left(self, name: str) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / locks.NAME).write_text(f"{DEAD} {socket.gethostname()}\n")
        left = self.folder / f".{name}.{DEAD}-0123abcd.part"
        if name != "adapter":
            left.write_bytes(b"half")
        elif not left.exists():
            (self.folder / f".{left.name}.{DEAD}-89abcdef.part").mkdir(exist_ok=True)  # a stage within the stage
            left.mkdir()
            (left / "adapter_model.safetensors").write_bytes(b"half")

    @rule()
    def meets_another_process(self) -> None:
        """Which has the folder: it is named, and nothing is touched."""
        command = [sys.executable, "-c", HOLDS, str(self.folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout.readline() == "mine\n"
            before = _contents(self.folder)
            with pytest.raises(InputError, match=f"process {other.pid} on ") as error:
                train(self.folder)
            assert error.value.exit_code == 2
            assert _contents(self.folder) == before
            other.kill()  # its lock stays

    @rule()
    def is_resumed(self) -> None:
        train(self.folder)
        check_finished(self.folder)

    @invariant()
    def is_whole(self) -> None:
        check_whole(self.folder)

    def teardown(self) -> None:
        try:
            self.is_resumed()
        finally:
            shutil.rmtree(self.root, ignore_errors=True)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


def test_killed_at_any_write_and_resumed():
    run_state_machine_as_test(Runs, settings=QUICK)


@pytest.mark.slow
def test_killed_at_every_write(tmp_path, capsys):
    """Once before and once after each change that a run makes in its folder, while it begins and while it resumes."""
    with killed_at(0, True, tmp_path / "whole") as count:
        train(tmp_path / "whole")
    kills = 0
    for number in range(1, count[0] + 1):
        for before in (True, False):
            folder = tmp_path / f"{number}-{before}"
            for again in (number, count[0] + 1 - number):
                with contextlib.suppress(Killed), killed_at(again, before, folder):
                    train(folder)
                kills += 1
                check_whole(folder)
            train(folder)
            check_finished(folder)
            shutil.rmtree(folder)
    with capsys.disabled():
        print(f"\n{kills} kills at {count[0]} writes")


@pytest.mark.slow
def test_many_histories():
    many = settings(QUICK, max_examples=EXAMPLES, stateful_step_count=12, derandomize=False)
    run_state_machine_as_test(Runs, settings=many)


def start(folder: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "lorascope", "train", str(scene().root / "broken.yaml"), "--output", str(folder)]
    command += ["--resume"] if (folder / "config.yaml").exists() else []
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_killed_by_the_system(tmp_path, capsys):
    """SIGKILL at a random time after the first file appeared; a second process meanwhile is sent away."""
    chance, folder, ended = random.Random(0), tmp_path / "run", []
    for number in range(12):
        process = start(folder)
        while process.poll() is None and not (folder / locks.NAME).exists():
            time.sleep(0.002)
        if number == 0:
            os.kill(process.pid, signal.SIGSTOP)
            second = start(folder)
            _, said = second.communicate(timeout=120)
            assert second.returncode == 2
            assert f"process {process.pid} on " in said
            os.kill(process.pid, signal.SIGCONT)
        time.sleep(chance.uniform(0, 5))
        process.kill()
        process.communicate()
        ended.append(process.returncode)
        check_whole(folder)
    train(folder)
    check_finished(folder)
    assert -signal.SIGKILL in ended
    with capsys.disabled():
        print(f"\nexit codes of 12 processes: {ended}")
