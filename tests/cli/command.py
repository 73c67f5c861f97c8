"""Running the command line as a user does: a process, an exit code, two streams."""

import os
import subprocess
import sys
from pathlib import Path


def lorascope(
    *arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess:
    """Run `lorascope ARGUMENTS`. Warnings of the interpreter count as output, so that they are seen."""
    command = [sys.executable, "-m", "lorascope", *map(str, arguments)]
    environment = os.environ | (env or {})
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=timeout)


def refused(done: subprocess.CompletedProcess, code: int = 2) -> str:
    """The one sentence of a refusal: checks the exit code, that there is no traceback and nothing on stdout."""
    assert done.returncode == code, done.stderr or done.stdout
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("lorascope: ")
    assert lines[0].endswith(".")
    return lines[0]
