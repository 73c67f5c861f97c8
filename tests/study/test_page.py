"""What a study's page warns of and states, from its record alone."""

import pytest

from lorascope.blocks import Claims, Forest, Lines, Table
from lorascope.report import html, terminal
from lorascope.study import page as pages
from lorascope.study import scope
from tests.report.conftest import HOSTILE
from tests.study.invented import claim, control, criterion, record

COLUMNS = ["method", "rank", "replicate", "loss"]


def runs(*rows):
    return {"columns": COLUMNS, "rows": [list(row) for row in rows]}


def test_replicates_that_ended_far_apart_are_named():
    broken = [("lora", 16, i, loss) for i, loss in enumerate((0.03, 3.2, 0.08))]
    steady = [("lora", 8, i, loss) for i, loss in enumerate((0.70, 0.74, 0.85))]
    (told,) = pages._apart(runs(*broken, *steady))
    assert told.startswith("method lora, rank 16: final losses of the replicates differ widely (0.03 to 3.2)")
    assert pages._apart(runs(*steady)) == []
    assert pages._apart(runs(("lora", 8, 0, 0.001), ("lora", 8, 1, 0.05))) == []  # twice, and still nothing


def test_whole_numbers_stay_whole_beside_missing_ones():
    table = pages._table("runs", {"columns": ["rank", "loss", "seed"], "rows": [[16.0, 0.5, 7], [None, 1.0, 8]]})
    assert [column.unit for column in table.columns] == ["int", "float", "text"]
    assert table.rows == ((16, 0.5, "7"), (None, 1.0, "8"))


def test_an_arm_scored_on_its_own_texts_is_told():
    arm = {"labels": {"task": "memorise"}, "changes": {"data.eval_split": "train", "method.rank": 4}}
    assert "data.eval_split" in pages._scored_elsewhere({"arms": [arm]})
    assert pages._scored_elsewhere({"arms": [{"labels": {}, "changes": {"method.rank": 4}}]}) == ""
    (table,) = pages._arms({"arms": [arm]})
    assert table.rows == (("memorise", "data.eval_split train, method.rank 4"),)


# --- the whole page ---------------------------------------------------------------------------------------------------


def text(made, width=140):
    """The page as the terminal and the blocks have it, on one line."""
    return " ".join(terminal.render(pages.page(made), width=width, color=False).split())


def test_the_answer_stands_under_the_title_and_the_scope_under_it():
    page = pages.page(record())
    assert page.answer == "It does, here."
    assert page.summary.split("\n\n")[0] == scope.line(record())
    assert (
        "1 arm × 5 replicates; 290 training runs with those that tune; no learning rate tuned; scored on 1,000 texts "
        "drawn at random, once for all runs" in page.summary
    )
    assert isinstance(page.blocks[0], Forest)
    assert isinstance(page.blocks[1], Claims)
    assert "What, and why?" in pages.page(record(reading="")).summary


def test_a_study_leads_back_to_the_list_of_all():
    head = html.render(pages.page(record())).split("<main")[0]
    assert '<p class="kicker">lorascope study · <a href="index.html">All studies</a></p>' in head


def test_a_claim_says_why_and_how_far_to_trust_it():
    said = text(record())
    for part in (
        "reproduced here: A gains more than B (better) (Somebody 2024, Table 2)",
        "published setting: RoBERTa-large, MNLI, 100,000 steps",
        "The whole interval lies inside the bound.",
        "negative control: did not pass, as expected ✓",
        "power 82 % at the published size, 64 % for absence",
        "p < 0.001, q = 0.020",
        "≥ 2.0 % (half of the published 4 % (Table 2))",
        "published 4.0 %; no effect 0.0 %",
        "0.00900 nats [0.00750, 0.0105]",
    ):
        assert part in said
    assert "it tests the code" in text(record("paper", claim("c", kind="identity")))
    ours = criterion(published=None, supposed=0.05)
    assert "power 82 % at 5.0 %, 64 % for absence" in text(record("paper", claim("c", ours)))


def test_a_control_that_passes_is_the_finding():
    found = claim("c", criterion(), control(outcome="passed"), verdict="not specific", decided_by=1)
    said = text(record("paper", found))
    assert "not specific here:" in said
    assert (
        "and so is the negative control “the same with half of the steps”: the statistic does not discriminate" in said
    )
    assert "as expected" not in said
    (row,) = pages.page(record("paper", found)).blocks[0].rows
    assert row.value == 0.03  # the criterion's, not the control's


def test_no_verdict_is_drawn_of_what_is_out_of_reach_or_withdrawn():
    far = claim("c", verdict="out of reach", reason="it needs more steps", p=None, q=None)
    said = text(record("paper", far))
    assert "It needs more steps." in said
    assert "≥ 2.0 % (half of the published 4 % (Table 2)): no verdict" in said
    assert "reproduced here" not in said
    page = pages.page(record("paper", far | {"verdict": "withdrawn"}))
    assert not any(isinstance(block, Forest) for block in page.blocks)
    assert page.blocks[0].items[0].decided_by is None


