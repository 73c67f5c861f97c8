"""A record is judged by its script and its own numbers alone, and keeps what was said before."""

import json

import numpy as np
import pytest

from lorascope.errors import InputError
from lorascope.linalg import bootstrap
from lorascope.study import earlier, judging, making, record, text_files, work
from lorascope.study.record import results
from lorascope.study.texts import TextScores
from tests.cli.command import here, lorascope, refused
from tests.study import invented

SCRIPT = """
from lorascope.blocks import Text
from lorascope.study import Claim, Control, Criterion, Study, StudyScale

def loss(method):
    return lambda results: results.runs["loss"].to_numpy()[results.runs["method"].to_numpy() == method].mean()

def claim(name, least, **more):
    bound = (Criterion("loss of A", loss("A"), at_least=least, no_effect=0.0),)
    return Claim(name, f"A is {name}", "a paper", bound, (Control("loss of B", loss("B"), at_least=0.5),), **more)

study = Study(
    "paper", "A paper?", "Is it so?", "x", "y", "z", {"small": StudyScale(params={"n": [4, 8]})},
    claims=(claim("large", 0.7), claim("huge", 3.0)),
    figures=lambda results: [Text(f"{len(results.runs)} runs")],
    reading=lambda answers: f"Large is {answers.verdict('large')}, {answers.found('large')}.",
    scope_note="Claims on n: a toy, n = {n}.",
)
"""
ROWS = [["A", i, 0.8 + 0.01 * i, 0.5] for i in range(5)] + [["B", i, 0.1 + 0.01 * i, 0.5] for i in range(5)]
RUNS = {"columns": ["method", "replicate", "loss", "accuracy"], "rows": ROWS}
DAY, LATER = "2026-11-29", "2026-12-24"
BOUNDS = "loss of A ≥ 3.00; control: loss of B ≥ 0.500"  # of the claim `huge`


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    """What is tested here is what becomes of verdicts; these lie far from their bounds."""
    monkeypatch.setattr(bootstrap, "DRAWN", 200)


def study(folder, text=SCRIPT):
    """The study of a script; each in a folder of its own, for Python keeps a module by its path."""
    place = folder / str(len(list(folder.iterdir())))
    place.mkdir()
    (place / "paper.py").write_text(text)
    return work.script(place / "paper.py").study


def unjudged(**changes):
    found = invented.record(runs=RUNS, strata={"runs": [0] * 5 + [1] * 5}, **changes)
    return found | {"claims": [], "reading": "", "scale": found["scale"] | {"params": {"n": [4, 8]}}}


def judged(folder, text=SCRIPT, before=None, date=DAY):
    """The record, judged for the first time or again."""
    return judging.again(unjudged() if before is None else before, study(folder, text), folder, date)


def by_name(found):
    return {claim["name"]: claim for claim in found["claims"]}


# --- judging ----------------------------------------------------------------------------------------------------------


def test_verdicts_reading_figures_and_words_are_made_of_the_numbers_and_the_script(tmp_path):
    found = judged(tmp_path)
    assert {name: claim["verdict"] for name, claim in by_name(found).items()} == {
        "large": "reproduced", "huge": "weaker"
    }  # fmt: skip
    first = by_name(found)["large"]["criteria"][0]
    assert first["estimate"] == pytest.approx(0.82)  # the mean of 0.80 to 0.84
    assert found["reading"] == f"Large is reproduced here, 0.820 [{first['low']:.3f}, {first['high']:.3f}]."
    assert found["figures"][0]["text"] == "10 runs"
    assert (found["title"], found["question"]) == ("A paper?", "Is it so?")
    assert found["beside"] == "Claims on n: a toy, n = 4, 8."
    assert found["made"]["judged"] == DAY
    assert found["failures"] == []
    (tmp_path / "paper.json").write_text(json.dumps(found))
    assert record.read(tmp_path / "paper.json") == found  # it has the shape that is promised


