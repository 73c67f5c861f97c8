"""Every study in studies/ states what the engine and the page need, at every scale; nothing is trained."""

import ast
from itertools import pairwise
from pathlib import Path

import pytest

from lorascope.study import Control, work
from lorascope.study.runner import _distinct
from lorascope.training.config import parse

STUDIES = Path(__file__).parents[2] / "studies"
SCRIPTS = sorted(STUDIES.glob("*.py"))


@pytest.fixture(params=SCRIPTS, ids=lambda path: path.stem)
def script(request):
    return request.param


def config_of(scale, arm):
    values = {section: dict(keys) for section, keys in scale.config.items()}
    for path, value in arm.changes.items():
        section, _, key = path.partition(".")
        values.setdefault(section, {})[key] = value
    return parse(values, str(arm.labels))


def test_the_script_says_how_it_is_run(script):
    study = work.script(script).study
    assert study.name == script.stem
    assert f"python studies/{script.name} --scale small" in ast.get_docstring(ast.parse(script.read_text()))
    assert set(study.scales) == {"smoke", "small", "full"}


def test_every_arm_can_be_trained(script):
    study = work.script(script).study
    for scale in study.scales.values():
        arms = tuple(study.arms(scale))
        _distinct(arms)
        for arm in arms:
            config_of(scale, arm)
            assert list(arm.learning_rates) == sorted(set(arm.learning_rates))


def test_a_sweep_has_five_rates_no_more_than_a_factor_of_four_apart(script):
    study = work.script(script).study
    for arm in study.arms(study.scales["small"]):
        rates = arm.learning_rates
        if len(rates) > 1:  # of one, what does not learn needs no search
            assert len(rates) >= 5, arm.labels
            assert max(b / a for a, b in pairwise(rates)) < 4, arm.labels


def test_every_claim_has_a_source_a_criterion_and_a_control(script):
    study = work.script(script).study
    assert len({claim.name for claim in study.claims}) == len(study.claims)
    for claim in study.claims:
        assert claim.source, claim.name
        assert claim.criteria, claim.name
        assert claim.controls, claim.name
        assert all(isinstance(each, Control) for each in claim.controls)
        assert not claim.text.endswith("."), claim.name


def test_a_measure_is_found_by_a_worker(script):
    module = work.script(script)
    for measure in module.study.measures:
        assert getattr(module, measure.function.__name__) is measure.function
