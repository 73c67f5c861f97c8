"""Every registered method learns the packaged task."""

import pytest

from lorascope.adapt.method import methods
from tests.training.recipes import RECIPES, accuracy

PROBE = 0.756  # logistic regression on the frozen encoder's features, C chosen on held-out texts (the quickstart)


def test_every_method_has_its_recipe():
    assert sorted(RECIPES) == sorted(methods.names())


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_it_ends_above_the_frozen_baseline(name, tmp_path):
    assert accuracy(name, tmp_path / "run")["accuracy"] > PROBE