def test_on_another_test_bed_claims_and_words_are_those_of_there(tmp_path):
    """Of 0.82 the bound 0.7 is met, and 0.9 is not."""
    there = 'elsewhere={"decoder": {"fixed": "w", "claims": (claim("large", 0.9),)}},\n    scope_note'
    script = SCRIPT.replace("scope_note", there)
    found = judged(tmp_path, script)
    assert (found["fixed"], by_name(found)["large"]["verdict"]) == ("z", "reproduced")
    on_decoder = unjudged()
    on_decoder["scale"]["testbed"] = "decoder"
    found = judged(tmp_path, script, before=on_decoder)
    assert found["fixed"] == "w"
    assert {name: claim["verdict"] for name, claim in by_name(found).items()} == {"large": "weaker"}
    assert judged(tmp_path, script, before=json.loads(json.dumps(found)), date=LATER) == found


def test_judging_again_changes_nothing(tmp_path):
    found = judged(tmp_path)
    assert judged(tmp_path, before=json.loads(json.dumps(found)), date=LATER) == found


def test_a_changed_claim_is_an_amendment_with_its_old_verdict(tmp_path):
    found = judged(tmp_path)
    text = SCRIPT.replace('claim("huge", 3.0)', 'claim("huge", 0.8, amended="3 was out of the air")')
    again = judged(tmp_path, text, found, LATER)
    huge, large = by_name(again)["huge"], by_name(again)["large"]
    assert huge["amendments"] == [
        {"date": LATER, "verdict": "weaker", "text": "A is huge", "bounds": BOUNDS,
         "why": "3 was out of the air"}
    ]  # fmt: skip
    assert huge["frozen"]["date"] == LATER
    assert not huge["frozen"]["before_runs"]
    assert huge["frozen"]["hash"] != by_name(found)["huge"]["frozen"]["hash"]
    assert large == by_name(found)["large"]
    silent = judged(tmp_path, SCRIPT.replace('claim("huge", 3.0)', 'claim("huge", 0.8)'), found, LATER)
    assert by_name(silent)["huge"]["amendments"][0]["why"] == "no reason given"


def test_code_that_gives_the_same_numbers_is_no_amendment(tmp_path):
    found = judged(tmp_path)
    text = SCRIPT.replace("].mean()", "].sum() / 5")
    again = by_name(judged(tmp_path, text, found, LATER))["large"]
    before = by_name(found)["large"]
    assert again["amendments"] == []
    assert again["frozen"] == before["frozen"] | {"hash": again["frozen"]["hash"]}
    assert again["frozen"]["hash"] != before["frozen"]["hash"]
    other = by_name(judged(tmp_path, SCRIPT.replace("].mean()", "].max()"), found, LATER))["large"]
    assert [each["verdict"] for each in other["amendments"]] == ["reproduced"]


def test_a_claim_that_is_gone_is_told_with_its_reason(tmp_path):
    found = judged(tmp_path)
    text = SCRIPT.replace(', claim("huge", 3.0)', ",").replace(
        "scope_note", 'removed={"huge": "not testable"}, scope_note'
    )
    again = judged(tmp_path, text, found, LATER)
    gone = {"name": "huge", "text": "A is huge", "verdict": "weaker", "date": LATER, "why": "not testable"}
    assert again["removed"] == [gone]
    assert judged(tmp_path, text, again, "2027-01-01") == again
    assert judging.changes(found, again) == ["paper: huge: weaker → removed"]


def test_what_cannot_be_told_is_a_failure_and_the_numbers_stay(tmp_path):
    text = SCRIPT.replace("{answers.found('large')}", "{1 / 0}").replace("{len(results.runs)}", "{results.none}")
    found = judged(tmp_path, text)
    assert (found["reading"], found["figures"]) == ("", [])
    assert [failure["title"] for failure in found["failures"]] == ["reading", "figures"]
    assert by_name(found)["large"]["verdict"] == "reproduced"
    assert judged(tmp_path, SCRIPT, found)["failures"] == []


def test_a_smoke_run_reads_nothing(tmp_path):
    found = judging.again(unjudged(scale="smoke"), study(tmp_path), tmp_path, DAY)
    assert found["reading"] == ""
    assert {claim["verdict"] for claim in found["claims"]} == {"inconclusive"}


