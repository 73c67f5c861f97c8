"""Errors a user is meant to read: what happened, what was found, what was expected, what to do next.

`cli/app.py` holds the one `except` that turns them into a line on stderr and an exit code. Anything else that is
raised is a bug of ours and keeps its traceback.
"""


class LorascopeError(Exception):
    """A failure with a sentence for the user. Exit code 1.

    Args:
        what: what happened, naming the file, module or option.
        found: what was found there.
        expected: what would have been right.
        hint: what to do next, as an instruction.
    """

    exit_code = 1

    def __init__(self, what: str, *, found: object = None, expected: object = None, hint: str | None = None):
        parts = [what.rstrip(".")]
        if found is not None:
            parts.append(f"found {found}")
        if expected is not None:
            parts.append(f"expected {expected}")
        if hint is not None:
            parts.append(hint.rstrip("."))
        self.what, self.found, self.expected, self.hint = what, found, expected, hint
        super().__init__(printable("; ".join(parts)) + ".")


class InputError(LorascopeError):
    """The input or the usage is wrong: a file, an option, a config. Exit code 2."""

    exit_code = 2


def printable(text: str) -> str:
    """`text` on one line, with control characters escaped: a file's keys must not drive the reader's terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def some(items, most: int = 5) -> str:
    """The first few of `items`, quoted, and how many more there are: for naming keys in a sentence."""
    items = [str(item) for item in items]
    shown = ", ".join(repr(item) for item in items[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")
