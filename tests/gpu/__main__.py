"""`python -m tests.gpu PART [--dry]`: one part of `tests/gpu.sh`. With --dry on the CPU, with tiny sizes."""

import argparse
import importlib
import importlib.metadata
import platform
import warnings

from tests.gpu import lines

PARTS = {"lora": "steps", "methods": "steps", "sweep": "sweep", "delta": "delta", "signs": "signs", "study": "study"}


def machine(dry: bool) -> None:
    """The card and the versions, without which no figure means anything."""
    import torch

    if not dry and not torch.cuda.is_available():
        raise SystemExit("tests.gpu: torch sees no CUDA device; --dry walks through on the CPU")
    card = "none (dry run)" if dry else torch.cuda.get_device_name()
    versions = {"torch": torch.__version__, "transformers": importlib.metadata.version("transformers")}
    lines.write("machine", card=card, python=platform.python_version(), **versions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=["machine", *PARTS])
    parser.add_argument("--dry", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    if args.part == "machine":
        machine(args.dry)
    else:
        importlib.import_module(f"tests.gpu.{PARTS[args.part]}").run(args.part, args.dry)


main()
