"""Progress on stderr, only where somebody is looking and there is something to wait for. No command itself."""

import sys
from collections.abc import Callable, Iterable
from typing import Any

from lorascope.cli import _streams as streams


def bar(what: str, unit: str = "it") -> Callable[[list], Iterable]:
    """Wraps a list in a progress bar."""
    if not sys.stderr.isatty() or streams.is_quiet():
        return iter

    def wrapped(items: list) -> Iterable:
        from tqdm import tqdm

        return tqdm(items, desc=what, unit=f" {unit}" if unit != "it" else unit, leave=False, delay=0.5)

    return wrapped


class Counter:
    """Counts steps whose number is not known, with the name of the one being worked on."""

    def __init__(self, what: str):
        self.what = what
        self.bar: Any = None

    def __call__(self, step: str) -> None:
        if not sys.stderr.isatty() or streams.is_quiet():
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(desc=self.what, unit=" steps", leave=False, delay=0.5)
        self.bar.set_postfix_str(step)
        self.bar.update()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def note(text: str) -> None:
    """What should be known about the inputs, while the work goes on."""
    if not streams.is_quiet():
        print(f"note: {text}", file=sys.stderr)
