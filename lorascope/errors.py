"""Errors a user is meant to read: what happened, what was found, what was expected, what to do next.

`cli/app.py` holds the one `except` that turns them into a line on stderr and an exit code. Anything else that is
raised is a bug of ours and keeps its traceback.
"""

TRAIN = ("torch", "transformers", "datasets", "gguf", "sklearn")  # imported where a model is opened: the extra `train`
LONGEST_PART = 600  # characters of one part of a message: a file's key or value may be as long as it likes
LONGEST = 1_400  # of the whole


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
        self.what, self.found, self.expected, self.hint = what, found, expected, hint
        self.sentence = _joined(parts)  # without the hint
        super().__init__(_joined(parts if hint is None else [*parts, hint.rstrip(".")]))


def _joined(parts: list[str]) -> str:
    most = LONGEST if len(parts) == 1 else LONGEST_PART  # alone, it may list all that is wrong with a config
    return cut("; ".join(cut(printable(cut(part, 4 * most)), most) for part in parts), LONGEST) + "."


def needs_train(module: str | None) -> LorascopeError:
    """The error for a missing package of the extra `train`; `module` is what could not be imported."""
    hint = "pip install 'lorascope[train]'"
    return LorascopeError(f"this opens a model and needs {module}, which is not installed", hint=hint)


class InputError(LorascopeError):
    """The input or the usage is wrong: a file, an option, a config. Exit code 2."""

    exit_code = 2


class FullModelError(InputError):
    """An adapter was wanted, and the file holds a full model."""


def printable(text: str) -> str:
    """`text` on one line, with control characters escaped: a file's keys must not drive the reader's terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def cut(text: str, most: int) -> str:
    """`text` in at most so many characters, the middle left out."""
    return text if len(text) <= most else f"{text[: most // 2]} … {text[len(text) - (most - most // 2 - 3) :]}"


def preview(items, most: int = 5) -> str:
    """The first few of `items`, quoted, and how many more there are: for naming keys in a sentence."""
    items = [str(item) for item in items]
    shown = ", ".join(repr(cut(item, 200)) for item in items[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")
