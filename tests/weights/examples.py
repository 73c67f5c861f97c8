"""Example files of every format, for the contract tests: each `examples_<format>.py` in this folder adds its own.

Another one of the same format, such as that of a family of PEFT's, is `examples_<format>_<what>.py`.

A builder writes a file and says what reading it must give.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lorascope.weights.formats.base import formats


@dataclass(frozen=True)
class Example:
    """A written file and the truth about it.

    Attributes:
        path: what to give to `io.read`.
        deltas: ΔW (d_out, d_in) in float64 for every module the reader must find, computed by another route.
        base: the folder of the base model, where it is needed.
        tolerance: the largest absolute difference allowed, beside its reason in the builder.
    """

    path: Path
    deltas: Mapping[str, np.ndarray]
    base: Path | None = None
    tolerance: float = 1e-12
    skipped: frozenset[str] = field(default=frozenset())


Builder = Callable[[Path], Example]


def builders() -> dict[str, list[Builder]]:
    """Builders by the registered name of their format, which follows `examples_` in the module's name.

    A module has `EXAMPLES`, builders; or `examples()`, tensors with the truth in memory (`tests/weights/example.py`).
    """
    import tests.weights as here

    found: dict[str, list[Builder]] = {}
    for module in pkgutil.iter_modules(here.__path__):
        if module.name.startswith("examples_"):
            examples = importlib.import_module(f"tests.weights.{module.name}")
            in_memory = map(_builder, examples.examples()) if hasattr(examples, "examples") else ()
            name = module.name.removeprefix("examples_")
            format = next((each for each in formats.names() if name.startswith(f"{each}_")), name)
            found.setdefault(format, []).extend([*getattr(examples, "EXAMPLES", ()), *in_memory])
    return found


def _builder(example) -> Builder:
    def build(folder: Path) -> Example:
        return Example(example.write(folder), example.expected)

    build.__name__ = example.name
    return build


def cases() -> list[tuple[str, Builder]]:
    """(format, builder) pairs, for `pytest.mark.parametrize`."""
    return [(name, builder) for name, several in sorted(builders().items()) for builder in several]


def case_id(value: object) -> str:
    return value if isinstance(value, str) else getattr(value, "__name__", str(value))
