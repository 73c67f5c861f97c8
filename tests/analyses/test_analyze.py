"""The three analyses of one adapter in one result: what is in its table, JSON, findings and page."""

import json
from pathlib import Path

import numpy as np
import pytest

from lorascope.analyses import analyze
from lorascope.analyses.base import metric_to_sort_by
from lorascope.analyses.spectrum import METRICS
from lorascope.blocks import Definitions, Heading, Heatmap, Lines, Table
from lorascope.errors import InputError
from lorascope.report import terminal
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Source
from lorascope.weights.checkpoint import Checkpoint
from lorascope.weights.files import Tensors
from lorascope.weights.tensors import InMemory


@pytest.fixture
def dora():
    """Two layers of DoRA, a module that the base does not have, and the base."""
    rng = np.random.default_rng(4)
    names = [f"layers.{i}.{kind}" for i in (0, 1) for kind in ("q", "v")]
    weights = {f"{name}.weight": InMemory(rng.standard_normal((12, 10)), "F64") for name in names}
    updates = {}
    for name in (*names, "layers.2.q"):
        roles = {"A": rng.standard_normal((2, 10)), "B": rng.standard_normal((12, 2)), "m": rng.uniform(2, 4, 12)}
        updates[name] = Update(name, "magnitude", {role: InMemory(a, "F64") for role, a in roles.items()}, 0.1)
    adapter = Adapter(updates, {"r": 2}, Source("runs/dora/adapter", "0" * 64, "peft", "DoRA"))
    return adapter, Checkpoint(Path("base"), Tensors(weights, {}, ()), {})


def test_one_result_has_the_findings_and_records_of_three(dora):
    adapter, base = dora
    result = analyze.run(adapter, base=base, base_name="the base")
    texts = [finding.text for finding in result.findings]
    for part in (result.spectrum, result.against_base, result.method_specific):
        assert part.findings
        assert {finding.text for finding in part.findings} <= set(texts)
    severities = [finding.severity for finding in result.findings]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)
    whole = result.to_json()
    json.dumps(whole, allow_nan=False)
    assert (whole["analysis"], whole["base"]) == ("analyze", "the base")
    assert whole["skipped"] == [
        {"name": "layers.2.q", "reason": "the base has no such weight", "stage": "comparison with the base"}
    ]
    assert whole["method_specific"]["magnitude"]["summary"]["modules_with_base"] == 4
    assert whole["against_base"]["summary"]["modules"] == 4
    compared = whole["modules"][0]["against_base"]
    assert compared["relative_norm"] > 0
    assert compared["left"]["r"]["phi"] == result.against_base.rows[0].left["r"].phi
    assert whole["modules"][-1]["against_base"] is None


def test_the_table_has_the_keys_of_the_json_dotted(dora):
    adapter, base = dora
    result = analyze.run(adapter, base=base)
    frame = result.table()
    assert list(frame["name"]) == list(adapter.updates)
    assert set(frame["path"]) == {"runs/dora/adapter"}
    for key in ("energy_rank_0.95", "against_base.relative_norm", "against_base.left.r.phi", "d_in"):
        assert key in frame.columns
    assert "singular_values" not in frame.columns


def test_the_page_has_all_sections_and_one_list_of_definitions(dora):
    adapter, base = dora
    result = analyze.run(adapter, base=base)
    page = result.page(sort="against_base.relative_norm", top=1)
    assert page.title == "dora/adapter"
    headings = [block.text for block in page.blocks if isinstance(block, Heading)]
    assert headings == ["Update by layer and module type", "Singular values", "By module type", "All modules",
                        "ΔW against W", "DoRA details"]  # fmt: skip
    (definitions,) = [block for block in page.blocks if isinstance(block, Definitions)]
    terms = [item.term for item in definitions.items]
    assert {"Stable rank", "Random baseline", "Overlap φ(i, j)", "ΔD"} <= set(terms)
    assert len(terms) == len(set(terms))
    ends = next(block for block in page.blocks if isinstance(block, Table) and "smallest" in block.title)
    assert ends.title == "Largest and smallest modules by ‖ΔW‖/‖W‖"
    assert len(ends.rows) == 2
    tables = {block.title for block in page.blocks if isinstance(block, Table)}
    assert {"Not compared with the base", "Not compared with W"} <= tables


@pytest.mark.parametrize("options", [{}, {"top": 1}, {"sort": "stable_rank"}])
def test_without_a_page_the_terminal_shows_the_same(dora, options):
    result = analyze.run(dora[0], base=dora[1])
    full, short = result.page(**options), result.page(**options, complete=False)
    assert terminal.render(short) == terminal.render(full)
    assert len(short.blocks) < len(full.blocks)


def test_without_a_base_there_is_no_comparison(dora):
    adapter, _ = dora
    result = analyze.run(adapter)
    assert result.against_base is None
    assert "against_base" not in result.to_json()
    assert analyze.PLOTS["against_base"](result) is None
    with pytest.raises(InputError, match="nothing to draw"):
        result.plot("against_base")


def test_plots_are_blocks(dora):
    result = analyze.run(dora[0], base=dora[1])
    drawn = {name: make(result) for name, make in analyze.PLOTS.items()}
    assert {name: type(block) for name, block in drawn.items()} == {
        "spectra": Lines, "energy": Lines, "heatmap": Heatmap, "against_base": Lines,
    }  # fmt: skip


def test_a_metric_to_sort_by_may_be_named_by_its_last_part():
    assert metric_to_sort_by(METRICS, "relative_norm").key == "against_base.relative_norm"
    assert metric_to_sort_by(METRICS, "stable_rank").key == "stable_rank"
    with pytest.raises(InputError, match=r"'size' is not a metric.*stable_rank"):
        metric_to_sort_by(METRICS, "size")
