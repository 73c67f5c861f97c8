"""What every registered analysis promises, covered by its registration alone."""

import dataclasses
import importlib
import json

import pandas as pd
import pytest

from lorascope.analyses.base import analyses, comparisons
from lorascope.blocks import Block, Finding, Page
from lorascope.report import html, terminal
from lorascope.weights import io


@pytest.fixture(scope="module", params=[*analyses.names(), *comparisons.names()])
def result(request, lora_folder):
    """Of one adapter; of a comparison, of three."""
    if request.param in analyses.names():
        return analyses.get(request.param)(io.read(lora_folder))
    return comparisons.get(request.param)([io.read(lora_folder)] * 3)


def test_the_result_is_frozen(result):
    assert dataclasses.is_dataclass(result)
    field = dataclasses.fields(result)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(result, field, None)


def test_table_summary_and_json(result):
    table = result.table()
    assert isinstance(table, pd.DataFrame)
    assert len(table)
    for whole in (result.summary(), result.to_json()):
        json.dumps(whole, allow_nan=False)
    assert result.to_json()["schema"] == 1


def test_findings_and_blocks_can_be_drawn(result):
    assert all(isinstance(finding, Finding) for finding in result.findings)
    blocks = result.blocks()
    assert blocks
    assert all(isinstance(block, Block) for block in blocks)
    page = Page("contract", blocks)
    assert terminal.render(page, width=100, color=False).startswith("contract")
    assert "<h1" in html.render(page)


@pytest.mark.parametrize("name", [*analyses.names(), *comparisons.names()])
def test_the_docstring_says_what_it_asks_and_when_it_misleads(name):
    run = (analyses if name in analyses.names() else comparisons).get(name)
    package = importlib.import_module(f"lorascope.analyses.{name}")
    assert "?" in package.__doc__.splitlines()[0]
    assert "misleads" in package.__doc__
    assert "Raises" in run.__doc__