def test_amendments_and_removed_claims_are_told():
    change = {
        "date": "2026-11-29",
        "verdict": "not held",
        "text": "It was",
        "bounds": "gain ≥ 3 %",
        "why": "six means tie",
    }
    gone = {"name": "x", "text": "It is gone", "verdict": "held", "date": "2026-11-28", "why": "a run had collapsed"}
    said = text(record("paper", claim(amendments=[change]), removed=[gone]))
    assert "Amended 2026-11-29. Before: “It was”; verdict “not held”; gain ≥ 3 %. Why: six means tie." in said
    assert "a run had collapsed" in said
    assert "1 of 1 fixed by a hash before the runs (2026-11-29); 1 amended" in said


# --- caveats ----------------------------------------------------------------------------------------------------------


def sweep(*rates, runs=1, rate=1e-3, interior=True):
    curve = [[each, [0.7 + 0.1 * i + 0.01 * n for n in range(runs)]] for i, each in enumerate(rates)]
    return {"labels": {"method": "A"}, "learning_rate": rate, "interior": interior, "curve": curve}


def caveats(*sweeps, **changes):
    made = record(tuning=list(sweeps), **changes)
    return [item.text for block in pages._caveats(made) for item in block.items]


def test_coarse_tuning_is_a_caveat():
    grid = (3e-4, 1e-3, 3.3e-3)
    (said,) = [text for text in caveats(sweep(*grid)) if "tuned" in text.lower()]
    assert said == "Tuned with one run per rate on a grid of factor 3.3; the intervals do not include this noise."
    fine = sweep(6e-4, 1e-3, 1.8e-3, runs=2)
    assert not [text for text in caveats(fine) if "tuned" in text.lower()]
    (one,) = [text for text in caveats(fine, sweep(6e-4, 1e-3, 1.8e-3)) if "tuned" in text.lower()]
    assert one.startswith("Tuned with one run per rate on a grid of factor 1.8 (1 of 2 arms)")
    # far from the best rate the grid may be wide
    assert not [text for text in caveats(sweep(1e-5, 6e-4, 1e-3, 1.8e-3, runs=2)) if "tuned" in text.lower()]
    for places, is_inside in (((0, 1), True), ((0,), False)):  # one candidate is no choice: an arm of an earlier record
        candidates = {"columns": ["method", "_arm", "_place"], "rows": [["A", 0, place] for place in places]}
        (said,) = [text for text in caveats(sweep(*grid, runs=2), candidates=candidates) if "tuned" in text.lower()]
        assert ("do not include" not in said) == is_inside


def test_over_what_intervals_are():
    (said,) = [text for text in caveats() if text.startswith("Intervals are over seeds only, given these texts")]
    assert "with 5 replicates they contain the true value in about 92 % for one arm, not 95 %" in said
    three = record()["scale"] | {"replicates": 3}
    few = record(strata={"runs": [0, 0, 0, 1, 1]}) | {"scale": three}
    assert "about 76 % for one arm and about 90 % for a difference" in pages._texts(few)
    texts = {"file": "paper.texts.npz", "sha256": "0", "splits": {"test": 2000}}
    assert [text for text in caveats(texts=texts) if text.startswith("Intervals are over seeds and texts; ")]
    (said,) = [text for text in caveats(texts=texts | {"without": 4}) if text.startswith("Intervals are over")]
    assert said.startswith("Intervals are over seeds and texts, but for 4 of 5 runs over seeds only, given their texts")


def test_how_many_claims_were_tested():
    two = record("paper", claim("a", q=0.01), claim("b", q=0.2), claim("c", q=None))
    assert any(
        "2 claims tested" in text and "1 of 2 have q ≤ 0.05" in text for text in pages._multiplicity(two["claims"])
    )


def test_the_tuning_curve_has_its_seeds():
    blocks = pages._tuning(record(tuning=[sweep(6e-4, 1e-3, runs=3)]))
    (figure,) = [block for block in blocks if isinstance(block, Lines)]
    mean, runs = figure.series
    assert mean.y == pytest.approx((0.71, 0.81))
    assert len(runs.points) == 6
    assert [marker.value for marker in figure.markers] == [1e-3]
    diverged = sweep(6e-4, 1e-3, runs=3)
    diverged["curve"][0][1][1] = None
    (table,) = [block for block in pages._tuning(record(tuning=[diverged])) if isinstance(block, Table)]
    assert "0.0006: 0.7000, diverged, 0.7200" in table.rows[0][-1]
    (figure,) = [block for block in pages._tuning(record(tuning=[diverged])) if isinstance(block, Lines)]
    assert figure.series[0].x == (1e-3,)


def test_a_hostile_record_is_text(page_in_browser, tmp_path):
    said = criterion(
        HOSTILE, origin=HOSTILE, reason=HOSTILE, also=[{"unit": HOSTILE, "estimate": 1.0, "low": None, "high": None}]
    )
    change = dict.fromkeys(("date", "verdict", "text", "bounds", "why"), HOSTILE)
    bad = claim(
        "c", said, text=HOSTILE, source=HOSTILE, setting=HOSTILE, note=HOSTILE, reason=HOSTILE, amendments=[change]
    )
    made = record("paper", bad, title=HOSTILE, reading=HOSTILE, question=HOSTILE,
                  tuning=[sweep(1e-3, 2e-3) | {"labels": {"method": HOSTILE}}])  # fmt: skip
    html.write(pages.page(made), tmp_path / "p.html")
    opened = page_in_browser(tmp_path / "p.html")
    assert opened.page.evaluate("window.hacked") is None
    assert opened.troubles == []
    assert opened.page.locator("img").count() == 0
