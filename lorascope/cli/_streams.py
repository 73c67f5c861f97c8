"""The terminal's streams: open whatever the caller closed, and never in the way of a character. No command itself."""

import codecs
import contextlib
import os
import sys
from typing import TextIO

# What a terminal without Unicode (LC_ALL=C, a serial console) gets in place of this field's signs.
_ASCII = {
    "Δ": "d", "Σ": "sum ", "σ": "s", "α": "alpha", "λ": "lambda", "φ": "phi", "ε": "eps", "θ": "theta", "ᵀ": "^T",
    "‖": "||", "·": "*", "×": "x", "−": "-", "–": "-", "—": "-", "…": "...", "≤": "<=", "≥": ">=", "√": "sqrt ",
    "∞": "inf", "²": "^2", "³": "^3", "₁": "1", "₂": "2", "±": "+-", "≈": "~", "→": "->", "⊗": "(x)", "∘": "o",
    "“": '"', "”": '"', "‘": "'", "’": "'", "\u00a0": " ", "\u2009": " ", "\u202f": " ", "─": "-", "│": "|", "█": "#",
}  # fmt: skip


_SPARKS = dict(zip("▁▂▃▄▅▆▇", "_.-:=+*", strict=True))
_ASCII |= _SPARKS | {"▏": "|", "✓": "ok", "✗": "x", "←": "<-", "₂": "2", "⟨": "<", "⟩": ">"}
_stdout: TextIO | None = None  # the real one, where the command is to be quiet


def silence() -> None:
    """Let text on stdout go nowhere, and draw no progress bars; `real_stdout` is still there for JSON."""
    global _stdout
    if _stdout is None:
        _stdout, sys.stdout = sys.stdout, open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        os.environ["TQDM_DISABLE"] = "1"


def is_quiet() -> bool:
    return _stdout is not None


def real_stdout() -> TextIO:
    return sys.stdout if _stdout is None else _stdout


def speak() -> None:
    """Take `silence` back: a process may run more than one command."""
    global _stdout
    if _stdout is not None:
        sys.stdout.close()
        sys.stdout, _stdout = _stdout, None
        os.environ.pop("TQDM_DISABLE", None)


def prepare() -> None:
    """Make stdin, stdout and stderr usable: a closed one is /dev/null, and what its encoding lacks is spelled out."""
    with contextlib.suppress(OSError):
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # else the next file opened would be taken for it
            pass
        os.close(descriptor)
    codecs.register_error("lorascope", _spelled)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="lorascope")


def drop() -> None:
    """Let what is still buffered for a stdout that cannot be written go nowhere, at the interpreter's end too."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


def _spelled(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or c.encode("unicode_escape").decode() for c in text), error.end
