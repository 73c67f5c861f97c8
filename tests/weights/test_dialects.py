"""Every dialect of single files: one format claims it, every key is accounted for, damage ends in a sentence."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights.formats.base import Bundle, Ledger, formats
from lorascope.weights.io import read
from lorascope.weights.tensors import InMemory
from tests.weights import (
    examples_diffusers,
    examples_kohya,
    examples_loralib,
    examples_lycoris,
    examples_torchtune,
)
from tests.weights.example import Example

EXAMPLES = [
    (module.__name__.rpartition("_")[2], example)
    for module in (examples_diffusers, examples_kohya, examples_loralib, examples_lycoris, examples_torchtune)
    for example in module.examples()
]
by_example = pytest.mark.parametrize(("owner", "example"), EXAMPLES, ids=[example.name for _, example in EXAMPLES])


def bundle_of(example: Example, tmp_path) -> Bundle:
    return Bundle(tmp_path, {key: InMemory(value) for key, value in example.tensors.items()}, example.metadata)


@by_example
def test_exactly_one_format_claims_it(owner, example, tmp_path):
    bundle = bundle_of(example, tmp_path)
    assert [name for name, format in formats.items() if format.claims(bundle)] == [owner]


@by_example
def test_every_key_is_accounted_for(owner, example, tmp_path):
    bundle = bundle_of(example, tmp_path)
    ledger = Ledger(bundle.tensors)
    formats.get(owner).read(bundle, ledger)
    assert ledger.left() == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_in_a_sentence(data, tmp_path_factory):
    """Keys lost, renamed and added, shapes and dtypes changed: an adapter whose updates work, or an InputError."""
    _, example = data.draw(st.sampled_from(EXAMPLES))
    tensors = dict(example.tensors)
    for _ in range(min(data.draw(st.integers(1, 3)), len(tensors) - 1)):
        key = data.draw(st.sampled_from(sorted(tensors)))
        value = tensors.pop(key)
        match data.draw(st.sampled_from(["lose", "rename", "reshape", "steal", "spoil"])):
            case "rename":
                other = data.draw(st.sampled_from(sorted(example.tensors)))
                key = data.draw(
                    st.sampled_from([other, key + "x", key.replace(".", "_", 1), "base_model.model." + key])
                )
            case "reshape":
                shape = tuple(data.draw(st.lists(st.integers(0, 3), max_size=5)))
                value = np.ones(shape, data.draw(st.sampled_from([np.float32, np.float16, np.float64])))
            case "steal":
                value = tensors[data.draw(st.sampled_from(sorted(tensors)))]
            case "spoil":
                value = np.full_like(value, data.draw(st.sampled_from([np.nan, np.inf, 0.0, -1.0])))
            case _:
                continue
        tensors[key] = value
    folder = tmp_path_factory.mktemp("damaged")
    try:
        adapter = read(Example("damaged", tensors, {}, example.metadata).write(folder))
    except InputError as error:
        refusal = str(error)
    else:
        refusal = None
    if refusal is not None:
        assert refusal.endswith(".")
        assert "\n" not in refusal
        return
    for update in adapter.updates.values():
        if not update.needs_base:
            with np.errstate(all="ignore"):
                assert dense(update.delta()).shape == update.shape
