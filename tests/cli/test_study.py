"""`lorascope study` as a process, on the toy study with a tiny model."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys

import pytest

from lorascope.study import record
from lorascope.study.verdict import OUTCOMES, VERDICTS
from tests.cli.command import here, lorascope, refused, valid
from tests.report.conftest import HOSTILE
from tests.study.conftest import TOY

ENV = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def named(tiny_bert, labelled, tmp_path_factory):
    """The arguments of a run, and the folder with its script, its store and its reports."""
    home = tmp_path_factory.mktemp("home")
    (home / "studies").mkdir()
    shutil.copy(TOY, home / "studies")
    return home, ["--scale", "smoke", "--set", f"model.name={tiny_bert}", "--set", f"data.path={labelled}"]


@pytest.fixture(scope="module")
def first(named):
    """The study, run from nothing."""
    home, arguments = named
    return lorascope("study", "run", "toy", *arguments, cwd=home, env=ENV)


def reports(home):
    return {path.name: path.read_bytes() for path in (home / "reports").iterdir()}


def test_run_tells_and_writes(named, first):
    assert first.returncode == 0, first.stderr
    written = reports(named[0])
    assert set(written) == {"toy.json", "toy.html", "index.html"}
    assert all(f"wrote reports/{name}" in first.stderr for name in written)
    assert "Traceback" not in first.stderr
    lines = first.stdout.splitlines()
    assert lines[0] == "A toy"
    assert any("Three squared is nine" in line for line in lines)
    assert re.search(r"toy: tuning, 4 of 4 done", first.stderr)


def test_reports_that_cannot_be_written_cost_no_run(named, tmp_path):
    home, arguments = named
    (tmp_path / "file").touch()
    done = lorascope("study", "run", "toy", *arguments, "--reports", tmp_path / "file" / "in", cwd=home, env=ENV)
    assert "cannot write into" in refused(done)


def test_other_json_among_reports_is_passed_over(named, first, tmp_path):
    home, _ = named
    shutil.copy(home / "reports" / "toy.json", tmp_path)
    (tmp_path / "other.json").write_text("{}")
    done = lorascope("study", "judge", tmp_path / "toy.json", tmp_path / "other.json", cwd=home, env=ENV)
    assert done.returncode == 0, done.stderr
    assert "warning: skipped: " in done.stderr
    assert "wrote" in done.stderr
    alone = lorascope("study", "judge", tmp_path / "other.json", cwd=home, env=ENV)
    assert "other.json" in refused(alone)


def test_the_record_is_what_its_docstring_says(named, first):
    home, _ = named
    found = json.loads((home / "reports/toy.json").read_text())
    assert record.read(home / "reports/toy.json") == found  # the shape holds
    keys = {key.rstrip("?") for key in record.SHAPE}
    assert keys - set(found) <= {"beside", "candidates"}
    assert set(found) - keys == {"schema", "kind"}
    parts = [record.SHAPE, record.CLAIM, record.CRITERION, *(record.SHAPE[key] for key in ("scale", "cost", "made"))]
    parts += [part[0] for part in (record.SHAPE["removed"], record.SHAPE["noise"], record.CLAIM["amendments"])]
    for key in {key.rstrip("?") for part in parts for key in part}:
        assert re.search(rf"\b{key}\b", record.__doc__), f"{key} is not documented"
    assert (found["schema"], found["kind"], found["name"]) == (2, "study", "toy")
    verdicts = {claim["name"]: claim["verdict"] for claim in found["claims"]}
    assert verdicts == {
        "nine": "reproduced",
        "ten": "absent or opposite",
        "no-control": "not specific",
        "missing": "inconclusive",
        "loss": "reproduced",
    }
    assert {claim["frozen"]["before_runs"] for claim in found["claims"]} == {True}
    (frozen,) = (home / ".lorascope/store/claims").iterdir()
    assert {name: versions[-1]["hash"] for name, versions in json.loads(frozen.read_text())["claims"].items()} == {
        claim["name"]: claim["frozen"]["hash"] for claim in found["claims"]
    }
    assert found["cost"]["runs"] >= 10
    assert found["failures"] == []
    assert {row[found["runs"]["columns"].index("key")] for row in found["runs"]["rows"]} <= {
        path.name for path in (home / ".lorascope/store").glob("*/*")
    }
    assert str(home) not in json.dumps(found)  # a page is sent to others
    assert found["scale"]["test_split"] is None


def without_cost(text):
    found = json.loads(text)
    return {key: value for key, value in found.items() if key not in ("cost", "made")}


def test_the_script_itself_does_the_same_and_nothing_twice(named, first):
    home, arguments = named
    before = reports(home)
    done = subprocess.run(
        [sys.executable, "studies/toy.py", *arguments, "--reports", "again"],
        cwd=home, env=os.environ | ENV, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    again = (home / "again/toy.json").read_bytes()
    assert without_cost(again) == without_cost(before["toy.json"])
    cost = json.loads(again)["cost"]
    assert cost["taken_from_the_store"] == cost["runs"] + cost["measurements"]
    assert cost["seconds_of_work"] == json.loads(before["toy.json"])["cost"]["seconds_of_work"]
    shutil.rmtree(home / "again")


def test_render_needs_the_json_alone_and_gives_the_same_page(named, first, tmp_path):
    written = reports(named[0])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "toy.json").write_bytes(written["toy.json"])
    done = lorascope("study", "render", "toy.json", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in elsewhere.iterdir()} == written


def test_list_before_and_after(named, first, tmp_path):
    home, _ = named
    (home / "studies/broken.py").write_text("import nothing_of_this_name\n")
    try:
        done = lorascope("study", "list", "--json", cwd=home)
        shown = lorascope("study", "list", cwd=home, env={"COLUMNS": "120"})
        before = lorascope("study", "list", "--json", "--reports", tmp_path, cwd=home)
    finally:
        (home / "studies/broken.py").unlink()
    broken, toy = valid("study", done.stdout)["studies"]
    assert "nothing_of_this_name" in broken["error"]
    assert toy["question"] == "Does the engine work?"
    trained = json.loads((home / "reports/toy.json").read_text())["cost"]["runs"]
    assert 3 * 2 + 2 < toy["runs"]["smoke"] <= trained  # more than replicates and rates: a sweep's least
    counts = {"reproduced": 2, "absent or opposite": 1, "inconclusive": 1, "not specific": 1}
    assert {word: n for word, n in toy["last"]["verdicts"].items() if n} == counts
    assert toy["last"]["hours"] > 0
    assert json.loads(before.stdout)["studies"][1]["last"] is None
    assert "Does the engine work?" in shown.stdout
    (row,) = (line.split() for line in shown.stdout.splitlines() if line.split()[-4:] == ["2", "1", "1", "1"])
    assert row[0] == "toy"  # reproduced, absent or opposite, inconclusive, not specific
    assert "nothing_of_this_name" in shown.stdout


def test_refusals(named):
    home, arguments = named
    assert "did you mean toy?" in refused(lorascope("study", "run", "toi", cwd=home))
    assert "has no scale 'nope'; expected smoke, small" in refused(
        here("study", "run", "toy", "--scale", "nope", cwd=home)
    )
    assert "data.nope" in refused(here("study", "run", "toy", *arguments, "--set", "data.nope=1", cwd=home))
    for name, text, said in (
        ("empty", "x = 1\n", "defines no study"),
        ("wrong", "def (\n", "line 1"),
        ("other", TOY.read_text(), "is not named after its script"),
    ):
        path = home / f"{name}.py"
        path.write_text(text)
        assert said in refused(here("study", "run", path, cwd=home))
    assert "cannot write" in refused(here("study", "run", "toy", "--store", "other.py", cwd=home), 1)


def test_stopped_by_hand_it_goes_on(named, first):
    """In its second stage: what the first tuned is taken from its store, the runs of the arm without a sweep are not
    there."""
    home, arguments = named
    shutil.copytree(home / ".lorascope/store", home / "s")
    runs = json.loads((home / "reports/toy.json").read_text())["runs"]
    arm, key = (runs["columns"].index(name) for name in ("rank", "key"))
    missing = [row[key] for row in runs["rows"] if row[arm] == 0]
    assert len(missing) == 2
    for name in missing:
        (folder,) = (home / "s").glob(f"*/{name}")
        shutil.rmtree(folder)
    command = [sys.executable, "-m", "lorascope", "study", "run", "toy", *arguments, "--store", "s", "--reports", "r"]
    process = subprocess.Popen(
        command,
        cwd=home,
        env=os.environ | ENV,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # a suite in the background ignores it
    )
    for line in process.stderr:
        if "toy: training, " in line:
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=300)
    assert process.returncode in (130, -signal.SIGINT), err  # 130 to a shell, both
    assert out == ""
    assert err.splitlines()[-1].startswith("interrupted; finished runs are kept")
    assert "Traceback" not in err
    finished = {path: path.stat().st_mtime_ns for path in (home / "s").rglob("done.json")}
    assert len(finished) >= 4  # the tuning runs
    done = lorascope("study", "run", "toy", *arguments, "--store", "s", "--reports", "r", cwd=home, env=ENV)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    there, here = (json.loads(path.read_text()) for path in (home / "r/toy.json", home / "reports/toy.json"))
    assert [c["verdict"] for c in there["claims"]] == [c["verdict"] for c in here["claims"]]
    assert [row[:-2] for row in there["runs"]["rows"]] == [row[:-2] for row in here["runs"]["rows"]]  # not the seconds


# --- records from strangers -------------------------------------------------------------------------------------------


def spoiled(value, text):
    """Every string in it replaced, but for those that are one of a few words."""
    kept = {*VERDICTS, *OUTCOMES, "float", "percent", "int", "study", "normal", "thin", "reference", "both"}
    if isinstance(value, dict):
        return {key: each if key == "type" else spoiled(each, text) for key, each in value.items()}
    if isinstance(value, list):
        return [spoiled(each, text) for each in value]
    return text if isinstance(value, str) and value not in kept else value


def test_a_hostile_record_runs_nothing(named, first, tmp_path, page_in_browser):
    found = json.loads(reports(named[0])["toy.json"])
    text = HOSTILE.replace("\ud800", "")  # half a pair is refused
    (tmp_path / "toy.json").write_text(json.dumps(spoiled(found, text)))
    done = lorascope("study", "render", "toy.json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("toy.html", "index.html"):
        opened = page_in_browser(tmp_path / name)
        assert opened.page.evaluate("window.hacked") is None
        assert opened.troubles == []
        assert opened.others_asked_for() == []
        assert opened.page.locator("img").count() == 0
        links = opened.page.locator("main a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
        assert all(link.startswith("#") for link in links)


@pytest.mark.parametrize("name", ["../../evil", "javascript:alert(1)//", "https://evil.example/x", "a/b"])
def test_a_link_stays_in_the_folder(named, first, tmp_path, name):
    from lorascope.report import html
    from lorascope.study import index

    found = json.loads(reports(named[0])["toy.json"]) | {"name": name}
    assert "<a href=" not in html.render(index.index([found])).partition("<main")[2].replace('<a href="#', "")


DAMAGE = {
    "no claims": (lambda r: r.pop("claims"), "no claims"),
    "a claim of a wrong type": (lambda r: r["claims"].append(3), "claims[5]"),
    "an unknown verdict": (lambda r: r["claims"][0].update(verdict="<b>reproduced"), "verdict"),
    "a verdict of schema 1": (lambda r: r["claims"][0].update(verdict="held"), "verdict"),
    "an unknown outcome": (lambda r: r["claims"][0]["criteria"][0].update(outcome="held"), "outcome"),
    "a place that is not there": (lambda r: r["claims"][0].update(decided_by=99), "decided_by"),
    "a hash that is none": (lambda r: r["claims"][0].update(frozen="0"), "frozen"),
    "texts without a hash": (lambda r: r.update(texts={"file": "toy.texts.npz"}), "texts"),
    "a curve of schema 1": (lambda r: r["tuning"][0]["curve"][0].__setitem__(1, 0.5), "curve"),
    "no criteria": (lambda r: r["claims"][0].update(criteria=[]), "without criteria"),
    "text for a number": (lambda r: r["cost"].update(runs="many"), "cost.runs"),
    "a row too short": (lambda r: r["runs"]["rows"][0].pop(), "another length"),
    "a stratum too few": (lambda r: r["strata"]["runs"].pop(), "strata of another length"),
    "half a pair": (lambda r: r["tuning"][0]["curve"][0].pop(), "learning rate"),
    "an unknown block": (lambda r: r["figures"].append({"type": "Script"}), "unknown block"),
    "no block": (lambda r: r["figures"].append("<script>"), "not a block"),
    "a block's part at the top": (
        lambda r: r["figures"].append({"type": "Link", "text": "", "file": ""}),
        "not a block",
    ),
    "a field too many": (lambda r: r["figures"][0].update(more=1), "damaged"),
    "a field of a wrong type": (lambda r: r["figures"][0].update(title=7), "title"),
    "series of two lengths": (lambda r: r["figures"][0]["series"][0]["x"].pop(), "cannot be drawn"),
    "another schema": (lambda r: r.update(schema=3), "unsupported schema"),
    "another kind": (lambda r: r.update(kind="adapter"), "not a study report"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_record_is_refused_in_a_sentence(named, first, tmp_path, what, monkeypatch, capsys):
    from lorascope.cli.app import main

    found = json.loads(reports(named[0])["toy.json"])
    damage, said = DAMAGE[what]
    damage(found)
    (tmp_path / "toy.json").write_text(json.dumps(found))
    err = main_refuses(main, tmp_path / "toy.json", monkeypatch, capsys)
    assert said in err
    assert [path.name for path in tmp_path.iterdir()] == ["toy.json"]  # nothing half drawn


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"kind": NaN}', "\ud800", "1" * 5000])
def test_what_is_no_record_is_refused_in_a_sentence(tmp_path, text, monkeypatch, capsys):
    from lorascope.cli.app import main

    (tmp_path / "x.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    main_refuses(main, tmp_path / "x.json", monkeypatch, capsys)


def main_refuses(main, path, monkeypatch, capsys):
    """What `lorascope study render PATH` says, in this process: a hundred refusals in the time of one process."""
    monkeypatch.setattr(sys, "argv", ["lorascope", "study", "render", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert len(err.splitlines()) <= 2
    return err


def test_a_damaged_neighbour_is_told_and_left_out_of_the_index(named, first, tmp_path):
    written = reports(named[0])
    (tmp_path / "toy.json").write_bytes(written["toy.json"])
    (tmp_path / "other.json").write_text('{"schema": 1, "kind": "study"}')
    (tmp_path / "analysis.json").write_text('{"schema": 1}')
    done = lorascope("study", "render", "toy.json", cwd=tmp_path)
    assert done.returncode == 0
    assert "skipped in the index: other.json is damaged" in done.stderr
    assert "analysis.json" not in done.stderr
    assert (tmp_path / "index.html").read_bytes() == written["index.html"]


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_where_there_is_no_study_it_is_said_how_to_name_the_folder(arguments, tmp_path):
    message = refused(here("study", "list", *arguments, cwd=tmp_path))
    assert "no studies to list" in message
    assert "--studies DIR" in message
