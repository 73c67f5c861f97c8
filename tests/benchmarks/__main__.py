"""Every benchmark, one after the other, each with its JSON: under 25 minutes on two quiet cores.

    python -m tests.benchmarks [--out FOLDER] [--only NAME ...] [--peers PYTHON] [--minutes 25]

Rounds are fewer than the scripts' own defaults. `--peers` is handed on to `analyze.py`. What is not installed, fails or
would begin after the time is up is named at the end, and the command then exits with 1.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS: dict[str, list[str]] = {
    "analyze": ["--rounds", "3"],
    "delta": ["--shapes", "768x768,1024x4096,2048x2048,4096x4096", "--rounds", "1"],
    "dequantise": [],
    "layer_kinds": ["--rounds", "5"],
    "intruders": ["--rounds", "2"],
    "resize": ["--rounds", "2"],
    "train_step": ["--rounds", "5"],
    "sweep": ["--members", "4", "8", "--rounds", "3"],
    "traffic": [],
    "compare": ["--adapters", "100"],
    "trajectory": ["--checkpoints", "10", "--layers", "16"],
    "callback": ["--steps", "10"],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks"), help="the folder of the JSON files")
    parser.add_argument("--only", nargs="+", choices=list(SCRIPTS), default=list(SCRIPTS))
    parser.add_argument("--peers", help="a Python with analyze.py's peers installed")
    parser.add_argument("--minutes", type=float, default=25.0)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * arguments.minutes
    summary: dict[str, dict[str, object]] = {}
    for name in arguments.only:
        more = ["--peers", arguments.peers] if name == "analyze" and arguments.peers else []
        summary[name] = run(name, [*SCRIPTS[name], *more], arguments.out / f"{name}.json", ends - time.monotonic())
    (arguments.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print("\n".join(f"{name:12} {each['seconds']:6.0f} s  {each['outcome']}" for name, each in summary.items()))
    return int(any(each["outcome"] != "measured" for each in summary.values()))


def run(name: str, options: list[str], file: Path, seconds: float) -> dict[str, object]:
    """One script, stopped when the time is up: how long it took, and what came of it."""
    if seconds <= 0:
        return {"seconds": 0.0, "outcome": "not begun: the time was up"}
    print(f"--- {name} {' '.join(options)}", flush=True)
    command = [sys.executable, str(HERE / f"{name}.py"), *options, "--json", str(file.resolve())]
    path = os.pathsep.join(filter(None, (str(HERE.parents[1]), os.environ.get("PYTHONPATH"))))
    began = time.monotonic()
    try:
        done = subprocess.run(
            command, timeout=seconds, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
        )
        lines = done.stderr.strip().splitlines()
        outcome = "measured" if done.returncode == 0 else f"failed: {lines[-1] if lines else done.returncode}"
    except subprocess.TimeoutExpired:
        outcome = f"stopped after {seconds:.0f} s: the time was up"
    return {"seconds": time.monotonic() - began, "outcome": outcome}


if __name__ == "__main__":
    sys.exit(main())
