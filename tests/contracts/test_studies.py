"""Every study script keeps what a study promises, before a single run of it."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lorascope.study import Control, Study, work
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
    assert f"studies/{path.name}" in work.script(path).__doc__, "the docstring shows no command"
    assert 'if __name__ == "__main__":\n    study.main()\n' in path.read_text()


@each_script
def test_every_claim_can_hold_and_can_fail(study):
    names = [claim.name for claim in study.claims]
    assert names
    assert len(set(names)) == len(names)
    for claim in study.claims:
        assert claim.text.strip()
        assert claim.source.strip(), f"{claim.name} has no source"
        assert claim.criteria, f"{claim.name} has no criterion"
        assert claim.controls, f"{claim.name} has no control"
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
    from lorascope.study import record

    found = record.read(tmp_path / f"{path.stem}.json")
    assert found["failures"] == []
    assert found["figures"]
    assert {claim["verdict"] for claim in found["claims"]} == {"undecided"}
    reasons = [c["reason"] for claim in found["claims"] for c in claim["criteria"]]
    assert not [reason for reason in reasons if re.search(r"\b\w+Error: ", reason)]  # a study says why with ValueError
    page = (tmp_path / f"{path.stem}.html").read_bytes()
    assert len(page) < 2_000_000
    assert str(tmp_path).encode() not in page
