"""The public functions spell the keywords of the analyses that they run, with the same defaults, so that editors show
them."""

import inspect
from dataclasses import fields

import pytest

import lorascope as ls
from lorascope.adapt.inject import inject
from lorascope.analyses.base import analyses
from lorascope.training.activations import Sampling
from lorascope.training.given import Given

RENAMED = {("compare", "named_groups"): "groups"}
# What a function works out by itself, from what it takes instead.
WORKED_OUT = {
    "delta": {"place": "device"},
    "dimension": {"prior": "runs", "texts": "runs"},
}
# A keyword whose default is another, and why.
OTHER_DEFAULT = {
    ("resize", "build"): "None builds where there is one rule, which `run` is told",
}
FUNCTIONS = ("analyze", "compare", "delta", "intruders", "resize", "trajectory", "dimension", "activations")


def keywords(function) -> dict:
    return {name: one for name, one in inspect.signature(function).parameters.items() if one.kind is one.KEYWORD_ONLY}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_keywords_and_defaults_are_the_analysiss_own(name):
    offered = inspect.signature(getattr(ls, name)).parameters
    worked_out = WORKED_OUT.get(name, {})
    for key, one in keywords(analyses.get(name).run).items():
        if key in worked_out:
            assert key not in offered
            assert worked_out[key] in offered
            continue
        mine = offered[RENAMED.get((name, key), key)]
        if OTHER_DEFAULT.get((name, key)):
            assert mine.default != one.default
        elif callable(one.default) and one.default is not iter:
            assert callable(mine.default)
        else:
            assert mine.default == one.default, key


@pytest.mark.parametrize("name", FUNCTIONS)
def test_no_keyword_is_hidden(name):
    kinds = {one.kind for one in inspect.signature(getattr(ls, name)).parameters.values()}
    assert inspect.Parameter.VAR_KEYWORD not in kinds


@pytest.mark.parametrize("name", ["trajectory", "dimension", "activations"])
def test_whatever_describes_the_data_of_another_trainer_is_a_keyword(name):
    offered = keywords(getattr(ls, name))
    assert {each.name for each in fields(Given)} <= offered.keys()
    assert {offered[each.name].default for each in fields(Given)} == {None}


def test_sampling_is_spelt_out():
    offered = keywords(ls.activations)
    assert {each.name: each.default for each in fields(Sampling)} == {
        each.name: offered[each.name].default for each in fields(Sampling)
    }


def test_what_is_common_to_all_methods_is_a_keyword():
    offered, known = keywords(ls.inject), keywords(inject)
    assert known.keys() - offered.keys() == {"targets"}  # by PEFT's name: target_modules
    assert all(offered[name].default == known[name].default for name in known.keys() & offered.keys())
