from pathlib import Path

import pytest

from lorascope.report import html
from tests.report import demo

# What a hostile file may carry in a key: markup, an attribute's end, a template, a style's end, a mathtext formula that
# does not parse, terminal and bidi controls, a lone surrogate, NUL.
HOSTILE = (
    "\"'><script>window.hacked=1</script><img src=x onerror='window.hacked=1'></style>"
    "{{7*7}}$\\frac{$\x1b[31m\u202e\ud800\0]]>"
)


@pytest.fixture(scope="session")
def demo_html() -> str:
    """The page of an 8B-sized adapter."""
    return html.render(demo.page())


@pytest.fixture(scope="session")
def demo_file(demo_html, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "demo.html"
    path.write_text(demo_html, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def hostile_html() -> str:
    return html.render(demo.page(HOSTILE))


@pytest.fixture(scope="session")
def hostile_file(hostile_html, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pages") / "hostile.html"
    path.write_text(hostile_html, encoding="utf-8")
    return path
