"""Instructions of three commands and of a training step, counted by valgrind: what a busy machine's clock cannot tell.

    python -m tests.benchmarks.counts [--write]

Start-up is `lorascope --help`; `analyze` is of an adapter of 4 layers and rank 16, `delta` of two checkpoints with one
matrix of 256 x 256; a training step is the difference between processes of 12 and of 2 steps of LoRA, by 10. They are
stored in counts.json. They depend on the versions of Python and of the libraries, and are compared where these are the
stored ones; hardly on the processor, because every library is told to take its AVX2 kernels, and valgrind shows them no
wider ones. `tests/contracts/test_counts.py` fails where a count has risen by more than a tenth.
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
SETTINGS = {
    "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_CORETYPE": "Haswell",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2",
}  # fmt: skip
STEPS = (2, 12)
TRAINING = """
import sys
import torch
from torch import nn
from lorascope.adapt.inject import inject
torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(nn.Embedding(256, 64), *(nn.Linear(64, 64) for _ in range(8)), nn.Linear(64, 256))
injected = inject(model, "lora", r=8, lora_alpha=16, target_modules=[str(i) for i in range(1, 9)])
optimizer = torch.optim.AdamW(injected.parameter_groups(lr=1e-3))
tokens = torch.randint(256, (8, 32))
for _ in range(int(sys.argv[1])):
    nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
"""


def environment() -> dict[str, str]:
    """What the counts depend on."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"machine": platform.machine(), "python": python, **{name: version(name) for name in LIBRARIES}}


def missing() -> str | None:
    """Why nothing can be counted here; None where it can."""
    return None if shutil.which("valgrind") else "valgrind is not installed"


def count(arguments: list[str], folder: Path) -> int:
    """Instructions of `python ARGUMENTS`, once its bytecode is compiled. Raises where it fails."""
    command = [sys.executable, *arguments]
    root = str(Path(__file__).resolve().parents[2])
    given = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    given |= SETTINGS | {"PYTHONPATH": root, "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    subprocess.run(command, check=True, env=given, capture_output=True)
    counting = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null", *command]
    done = subprocess.run(counting, check=True, env=given, capture_output=True, text=True)
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if found is None:
        raise RuntimeError(f"valgrind printed no count: {done.stderr[-300:]}")
    return int(found[1].replace(",", ""))


def counts(training: bool = True) -> dict[str, int]:
    """Instructions by command, and of a training step, which takes minutes."""
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
        seen = {label: count(["-m", "lorascope", *given], folder) for label, given in commands.items()}
        if not training:
            return seen
        few, many = (count(["-c", TRAINING, str(steps)], folder) for steps in STEPS)
        return seen | {"training step": (many - few) // (STEPS[1] - STEPS[0])}


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
        print(f"{name:13} {number / 1e6:9.1f} million" + (f"  {number / before:.3f} of the stored" if before else ""))
    if arguments.write:
        STORED.write_text(json.dumps({"environment": environment(), "counts": seen}, indent=1) + "\n")


if __name__ == "__main__":
    main()
