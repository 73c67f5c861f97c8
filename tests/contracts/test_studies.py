"""Every study script keeps what a study promises, before a single run of it."""

import html
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from lorascope.study import Control, Study, record, work
from lorascope.study.marks import marked
from lorascope.study.runner import Runner
from lorascope.study.store import Store
from tests.cli.command import lorascope

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
    assert tuple(study.scales) == SCALES
    for text in (study.title, study.question, study.varied, study.fixed):
        assert text.strip()
    first, *_ = (work.script(path).__doc__ or "").splitlines()
    assert first.strip()
    assert f"python studies/{path.name} --scale small" in work.script(path).__doc__, "the docstring shows no command"
    assert 'if __name__ == "__main__":\n    study.main()\n' in path.read_text()


@each_script
def test_every_claim_can_hold_and_can_fail(study):
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
def test_a_verdict_needs_replicates_and_other_texts_than_those_that_tuned(study):
    assert not study.scales["smoke"].conclusive
    for name in ("small", "full"):
        scale = study.scales[name]
        assert scale.conclusive
        assert scale.replicates >= 5
        tuned = any(len(arm.learning_rates) > 1 for arm in study.arms(scale))
        assert scale.test_split is not None or not tuned


@each_script
def test_a_sweep_has_five_rates_no_more_than_a_factor_of_four_apart(study):
    for arm in study.arms(study.scales["small"]):
        rates = arm.learning_rates
        if len(rates) > 1:  # of one, what does not learn needs no search
            assert len(rates) >= 5, arm.labels
            assert max(b / a for a, b in pairwise(rates)) < 4, arm.labels


@each_script
@pytest.mark.parametrize("scale", SCALES)
def test_arms_are_distinct_runs(path, study, scale, tmp_path):
    """Labels differ, every config parses, seeds of judged runs differ from each other and from those that tuned."""
    runner = Runner(study, path, scale, Store(tmp_path), None, device="cpu")
    for arm in runner.arms:
        rates = list(arm.learning_rates)
        assert rates == sorted(set(rates))
        assert all(rate > 0 for rate in rates)
    tuning = [runner._tuning_job(arm, rate) for arm in runner.arms for rate in arm.learning_rates[:1]]
    tuned = [runner._chosen(arm, dict.fromkeys(arm.learning_rates, 1.0) or None) for arm in runner.arms]
    finals = [job for jobs in runner._finals(tuned) for job in jobs]
    assert len(finals) == len(runner.arms) * runner.scale.replicates
    keys = {job.key: job.spec["config"]["training"]["seed"] for job in finals}
    chosen = {job.spec["config"]["training"]["seed"] for job in tuning}
    assert not chosen & set(keys.values())
    drawn: dict[int, set[str]] = {}
    for arm, jobs in zip(runner.arms, runner._finals(tuned), strict=True):
        for job in jobs if arm.seed is None else ():
            drawn.setdefault(job.spec["config"]["training"]["seed"], set()).add(without_rate(job.spec["config"]))
    assert all(len(those) == 1 for those in drawn.values()), "two runs that differ in more than the rate have one seed"
    assert runner.study.runs_of(runner.scale) >= len(finals)


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
    found = record.read(tmp_path / f"{path.stem}.json")
    assert found["failures"] == []
    assert found["figures"]
    assert {claim["verdict"] for claim in found["claims"]} == {"undecided"}
    reasons = [c["reason"] for claim in found["claims"] for c in claim["criteria"]]
    assert not [reason for reason in reasons if re.search(r"\b\w+Error: ", reason)]  # a study says why with ValueError
    page = (tmp_path / f"{path.stem}.html").read_bytes()
    assert len(page) < 2_000_000
    assert str(tmp_path).encode() not in page


# --- what is published ------------------------------------------------------------------------------------------------

REPORTS = ROOT / "reports"
PUBLISHED, UNREADABLE = record.read_folder(REPORTS)
TOLD = (ROOT / ".github" / "STUDIES.md").read_text()
VERDICTS = ("held", "not held", "undecided", "withdrawn", "cannot tell")
# What a reader of the studies found to rest on a grid of learning rates that is too coarse, and re-trained or not:
WITHDRAWN = {
    "lora_plus": {"better", "ratio", "faster"},
    "variants": {"LoRA+-over-lora", "rsLoRA-over-lora"},
    "adalora": {"no-worse"},
    "subspace_overlap": {"start"},
}
CANNOT_TELL = {  # what could not have come out otherwise
    "intruders": {
        "exist",
        "exist-r64",
        "rank",
        "frozen",
        "objective",
        "specific",
        "specific-r1",
        "threshold",
        "detects",
    },
    "variants": {"tie", "rates"},
    "full_finetuning_rank": {"energy", "noise", "weights", "denoised"},
    "intrinsic_dimension": {"released"},
    "learns_less_forgets_less": {"objective", "rank-forgets"},
    "lora_drop": {"par"},
}

each_published = pytest.mark.parametrize("found", PUBLISHED, ids=lambda found: found["name"])


def scope_line(page: str) -> str:
    """What stands right under the title."""
    return html.unescape(re.search(r"</h1>\s*<p class=\"summary\">(.*?)</p>", page, re.S).group(1))


