"""Every study script keeps what a study promises, before a single run of it."""

import html
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from lorascope.report.html import render
from lorascope.study import Control, Study, record, tasks, work
from lorascope.study import index as indices
from lorascope.study import page as pages
from lorascope.study.runner import Runner
from lorascope.study.store import Store
from lorascope.study.tuning import Tuned
from lorascope.training.config import parse
from tests.cli.command import lorascope
from tests.contracts import studies_page

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for path in (ROOT / "studies").glob("*.py") if not path.name.startswith("_"))
SCALES = ("smoke", "small", "full")

each_script = pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)


def test_there_are_studies():
    assert len(SCRIPTS) >= 3


@pytest.fixture
def study(path) -> Study:
    return work.script(path).study


def test_stating_a_study_imports_nothing_heavy():
    """All of them in one process: `lorascope study list` shows them in a moment."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from lorascope.study import work\n"
        f"for path in {[str(path) for path in SCRIPTS]!r}:\n"
        "    found = work.script(Path(path)).study\n"
        "    [list(found.arms(scale)) for scale in found.scales.values()]\n"
        "    print(path, *({name.split('.')[0] for name in sys.modules} & {'torch', 'transformers', 'datasets'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert [line.split()[1:] for line in done.stdout.splitlines()] == [[]] * len(SCRIPTS), done.stdout


@each_script
def test_it_says_what_it_is(path, study):
    assert study.name == path.stem
    assert tuple(study.scales) in (SCALES, (*SCALES, "smoke-lm", "small-lm"))
    for text in (study.title, study.question, study.varied, study.fixed):
        assert text.strip()
    first, *_ = (work.script(path).__doc__ or "").splitlines()
    assert first.strip()
    assert f"python studies/{path.name} --scale small" in work.script(path).__doc__, "the docstring shows no command"
    assert 'if __name__ == "__main__":\n    study.main()\n' in path.read_text()


@each_script
def test_every_claim_can_hold_and_can_fail(study):
    for testbed in beds_of(study):
        check_claims(study.on(testbed))


def beds_of(study) -> set[str]:
    return {scale.testbed for scale in study.scales.values()}


def check_claims(study):
    names = [claim.name for claim in study.claims]
    assert any(claim.controls for claim in study.claims)
    assert len(set(names)) == len(names)
    for claim in study.claims:
        assert claim.text.strip()
        assert not claim.text.endswith("."), claim.name
        assert claim.source.strip(), f"{claim.name} has no source"
        assert claim.criteria, f"{claim.name} has no criterion"
        says_why_none = "No negative control: " in claim.note
        assert bool(claim.controls) != says_why_none, f"{claim.name} has no control, and does not say why"
        assert all(isinstance(each, Control) for each in claim.controls)
        assert not any(isinstance(each, Control) for each in claim.criteria)
        for each in (*claim.criteria, *claim.controls):
            assert each.text.strip()
            assert each.unit in ("float", "percent", "int")
            assert each.at_least is None or each.at_most is None or each.at_least <= each.at_most


@each_script
def test_claims_of_another_test_bed_ask_the_same(study):
    """By the same names, which the index sets side by side."""
    names = [claim.name for claim in study.claims]
    for testbed in beds_of(study):
        assert [claim.name for claim in study.on(testbed).claims] == [
            name for name in names if name in {claim.name for claim in study.on(testbed).claims}
        ]


@each_script
def test_a_verdict_needs_replicates_and_other_texts_than_those_that_tuned(study):
    assert not study.scales["smoke"].conclusive
    for name in ("small", "full"):
        scale = study.scales[name]
        assert scale.conclusive
        assert scale.replicates >= 5
        tuned = any(len(arm.learning_rates) > 1 for arm in study.arms(scale))
        assert scale.test_split is not None or not tuned


@each_script
def test_a_sweep_begins_with_three_rates_no_more_than_a_factor_of_four_apart(study):
    """From there it goes on by itself: `study/tuning.py`."""
    scales = [study.scales[name] for name in ("small", "small-lm") if name in study.scales]
    for arm in (arm for scale in scales for arm in study.arms(scale)):
        rates = arm.learning_rates
        if len(rates) > 1:  # of one, what does not learn needs no search
            assert len(rates) >= 3, arm.labels
            assert max(b / a for a, b in pairwise(rates)) < 4, arm.labels


@each_script
@pytest.mark.parametrize("scale", SCALES)
def test_arms_are_distinct_runs(path, study, scale, tmp_path):
    """Labels differ, every config parses, and runs that differ in more than their rate have seeds of their own."""
    runner = Runner(study, path, scale, Store(tmp_path), None, device="cpu")
    for arm in runner.arms:
        rates = list(arm.learning_rates)
        assert rates == sorted(set(rates))
        assert all(rate > 0 for rate in rates)
    tuned = [Tuned(arm.learning_rates[0] if arm.learning_rates else None) for arm in runner.arms]
    finals = runner._finals(tuned)
    assert len(finals) == len(runner.arms) * runner.scale.replicates
    drawn: dict[int, set[str]] = {}
    for final in finals:
        arm, config = runner.arms[final.arm], final.job.spec["config"]
        assert (config["training"]["data_seed"] == final.replicate) is not arm.own_data
        if arm.seed is None:
            drawn.setdefault(config["training"]["seed"], set()).add(without_rate(config))
    assert all(len(those) == 1 for those in drawn.values()), "two runs that differ in more than the rate have one seed"
    assert runner.study.runs_of(runner.scale) >= len(finals)


DECODERS = [path for path in SCRIPTS if "small-lm" in work.script(path).study.scales]


@pytest.mark.parametrize("path", DECODERS, ids=lambda path: path.stem)
def test_arms_of_a_decoder_are_distinct_and_in_an_order_that_can_be_run(study):
    """Each after the one whose rate it takes, for arms are trained and measured one by one."""
    scale, seen = study.scales["small-lm"], []
    for arm in study.arms(scale):
        assert arm.labels not in seen
        assert arm.rate_of is None or arm.rate_of in seen, arm.labels
        seen.append(arm.labels)
        values = {section: dict(keys) for section, keys in scale.config.items()}
        for key, value in arm.changes.items():
            section, _, name = key.partition(".")
            values.setdefault(section, {})[name] = value
        parse(values, str(arm.labels))


def test_studies_on_a_decoder_share_runs():
    """One config and one sweep of each common arm, or the store would train it twice."""
    sweeps = {}
    for path in DECODERS:
        study = work.script(path).study
        for arm in study.arms(study.scales["small-lm"]):
            if len(arm.learning_rates) > 1:
                sweeps.setdefault(json.dumps(dict(arm.changes), sort_keys=True), {})[path.stem] = arm.learning_rates
    assert all(len(set(rates.values())) == 1 for rates in sweeps.values())
    lora = next(by for config, by in sweeps.items() if json.loads(config) == tasks.lora(8))
    assert {"rank_sweep", "matrix_choice", "variants", "dora", "lora_fa", "lora_plus", "rslora"} <= lora.keys()
    high = next(by for config, by in sweeps.items() if json.loads(config) == tasks.lora(64, "rslora"))
    assert {"rank_sweep", "variants"} <= high.keys()


def without_rate(config) -> str:
    """Of a config, what its seed is drawn from: arms that differ in their rate alone are compared run by run."""
    return json.dumps({**config, "optim": {k: v for k, v in config["optim"].items() if k != "learning_rate"}})


@each_script
def test_measures_are_found_by_their_names_in_other_processes(path, study):
    module = work.script(path)
    names = [measure.name for measure in study.measures]
    assert len(set(names)) == len(names)
    for measure in study.measures:
        assert getattr(module, measure.function.__name__, None) is measure.function


@pytest.mark.slow
@each_script
def test_it_runs_at_scale_smoke(path, tmp_path):
    done = lorascope(
        "study", "run", path, "--scale", "smoke", "--store", tmp_path / "store", "--reports", tmp_path,
        env={"OMP_NUM_THREADS": "1"}, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    stem = record.file_stem(path.stem, work.script(path).study.scales["smoke"].testbed)
    found = record.read(tmp_path / f"{stem}.json")
    assert found["failures"] == []
    assert found["figures"]
    assert {claim["verdict"] for claim in found["claims"]} <= {"inconclusive", "out of reach", "withdrawn"}
    reasons = [c["reason"] for claim in found["claims"] for c in claim["criteria"]]
    assert not [reason for reason in reasons if re.search(r"\b\w+Error: ", reason)]  # a study says why with ValueError
    page = (tmp_path / f"{stem}.html").read_bytes()
    assert len(page) < 2_000_000
    assert str(tmp_path).encode() not in page


# --- what is published ------------------------------------------------------------------------------------------------

REPORTS = ROOT / "reports"
PUBLISHED, UNREADABLE = record.read_folder(REPORTS)
JUDGED = [found for found in PUBLISHED if found["scale"]["conclusive"]]

each_published = pytest.mark.parametrize("found", PUBLISHED, ids=lambda found: found["name"])
each_judged = pytest.mark.parametrize("found", JUDGED, ids=lambda found: found["name"])


def page_of(found) -> str:
    stem = record.file_stem(found["name"], found["scale"]["testbed"])
    return (REPORTS / f"{stem}.html").read_text(encoding="utf-8")


def words_of(page: str) -> str:
    """A page without its drawings, whose last digits are matplotlib's, and its style, which they are named in."""
    return re.sub(r"<(svg|style)\b.*?</\1>|sha256-[^']*", "", page, flags=re.S)


