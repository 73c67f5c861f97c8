"""README and the pages it leads to against the program: every command and option they show exists, and the JSON is
documented whole."""

import re
from pathlib import Path

import pytest
import typer

from lorascope.cli import app as cli
from tests.cli.test_analyze import MODULE_KEYS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text() for path in sorted((ROOT / ".github").glob("*.md"))}
SHOWN = "\n".join((README, PAGES["COMMANDS.md"], PAGES["JSON.md"], PAGES["STUDIES.md"]))


@pytest.fixture(scope="module")
def commands():
    cli._register()
    return typer.main.get_command(cli.app).commands


def test_every_command_and_option_exists(commands):
    lines = re.findall(r"^\$ (?:.*&& )?lorascope (.*)$", SHOWN, re.M)
    assert len(lines) >= 5
    for line in lines:
        name, *words = line.split()
        assert name in commands, line
        command = commands[name]
        if hasattr(command, "commands"):  # a group: its own commands have the options
            assert words[0] in command.commands, line
            command = command.commands[words[0]]
        known = {option for parameter in command.params for option in parameter.opts}
        used = set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", line.split(" | ")[0]))
        assert used <= known | {"-"}, line


def test_every_command_is_shown(commands):
    for name in commands:
        assert f"lorascope {name}" in README


def test_the_schema_is_documented(lora_folder):
    from lorascope.analyses import analyze
    from lorascope.weights import io

    whole = analyze.run(io.read(lora_folder)).to_json()
    for key in {*whole, *whole["source"], *whole["summary"], *MODULE_KEYS}:
        assert f"`{key}`" in PAGES["JSON.md"], f"JSON.md does not document {key}"


def test_ci_runs_the_readmes_test_command():
    command = "pip install -c studies/constraints.txt -e '.[test]' && pytest -n 2"
    assert f"$ {command}\n" in README
    assert f"\n{command}\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("name", ["README.md", *PAGES])
def test_every_link_leads_to_a_file_and_its_section(name):
    folder, text = (ROOT, README) if name == "README.md" else (ROOT / ".github", PAGES[name])
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)|(?:src|srcset|href)=\"(?!https?:)([^\"]+)\"", text):
        file, _, anchor = "".join(target).partition("#")
        path = (folder / file) if file else folder / name
        assert path.exists(), f"{name}: {file}"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", path.read_text(), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in slugs, f"{name}: #{anchor}"
