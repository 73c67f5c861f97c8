"""A toy study on a tiny model, run whole."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from lorascope.study import work
from lorascope.study.local import Local
from lorascope.study.runner import Runner
from lorascope.study.store import Store

TOY = Path(__file__).parent / "toy.py"


@pytest.fixture(scope="session")
def toy_in(tiny_bert, labelled):
    """A function: a runner of the toy study, on a store in a folder."""

    def runner(folder, scale="smoke", store=None, engine=None, overrides=()):
        study = work.script(TOY).study
        named = [f"model.name={tiny_bert}", f"data.path={labelled}", *overrides]
        return Runner(study, TOY, scale, store or Store(folder / "store"), engine or Local(), overrides=named)

    return runner


@pytest.fixture
def toy(toy_in, tmp_path):
    """A function: a runner of the toy study, on a store in the test's folder, which is empty at first."""
    return lambda *arguments, **options: toy_in(tmp_path, *arguments, **options)


@dataclass(frozen=True)
class Finished:
    """The toy study, run once for all tests that only read what it gives."""

    folder: Path
    runs: pd.DataFrame
    strata: dict
    tuned: list

    def into(self, folder: Path) -> None:
        """Put its store into a test's folder: what is trained there is taken from it."""
        shutil.copytree(self.folder / "store", folder / "store")


@pytest.fixture(scope="session")
def finished(toy_in, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    results, tuned = toy_in(folder).run()
    return Finished(folder, results.runs, results.strata, tuned)
