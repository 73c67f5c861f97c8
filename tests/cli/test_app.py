"""The command line as a whole."""

import pytest

from lorascope.cli.app import MAX_SUMMARY, _summary
from tests.cli.command import lorascope


@pytest.mark.parametrize("group", [(), ("study",)], ids=["lorascope", "study"])
def test_the_list_of_commands_cuts_no_summary(group):
    shown = lorascope(*group, "--help", env={"COLUMNS": "80"}).stdout
    commands = shown[shown.index("Inspect:" if not group else "Commands:") :]
    assert "..." not in commands
    assert all(len(line) <= 80 for line in commands.splitlines())


def test_a_summary_is_the_first_sentence_or_its_first_clause():
    assert _summary("Resize an adapter.\n\nMore. Example:") == "Resize an adapter"
    assert _summary("Analyse r=0.5 adapters. More.") == "Analyse r=0.5 adapters"
    long = "Inspect an adapter file: " + "rank use, " * 10
    assert _summary(long) == "Inspect an adapter file"
    without_clause = "word " * 20
    assert _summary(without_clause) == without_clause.strip()
    assert len(without_clause) > MAX_SUMMARY
