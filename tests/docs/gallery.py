"""The gallery of sample pages: a picture of the first screen of each, kept next to this file.

    python -m tests.docs.gallery

draws them again. Needs chromium (see `tests/browser.py`) and Pillow.
"""

import base64
import io
from pathlib import Path

from lorascope.blocks import Picture, Pictures, Rich, Span
from tests.docs import commands

FOLDER = Path(__file__).parent / "gallery"
DOCS = Path(__file__).parents[2] / "reports/docs"
SCREEN, SIZE, QUALITY = {"width": 1440, "height": 900}, (720, 450), 55
ALT = "First screen of this page: its title, what was found, and the first numbers or figure"


def block() -> Pictures:
    """Every sample page with its picture, its title and the command that writes it."""
    return Pictures(tuple(_picture(name, *sample) for name, sample in commands.SAMPLES.items()))


def _picture(name: str, file: str, about: str) -> Picture:
    image = "data:image/webp;base64," + base64.b64encode(path_of(name).read_bytes()).decode()
    command = Span(f"lorascope {name}", "code", commands.file_of(name))
    return Picture(Span(about, "", file), image, f"{ALT}.", Rich((command,)))


def path_of(name: str) -> Path:
    """The picture of a command's sample page."""
    return FOLDER / f"{name}.webp"


def draw() -> None:
    """Every sample page at 1440 x 900, with two pixels for each of the 360 x 225 that a page shows."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    from tests.browser import ARGUMENTS, chromium_path

    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=list(ARGUMENTS))
        page = browser.new_page(viewport=SCREEN, color_scheme="light")
        for name, (file, _) in commands.SAMPLES.items():
            page.goto((DOCS / file).resolve().as_uri())
            drawn = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
            drawn.resize(SIZE, Image.Resampling.LANCZOS).save(path_of(name), quality=QUALITY, method=6)
        browser.close()


if __name__ == "__main__":
    draw()