def test_every_study_is_published():
    assert UNREADABLE == []
    assert {found["name"] for found in PUBLISHED} == {path.stem for path in SCRIPTS}
    assert not [found["name"] for found in PUBLISHED if "converted" in found], "judge it with `lorascope study judge`"


@each_published
def test_a_published_page_is_what_its_record_draws(found):
    assert words_of(page_of(found)) == words_of(render(pages.page(found))), (
        "draw it again with `lorascope study render`"
    )


def test_the_published_index_is_what_the_records_draw():
    page = (REPORTS / "index.html").read_text()
    assert words_of(page) == words_of(render(indices.index(PUBLISHED)))
    assert "smoke" not in {found["scale"]["name"] for found in JUDGED}


@each_judged
def test_the_line_under_the_title_is_what_its_config_says(found):
    """Read back from the words, number by number, against the config itself."""
    page = html.unescape(page_of(found))
    said = re.search(r'<p class="summary">(Screening: .*?)</p>', page, re.S).group(1)
    scale, changes = found["scale"], [arm["changes"] for arm in found["arms"]] or [{}]
    model, steps = scale["config"]["model"], scale["config"]["training"]["max_steps"]
    if model["name"] == "minilm":
        layers = re.search(r"first (?:(\d+) )?of 6 layers of MiniLM", said).group(1)
        assert int(layers or 1) == model["num_hidden_layers"]
        assert "says nothing about large language models" in said
    else:
        assert {"smollm2": "SmolLM2-135M (decoder)"}.get(model["name"], model["name"]) in said
    low, high = re.search(r"(?:([\d,]+) to )?([\d,]+) steps", said).groups()
    there = [change.get("training.max_steps", steps) for change in changes]
    assert [int(n.replace(",", "")) for n in (low or high, high)] == [min(there), max(there)]
    assert f" {scale['replicates']} replicates" in said


