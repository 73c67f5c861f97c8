"""The terminal as it may be: closed, full, without Unicode, or a pipe whose reader has gone."""

import json
import os
import subprocess
import sys

import pytest

from tests.cli.command import lorascope, refused


def shell(command, **env):
    """A shell line in which `lorascope` is this one."""
    line = command.replace("lorascope", f"{sys.executable} -m lorascope")
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=os.environ | env, timeout=60)


@pytest.mark.parametrize(
    "env", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}], ids=str
)
def test_a_terminal_without_unicode(env, lora_folder):
    done = lorascope("analyze", lora_folder, env=env)
    assert done.returncode == 0, done.stderr
    assert "||dW||" in done.stdout
    assert done.stdout.isascii()
    assert json.loads(lorascope("analyze", lora_folder, "--json", "-", env=env).stdout)["schema"] == 2


def test_closed_streams(lora_folder, tmp_path):
    page = tmp_path / "a.html"
    for closing in (">&-", "2>&-", ">&- 2>&-", "<&-"):
        done = shell(f"lorascope analyze {lora_folder} --html {page} {closing}")
        assert (done.returncode, done.stderr) in ((0, ""), (0, f"wrote {page}\n"))
        assert page.read_text().startswith("<!DOCTYPE html>")
        page.unlink()
    done = shell(f"lorascope analyze {lora_folder} --json - >&-")
    assert done.returncode == 1
    assert "stdout, which is closed" in done.stderr


def test_a_full_disk_behind_stdout(lora_folder):
    done = shell(f"lorascope analyze {lora_folder} > /dev/full")
    assert (done.returncode, done.stderr) == (1, "error: the output: No space left on device\n")


def test_a_reader_that_has_gone(lora_folder):
    done = shell(f"lorascope analyze {lora_folder} | head -c 1; exit ${{PIPESTATUS[0]}}")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_pipe_as_output_and_as_input(lora_folder, tmp_path):
    done = shell(f"lorascope analyze {lora_folder} --json >(cat >&2)")
    assert '"schema":2' in done.stderr
    os.mkfifo(tmp_path / "pipe")
    assert "found a pipe" in refused(lorascope("analyze", tmp_path / "pipe", timeout=60))
