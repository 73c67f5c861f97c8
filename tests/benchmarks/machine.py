"""What a benchmark ran on, printed with its figures and written into its JSON: processor, BLAS, threads, versions."""

import argparse
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any


def facts(threads: int | None = None) -> dict[str, Any]:
    """The machine and the libraries that this process has loaded.

    Args:
        threads: of what was measured, where that ran in processes of its own.
    """
    import numpy as np
    import threadpoolctl

    from lorascope.portable import processor

    pools = [pool for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"]
    found: dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "blas": sorted({f"{p['internal_api']} {p['version']} ({p.get('architecture', 'unknown')})" for p in pools}),
        "threads": threads or max((pool["num_threads"] for pool in pools), default=None),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    if (torch := sys.modules.get("torch")) is not None:
        vectors = torch.backends.cpu.get_cpu_capability()
        blas = "MKL" if torch.backends.mkl.is_available() else "another BLAS"
        found |= {"torch": f"{torch.__version__} ({blas}, {vectors})", "torch_threads": torch.get_num_threads()}
        if torch.cuda.is_available():
            found["gpu"] = torch.cuda.get_device_name()
    return found


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and the machine here as well")


def finish(file: Path | None, figures: Any, threads: int | None = None) -> None:
    """Print what the figures were measured on, and write both where a file is named."""
    machine = facts(threads)
    print("measured on", ", ".join(f"{key} {_text(value)}" for key, value in machine.items()))
    if file is not None:
        file.write_text(json.dumps({"machine": machine, "figures": figures}, indent=1) + "\n")


def _text(value: Any) -> str:
    return " and ".join(value) if isinstance(value, list) else str(value)
