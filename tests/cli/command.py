"""Running the command line as a user does: a process, an exit code, two streams; and, for refusals, without one."""

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock


def lorascope(
    *arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess:
    """Run `lorascope ARGUMENTS`. Warnings of the interpreter count as output, so that they are seen."""
    command = [sys.executable, "-m", "lorascope", *map(str, arguments)]
    environment = os.environ | (env or {})
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, timeout=timeout)


def here(
    *arguments: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """The same in this process, for which torch need not start anew: each command runs as a process once."""
    from lorascope.cli.app import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    code: int | str | None = 0
    with (
        mock.patch.object(sys, "argv", ["lorascope", *map(str, arguments)]),
        mock.patch.dict(os.environ, env or {}),
        contextlib.chdir(cwd or "."),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    texts = (stream.buffer.getvalue().decode() for stream in (out, err))
    return subprocess.CompletedProcess(["lorascope", *map(str, arguments)], int(code or 0), *texts)


def refused(done: subprocess.CompletedProcess, code: int = 2) -> str:
    """What a refusal says, on one line: the error, and the hint where there is one; checks the exit code, that there is
    no traceback and nothing on stdout."""
    assert done.returncode == code, done.stderr or done.stdout
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert 1 <= len(lines) <= 2, done.stderr
    assert lines[0].startswith("error: ")
    assert all(line.startswith("hint: ") for line in lines[1:])
    assert all(line.endswith(".") for line in lines)
    return " ".join(lines)


def valid(command: str, text: str) -> Any:
    """The JSON that a command wrote, without NaN and of the keys that `lorascope schema COMMAND` names."""
    import jsonschema

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads(text, parse_constant=refuse)
    jsonschema.Draft202012Validator(json.loads(here("schema", command).stdout)).validate(record)
    return record
