"""PEFT against everything of ours that computes the same: each draw is one model, one method, one set of options."""

from collections import Counter

import pytest

from lorascope.errors import InputError
from tests.differential import own
from tests.differential.agree import agree
from tests.differential.draws import draw

pytest.importorskip("peft")
FEW, MANY = 30, 300


def check(seeds, tmp_path) -> Counter:
    """How often each thing was checked. The first draw that fails is printed as a script."""
    checked: Counter = Counter()
    for seed in seeds:
        case = draw(seed)
        try:
            found = agree(case, tmp_path / str(seed))
        except Exception as error:
            pytest.fail(f"{type(error).__name__}: {error}\n\n{case.script()}")
        checked.update(
            ["refused by PEFT"] if found is None else [f"{key}: {value[:7]}" for key, value in found.items()]
        )
    return checked


def test_few_draws(tmp_path):
    checked = check(range(FEW), tmp_path)
    assert checked["merge: merged"] > FEW / 3
    assert checked["resize: resized"] > FEW / 4


@pytest.mark.slow
def test_many_draws(tmp_path):
    checked = check(range(FEW, FEW + MANY), tmp_path)
    print(dict(checked))
    assert checked["merge: merged"] > MANY / 2


def check_own(seeds, tmp_path) -> Counter:
    """The same for runs of our own."""
    checked: Counter = Counter()
    for seed in seeds:
        case = own.draw(seed)
        try:
            found = own.agree(case, tmp_path / f"own-{seed}")
        except Exception as error:
            if isinstance(error, InputError) and own.refusal(case, error):
                checked["refused before training"] += 1
                continue
            lines = (
                "from pathlib import Path",
                "from tempfile import mkdtemp",
                "from tests.differential import own",
                "",
            )
            script = "\n".join([*lines, f"own.agree({case!r}, Path(mkdtemp()))"])
            pytest.fail(f"{type(error).__name__}: {error}\n\n{script}")
        checked.update(key for key, value in found.items() if not isinstance(value, str))
    return checked


def test_few_runs_of_our_own(tmp_path):
    checked = check_own(range(10), tmp_path)
    assert checked["merged"] >= 7
    assert checked["PEFT"] >= 2


@pytest.mark.slow
def test_many_runs_of_our_own(tmp_path):
    checked = check_own(range(10, 90), tmp_path)
    print(dict(checked))
    assert checked["merged"] > 60


@pytest.fixture(autouse=True)
def quiet():
    """transformers' words about tiny random models, here and only here."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)
