"""Keys: what changes a result changes the key, and nothing else does."""

import pytest
import torch

from lorascope.study import store
from lorascope.study.store import Job, fingerprint
from lorascope.training import run
from lorascope.training.config import parse, resolved
from tests.study.toy import CONFIG


def train_job(**changes):
    values = {section: dict(keys) for section, keys in CONFIG.items()}
    for path, value in changes.items():
        section, _, key = path.partition("__")
        values.setdefault(section, {})[key] = value
    return Job({"kind": "train", "config": resolved(parse(values)), "test_split": None})


def test_what_changes_a_run_changes_its_key():
    keys = {
        train_job().key,
        train_job(optim__learning_rate=2e-3).key,
        train_job(training__seed=1).key,
        train_job(method__rank=4).key,
        train_job(data__max_length=32).key,
        train_job(model__name="other").key,
        Job({**train_job().spec, "test_split": "test"}).key,
    }
    assert len(keys) == 7


def test_what_does_not_keeps_it():
    assert train_job(training__device="auto").key == train_job().key
    assert train_job(training__num_threads=3).key == train_job().key
    assert train_job(optim__learning_rate=1e-3).key == train_job().key  # the default, written out


def test_other_versions_are_other_runs(monkeypatch):
    before = train_job().key
    monkeypatch.setattr(store, "RECIPE", store.RECIPE + 1)
    assert train_job().key != before


def one(x):
    """Says something."""
    return two(x)  # and this


def two(x):
    return x + 1


def test_a_measure_has_the_fingerprint_of_its_code(monkeypatch):
    before = fingerprint(one)
    monkeypatch.setitem(globals(), "two", three)
    assert fingerprint(one) != before  # of what it calls, too
    monkeypatch.undo()
    assert fingerprint(one) == before


def three(x):
    return x + 2


def test_a_config_trains_what_it_trained(tiny_bert, labelled, tmp_path):
    """Raise `store.RECIPE` where this fails for a good reason: runs in people's stores are then no longer these."""
    config = {section: dict(keys) for section, keys in CONFIG.items()}
    config["model"]["name"], config["data"]["path"] = str(tiny_bert), str(labelled)
    config["optim"] = {"learning_rate": 3e-2}
    config["training"] |= {"max_steps": 30, "measure_cost": False}
    torch.set_num_threads(1)
    finished = run.train(parse(config), tmp_path / "run")
    # another processor rounds otherwise: 1e-4 of a loss that the first step changes by a hundred times as much
    assert store.RECIPE == 1
    assert finished.score.loss == pytest.approx(LOSS, rel=1e-4)


LOSS = 0.7792521
