"""CPU seconds and memory of `lorascope trajectory` over 30 checkpoints of an 8B-shaped rank-16 adapter.

    python tests/benchmarks/trajectory.py [--checkpoints 30] [--layers 32]

The whole process with JSON and page, one BLAS thread, after one run that warms the page cache. The goal is under 40 CPU
seconds and 400 MB; the files take 5 GB of disk, and are removed.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.benchmarks.adapters import LLAMA_8B, write_llama_adapter
from tests.benchmarks.analyze import measure, peak_memory
from tests.benchmarks.machine import add_json, finish

GOAL = {"cpu": 40.0, "peak_mb": 400.0}


def write_run(folder: Path, checkpoints: int, layers: int) -> Path:
    """A Trainer's folder: `checkpoint-100`, ..., whose entries drift from one to the next, and a log of losses."""
    first = write_llama_adapter(folder / "checkpoint-100", 16, **{**LLAMA_8B, "layers": layers})
    weights = "adapter_model.safetensors"
    start = int.from_bytes((first / weights).read_bytes()[:8], "little") + 8
    rng = np.random.default_rng(0)
    history = [{"step": 100 * (i + 1), "loss": 2.0 / (i + 1)} for i in range(checkpoints)]
    for i in range(1, checkpoints):
        at = folder / f"checkpoint-{100 * (i + 1)}"
        at.mkdir()
        shutil.copy(first / "adapter_config.json", at)
        content = bytearray((folder / f"checkpoint-{100 * i}" / weights).read_bytes())
        values = np.frombuffer(content, np.float32, offset=start)
        values += 0.003 * rng.standard_normal(values.size, dtype=np.float32)
        (at / weights).write_bytes(content)
    (at / "trainer_state.json").write_text(json.dumps({"log_history": history, "max_steps": 100 * checkpoints}))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=30)
    parser.add_argument("--layers", type=int, default=32)
    add_json(parser)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        folder = write_run(out / "run", arguments.checkpoints, arguments.layers)
        command = [sys.executable, "-m", "lorascope", "trajectory", str(folder)]
        command += ["--json", str(out / "t.json"), "--html", str(out / "t.html")]
        measure(command)
        figures = measure(command) | {"peak_mb": peak_memory(command)}
        sizes = {end: (out / f"t.{end}").stat().st_size / 1e6 for end in ("html", "json")}
    print(f"{arguments.checkpoints} checkpoints, {arguments.layers} layers")
    for key, value in figures.items():
        goal = f"   goal: under {GOAL[key]:.0f}" if key in GOAL else ""
        print(f"  {key:8}{value:8.1f}{goal}")
    print(f"  page {sizes['html']:.1f} MB, JSON {sizes['json']:.1f} MB")
    finish(arguments.json, figures | {"page_mb": sizes["html"], "json_mb": sizes["json"]}, threads=1)


if __name__ == "__main__":
    main()
