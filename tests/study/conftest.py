"""A toy study on a tiny model, run whole."""

from pathlib import Path

import pytest

from lorascope.study import work
from lorascope.study.local import Local
from lorascope.study.runner import Runner
from lorascope.study.store import Store
from tests.training.conftest import labelled, tiny_bert  # noqa: F401  the models of the training tests

TOY = Path(__file__).parent / "toy.py"


@pytest.fixture
def toy(tiny_bert, labelled, tmp_path):  # noqa: F811
    """A function: a runner of the toy study, on a store in the test's folder."""

    def runner(scale="smoke", store=None, engine=None, overrides=()):
        study = work.script(TOY).study
        named = [f"model.name={tiny_bert}", f"data.path={labelled}", *overrides]
        return Runner(study, TOY, scale, store or Store(tmp_path / "store"), engine or Local(), overrides=named)

    return runner
