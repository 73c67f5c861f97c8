"""What every registered analysis promises, covered by its registration alone."""

import ast
import contextlib
import dataclasses
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import lorascope
from lorascope.analyses import rules
from lorascope.analyses.base import Analysis, Metric, analyses, definitions
from lorascope.analyses.method_specific.engine import kind_metrics
from lorascope.blocks import Block, Definitions, Finding, Page, Summary, Table, Tiles
from lorascope.errors import InputError
from lorascope.report import html, prose, terminal
from lorascope.weights import io
from lorascope.weights.checkpoint import Checkpoint
from lorascope.weights.files import Tensors
from lorascope.weights.tensors import InMemory
from tests.analyses import test_activations, test_dimension

NAMES = [name for name, each in analyses.items() if isinstance(each, Analysis)]
SELF_EVIDENT = {"r", "uses", "rank", "ranks", "rank before", "parameters", "rounding", "‖ΔW‖_F", "k, rank or d", "size"}
PARTS = ("spectrum", "against_base", "method_specific")  # of the page of `analyze`


@pytest.fixture(scope="module", params=NAMES)
def result(request, lora_folder):
    analysis = analyses.get(request.param)
    return analysis.run(*inputs_of(analysis, io.read(lora_folder)))


def inputs_of(analysis: Analysis, adapter) -> tuple:
    """What an analysis is run on, by what it takes."""
    if analysis.takes == "runs":
        return ([test_dimension.full_candidate(), test_dimension.lora_candidate(2, 0.95)],)
    if analysis.takes == "run and texts":
        return (test_activations.recorded(np.random.default_rng(0)),)
    if analysis.takes == "adapters":
        return ([adapter] * 3,)
    if analysis.takes == "adapter":
        return (adapter,)
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(update.shape) for name, update in adapter.updates.items()}
    if analysis.takes == "checkpoints":
        tuned = {name: weights[name] + update.delta().dense() for name, update in adapter.updates.items()}
        return checkpoint("base", weights), checkpoint("tuned", tuned)
    return adapter, checkpoint("base", weights)


def checkpoint(path: str, weights: dict[str, np.ndarray]) -> Checkpoint:
    """A full model in memory, by its modules' names."""
    stored = {f"{name}.weight": InMemory(weight, "F64") for name, weight in weights.items()}
    return Checkpoint(Path(path), Tensors(stored, {}, ()), {})


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
    assert result.to_json()["schema"] == 2
    assert isinstance(result.to_json()["skipped"], list)


def test_findings_and_page_can_be_drawn(result, tmp_path):
    assert all(isinstance(finding, Finding) for finding in result.findings)
    page = result.page()
    assert page.blocks
    assert all(isinstance(block, Block) for block in page.blocks)
    assert page.title in terminal.render(page, width=100, color=False)
    assert "<h1" in html.render(page)
    assert result.to_html(tmp_path / "page.html").stat().st_size
    assert "\n" not in repr(result)


def test_every_figure_can_be_drawn_or_there_is_nothing_to_draw(result):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    for name in analyses.get(result.analysis).plots:
        axes = pyplot.figure().add_subplot()
        with contextlib.suppress(InputError):
            assert result.plot(name, axes) is axes
        pyplot.close("all")
    with pytest.raises(InputError, match="no plot"):
        result.plot("no_such_figure")


def test_a_pattern_that_is_none_or_matches_nothing_is_refused(result, lora_folder):
    analysis = analyses.get(result.analysis)
    inputs = inputs_of(analysis, io.read(lora_folder))
    for pattern in ("(", "no_such_module"):
        with pytest.raises(InputError, match="--modules"):
            analysis.run(*inputs, modules=pattern)


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_says_what_it_asks_and_when_it_misleads(name):
    analysis = analyses.get(name)
    assert "?" in analysis.question.splitlines()[0]
    assert "misleads" in analysis.question
    assert "Raises" in analysis.run.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_declared_once(name):
    metrics = analyses.get(name).metrics
    assert all(isinstance(metric, Metric) for metric in metrics)
    keys = [metric.key for metric in metrics]
    assert len(keys) == len(set(keys))
    assert all(metric.help for metric in metrics)
    for metric in metrics:
        assert bool(metric.formula) <= bool(metric.source), f"{metric.key} has a formula and no source"


@pytest.mark.parametrize("name", ["analyze", "delta"])
def test_help_names_metrics_to_sort_by_that_there_are(name):
    help_of = getattr(importlib.import_module(f"lorascope.cli.{name}"), name).__doc__
    (listed,) = re.findall(r"Metrics to sort by: (.*?)\.$", " ".join(help_of.split()))
    assert set(listed.split(", ")) <= {metric.key for metric in analyses.get(name).metrics}


@pytest.mark.parametrize("name", NAMES)
def test_every_definition_opens_with_what_the_number_means(name):
    assert_plain(definitions(analyses.get(name).metrics))
    terms = {metric.term or metric.title for metric in analyses.get(name).metrics if metric.formula}
    assert {metric.term for metric in analyses.get(name).metrics if metric.term} <= terms


def test_every_definition_of_a_page_opens_with_what_the_number_means(result):
    shown = [block for block in result.page().blocks if isinstance(block, Definitions)]
    assert shown or result.analysis == "method_specific"
    for block in shown:
        assert_plain(block.items)


def test_headers_of_metrics_lead_to_their_definitions(result):
    page = result.page()
    defined = {key for b in page.blocks if isinstance(b, Definitions) for item in b.items for key in item.keys}
    columns = [c for b in page.blocks if isinstance(b, Table) and b.where != "terminal" for c in b.columns]
    known = {metric.key for metric in analyses.get(result.analysis).metrics}
    assert {c.title for c in columns if (c.metric or c.key) in known - defined} <= SELF_EVIDENT
    text = html.render(page)
    headers = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', text)
    bare = {header for header in headers if 'class="def"' not in header}
    assert not bare & {str(prose.pretty(c.title)) for c in columns if (c.metric or c.key) in defined}
    assert all(f'id="{to}"' in text for to in re.findall(r'class="def" href="#([^"]+)"', text))


