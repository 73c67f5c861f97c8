"""Verdicts that were taken back: in the record, on the page, in the index, in the list; in no tally of held claims."""

import json

import pytest

from lorascope.errors import InputError
from lorascope.report import html, terminal
from lorascope.study import Claim, Criterion, page, record, work
from lorascope.study.marks import marked
from tests.cli.command import lorascope, refused

SCRIPT = """
from lorascope.study import Claim, Criterion, StudyScale, Study

def claim(name, **marks):
    return Claim(name, f"The claim {{name}}", "a paper", (Criterion("x", lambda r: 1.0, at_least=0.0),), **marks)

study = Study(
    "paper", "A paper?", "Is it so?", "x", "y", "z", {{"small": StudyScale(params={{"n": [4, 8]}})}}, {beside}
    claims=(claim("stays"), claim("back"{back}), claim("blind"{blind})),
)
"""
BACK = "Tuning grid too coarse: 5.9 % in place of it."
BLIND = "At width 384 it is never so."


def script(back="", blind="", beside=""):
    return SCRIPT.format(
        back=f", withdrawn={back!r}" if back else "",
        blind=f", cannot_tell={blind!r}" if blind else "",
        beside=f"scope_note={beside!r}, " if beside else "",
    )


def measured(*verdicts, conclusive=True):
    """A whole record with these verdicts, of the claims `stays`, `back` and `blind`."""
    found = {key: "" for key, shape in record.SHAPE.items() if shape == record.WORD}
    criterion = dict.fromkeys(record.CRITERION) | {"text": "a number", "at_least": 0.0, "unit": "float", "reason": ""}
    criterion |= {"estimate": -0.1422, "low": -0.2, "high": -0.1, "verdict": "not held", "control": False}
    table = {"columns": ["key"], "rows": []}
    claims = [
        {"name": name, "text": f"The claim {name}", "source": "a paper", "note": "", "verdict": verdict,
         "criteria": [criterion]}
        for name, verdict in zip(("stays", "back", "blind"), verdicts, strict=True)
    ]  # fmt: skip
    scale = {"name": "small", "replicates": 5, "params": {"n": [4, 8]}, "config": {"model": {"name": "minilm"}},
             "test_split": "test", "test_samples": 1000, "conclusive": conclusive}  # fmt: skip
    cost = dict.fromkeys(record.SHAPE["cost"], 1)
    made = dict.fromkeys(("command", "date", "lorascope", "python", "platform"), "") | {"devices": [], "versions": {}}
    return found | {"schema": 1, "kind": "study", "name": "paper", "scale": scale, "claims": claims, "cost": cost,
                    "made": made, "arms": [], "tuning": [], "failures": [], "runs": table, "tables": {}, "strata": {},
                    "figures": []}  # fmt: skip


VERDICTS = ("held", "not held", "held")


@pytest.fixture
def home(tmp_path):
    """A folder with the study's script, both marks in it, and its record as measured."""
    (tmp_path / "studies").mkdir()
    (tmp_path / "reports").mkdir()
    (tmp_path / "studies/paper.py").write_text(script(BACK, BLIND))
    (tmp_path / "reports/paper.json").write_text(json.dumps(measured(*VERDICTS)))
    return tmp_path


def study(tmp_path, text):
    """The study of a script; each in a folder of its own, for Python keeps a module by its path."""
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    (folder / "paper.py").write_text(text)
    return work.script(folder / "paper.py").study


def test_a_claim_has_one_mark_with_a_reason():
    bound = (Criterion("x", lambda r: 1.0, at_least=0),)
    for marks in ({"withdrawn": "a", "cannot_tell": "b"}, {"withdrawn": " "}, {"cannot_tell": ""}):
        with pytest.raises(ValueError, match="withdrawn or cannot tell"):
            Claim("c", "c", "c", bound, **marks)


def test_a_mark_stands_in_the_verdicts_place_and_the_measured_one_is_kept(tmp_path):
    before = measured(*VERDICTS)
    found = marked(before, study(tmp_path, script(BACK, BLIND)))
    assert [claim["verdict"] for claim in found["claims"]] == ["held", "withdrawn", "cannot tell"]
    assert [claim.get("mark") for claim in found["claims"]] == [
        None, {"measured": "not held", "reason": BACK}, {"measured": "held", "reason": BLIND},
    ]  # fmt: skip
    assert [c["criteria"] for c in found["claims"]] == [c["criteria"] for c in before["claims"]]
    assert marked(found, study(tmp_path, script(BACK, BLIND))) == found
    assert marked(found, study(tmp_path, script())) == before  # the script no longer has them


def test_what_decides_nothing_has_no_verdict_to_take_back(tmp_path):
    smoke = measured(*["undecided"] * 3, conclusive=False)
    assert marked(smoke, study(tmp_path, script(BACK, BLIND))) == smoke


def test_a_claim_that_the_script_no_longer_has_stays(tmp_path):
    old = measured(*VERDICTS)
    old["claims"][1]["name"] = "of another time"
    found = marked(old, study(tmp_path, script(BACK, BLIND)))
    assert [claim["verdict"] for claim in found["claims"]] == ["held", "not held", "cannot tell"]


