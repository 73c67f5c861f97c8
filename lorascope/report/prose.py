"""Sentences as markup: indices set as such, code, and links that lead to where a page may lead."""

import re
from collections.abc import Iterator, Mapping

from markupsafe import Markup, escape

from lorascope.blocks import Rich, Span
from lorascope.report import text as t

# Indices as the field writes them, of one letter or a norm: "σ_i", "‖ΔW‖_F", "Σ_{i≤k}"; "q_proj" and "c_fc" are names.
_INDEX = re.compile(
    r"((?:‖|\)|ΔW|(?<![A-Za-z0-9_.{])(?:max|min|[A-Za-zα-ωΑ-Ω])))([_^])"
    r"(\{[^{}]{1,24}\}|(?:in|out|row|[ijk]{2}|FT|\*|\d{1,3}|[a-zA-ZβΔ])(?![A-Za-z0-9_]|\.\w))"
)
# What a line may not break in: "5 %", "ε = 0.5", "r = 8", "0 ± 1", "64 × 24"; and "2–8", where only a joiner holds.
_TIED = re.compile(r"(?<=\d) (?=%)|(?<![\w.])[A-Za-zα-ωΑ-Ω][₀-₉]? [=<>≤≥≈] (?=[\d−])|(?<=\d) [±–×] (?=\d)")
_RANGE = re.compile(r"(?<=\d)–(?=[\d−])")
_LONG_PART = 20  # characters of one part of a name from which on it may break after its underscores
_SMALL = {
    "_": str.maketrans("0123456789aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ"),
    "^": str.maketrans("0123456789nijkrtβT", "⁰¹²³⁴⁵⁶⁷⁸⁹ⁿⁱʲᵏʳᵗᵝᵀ"),
}
_FROBENIUS = ("‖", "_", "F")
DROP = 0.3  # of an index in SVG, in its own font size
SIZE = 0.75
_ANCHOR = r"[A-Za-z][\w.-]*"
_NUMBERED = re.compile(r"(s|definition-|row-|figure-|table-)\d.*|main")  # what pages call their parts
PLAIN_FILE = re.compile(r"[\w-]+(\.[\w-]+)*")  # no path and no scheme: a link stays in the page's folder
_NEAR = re.compile(rf"(#{_ANCHOR}|{PLAIN_FILE.pattern}(#{_ANCHOR})?)")
_FAR = re.compile(rf"\.\./{PLAIN_FILE.pattern}(#{_ANCHOR})?|https://[\w.-]+(/[\w.,/#?&=%()~:+-]*)?")


def pretty(text: str) -> Markup:
    """Text with its indices and exponents set as such, and its numbers on one line with what belongs to them."""
    tags = {"": Markup("{}"), "_": Markup("<sub>{}</sub>"), "^": Markup("<sup>{}</sup>")}
    pieces = _pieces(text)  # tied afterwards: an invisible joiner of the text's own is shown as what it is
    return Markup("").join(tags[sign].format(tied(piece)) for sign, piece in pieces)


def tied(text: str) -> str:
    """Text whose lines do not break inside a number and its unit, or a range of numbers."""
    return _RANGE.sub("\u2060–\u2060", _TIED.sub(lambda m: m[0].replace(" ", "\u00a0"), text))


def breaking(name: str) -> Markup:
    """A dotted name that may break after its dots, but not in a number; long parts also after their underscores."""
    parts = re.split(r"(?<=\.)(?!\d)", tied(name))
    shorter = [each for part in parts for each in (re.split(r"(?<=_)", part) if len(part) > _LONG_PART else [part])]
    return Markup("<wbr>").join(escape(part) for part in shorter)