def test_every_page_opens_with_three_to_five_numbers(result):
    if result.analysis in PARTS:
        return
    page = result.page()
    first = page.blocks[0]
    tiles = first.items if isinstance(first, Tiles) else first.tiles if isinstance(first, Summary) else ()
    assert 3 <= len(tiles) <= 5
    assert all(tile.label and tile.value for tile in tiles)
    assert len({tile.label for tile in tiles}) == len(tiles)
    text = html.render(page)
    for tile in (tile for tile in tiles if tile.metric):
        (to,) = re.findall(rf'href="#([^"]+)" aria-label="Definition of {re.escape(prose.plain(tile.label))}"', text)[
            :1
        ]
        assert f'<div id="{to}"' in text
    if isinstance(first, Tiles):
        assert first.where == "page"
        assert all(tile.label not in terminal.render(Page("", (first,))) for tile in tiles)


@pytest.mark.parametrize("name", kind_metrics.names())
def test_every_definition_of_a_method_opens_with_what_the_number_means(name):
    kind = kind_metrics.get(name)
    assert_plain((*definitions(kind.metrics), *kind.more_definitions))


def assert_plain(items) -> None:
    """One sentence each, and none that is the formula again."""
    for item in items:
        assert item.meaning.endswith("."), f"{item.term} does not say what it means"
        assert ". " not in item.meaning, f"{item.term}: one sentence"
        assert not set("=√ΣΔ/_^²⟨") & set(item.meaning.replace("ΔW", "").replace("W + ΔW", "").replace("1/r", "")), item


# --- problems say what to do ------------------------------------------------------------------------------------------

MEASURED = {rule.code for rule in rules.BY_ANALYSIS.values()}
FOLDER = Path(lorascope.__file__).parent / "analyses"


def broken(adapter, factor: float):
    """B of the first module times a factor: 0 makes its ΔW zero, NaN is NaN."""
    name, update = next(iter(adapter.updates.items()))
    b = InMemory(factor * update.roles["B"].read(), "F32")
    changed = dataclasses.replace(update, roles={**update.roles, "B": b})
    return dataclasses.replace(adapter, updates={**adapter.updates, name: changed})


@pytest.mark.parametrize("factor", [1.0, 0.0, np.nan])
@pytest.mark.parametrize("name", NAMES)
def test_errors_and_warnings_have_a_rule_and_an_action(name, factor, lora_folder):
    analysis, adapter = analyses.get(name), broken(io.read(lora_folder), factor)
    try:
        found = analysis.run(*inputs_of(analysis, adapter)).findings
    except InputError:
        assert name == "resize"  # which refuses NaN
        assert np.isnan(factor)
        return
    for finding in found:
        if finding.severity != "note":
            assert finding.rule not in MEASURED, finding
            assert finding.action, finding


TAKES_ADAPTERS = [name for name in NAMES if not analyses.get(name).takes.startswith("run")]


@pytest.mark.parametrize("name", TAKES_ADAPTERS)
def test_an_adapter_without_updates_gets_one_clear_sentence(name, lora_folder):
    analysis, adapter = analyses.get(name), io.read(lora_folder)
    empty = dataclasses.replace(adapter, updates={})
    _, base = inputs_of(analyses.get("intruders"), adapter)
    inputs = {"adapter": (empty,), "adapters": ([empty] * 3,), "adapter and base": (empty, base),
              "checkpoints": (base, empty)}  # fmt: skip
    if name in ("against_base", "method_specific"):  # of `analyze`, which refuses it
        result = analysis.run(*inputs[analysis.takes])
        assert result.rows == ()
        assert re.search(r"\b(0 weights|none)\b", analysis.heading(result)[1])
        return
    with pytest.raises(InputError) as caught:
        analysis.run(*inputs[analysis.takes])
    sentence = str(caught.value)
    assert re.search(r"\bno (module|weight update|ΔW)\b", sentence)
    assert not re.search(r"found( and|[;.])|  |\n", sentence), sentence  # nothing that is named by an empty text
    assert caught.value.hint is None  # none helps


def calls(path: Path, name: str):
    """The calls of a function or method of that name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == name:
            yield node, {keyword.arg: keyword.value for keyword in node.keywords}


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_no_warning_is_made_without_a_rule_and_none_without_an_action(path):
    for call, keywords in calls(path, "Finding"):
        note = isinstance(call.args[0], ast.Constant) and call.args[0].value == "note"
        assert note or "rule" in keywords, f"{path.name}:{call.lineno} needs a rule"
    for call, keywords in calls(path, "finding"):
        if not call.args or isinstance(call.args[0], ast.Attribute):
            continue  # another function of that name
        rule = getattr(rules, getattr(call.func.value, "attr", getattr(call.func.value, "id", "")), None)
        note = rule is not None and rule.severity == "note" and len(call.args) < 2 and "severity" not in keywords
        assert note or "action" in keywords, f"{path.name}:{call.lineno} needs an action"


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.py")), ids=lambda path: str(path.relative_to(FOLDER)))
def test_the_words_of_an_action_are_one_instruction(path):
    for call, keywords in [*calls(path, "finding"), *calls(path, "Finding")]:
        action = keywords.get("action")
        if isinstance(action, ast.Constant) and action.value:
            assert action.value[0].isupper(), f"{path.name}:{call.lineno}"
            assert not action.value.endswith("."), f"{path.name}:{call.lineno}"
