"""Results as JSON lines, on disk as soon as they are known."""

import json
import os
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def write(part: str, **facts: Any) -> None:
    """One line more in $OUT/gpu.jsonl."""
    text = json.dumps({"part": part, **facts}) + "\n"
    with (Path(os.environ.get("OUT", ".")) / "gpu.jsonl").open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    print(text, end="", flush=True)


def minilm() -> str:
    """The trained MiniLM: a folder that was carried to the machine, or lorascope's own."""
    carried = Path(".gpu/minilm")
    return str(carried) if carried.is_dir() else "minilm"


def benchmarks() -> None:
    """Put the folder of the benchmarks, which are scripts, on the path."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.insert(0, str(BENCHMARKS))
