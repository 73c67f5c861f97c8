"""The pages in reports/docs: as the program is, with links that lead somewhere, and readable at all widths."""

import html.parser
import re

import pytest

from tests.docs import commands, gallery, markdown, recorded, site, terms

REPORTS = site.OUT.parent
LARGEST = 12e6  # bytes of all pages in reports/, as agreed for the repository


class Reader(html.parser.HTMLParser):
    """What a page leads to, and what leads into it."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        elif tag != "use":
            self.fetched += [given[name] for name in ("src", "href", "srcset", "data") if given.get(name)]


@pytest.fixture(scope="module")
def fresh() -> dict[str, str]:
    return site.rendered()


@pytest.fixture(scope="module")
def read(fresh) -> dict[str, Reader]:
    return {name: Reader(text) for name, text in fresh.items()}


def test_the_pages_are_a_fresh_rendering(fresh):
    there = {path.name: path.read_text(encoding="utf-8") for path in site.OUT.glob("*.html")}
    stale = [name for name, text in fresh.items() if there.get(name) != text]
    samples = {name for name in there if name.startswith("sample-")}
    assert (stale, there.keys() - fresh.keys() - samples) == ([], set()), "run `python -m tests.docs`"


def test_every_link_leads_to_a_page_and_its_anchor(read):
    wrong = []
    for name, page in read.items():
        for link in page.links:
            file, _, anchor = link.partition("#")
            if link.startswith("https://"):
                continue
            path = (site.OUT / file).resolve() if file else site.OUT / name
            page_there = read.get(path.name) if path.parent == site.OUT else None
            is_there = page_there is not None or path.is_file()
            if not is_there or (anchor and (page_there is None or anchor not in page_there.ids)):
                wrong.append(f"{name}: {link}")
    assert not wrong


def test_every_page_is_reached_from_every_other(read):
    assert all(read.keys() <= set(page.links) | {name} for name, page in read.items())


def test_anchors_are_unique(read):
    for name, page in read.items():
        assert len(page.ids) == len(set(page.ids)), name


def test_no_page_needs_a_network(read):
    fetched = {each for page in read.values() for each in page.fetched}
    assert {each for each in fetched if not each.startswith("data:image/webp;base64,")} == {"data:,"}


def test_every_term_has_its_anchor(read):
    ids = set(read["glossary.html"].ids)
    assert {word.anchor for word in terms.words()} <= ids
    assert {each.anchor for own in terms.measures().values() for each in own} <= ids


def test_every_term_opens_with_a_plain_sentence():
    told = [*terms.words(), *(each for own in terms.measures().values() for each in own)]
    assert not [each for each in told if not re.fullmatch(r"[A-ZΔφ][^Σ√←]*\.", each.meaning)]


def test_every_command_has_a_page_with_every_option(fresh):
    for name, command in commands.commands().items():
        page = fresh[commands.file_of(name)]
        for each in (command, *getattr(command, "commands", {}).values()):
            for option in (option for parameter in each.params for option in parameter.opts if option.startswith("--")):
                assert f">{option}" in page or f", {option}" in page, f"{name} {option}"


def test_every_sample_has_a_small_picture(fresh):
    for name, (file, _) in commands.SAMPLES.items():
        assert gallery.path_of(name).stat().st_size < 25_000
        assert f'<li><a href="{file}"><img src="data:image/webp' in fresh["index.html"]
    assert len(list(gallery.FOLDER.iterdir())) == len(commands.SAMPLES)


def test_samples_are_there():
    files = {file for file, _ in commands.SAMPLES.values() if file.startswith("sample-")}
    assert {path.name for path in site.OUT.glob("sample-*.html")} == files


@pytest.mark.parametrize("path", sorted(site.OUT.glob("*.html")), ids=lambda path: path.name)
def test_no_page_names_a_folder_of_a_machine(path):
    assert not re.search(r"(?<![\w.])/(root|home|tmp|Users)/", path.read_text(encoding="utf-8"))


def test_all_pages_together_are_small_enough_for_a_repository():
    assert sum(path.stat().st_size for path in REPORTS.rglob("*.html")) < LARGEST


def test_markup_in_markdown_is_text():
    (paragraph,) = markdown.blocks_of(
        "a <img src=x onerror=alert(1)> [b](https://example.org/)", site.resolver("README")
    )
    assert "<img" in paragraph.words.text
    assert [span.to for span in paragraph.words.spans if span.to] == ["https://example.org/"]
    with pytest.raises(ValueError, match="no page"):
        site.resolver("README")("nowhere.md")


@pytest.mark.parametrize(
    ("record", "printed", "differs", "differs_in_words"),
    [
        ("a 1.5 b\n…\nc 12 %\n", "a 1.5 b\nmore\nc 12 %\n", False, False),
        ("a 1.5 b\n", "a\n1.5 b\n", False, False),
        ("a 1.5 b\n", "a 1.6 b\n", True, False),
        ("a 1.5 b\n", "a 1.5 c\n", True, True),
        ("b\n…\na\n", "a b\n", True, True),
    ],
)
def test_the_reader_of_records_tells_words_from_numbers(record, printed, differs, differs_in_words):
    found = recorded.Recorded("lorascope analyze x", (record,))
    assert bool(recorded.differences(found, printed, masked=False)) == differs
    assert bool(recorded.differences(found, printed, masked=True)) == differs_in_words


@pytest.mark.parametrize("width", [1440, 390])
def test_a_page_in_a_browser(page_in_browser, width):
    opened = page_in_browser(site.OUT / "command-analyze.html", viewport={"width": width, "height": 844})
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.page.locator("h1").text_content() == "lorascope analyze"
    assert opened.page.locator(".site [aria-current]").is_visible()
    assert opened.troubles == []
    assert opened.others_asked_for() == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.name for path in site.OUT.glob("*.html")))
def test_no_page_scrolls_sideways(page_in_browser, name):
    page = page_in_browser(site.OUT / name).page
    for width in (360, 390, 800, 1440):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_record_is_written_again_with_what_it_leaves_out():
    old, printed = "a 1\nb 2\n…\nd is 4\n\n", "x\na 10\nnew\nb 20\nzzz\nd is 40\nlast\n"
    assert recorded.rewritten(old, printed) == "a 10\nnew\nb 20\n…\nd is 40\n\n"
    assert recorded.rewritten("…\nb 2\n…\n", printed) == "…\nb 20\n…\n"


@pytest.mark.slow
def test_recorded_runs_print_what_they_say(tmp_path):
    """In words: on another machine numbers differ. Those that need more than the quickstart's run are left out."""
    recorded.prepare(tmp_path)
    needed = re.compile(r"lorascope (quickstart|merge|analyze|delta|intruders|activations|resize|trajectory|methods)\b")
    runs = [each for each in recorded.in_order(recorded.all_recorded()) if needed.match(each.command)]
    assert len(runs) >= 9
    wrong = {}
    for each in runs:
        printed = recorded.run(each.command, tmp_path)
        if missing := recorded.differences(each, printed, masked=True):
            wrong[each.command] = (missing, printed)
    assert not wrong
