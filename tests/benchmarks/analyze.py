"""CPU seconds, wall time and memory of `lorascope analyze`, beside the peers that give full spectra, in one run.

    python tests/benchmarks/analyze.py --peers /path/to/venv/bin/python

`--peers` is a Python with `retrain==0.3.0` and `gradience==0.11.0` (and torch) installed; without it only our own rows
are printed. Every row is a whole process on the same 8B-shaped rank-16 adapter (224 modules, float32, 168 MB), one BLAS
thread, the rounds interleaved; the best of the rounds counts, for us and for them. Ratios are against the fastest peer.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.adapters import LLAMA_8B, LLAMA_70B, write_llama_adapter
from tests.benchmarks.machine import add_json, finish

RETRAIN = """
from retrain.squeeze import analyze_adapter
analyze_adapter({path!r})
"""
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "",
}


def measure(command: list[str]) -> dict[str, float]:
    """One run of `command`: CPU seconds (user and system), wall seconds, peak resident MB. Raises where it fails."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | ENVIRONMENT)
    _, errors = process.communicate()
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed: {errors.decode()[-500:]}")
    return {"cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, "wall": wall}


def peak_memory(command: list[str]) -> float:
    """Peak resident MB of `command`, from a parent that has had no larger child."""
    code = (
        "import resource, subprocess, sys;"
        "subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command], capture_output=True, env=os.environ | ENVIRONMENT, check=True
    )
    return int(done.stdout) / 1024


def rows(folder: Path, out: Path, peers: str | None) -> dict[str, list[str]]:
    ours = [sys.executable, "-m", "lorascope"]
    table = {
        "lorascope analyze": [*ours, "analyze", str(folder)],
        "  with --json, and the file's SHA-256": [*ours, "analyze", str(folder), "--json", str(out / "a.json")],
        "  with --json and --html": [
            *ours,
            "analyze",
            str(folder),
            "--json",
            str(out / "a.json"),
            "--html",
            str(out / "a.html"),
        ],
        "  lorascope --help": [*ours, "--help"],
    }
    if peers:
        table["retrain.squeeze 0.3.0"] = [peers, "-c", RETRAIN.format(path=str(folder))]
        table["gradience audit 0.11.0"] = [peers, "-m", "gradience.cli", "audit", "--peft-dir", str(folder), "--json"]
        table["import torch (their floor)"] = [peers, "-c", "import torch"]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="a Python with the peers installed")
    parser.add_argument("--rounds", type=int, default=5)
    add_json(parser)
    parser.add_argument(
        "--large", action="store_true", help="also a 70B-shaped rank-64 adapter (3.3 GB on disk): memory"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        folder = write_llama_adapter(out / "8b", 16, **LLAMA_8B)
        figures = run(rows(folder, out, arguments.peers), arguments.rounds)
        if arguments.large:
            large = write_llama_adapter(out / "70b", 64, **LLAMA_70B)
            command = [sys.executable, "-m", "lorascope", "analyze", str(large)]
            figures["lorascope, 70B r = 64"] = measure(command) | {"peak_mb": peak_memory(command)}
    show(figures)
    finish(arguments.json, figures, threads=1)


def run(commands: dict[str, list[str]], rounds: int) -> dict[str, dict[str, float]]:
    """The best CPU and wall seconds of `rounds` interleaved rounds, and the peak memory, of each command."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(rounds + 1):  # the first round warms the page cache and the bytecode, and is dropped
        for name, command in commands.items():
            seen[name].append(measure(command))
    return {
        name: {key: min(figure[key] for figure in figures[1:]) for key in ("cpu", "wall")}
        | {"peak_mb": peak_memory(commands[name])}
        for name, figures in seen.items()
    }


def show(figures: dict[str, dict[str, float]]) -> None:
    peers = [f["cpu"] for name, f in figures.items() if name.startswith(("retrain", "gradience"))]
    fastest = min(peers, default=None)
    print(f"{'':40}{'CPU s':>8}{'wall s':>8}{'peak MB':>9}{'CPU / fastest peer':>20}")
    for name, f in figures.items():
        ratio = f"{f['cpu'] / fastest:.2f}" if fastest else ""
        print(f"{name:40}{f['cpu']:8.2f}{f['wall']:8.2f}{f['peak_mb']:9.0f}{ratio:>20}")


if __name__ == "__main__":
    main()