def test_what_stands_beside_the_grid_has_the_scales_sizes(tmp_path):
    found = marked(measured(*VERDICTS), study(tmp_path, script(beside="Claims on n: a toy, n = {n}.")))
    assert page.page(found).summary.split("\n\n")[0].endswith(" Claims on n: a toy, n = 4, 8.")


def test_the_page_and_the_terminal_show_the_mark_and_its_reason(tmp_path):
    drawn = page.page(marked(measured(*VERDICTS), study(tmp_path, script(BACK, BLIND))))
    text = html.render(drawn)
    assert text.count('<span class="verdict withdrawn">Withdrawn</span>') == 1
    assert text.count('<span class="verdict cannot-tell">Cannot tell</span>') == 1
    assert text.count('<span class="verdict held">') == 1
    assert 'class="verdict not-held"' not in text
    assert BACK in text
    assert BLIND in text
    shown = terminal.render(drawn, width=100)
    assert "withdrawn: The claim back (a paper)\n    " + BACK in shown
    assert "cannot tell: The claim blind (a paper)\n    " + BLIND in shown
    assert shown.count("≥ 0: not held") == 1  # of the claim that stays


def test_the_index_gives_the_reason_in_place_of_the_number(tmp_path):
    drawn = page.index([marked(measured(*VERDICTS), study(tmp_path, script(BACK, BLIND)))])
    assert drawn.summary.endswith(
        "3 claims in 1 studies: 1 held, 1 withdrawn, 1 cannot tell. Model, task and replicates: see each study."
    )
    stays, back, blind = drawn.blocks[0].rows
    keys = [column.key for column in drawn.blocks[0].columns]
    found = [dict(zip(keys, row, strict=True)) for row in (stays, back, blind)]
    assert [(row["verdict"], row["measured"]) for row in found[1:]] == [("withdrawn", BACK), ("cannot tell", BLIND)]
    assert "0.142" in found[0]["found"]
    assert "0.142" not in str(back + blind)


def test_render_marks_the_json_of_a_script_at_hand(home):
    done = lorascope("study", "render", "reports/paper.json", cwd=home)
    assert done.returncode == 0, done.stderr
    written = record.read(home / "reports/paper.json")
    assert [claim["verdict"] for claim in written["claims"]] == ["held", "withdrawn", "cannot tell"]
    for name in ("paper.html", "index.html"):
        assert BACK in (home / "reports" / name).read_text()
    before = {path.name: path.read_bytes() for path in (home / "reports").iterdir()}
    (home / "studies/paper.py").unlink()  # from the JSON alone it is the same
    assert lorascope("study", "render", "reports/paper.json", cwd=home).returncode == 0
    assert {path.name: path.read_bytes() for path in (home / "reports").iterdir()} == before


def test_a_script_that_cannot_be_loaded_hides_no_mark(home):
    (home / "studies/paper.py").write_text("import nothing_of_this_name\n")
    before = (home / "reports/paper.json").read_bytes()
    assert "nothing_of_this_name" in refused(lorascope("study", "render", "reports/paper.json", cwd=home))
    assert [path.name for path in (home / "reports").iterdir()] == ["paper.json"]
    assert (home / "reports/paper.json").read_bytes() == before


def test_the_list_has_marks_beside_the_tallies(home):
    (row,) = json.loads(lorascope("study", "list", "--json", cwd=home).stdout)["studies"]  # before any render
    assert row["last"]["verdicts"] == {"held": 1, "not held": 0, "undecided": 0, "withdrawn": 1, "cannot tell": 1}
    assert row["last"]["marks"] == [
        {"claim": "back", "verdict": "withdrawn", "reason": BACK},
        {"claim": "blind", "verdict": "cannot tell", "reason": BLIND},
    ]
    shown = lorascope("study", "list", cwd=home, env={"COLUMNS": "120"}).stdout
    assert f"paper: back  {BACK}" in shown
    assert f"paper: blind  {BLIND}" in shown
    (line,) = (line.split() for line in shown.splitlines() if line.split()[:2] == ["paper", "3"])
    assert line[-5:] == ["1", "0", "0", "1", "1"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda claim: claim.update(verdict="withdrawn"),  # without a reason
        lambda claim: claim.update(mark={"measured": "held", "reason": "x"}),  # and the verdict as if it had none
        lambda claim: claim.update(verdict="withdrawn", mark={"measured": "withdrawn", "reason": "x"}),
        lambda claim: claim.update(verdict="cannot tell", mark={"measured": "held", "reason": 3}),
    ],
)
def test_a_mark_that_does_not_fit_is_damage(tmp_path, damage):
    found = measured(*VERDICTS)
    damage(found["claims"][0])
    (tmp_path / "paper.json").write_text(json.dumps(found))
    with pytest.raises(InputError, match="damaged"):
        record.read(tmp_path / "paper.json")
