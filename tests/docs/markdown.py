"""Markdown as blocks: headings with GitHub's anchors, paragraphs, lists, code and tables. Raw HTML is text."""

import re
from collections.abc import Callable, Iterator, Sequence
from html import unescape

from markdown_it import MarkdownIt
from markdown_it.token import Token

from lorascope.blocks import Block, Code, Column, Heading, Items, Prose, Rich, Span, Table

Resolve = Callable[[str], str]
_PARSER = MarkdownIt("commonmark", {"html": False}).enable("table")
INDENT = "\u00a0" * 3  # for an em space, which is no character of prose
_STYLES = {"strong_open": "strong", "em_open": "em"}


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def blocks_of(text: str, resolve: Resolve) -> tuple[Block, ...]:
    """The blocks of a text. `resolve` says where a link leads on our pages.

    Raises:
        ValueError: something that no page here has, such as a nested list or a picture.
    """
    return tuple(_blocks(_PARSER.parse(text), resolve))


def told(text: str) -> Rich:
    """A sentence of a docstring: what stands in backquotes is code, and nothing else is marked."""
    parts = text.split("`")
    return Rich(tuple(Span(part, "code" if i % 2 else "") for i, part in enumerate(parts) if part))


def said(text: str) -> Prose:
    """A paragraph of a docstring."""
    return Prose(told(" ".join(text.split())))


def _blocks(tokens: Sequence[Token], resolve: Resolve) -> Iterator[Block]:
    i = 0
    while i < len(tokens):
        token = tokens[i]
        end = _end(tokens, i)
        inside = tokens[i + 1 : end]
        match token.type:
            case "heading_open":
                words = _rich(inside[0], resolve).text
                yield Heading(words, int(token.tag[1]), slug(words))
            case "paragraph_open":
                yield Prose(_rich(inside[0], resolve))
            case "fence":
                yield Code(token.content)
            case "bullet_list_open" | "ordered_list_open":
                yield _items(token, inside, resolve)
            case "table_open":
                yield _table(inside, resolve)
            case _:
                raise ValueError(f"no block for {token.type}: {token.content[:60]!r}")
        i = end + 1


def _end(tokens: Sequence[Token], start: int) -> int:
    """The place of the token that closes the one at `start`."""
    depth = 0
    for i in range(start, len(tokens)):
        depth += tokens[i].nesting
        if depth == 0:
            return i
    raise ValueError("a token is never closed")


def _items(opening: Token, inside: Sequence[Token], resolve: Resolve) -> Items:
    if any(token.type.endswith("list_open") for token in inside):
        raise ValueError("a list in a list")
    items = [_rich(token, resolve) for token in inside if token.type == "inline"]
    return Items(tuple(items), numbered=opening.type == "ordered_list_open")


def _table(inside: Sequence[Token], resolve: Resolve) -> Table:
    rows: list[list[Rich]] = []
    for token in inside:
        if token.type == "tr_open":
            rows.append([])
        elif token.type == "inline":
            rows[-1].append(_rich(token, resolve))
    if not all(title.text for title in rows[0]):
        raise ValueError(f"a column without a title, next to {rows[0][0].text or rows[0][-1].text!r}")
    columns = tuple(Column(f"c{j}", title.text) for j, title in enumerate(rows[0]))
    return Table(columns, tuple(tuple(row) for row in rows[1:]))


def _rich(inline: Token, resolve: Resolve) -> Rich:
    return Rich(tuple(_spans(inline.children or [], resolve)))


def _spans(children: Sequence[Token], resolve: Resolve) -> Iterator[Span]:
    style, to = "", ""
    for child in children:
        match child.type:
            case "text" | "code_inline":
                kind = "code" if child.type == "code_inline" else style
                if child.content:
                    yield Span(unescape(child.content).replace("\u2003", INDENT), kind, to)  # type: ignore[arg-type]
            case "softbreak":
                yield Span(" ", "", to)
            case "link_open":
                to = resolve(str(child.attrs["href"]))
            case "link_close":
                to = ""
            case "strong_open" | "em_open":
                style = _STYLES[child.type]
            case "strong_close" | "em_close":
                style = ""
            case _:
                raise ValueError(f"no piece of a sentence for {child.type}: {child.content[:60]!r}")
