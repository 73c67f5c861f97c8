"""A whole study with a verdict, at scale small, its replicates in joint passes: how long it takes."""

import os
import tempfile
import time
from pathlib import Path

from tests.cli.command import here
from tests.gpu import lines

GOAL = 300.0  # seconds
NAME = "rank_sweep"


def run(part: str, dry: bool) -> None:
    folder = Path(tempfile.mkdtemp(dir=os.environ.get("OUT")))
    places = ["--store", folder / "store", "--reports", folder / "reports"]
    options = ["--scale", "smoke" if dry else "small", "--device", "cpu" if dry else "cuda"]
    if dry:
        from tests.training import tiny

        model, rows = tiny.make_bert(folder / "bert"), tiny.write_labelled(folder / "rows.jsonl")
        options += ["--set", f"model.name={model}", "--set", f"data.path={rows}"]
        script = Path("tests/study/toy.py")
    else:
        script = Path(f"studies/{NAME}.py")
        if lines.minilm() != "minilm":
            options += ["--set", f"model.name={lines.minilm()}"]
    began = time.perf_counter()
    done = here("study", "run", script, *places, *options)
    seconds = time.perf_counter() - began
    lines.write(part, study=script.stem, seconds=seconds, code=done.returncode, goal=GOAL, output=done.stdout[-600:])
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