def tally(found) -> list[int]:
    verdicts = [claim["verdict"] for claim in found["claims"]]
    return [verdicts.count(each) for each in VERDICTS]


def test_every_study_is_published():
    assert UNREADABLE == []
    assert {found["name"] for found in PUBLISHED} == {path.stem for path in SCRIPTS}


@each_published
def test_the_line_under_the_title_is_what_its_record_says(found):
    """Read back from the words, number by number, against the config itself."""
    said = scope_line((REPORTS / f"{found['name']}.html").read_text())
    scale, arms = found["scale"], found["arms"]
    config = scale["config"]
    model = re.match(r"Scope: first (\d+ )?of 6 layers of all-MiniLM-L6-v2 \(22.7M parameters when whole\), ", said)
    assert model, said
    assert int(model.group(1) or 1) == config["model"]["num_hidden_layers"]
    assert ("WordNet glosses in 25 classes" in said) == (config["data"]["path"] == "wordnet-classes")
    examples, steps, batch = re.search(
        r"([\d,]+) training examples(?: \([^)]*\))?, ([\d,]+) steps of (\d+) examples", said
    ).groups()
    assert int(examples.replace(",", "")) == config["data"]["max_train_samples"]
    assert (int(steps), int(batch)) == tuple(
        config["training"][key] for key in ("max_steps", "per_device_train_batch_size")
    )
    assert f", {scale['replicates']} seeds, " in said
    for key, words in (("training.max_steps", "steps"), ("data.max_train_samples", "training examples")):
        section, name = key.split(".")
        there = {arm["changes"].get(key, config[section][name]) for arm in arms} - {config[section][name]}
        counts = {n: sum(arm["changes"].get(key) == n for arm in arms) for n in there}
        told = re.findall(rf"([\d,]+) {words} in (\d+) of {len(arms)} arms", said)
        assert {int(n.replace(",", "")): int(count) for n, count in told} == counts
    for key, words in (("model.random_init", "random initial weights"), ("data.random_labels", "random labels")):
        count = sum(bool(arm["changes"].get(key)) for arm in arms)
        assert (f"{words} in {count} of {len(arms)} arms" in said) if count else (words not in said)
    rates = [sorted(rate for rate, _ in each["curve"]) for each in found["tuning"]]
    widest = max(b / a for each in rates for a, b in pairwise(each))
    assert abs(float(re.search(r"grid of factor ([\d.]+),", said).group(1)) - widest) < 0.05  # it has two digits
    assert ("scored on 1,000 test texts" in said) == (scale["test_samples"] == 1000)


@each_published
def test_a_published_record_has_its_scripts_marks(found):
    script = work.script(ROOT / "studies" / f"{found['name']}.py").study
    assert marked(found, script) == found, "draw it again with `lorascope study render`"
    for mark, names in (("withdrawn", WITHDRAWN), ("cannot tell", CANNOT_TELL)):
        there = {claim["name"] for claim in found["claims"] if claim["verdict"] == mark}
        assert there == names.get(found["name"], set())
    page = (REPORTS / f"{found['name']}.html").read_text()
    badges = [page.count(f'<span class="verdict {each.replace(" ", "-")}">') for each in VERDICTS]
    assert badges == tally(found)


def test_the_index_has_the_scope_and_the_verdicts_that_stand():
    page = (REPORTS / "index.html").read_text()
    assert scope_line(page).startswith("Scope: first 3 of 6 layers of all-MiniLM-L6-v2 (22.7M parameters when whole), ")
    together = [sum(counts) for counts in zip(*map(tally, PUBLISHED), strict=True)]
    assert [page.count(f'<span class="verdict {each.replace(" ", "-")}">') for each in VERDICTS] == together
    said = ", ".join(f"{n} {each}" for n, each in zip(together, VERDICTS, strict=True))
    assert f"{sum(together)} claims in {len(PUBLISHED)} studies: {said}." in page
    for found in PUBLISHED:  # each study's own line, in its row
        line = scope_line((REPORTS / f"{found['name']}.html").read_text()).removeprefix("Scope: ")
        assert line in html.unescape(page)
        for claim in found["claims"]:
            assert "mark" not in claim or claim["mark"]["reason"] in html.unescape(page)


def test_the_readme_has_the_scope_above_its_results_and_the_tallies_that_stand():
    line = scope_line((REPORTS / "index.html").read_text())
    assert TOLD.index("# Studies") < TOLD.index(line) < TOLD.index("| study | held |")
    rows = re.findall(r"\]\(../reports/(\w+)\.html\) \|((?: \d+ \|)+)$", TOLD, re.M)
    told = {name: [int(n) for n in counts.split("|") if n.strip()] for name, counts in rows}
    assert told == {found["name"]: tally(found) for found in PUBLISHED if found["scale"]["conclusive"]}
    together = [sum(counts) for counts in zip(*map(tally, PUBLISHED), strict=True)]
    assert f"\n{together[3]} verdicts, on LoRA+, " in TOLD
    assert f" {together[4]} claims cannot tell" in TOLD
    assert "14 %" not in TOLD
