"""Instructions of three commands, counted by valgrind: what a busy machine's clock cannot tell. Stored in counts.json.

    python -m tests.benchmarks.counts [--write]

Start-up is `lorascope --help`; `analyze` is of an adapter of 4 layers and rank 16, `delta` of two checkpoints with one
matrix of 256 x 256. Counts depend on the versions of Python and of the libraries: they are compared where these are the
stored ones. `tests/contracts/test_counts.py` fails where a count has risen by more than a tenth.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

STORED = Path(__file__).with_name("counts.json")
RISE = 0.10
LIBRARIES = ("numpy", "scipy", "typer")
SIZES = {"layers": 4, "hidden": 256, "kv": 64, "inner": 512}


def environment() -> dict[str, str]:
    """What the counts depend on."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"machine": platform.machine(), "python": python, **{name: version(name) for name in LIBRARIES}}


def missing() -> str | None:
    """Why nothing can be counted here; None where it can."""
    return None if shutil.which("valgrind") else "valgrind is not installed"


def count(arguments: list[str], folder: Path) -> int:
    """Instructions of `lorascope ARGUMENTS`, once its bytecode is compiled. Raises where it fails."""
    command = [sys.executable, "-m", "lorascope", *arguments]
    settings = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    root = str(Path(__file__).resolve().parents[2])
    given = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    given |= settings | {"PYTHONPATH": root, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    subprocess.run(command, check=True, env=given, capture_output=True)
    counting = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", *command]
    done = subprocess.run(counting, check=True, env=given, capture_output=True, text=True)
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if found is None:
        raise RuntimeError(f"valgrind printed no count: {done.stderr[-300:]}")
    return int(found[1].replace(",", ""))


def counts() -> dict[str, int]:
    """Instructions by command."""
    import numpy as np
    from safetensors.numpy import save_file

    from tests.benchmarks.adapters import write_llama_adapter

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapter = write_llama_adapter(folder / "adapter", 16, **SIZES)
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((256, 256), dtype=np.float32)
        change = 0.01 * rng.standard_normal((256, 256), dtype=np.float32)
        for label, values in (("base", weight), ("tuned", weight + change)):
            (folder / label).mkdir()
            save_file({"model.layers.0.mlp.up_proj.weight": values}, folder / label / "model.safetensors")
        commands = {
            "start-up": ["--help"],
            "analyze": ["analyze", str(adapter), "--json", str(folder / "a.json")],
            "delta": ["delta", str(folder / "base"), str(folder / "tuned"), "--json", str(folder / "d.json")],
        }
        return {label: count(arguments, folder) for label, arguments in commands.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="store these counts")
    arguments = parser.parse_args()
    if (reason := missing()) is not None:
        raise SystemExit(reason)
    stored = json.loads(STORED.read_text()) if STORED.exists() else {"counts": {}}
    seen = counts()
    for name, number in seen.items():
        before = stored["counts"].get(name)
        print(f"{name:10} {number / 1e6:9.1f} million" + (f"  {number / before:.3f} of the stored" if before else ""))
    if arguments.write:
        STORED.write_text(json.dumps({"environment": environment(), "counts": seen}, indent=1) + "\n")


if __name__ == "__main__":
    main()
