"""Regular expressions that come from outside, from a config or a command line: Python's own, bounded in time.

`re` may take longer than the universe has for a pattern such as `(a+)+$`, and cannot be stopped. A pattern is checked
by `re`, and matched by the `regex` package, which has the same syntax and a time limit.
"""

import math
import re
import time
import warnings
from functools import cached_property
from typing import Any

from lorascope.errors import InputError

LONGEST = 20_000  # characters of one pattern; PEFT's own for all linear layers of a large model take some thousand
DEEPEST = 12  # groups inside groups: what `regex` compiles grows as 2^depth
MAX_REPEATS = 100_000  # of {n}, all multiplied: `regex` writes them out
SECONDS = 2.0  # of matching, over all names that one pattern is asked for
_PLAIN = re.compile(r"(?:[\w ,:/-]|\\?\.)*\$?")  # nothing in it can be matched in two ways


class Budget:
    """The seconds that are left for matching; patterns of one source share one."""

    def __init__(self, seconds: float = SECONDS):
        self.left = seconds


class Pattern:
    """One regular expression. Its methods give what `re`'s do: a match, or None.

    Args:
        text: the expression, in Python's syntax.
        where: names it in errors, such as "--modules" or "adapter_config.json: rank_pattern".
        before, after: parts of ours that are put around it.
        budget: of patterns that come together; else it has `SECONDS` of its own.

    Raises:
        InputError: it is not a regular expression, or too long or too deep. `search`, `match` and `fullmatch` raise it
            where the time is over.
    """

    def __init__(self, text: str, where: str, before: str = "", after: str = "", budget: Budget | None = None):
        self.text, self.where = text, where
        self._whole = f"{before}{text}{after}"
        self._budget = budget or Budget()
        if len(text) > LONGEST:
            raise InputError(f"{where} is too long a regular expression", found=f"{len(text):,} characters")
        if _repeats(text) > MAX_REPEATS:
            raise InputError(f"{where} repeats something over {MAX_REPEATS:,} times", found=_shown(text))
        if _depth(text) > DEEPEST:
            raise InputError(f"{where} has groups nested more than {DEEPEST} deep", found=_shown(text))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of sets that a later Python may read otherwise
                self._plain = re.compile(self._whole)
        except (re.error, RecursionError, OverflowError) as error:
            raise InputError(
                f"{where} is not a regular expression",
                found=f"{_shown(text)} ({error})",
                hint="quote special characters",
            ) from None

    def search(self, name: str) -> Any:
        return self._ask("search", name)

    def match(self, name: str) -> Any:
        return self._ask("match", name)

    def fullmatch(self, name: str) -> Any:
        return self._ask("fullmatch", name)

    @cached_property
    def _bounded(self) -> Any:
        """The engine that can be stopped; `re` where there is nothing to stop."""
        if _PLAIN.fullmatch(self.text):
            return None
        import regex

        began = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                return regex.compile(self._whole, regex.VERSION0)
        except regex.error as error:
            raise _no_pattern(self.where, self.text, error) from None
        finally:
            self._budget.left -= time.perf_counter() - began

    def _ask(self, how: str, name: str) -> Any:
        began = None
        try:
            if self._budget.left <= 0:
                raise TimeoutError
            if self._bounded is None:
                return getattr(self._plain, how)(name)
            began = time.perf_counter()
            found = getattr(self._bounded, how)(name, timeout=self._budget.left)
        except (TimeoutError, MemoryError):
            raise InputError(
                f"{self.where} takes too long to match", found=_shown(self.text), hint="write it without nested * and +"
            ) from None
        self._budget.left -= time.perf_counter() - began
        return found


def _no_pattern(where: str, text: str, error: Exception) -> InputError:
    shown = f"{_shown(text)} ({error})"
    return InputError(f"{where} is not a regular expression", found=shown, hint="write a backslash before . ( [ * +")


def _repeats(text: str) -> int:
    """At least as often as any part of it must occur."""
    counts = [int(digits[:9]) for digits in re.findall(r"\{(\d+)", text)]
    return math.prod(min(max(count, 1), MAX_REPEATS + 1) for count in counts[:1000])


def _depth(text: str) -> int:
    """How deep groups are nested; brackets and escapes are not looked into, and only make it larger."""
    depth = deepest = 0
    for character in text:
        depth += (character == "(") - (character == ")" and depth > 0)
        deepest = max(deepest, depth)
    return deepest


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
