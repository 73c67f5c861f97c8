"""FORMATS.md, made of the `SUPPORT` that every reading module declares: `python -m tests.contracts.formats_page`."""

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import lorascope.weights
from lorascope.weights.support import Support

PAGE = Path(__file__).parents[2] / ".github/FORMATS.md"
HEAD = """# What is read

One row is a dialect, a tuner or a scheme; an indented one is an option of it that changes what the numbers mean.
*Base needed*: what `--base MODEL` is needed for. *Verified against*: what the tests compare the numbers with.
The rows are declared next to the readers (`SUPPORT`), and this page is written by
`python -m tests.contracts.formats_page`.
"""
SECTIONS = {  # the longest prefix that fits a module's name
    "lorascope.weights.formats.peft": "PEFT's tuners",
    "lorascope.weights.formats": "Dialects of adapter files",
    "lorascope.weights.trainers": "Folders that trainers leave",
    "lorascope.weights": "Base models, plain and quantised",
}


def modules() -> Iterator[str]:
    """The names of all modules that read something, in alphabetical order."""
    yield from sorted(m.name for m in pkgutil.walk_packages(lorascope.weights.__path__, "lorascope.weights."))


def declared() -> dict[str, tuple[Support, ...]]:
    """The declarations by module."""
    found = {name: getattr(importlib.import_module(name), "SUPPORT", ()) for name in modules()}
    return {name: rows for name, rows in found.items() if rows}


def page() -> str:
    """The page's text."""
    by_section: dict[str, list[Support]] = {title: [] for title in SECTIONS.values()}
    for name, rows in declared().items():
        by_section[next(title for prefix, title in SECTIONS.items() if f"{name}.".startswith(f"{prefix}."))] += rows
    return "\n".join([HEAD, *(_section(title, rows) for title, rows in by_section.items() if rows)])


def _section(title: str, rows: list[Support]) -> str:
    lines = [f"## {title}", "", "| name | read | base needed | verified against |", "|---|---|---|---|"]
    lines += [
        f"| {'&emsp;' if '.' in row.peft else ''}{row.name} | {f'no: {row.refused}' if row.refused else 'yes'} "
        f"| {row.base or ('' if row.refused else 'no')} | {row.verified_against} |"
        for row in sorted(rows, key=_order)
    ]
    return "\n".join(lines) + "\n"


def _order(row: Support) -> tuple[str, str]:
    """Options after what they are of."""
    owner, _, option = row.peft.partition(".")
    return (owner or row.name).lower(), option.lower()


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}")