def test_noise_that_was_known_before_the_runs_gives_the_power_again(tmp_path):
    before = judged(tmp_path)
    noise = judging.noise_of(before)
    assert {each["words"] for each in noise} == {"the record of 2026-11-20, before these runs"}
    assert [(each["claim"], each["place"]) for each in noise] == [
        (name, place) for name in ("large", "huge") for place in (0, 1)
    ]  # fmt: skip
    noisier = [each | {"se": 100 * each["se"]} for each in noise]
    found = judged(tmp_path, before=before | {"noise": noisier})
    power, own = (by_name(each)["large"]["criteria"][0]["power"] for each in (found, before))
    assert power["noise"] == "the record of 2026-11-20, before these runs"
    assert power["reproduced"] < own["reproduced"]
    assert judged(tmp_path, before=found) == found
    amended = judged(tmp_path, SCRIPT.replace("0.7)", "0.75)"), found)  # the noise was of another claim
    assert by_name(amended)["large"]["criteria"][0]["power"]["noise"] == own["noise"]


# --- the results of a record ------------------------------------------------------------------------------------------


def test_results_are_the_records_tables(tmp_path):
    loss, hits = np.array([[0.5, 1.0], [1.5, 2.0]]), np.array([[1, 0], [0, 1]])
    texts = {"test": TextScores(("k1", "k2"), loss, hits, np.array([1, 1]))}
    content, facts = text_files.packed(texts, "paper")
    (tmp_path / facts["file"]).write_bytes(content)
    sweep = {"labels": {"method": "A"}, "learning_rate": 0.003, "interior": True,
             "curve": [[0.001, [0.9]], [0.003, [0.7, 0.8]], [0.01, [None]]]}  # fmt: skip
    candidates = {"columns": [*RUNS["columns"], "_arm", "_source", "_place", "held_out_loss"],
                  "rows": [[*row, 0, 0, place, 0.5] for row in ROWS for place in (0, 1)]}  # fmt: skip
    table = {"columns": ["replicate", "count"], "rows": [[0, 1.0], [1, None]]}
    strata = {"runs": [0] * 5 + [1] * 5, "candidates": [0] * 20, "counts": [2, 2]}
    found = unjudged(tuning=[sweep], tables={"counts": table}, texts=facts, candidates=candidates) | {"strata": strata}
    given = results(found, tmp_path)
    assert given.runs.to_dict("split")["data"] == ROWS
    assert given.tables["counts"]["count"].isna().tolist() == [False, True]
    assert given.scale.testbed == "encoder"
    assert given.scale.replicates == 5
    assert list(given.curves["held_out_loss"].fillna(-1)) == [0.9, 0.7, 0.8, -1]
    assert list(given.curves["replicate"]) == [0, 0, 1, 0]
    assert list(given.curves["chosen"]) == [False, True, True, False]
    assert given.replicates == {0: [0, 1, 2, 3, 4], 1: [0, 1, 2, 3, 4], 2: [0, 1]}
    assert len(given.candidates) == 20
    assert given.texts["test"].keys == ("k1", "k2")
    assert given.text_draws > 0


# --- records of schema 1 ----------------------------------------------------------------------------------------------


def of_schema_1(**marks):
    """A record as it was: the claims `large` and `huge` of the script, and one that is gone."""
    found = unjudged()
    criterion = dict.fromkeys(earlier.OF_CRITERIA) | {"text": "loss of A", "at_least": 0.7, "unit": "float"}
    criterion |= {"estimate": 0.82, "low": 0.8, "high": 0.84, "reason": "", "control": False, "verdict": "held"}
    control = criterion | {"text": "loss of B", "at_least": 0.5, "control": True, "verdict": "not held"}
    claims = [
        {"name": name, "text": f"A is {name}", "source": "a paper", "note": "", "verdict": verdict,
         "criteria": [criterion | {"at_least": least, "verdict": measured}, control]}
        for name, least, verdict, measured in
        (("large", 0.7, "held", "held"), ("huge", 3.0, "not held", "not held"), ("gone", 1.0, "undecided", "undecided"))
    ]  # fmt: skip
    for claim in claims:
        claim |= marks.get(claim["name"], {})
    made = {key: value for key, value in found["made"].items() if key != "judged"}
    scale = {key: value for key, value in found["scale"].items() if key != "testbed"}
    sweep = {"labels": {}, "learning_rate": 0.1, "interior": True, "curve": [[0.1, 0.5], [0.3, None]]}
    rest = {key: value for key, value in found.items() if key not in ("removed", "noise", "texts")}
    return rest | {"schema": 1, "made": made, "scale": scale, "tuning": [sweep], "claims": claims}


