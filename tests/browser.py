"""A real headless Chromium for tests of pages: the fixture `page_in_browser`.

`tests/conftest.py` takes it up. The fixture is a function: given the path
of an HTML file it opens the file in a fresh browser context and returns an `Opened`, which has recorded every console
message, script error and request since before the page was loaded.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ARGUMENTS = (
    "--no-sandbox",
    "--headless",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@dataclass
class Opened:
    """A page in the browser. `page` is Playwright's; `troubles` are errors and warnings, `requests` the URLs asked."""

    page: object
    url: str
    troubles: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def others_asked_for(self) -> list[str]:
        """Requests besides the file itself and what it holds as data: a self-contained page makes none."""
        return [url for url in self.requests if url.split("#")[0] != self.url and not url.startswith("data:")]


def chromium_path() -> str:
    """Debian's chromium. Where there is none, CI fails and anyone else's run skips."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        message = "no chromium on PATH to test the page in: install it (Debian: apt install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(message, pytrace=False)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def chromium() -> Iterator[object]:
    """One browser for the whole session; each page gets a context of its own."""
    path = chromium_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def page_in_browser(chromium) -> Iterator[Callable[..., Opened]]:
    """`page_in_browser(path, **context_options) -> Opened`; options such as `java_script_enabled=False`,
    `color_scheme="dark"`, `viewport={"width": 390, "height": 844}`."""
    contexts = []

    def open_page(path: str | os.PathLike, **options) -> Opened:
        context = chromium.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        opened = Opened(page, Path(path).resolve().as_uri())
        page.on("console", lambda m: opened.troubles.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: opened.troubles.append(str(e)))
        page.on("request", lambda r: opened.requests.append(r.url))
        page.goto(opened.url)
        return opened

    yield open_page
    for context in contexts:
        context.close()