@each_judged
def test_a_published_claim_says_how_far_to_trust_it(found):
    """The bound's origin, the published setting, and the power wherever the statistic has noise and a size to find."""
    assert found["reading"]
    for claim in found["claims"]:
        assert claim["setting"] or claim["kind"] == "identity", claim["name"]
        assert claim["frozen"], claim["name"]
        for criterion in (each for each in claim["criteria"] if not each["control"]):
            assert criterion["origin"], claim["name"]
            assert criterion["power"] or not criterion["se"] or criterion["supposed"] is None, claim["name"]


def test_the_results_in_the_docs_are_those_of_the_records():
    told = studies_page.PAGE.read_text(encoding="utf-8")
    assert told == studies_page.page(PUBLISHED), "run `python -m tests.contracts.studies_page`"


def test_the_readmes_numbers_are_in_the_answers():
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Published claims")[2].partition("\n## ")[0]
    quoted = re.findall(r"[−\d.]+ % \[[^\]]+\]", section)
    answers = " ".join(found["reading"] for found in JUDGED)
    assert quoted
    assert not [number for number in quoted if number not in answers]


def test_the_readme_counts_what_the_index_counts():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    counted = re.search(
        r"(\d+) of the (\d+) studies in `studies/`.*?\[(\d+) published claims\].*?(\d+) verdicts", readme, re.S
    )
    verdicts = [(found["name"], claim["name"]) for found in JUDGED for claim in found["claims"]]
    studies = {name for name, _ in verdicts}
    assert [int(n) for n in counted.groups()] == [len(studies), len(SCRIPTS), len(set(verdicts)), len(verdicts)]
    told = indices.index(PUBLISHED).summary
    assert told.startswith(f"{len(set(verdicts))} claims from {len(studies)} studies")
    assert f" {len(verdicts)} verdicts" in told
