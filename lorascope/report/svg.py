"""From matplotlib's SVG to the page's: no ids that clash, no inline styles, the page's own colours.

matplotlib is given placeholder colours, which become CSS variables here, and its inline styles become classes: so a
figure follows the page's theme, and the page needs no `style=` attributes (its content policy forbids them).
"""

import re
from dataclasses import dataclass, field
from xml.etree import ElementTree

from lorascope.report.palette import COLORBLIND, CREST
from lorascope.report.prose import plain, raised

# Placeholder colours, none of which is black (matplotlib leaves black out) and none of which a figure would use.
_VARIABLES = ["fg", "muted", "grid", *(f"c{i}" for i in range(len(COLORBLIND))), *(f"q{i}" for i in range(len(CREST)))]
PLACEHOLDER = {name: f"#0102{i:02x}" for i, name in enumerate(_VARIABLES, start=1)}
_VARIABLE = {colour: f"var(--{name})" for name, colour in PLACEHOLDER.items()}


@dataclass
class Styles:
    """The distinct inline styles met on a page, each as a class of its own."""

    names: dict[str, str] = field(default_factory=dict)

    def name(self, declarations: str) -> str:
        return self.names.setdefault(declarations, f"f{len(self.names)}")

    def css(self) -> str:
        return "\n".join(f".{name}{{{declarations}}}" for declarations, name in self.names.items())


_DECIMAL = re.compile(r"-?\d+\.\d+")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_COLOUR = re.compile(r"#0102[0-9a-f]{2}")
_FONT = re.compile(r"font: (?:[a-z]+ )*?((?:\d+ )?)([\d.]+px) [^;]*|font-family: [^;]*;? ?")


def tidy(svg: str, uid: str, styles: Styles, names: dict[str, str], labelled_by: str, description: str) -> str:
    """matplotlib's SVG made small and fit for a page: no ids that clash, no inline styles, the page's colours."""
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        parent.tag = parent.tag.rpartition("}")[2]
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                parent.remove(child)
    for element in list(root.iter()):
        _tidy_element(element, uid, styles, names)
        if element.tag == "text":
            _set_indices(element)
    keep = {"viewBox": root.get("viewBox", ""), "class": "plot", "role": "img", "aria-labelledby": labelled_by}
    root.attrib.clear()
    root.attrib.update(keep)
    about = ElementTree.Element("desc")
    about.text = plain(description)
    root.insert(0, about)
    return ElementTree.tostring(root, encoding="unicode")


def _tidy_element(element: ElementTree.Element, uid: str, styles: Styles, names: dict[str, str]) -> None:
    old, attributes = dict(element.attrib), element.attrib
    attributes.clear()
    for key, value in old.items():
        key = key.rpartition("}")[2]
        if key == "id":
            if value in names:
                title = ElementTree.Element("title")
                title.text = plain(names[value])
                element.insert(0, title)
            if element.tag in ("clipPath", "path"):
                attributes["id"] = f"{uid}-{value}"
        elif key == "href":
            attributes["href"] = "#" + uid + "-" + value.removeprefix("#")
        elif key == "style":
            attributes["class"] = styles.name(_declarations(value))
        elif key == "transform" and value.startswith("rotate(-0 "):
            continue
        elif key in ("d", "transform", "x", "y", "width", "height"):
            attributes[key] = " ".join(_DECIMAL.sub(lambda m: f"{float(m[0]):.1f}".removesuffix(".0"), value).split())
        else:
            attributes[key] = _REFERENCE.sub(rf"url(#{uid}-\1)", value)
    for part in ("text", "tail"):
        if not (getattr(element, part) or "").strip():
            setattr(element, part, None)


def _set_indices(element: ElementTree.Element) -> None:
    """ "‖ΔW‖_F" with its index below the line."""
    (first, _), *rest = raised(element.text or "")
    element.text = first
    for piece, at in rest:
        ElementTree.SubElement(element, "tspan", at).text = piece


def _declarations(style: str) -> str:
    """An inline style with the page's colours, and without matplotlib's choice of fonts."""
    style = _COLOUR.sub(lambda m: _VARIABLE.get(m[0], m[0]), style)
    style = _FONT.sub(_font, style)
    return re.sub(r"\s*([:;])\s*", r"\1", style).strip(";")


def _font(m: re.Match) -> str:
    if not m[2]:
        return ""
    return f"font-size: {m[2]}" + ("; font-weight: 600" if m[1] else "")