def converted(folder, **marks):
    (folder / "paper.json").write_text(json.dumps(of_schema_1(**marks)))
    return record.read(folder / "paper.json")


BACK = {"verdict": "withdrawn", "mark": {"measured": "not held", "reason": "The grid was too coarse."}}


def test_schema_1_is_read_and_says_so(tmp_path):
    found = converted(tmp_path)
    assert found["converted"] == earlier.NOTE
    assert [claim["verdict"] for claim in found["claims"]] == ["reproduced", "inconclusive", "inconclusive"]
    assert found["claims"][1]["reason"] == earlier.UNCLEAR
    assert found["tuning"][0]["curve"] == [[0.1, [0.5]], [0.3, [None]]]
    shape = {key: value for key, value in found.items() if key != "converted"}
    assert record._damage(shape) is None


def test_verdicts_of_schema_1_are_kept_in_their_own_words(tmp_path):
    found = judging.again(converted(tmp_path), study(tmp_path), tmp_path, DAY)
    large, huge = by_name(found)["large"], by_name(found)["huge"]
    assert large["amendments"] == []  # "held" says what "reproduced" says, and the claim is the same
    assert huge["amendments"] == [
        {"date": DAY, "verdict": "not held", "text": "A is huge", "bounds": BOUNDS,
         "why": "before claims were frozen: by a new rule for verdicts; the claim is unchanged"}
    ]  # fmt: skip
    assert found["removed"] == [
        {"name": "gone", "text": "A is gone", "verdict": "undecided", "date": DAY, "why": "no reason given"}
    ]
    assert "converted" not in found
    assert all(claim.keys() == record.CLAIM.keys() for claim in found["claims"])
    assert judging.again(found, study(tmp_path), tmp_path, LATER) == found


def test_why_a_verdict_of_schema_1_was_taken_back_is_kept(tmp_path):
    found = judging.again(converted(tmp_path, huge=BACK), study(tmp_path), tmp_path, DAY)
    (amendment,) = by_name(found)["huge"]["amendments"]
    assert amendment["verdict"] == "not held, later withdrawn"
    assert amendment["why"] == "before claims were frozen: The grid was too coarse."


def test_amendments_that_schema_1_has_come_first(tmp_path):
    known = {"date": "2026-11-22", "verdict": "held", "text": "t", "bounds": "b", "why": "w"}
    text = SCRIPT.replace('claim("huge", 3.0)', 'claim("huge", 0.8)')
    found = judging.again(converted(tmp_path, huge={"amendments": [known]}), study(tmp_path, text), tmp_path, DAY)
    first, second = by_name(found)["huge"]["amendments"]
    assert first == known
    assert second["why"] == "before claims were frozen: no reason given"


@pytest.mark.parametrize(
    "damage",
    [
        {"verdict": "withdrawn"},  # without a reason
        {"mark": {"measured": "held", "reason": "x"}},  # and the verdict as if it had none
        {"verdict": "withdrawn", "mark": {"measured": "withdrawn", "reason": "x"}},
        {"verdict": "reproduced"},  # a word of schema 2
    ],
)
def test_a_damaged_record_of_schema_1_is_refused(tmp_path, damage):
    with pytest.raises(InputError, match="damaged"):
        converted(tmp_path, huge=damage)


# --- a record of new runs ---------------------------------------------------------------------------------------------


def test_new_runs_keep_what_an_earlier_record_said(tmp_path):
    before = judged(tmp_path)
    script = study(tmp_path)
    now = {claim["name"]: [{**claim["frozen"], "text": "", "bounds": ""}] for claim in before["claims"]}
    base = unjudged() | {"noise": judging.noise_of(before)}
    base["runs"] = RUNS | {"rows": [[method, i, loss + 4, accuracy] for method, i, loss, accuracy in ROWS]}
    found = judging.judge(judging.Case(base, script, before, now, LATER), results(base, tmp_path))
    huge = by_name(found)["huge"]
    assert [(each["verdict"], each["why"]) for each in huge["amendments"]] == [("weaker", judging.NEW_RUNS)]
    assert huge["frozen"] == by_name(before)["huge"]["frozen"]


