"""Sentences as markup: indices set as such, code, and links that lead to where a page may lead."""

import re

from markupsafe import Markup, escape

from lorascope.blocks import Rich, Span
from lorascope.report import text as t

# Indices as the field writes them, of one letter or a norm: "σ_i", "‖ΔW‖_F", "Σ_{i≤k}"; "q_proj" and "c_fc" are names.
_INDEX = re.compile(
    r"(‖|\)|(?<![\w.{])(?:ΔW|[A-Za-zα-ωΑ-Ω]))([_^])(\{[^{}]{1,24}\}|F(?![A-Za-z])|\*|in\b|out\b|row\b|\d{1,3}\b|[a-zA-Zβ](?![\w.])|Δ\b)"
)
_ANCHOR = r"[A-Za-z][\w.-]*"
_NUMBERED = re.compile(r"(s|definition-|row-|figure-|table-)\d.*|main")  # what pages call their parts
PLAIN_FILE = re.compile(r"[\w-]+(\.[\w-]+)*")  # no path and no scheme: a link stays in the page's folder
_NEAR = re.compile(rf"(#{_ANCHOR}|{PLAIN_FILE.pattern}(#{_ANCHOR})?)")
_FAR = re.compile(rf"\.\./{PLAIN_FILE.pattern}(#{_ANCHOR})?|https://[\w.-]+(/[\w.,/#?&=%()~:+-]*)?")


def pretty(text: str) -> Markup:
    """Text with its indices and exponents set as such."""

    def index(m: re.Match) -> str:
        tag = "sub" if m[2] == "_" else "sup"
        return f"{m[1]}<{tag}>{m[3].strip('{}')}</{tag}>"

    # safe: the text is escaped first, and what the pattern matches has no character of HTML
    return Markup(_INDEX.sub(index, str(escape(t.visible(text)))))


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
