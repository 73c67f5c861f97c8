"""The README against the program: every command and option it shows exists, and the JSON schema is documented whole."""

import re
from pathlib import Path

import pytest
import typer

from lorascope.cli import app as cli
from tests.cli.test_analyze import MODULE_KEYS

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture(scope="module")
def commands():
    cli._register()
    return typer.main.get_command(cli.app).commands


def test_every_command_and_option_exists(commands):
    lines = re.findall(r"^\$ (?:.*&& )?lorascope (.*)$", README, re.M)
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
        assert f"`{key}`" in README, f"the README does not document {key}"


def test_ci_runs_the_readmes_test_command():
    command = "pip install -c studies/constraints.txt -e '.[test]' && pytest -n 2"
    assert f"$ {command}\n" in README
    assert f"\n{command}\n" in (Path(__file__).parents[2] / ".ci" / "run").read_text()