def test_a_claim_that_changed_before_it_was_ever_judged_says_so(tmp_path):
    script = study(tmp_path)
    old = {"hash": "0", "date": DAY, "before_runs": True, "text": "old words", "bounds": "x ≥ 1"}
    new = {"hash": "1", "date": LATER, "before_runs": False, "text": "A is large", "bounds": ""}
    case = judging.Case(unjudged(), script, None, {"large": [old, new], "huge": [new]}, LATER)
    found = by_name(judging.judge(case, results(case.base, tmp_path)))
    assert found["large"]["amendments"] == [
        {"date": LATER, "verdict": "not judged yet", "why": "no reason given", "text": "old words", "bounds": "x ≥ 1"}
    ]
    assert found["large"]["frozen"] == {"hash": "1", "date": LATER, "before_runs": False}
    assert found["huge"]["amendments"] == []


def test_only_a_record_of_the_same_study_scale_and_test_bed_is_replaced(tmp_path):
    path = tmp_path / "paper.json"
    assert making.replaced(path, "paper", "small", "encoder") is None
    path.write_text(json.dumps(invented.record()))
    assert making.replaced(path, "paper", "small", "encoder") == invented.record()
    for other in (("paper", "full", "encoder"), ("paper", "small", "decoder"), ("other", "small", "encoder")):
        assert making.replaced(path, *other) is None
    path.write_text("{}")
    with pytest.raises(InputError):
        making.replaced(path, "paper", "small", "encoder")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path):
    """A folder with the study's script and its record of schema 1."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "reports").mkdir()
    (tmp_path / "studies/paper.py").write_text(SCRIPT)
    (tmp_path / "reports/paper.json").write_text(json.dumps(of_schema_1()))
    return tmp_path


def test_judge_writes_the_record_and_its_pages_and_tells_what_changed(home):
    done = here("study", "judge", "reports/paper.json", cwd=home)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "paper: large: held → reproduced",
        "paper: huge: not held → weaker",
        "paper: gone: undecided → removed",
    ]
    found = record.read(home / "reports/paper.json")
    assert found["schema"] == 2
    assert [claim["verdict"] for claim in found["claims"]] == ["reproduced", "weaker"]
    before = {path.name: path.read_bytes() for path in (home / "reports").iterdir()}
    assert set(before) == {"paper.json", "paper.html", "index.html"}
    for command in ("render", "judge"):
        assert here("study", command, "reports/paper.json", cwd=home).returncode == 0
        assert {path.name: path.read_bytes() for path in (home / "reports").iterdir()} == before


def test_render_of_schema_1_says_that_it_is_not_judged(home):
    written = (home / "reports/paper.json").read_bytes()
    done = here("study", "render", "reports/paper.json", cwd=home)
    assert done.returncode == 0, done.stderr
    assert "lorascope study judge" in done.stderr
    assert (home / "reports/paper.json").read_bytes() == written


def test_judge_needs_the_script_and_writes_nothing_without(home):
    (home / "studies/paper.py").write_text("import nothing_of_this_name\n")
    before = (home / "reports/paper.json").read_bytes()
    assert "nothing_of_this_name" in refused(here("study", "judge", "reports/paper.json", cwd=home))
    (home / "studies/paper.py").unlink()
    assert "no such study: paper" in refused(lorascope("study", "judge", "reports/paper.json", cwd=home))
    assert [path.name for path in (home / "reports").iterdir()] == ["paper.json"]
    assert (home / "reports/paper.json").read_bytes() == before


def test_the_list_counts_the_verdicts_of_the_record(home):
    here("study", "judge", "reports/paper.json", cwd=home)
    (row,) = json.loads(here("study", "list", "--json", cwd=home).stdout)["studies"]
    assert {word: n for word, n in row["last"]["verdicts"].items() if n} == {"reproduced": 1, "weaker": 1}
    assert row["last"]["testbed"] == "encoder"