class Terms:
    """The defined terms of a page, which findings link to.

    Args:
        anchors: where each is defined. Of "Energy rank r90, r95" and "Overlap φ(i, j)" the parts are terms, too.
    """

    SHORTEST = 3  # "q" and "ΔW" would make a link of every other word

    def __init__(self, anchors: Mapping[str, str]):
        self._anchors = {name: to for term, to in reversed(list(anchors.items())) for name in _names(term)}
        self._anchors |= {term.lower(): to for term, to in anchors.items()}
        names = sorted((re.escape(n) for n in self._anchors if len(n) >= self.SHORTEST), key=len, reverse=True)
        self._any = re.compile(rf"(?<![\w‖])(?:{'|'.join(names)})(?![\w‖])", re.IGNORECASE) if names else None

    def linked(self, text: str) -> Markup:
        """A sentence as `pretty` sets it, each term a link where it stands first."""
        drawn, at, taken = Markup(""), 0, set()
        for m in self._any.finditer(text) if self._any else ():
            to = self._anchors.get(m[0].lower())  # none of a letter that only `re` takes for another, such as "ſ"
            if to is not None and to not in taken:
                taken.add(to)
                drawn += pretty(text[at : m.start()])
                drawn += Markup('<a class="term" href="{}">{}</a>').format(to, pretty(m[0]))
                at = m.end()
        return drawn + pretty(text[at:]) if at < len(text) or not text else drawn


def _names(term: str) -> list[str]:
    """What a term is called in a sentence, in small letters."""
    head = term.split("(")[0]
    signs = [word for word in head.split() if not word[0].isascii()]
    return [part.strip().lower() for part in (head, *head.split(", "), *signs) if part.strip()]


def plain(text: str) -> str:
    """Text for a place that has no markup: small characters where there are such, and no signs of TeX.

    There is no small F: "‖ΔW‖_F" is "‖ΔW‖", the norm that is meant where none is named.
    """
    if "_" not in text and "^" not in text:
        return t.visible(text)
    kept, before = "", ""
    for sign, piece in _pieces(text):
        kept += "" if (before[-1:], sign, piece) == _FROBENIUS else _small(sign, piece)
        before = piece
    return kept


def _small(sign: str, piece: str) -> str:
    small = piece.translate(_SMALL.get(sign, {}))
    return small if not any(c in small for c in piece) or len(piece) == 1 or not sign else f"({piece})"


def raised(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Text in pieces with the attributes of a tspan for each: SVG has neither sub nor sup."""
    back = 0.0
    for sign, piece in _pieces(text):
        shift = {"": 0.0, "_": DROP, "^": -DROP}[sign]
        size = SIZE if sign else 1.0
        moved = {"dy": f"{shift + back / size:.2f}em"} if shift or back else {}
        yield piece, moved | ({"font-size": f"{100 * SIZE:.0f}%"} if sign else {})
        back = -shift * size


def spans(text: str) -> Markup:
    """Text for an SVG, with its indices set as such."""
    drawn = Markup("")
    for piece, at in raised(text):
        given = Markup("").join(Markup(' {}="{}"').format(*each) for each in at.items())
        drawn += Markup("<tspan{}>{}</tspan>").format(given, piece) if at else escape(piece)
    return drawn


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """What stands on the line with "", indices with "_", exponents with "^"."""
    text = t.visible(text)
    at = 0
    for m in _INDEX.finditer(text):
        yield "", text[at : m.end(1)]
        yield m[2], m[3].strip("{}")
        at = m.end()
    if at < len(text) or not text:
        yield "", text[at:]


def is_anchor(text: str) -> bool:
    """Whether a block may be called so: a plain word, and none that pages give out themselves."""
    return bool(re.fullmatch(_ANCHOR, text)) and not _NUMBERED.fullmatch(text)


def target(to: str, is_site: bool) -> str:
    """`to`, where a page may lead there; else "". A page of a site may also lead a folder up, and to https."""
    return to if _NEAR.fullmatch(to) or (is_site and _FAR.fullmatch(to)) else ""


def markup(rich: Rich, is_site: bool = False) -> Markup:
    """The pieces of a sentence, each escaped."""
    return Markup("").join(_piece(span, is_site) for span in rich.spans)


def _piece(span: Span, is_site: bool) -> Markup:
    inner = Markup(escape(t.visible(span.text))) if span.style == "code" else pretty(span.text)
    if span.style:
        inner = Markup("<{0}>{1}</{0}>").format(span.style, inner)
    to = target(span.to, is_site)
    return Markup('<a href="{}">{}</a>').format(to, inner) if to else inner
