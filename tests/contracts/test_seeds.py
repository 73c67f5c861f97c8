"""The seed of `inject` is all that a method's start depends on, and a test's id all that its draws from torch do."""

import pytest
import torch

from lorascope.adapt.inject import inject
from tests.conftest import seed_of
from tests.contracts import test_methods, test_whole_methods

CASES = [
    pytest.param(module, *case.values, id=case.id)
    for module, cases in ((test_methods, test_methods.EVERY), (test_whole_methods, test_whole_methods.CASES))
    for case in cases
]


@pytest.mark.parametrize(("module", "name", "place"), CASES)
def test_the_seed_is_all_that_a_start_depends_on(module, name, place, monkeypatch):
    """Whatever state torch's own generator is in once the model is there."""
    states = iter((1, 2))

    def inject_from_another_state(*arguments, **options):
        torch.manual_seed(next(states))
        return inject(*arguments, **options)

    monkeypatch.setattr(module, "inject", inject_from_another_state)
    first, again = (module.adapted(name, place, seed=3).state_dict() for _ in range(2))
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("draws", [1, 2])
def test_torchs_generator_starts_from_the_tests_id(draws, request):
    assert torch.initial_seed() == seed_of(request.node.nodeid)
    torch.manual_seed(draws)  # which the next test does not see
