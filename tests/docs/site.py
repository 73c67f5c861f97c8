"""The site: which pages there are, where links lead, and the pages themselves."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import lorascope
from lorascope.blocks import Block, Code, Column, Heading, Link, Page, Rich, Shelf, Span, Table
from lorascope.cli._command import GROUPS
from lorascope.report import html
from tests.docs import commands, gallery, markdown, python_api, reference, terms

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "reports/docs"
TITLES = {  # file, its name in the navigation, its title
    "index.html": ("Start", "lorascope, documented"),
    "python.html": ("Python", "The Python functions"),
    "methods.html": ("Methods", "Methods and their settings"),
    "training.html": ("Training keys", "Every key of a training config"),
    "formats.html": ("Formats", "What is read, and what is refused"),
    "findings.html": ("Findings", "Checks, and how often they are right"),
    "json.html": ("JSON", "What --json writes"),
    "glossary.html": ("Glossary", "Words and measures"),
    "trainers.html": ("With your trainer", "With your trainer"),
    "extend.html": ("Extend", "How to add a method, a format, an analysis, a study"),
    "architecture.html": ("Architecture", "How lorascope is built"),
    "studies.html": ("Studies", "Studies: how a claim is judged, and what came out"),
    "benchmarks.html": ("Benchmarks", "Benchmarks"),
    "changelog.html": ("Changelog", "Changelog"),
}
REFERENCE = ("python", "methods", "training", "formats", "findings", "json", "glossary")
GUIDES = ("trainers", "extend", "architecture", "studies", "benchmarks", "changelog")
SOURCES = {"TRAINERS": "trainers", "CONTRIBUTING": "extend", "ARCHITECTURE": "architecture", "STUDIES": "studies",
           "BENCHMARKS": "benchmarks", "CHANGELOG": "changelog", "FORMATS": "formats", "FINDINGS": "findings",
           "JSON": "json", "GLOSSARY": "glossary"}  # fmt: skip
SAFETY = "files-of-unknown-origin-and-files-that-are-written"  # the section of COMMANDS.md that is about no command
SUMMARIES = {
    "python.html": "import lorascope as ls: the whole public API, and the docstrings of its functions.",
    "methods.html": "What can be trained: formulas, papers, settings. lorascope methods prints the same.",
    "training.html": "What may stand in the YAML that lorascope train takes, with defaults.",
    "glossary.html": "The words of findings, help and pages, and every measure with its formula and source.",
    "json.html": "Keys of every command's JSON, and of a study's record.",
    "formats.html": "Every dialect, tuner and scheme, what the base is needed for, and what is verified.",
    "findings.html": "Every rule with its bound and reason, and hits and misses on broken adapters.",
    "trainers.html": "Scripts for transformers' Trainer, TRL, accelerate and a loop of your own.",
    "extend.html": "Four complete examples, which the tests write out and run.",
    "architecture.html": "Which room is for what, and the rules that hold.",
    "studies.html": "How a claim is judged, and what came out of each study.",
    "benchmarks.html": "Time and memory, as ratios to the fastest peer.",
    "changelog.html": "What users see of each version.",
}


def write(folder: Path = OUT) -> list[Path]:
    """Writes every page into `folder`, and deletes pages there that are none any more; the files written."""
    pages = rendered()
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.html"):
        if old.name not in pages and not old.name.startswith("sample-"):
            old.unlink()
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in pages]


def rendered() -> dict[str, str]:
    """Every page by its file name."""
    return {page.file: html.render(page) for page in pages()}


def pages() -> tuple[Page, ...]:
    """Every page, the first one first."""
    made = {"index.html": _index(), **{commands.file_of(name): _command(name) for name in commands.commands()}}
    made |= {file: _page(file, body) for file, body in _bodies().items()}
    return tuple(made.values())


def shelves() -> tuple[Shelf, ...]:
    """The navigation."""
    known = commands.commands()
    typed = [name for _, members in GROUPS for name in members if name in known]
    typed += [name for name in known if name not in typed]
    named = lambda files: tuple(Link(TITLES[f"{f}.html"][0], f"{f}.html") for f in files)  # noqa: E731
    return (
        Shelf("Commands", (Link("Start", "index.html"), *(Link(name, commands.file_of(name)) for name in typed))),
        Shelf("Reference", named(REFERENCE)),
        Shelf("Guides", named(GUIDES)),
    )


def _page(file: str, body: tuple[Block, ...]) -> Page:
    own = TITLES[file][1]
    return Page(own, terms.all_linked(body) if file != terms.FILE else body, f"lorascope {lorascope.__version__}",
                SUMMARIES.get(file, ""), site=shelves(), file=file)  # fmt: skip


def _command(name: str) -> Page:
    body = terms.all_linked(commands.blocks(name, recorded().get(name, ())))
    title, about = f"lorascope {name}", commands.summary(commands.commands()[name])
    return Page(title, body, "Command", about, site=shelves(), file=commands.file_of(name))


def path_of(name: str) -> Path:
    """A page of `.github`, or the README."""
    return ROOT / ("README.md" if name == "README" else f".github/{name}.md")


def text_of(name: str) -> str:
    """What stands in it."""
    return path_of(name).read_text(encoding="utf-8")


def blocks_of(name: str) -> tuple[Block, ...]:
    """A page of `.github` as blocks, without its title."""
    body = markdown.blocks_of(text_of(name), resolver(name))
    return body[1:] if isinstance(body[0], Heading) else body


def _bodies() -> Mapping[str, tuple[Block, ...]]:
    plain = {f"{file}.html": blocks_of(name) for name, file in SOURCES.items() if name != "GLOSSARY"}
    in_python = _readme("In Python")
    return plain | {
        "python.html": (*in_python, *python_api.blocks()),
        "methods.html": reference.method_blocks(),
        "training.html": (*_config_example(), *reference.training_blocks()),
        "formats.html": (*plain["formats.html"], *recorded()[""]),
        "findings.html": reference.finding_blocks(plain["findings.html"]),
        "json.html": reference.json_blocks(plain["json.html"]),
        "glossary.html": terms.blocks(),
        "benchmarks.html": (*plain["benchmarks.html"], *reference.count_blocks()),
    }


def _config_example() -> tuple[Block, ...]:
    """The config that README shows."""
    return tuple(block for block in _readme("Train") if isinstance(block, Code))


def _readme(title: str) -> tuple[Block, ...]:
    """A section of the README, without its heading."""
    (part,) = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text_of("README"), re.M | re.S)
    return markdown.blocks_of(part, resolver("README"))


# --- where links lead --------------------------------------------------------------------------------------------


def resolver(source: str) -> markdown.Resolve:
    """Where a link in this Markdown file leads on our pages. ValueError where it leads nowhere."""

    def resolve(link: str) -> str:
        if link.startswith("https://"):
            return link
        path, _, anchor = link.partition("#")
        name = Path(path).stem.upper() if path else source
        end = f"#{anchor}" if anchor else ""
        if path.endswith(".html"):
            return f"{'' if Path(path).parent.name == OUT.name else '../'}{Path(path).name}{end}"
        if name == "COMMANDS":
            return _section_page(anchor)
        if name in SOURCES:
            return f"{SOURCES[name]}.html{end}" if path and name != source else end
        if name == "README":
            return "index.html"
        raise ValueError(f"{source}.md leads to {link}, of which there is no page")

    return resolve


def _section_page(anchor: str) -> str:
    """The page that has this section of COMMANDS.md."""
    if not anchor:
        return "index.html"
    for command, headings in _sections().items():
        if anchor in (markdown.slug(title) for title, _ in headings):
            return f"{commands.file_of(command) if command else 'formats.html'}#{anchor}"
    raise ValueError(f"COMMANDS.md has no section {anchor}")


@cache
def _sections() -> dict[str, list[tuple[str, str]]]:
    """By command, title and text of the sections of COMMANDS.md that are about it; "" for none: by the first command
    that a section shows."""
    found: dict[str, list[tuple[str, str]]] = {}
    for title, text in re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", text_of("COMMANDS"), re.M | re.S):
        shown = re.search(r"^\$ lorascope (\w+)", text, re.M)
        if shown is None and markdown.slug(title) != SAFETY:
            raise ValueError(f"the section {title!r} of COMMANDS.md shows no command")
        found.setdefault(shown[1] if shown else "", []).append((title, text))
    return found


@cache
def recorded() -> dict[str, tuple[Block, ...]]:
    """By command, its sections of COMMANDS.md as blocks; the quickstart's run stands in the README."""
    made = {
        command: tuple(
            block
            for title, text in sections
            for block in markdown.blocks_of(f"## {title}\n{text}", resolver("COMMANDS"))
        )
        for command, sections in _sections().items()
    }
    return {"quickstart": _readme("Quickstart without an adapter"), **made}


