"""The glossary: the words of GLOSSARY.md and the measures of every analysis, each with its anchor."""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from lorascope.analyses.base import Metric, analyses, definitions
from lorascope.blocks import Block, Definition, Definitions, Heading, Items, Prose, Rich, Span, Table
from tests.docs import markdown

ROOT = Path(__file__).parents[2]
FILE = "glossary.html"
_GREEK = {"Δ": "delta-", "σ": "sigma-", "Σ": "sum-", "φ": "phi-", "λ": "lambda-", "α": "alpha-", "ε": "epsilon-"}
LINKED = {"energy rank", "stable rank", "effective rank", "participation ratio", "random baseline", "module type",
          "modules_to_save", "merge rounding error", "intruder dimension", "negative control",
          "test bed", "amendment", "principal angles", "rounding floor", "shared initialisation", "energy overlap",
          "degrees of freedom", "projection distance"}  # in prose; other words are everybody's  # fmt: skip


@dataclass(frozen=True)
class Word:
    """One row of GLOSSARY.md."""

    term: str
    anchor: str
    meaning: str
    formula: str


def anchor(term: str) -> str:
    """Of a term: its first name in small letters, Greek spelled out."""
    first = re.split(r",| \(", term)[0].strip()
    spelled = unicodedata.normalize("NFKD", "".join(_GREEK.get(c, c) for c in first)).lower()
    plain = re.sub(r"[^a-z0-9]+", "-", spelled).strip("-")
    return plain if plain[:1].isalpha() else f"x-{plain}"


@cache
def words() -> tuple[Word, ...]:
    """The rows of GLOSSARY.md."""
    blocks = markdown.blocks_of((ROOT / ".github/GLOSSARY.md").read_text(encoding="utf-8"), str)
    (table,) = (block for block in blocks if isinstance(block, Table))
    texts = [[cell.text for cell in row if isinstance(cell, Rich)] for row in table.rows]
    return tuple(Word(term, anchor(term), meaning, formula) for term, meaning, formula in texts)


@cache
def measures() -> dict[str, tuple[Definition, ...]]:
    """By command, the definitions of its measures, each with its anchor; a definition that two share stands once."""
    taken: dict[str, Definition | None] = {word.anchor: None for word in words()}
    found: dict[str, tuple[Definition, ...]] = {}
    ours = [each for _, each in analyses.built_in() if each.run.__module__.startswith("lorascope.")]  # no plug-ins
    for analysis in ours:
        command = analysis.command.split()[0]
        for each in definitions(analysis.metrics):
            place = anchor(each.term)
            before = taken.get(place) or taken.get(f"{place}-{command}")
            if before is not None and (before.term, before.formula) == (each.term, each.formula):
                continue
            each = replace(each, anchor=place if place not in taken else f"{place}-{command}")
            if each.anchor in taken:
                raise ValueError(f"two measures of {command} are called {each.term}")
            taken[each.anchor] = each
            found[command] = (*found.get(command, ()), each)
    return found


def anchor_of(metric: Metric, command: str) -> str:
    """Where a metric is defined; "" where it is not."""
    if not metric.formula and not metric.term:
        return ""
    term = metric.term or metric.title
    everywhere = [each for own in (measures().get(command, ()), *measures().values()) for each in own]
    matching = [each for each in everywhere if each.term == term and metric.key in each.keys]
    matching += [each for each in everywhere if each.term == term]
    return matching[0].anchor if matching else ""


def blocks() -> tuple[Block, ...]:
    """The page: words, then the measures of each command."""
    told = [Definition(w.term, w.formula, "", w.meaning, (), w.anchor) for w in words()]
    made: list[Block] = [Definitions(tuple(told), title="Words")]
    for command, own in measures().items():
        link = Span(f"lorascope {command}", "code", f"command-{command}.html")
        made += [
            Heading(f"Measures of lorascope {command}", 2, f"measures-{command}"),
            Prose(Rich((Span("What "), link, Span(" measures, each with its formula and source.")))),
            Definitions(own, title=""),
        ]
    return tuple(made)


@cache
def anchors() -> frozenset[str]:
    """Every anchor of the glossary."""
    return frozenset(d.anchor for block in blocks() if isinstance(block, Definitions) for d in block.items)


@cache
def _places() -> dict[str, str]:
    """The anchor of each term in small letters."""
    named = {re.split(r",| \(", word.term)[0].strip().lower(): word.anchor for word in words()}
    for each in (each for own in measures().values() for each in own):
        named.setdefault(re.split(r",| \(", each.term)[0].strip().lower(), each.anchor)
    return named


@cache
def _pattern() -> re.Pattern[str]:
    """The terms that are linked where prose uses them, the longest first."""
    ordered = sorted(LINKED & _places().keys(), key=len, reverse=True)
    return re.compile(r"(?<![\w-])(" + "|".join(map(re.escape, ordered)) + r")s?(?![\w-])", re.I)


def where(term: str) -> str:
    """Where a column's title, or a term, is defined: a link to the glossary, or ""."""
    place = _places().get(term.lower())
    return f"{FILE}#{place}" if place else ""


def linked(text: Rich, seen: set[str]) -> Rich:
    """The sentence with its first use of each term of the glossary linked; `seen`: those that the page has had."""
    return Rich(tuple(piece for span in text.spans for piece in _linked(span, seen)))


def _linked(span: Span, seen: set[str]) -> Iterator[Span]:
    if span.style or span.to:
        yield span
        return
    at = 0
    for match in _pattern().finditer(span.text):
        place = _places()[match[1].lower()]
        if place in seen:
            continue
        seen.add(place)
        if match.start() > at:
            yield Span(span.text[at : match.start()])
        yield Span(match[0], "", f"{FILE}#{place}")
        at = match.end()
    if at < len(span.text):
        yield Span(span.text[at:])


def all_linked(made: Iterable[Block]) -> tuple[Block, ...]:
    """The blocks with the first use of each term linked, and headers of tables that are terms."""
    seen: set[str] = set()
    return tuple(_all_linked(block, seen) for block in made)


def _all_linked(block: Block, seen: set[str]) -> Block:
    if isinstance(block, Prose):
        return replace(block, words=linked(block.words, seen))
    if isinstance(block, Items):
        return replace(block, items=tuple(linked(item, seen) for item in block.items))
    if isinstance(block, Table):
        columns = tuple(replace(c, to=c.to or where(c.title)) for c in block.columns)
        rows = tuple(tuple(linked(c, seen) if isinstance(c, Rich) else c for c in row) for row in block.rows)
        return replace(block, columns=columns, rows=rows)
    return block