# --- the first page ----------------------------------------------------------------------------------------------


def _index() -> Page:
    """What to read for which question, and a gallery of sample pages."""
    known = commands.commands()
    listed = tuple(
        (_link(f"lorascope {n}", commands.file_of(n), "code"), commands.summary(c)) for n, c in known.items()
    )
    pages = tuple(
        (_link(title, file), SUMMARIES.get(file, "")) for file, (_, title) in TITLES.items() if SUMMARIES.get(file)
    )
    body: list[Block] = [
        Heading("Try it", 2, "try-it"),
        *_readme("Try it on your adapter"),
        Heading("Sample pages", 2, "samples"),
        gallery.block(),
        Heading("Commands", 2, "commands"),
        Table((Column("command", "command"), Column("what", "what it does")), listed),
        Heading("Reference", 2, "reference"),
        Table((Column("page", "page"), Column("what", "what is there")), pages),
        Heading("Studies", 2, "studies"),
        Table((Column("title", "study"), Column("page", "question")), _studies()),
    ]
    about = (
        "Inspect, compare and train LoRA adapters. These pages are made of the program's own help, docstrings and"
        " recorded runs; each is one file that needs no network."
    )
    return Page(TITLES["index.html"][1], terms.all_linked(body), f"lorascope {lorascope.__version__}", about,
                site=shelves(), file="index.html")  # fmt: skip


def _link(text: str, to: str, style: str = "") -> Rich:
    return Rich((Span(text, style, to),))  # type: ignore[arg-type]


def _studies() -> tuple[tuple[Rich, str], ...]:
    """Every published study with its question."""
    from lorascope.study import index, record

    found, _ = record.read_folder(ROOT / "reports")
    return tuple((_link(each["title"], f"../{index.file_of(each)}"), each["question"]) for each in found)
