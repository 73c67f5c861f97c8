"""The contract of a format, over every registered one and every example file in `tests/weights/examples_*.py`."""

import json

import numpy as np
import pytest

from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.files import open_tensors
from lorascope.weights.formats.base import Bundle, Ledger, formats
from lorascope.weights.io import _open, read, write
from lorascope.weights.tensors import Combined
from tests.weights.example import check_roles
from tests.weights.examples import builders, case_id, cases


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """Each example, built once for all tests."""
    kept = {}

    def get(builder):
        if builder not in kept:
            kept[builder] = builder(tmp_path_factory.mktemp(builder.__name__))
        return kept[builder]

    return get


def adapter_and_base(example):
    base = open_checkpoint(example.base) if example.base else None
    return read(example.path, base), base


def delta_of(update, base):
    """ΔW (d_out, d_in) in float64, multiplied out."""
    return dense(update.delta(base.of(update).read() if base is not None and update.needs_base else None))


def test_every_format_has_an_example():
    assert {name for name, several in builders().items() if several} == set(formats.names())


@pytest.mark.parametrize(("format", "builder"), cases(), ids=case_id)
def test_reading_gives_the_truth(format, builder, built):
    example = built(builder)
    adapter, base = adapter_and_base(example)
    assert adapter.source.format == format
    assert set(adapter.updates) == set(example.deltas)
    for name, expected in example.deltas.items():
        update = adapter.updates[name]
        check_roles(update)
        found = delta_of(update, base)
        assert found.dtype == np.float64
        np.testing.assert_allclose(found, expected, rtol=0, atol=example.tolerance, err_msg=name)
        if not update.needs_base:
            assert tuple(found.shape) == update.shape


@pytest.mark.parametrize(("format", "builder"), cases(), ids=case_id)
def test_every_key_is_in_one_bucket(format, builder, built):
    example = built(builder)
    bundle, _ = _open(example.path)
    ledger = Ledger(bundle.tensors)
    parsed = formats.get(format).read(bundle, ledger, open_checkpoint(example.base) if example.base else None)
    assert ledger.left() == []
    assert example.skipped <= {item.name for item in ledger.skipped}
    assert json.loads(json.dumps(dict(parsed.settings))) is not None  # settings are JSON types only


@pytest.mark.parametrize(("format", "builder"), cases(), ids=case_id)
def test_only_one_format_claims_it(format, builder, built):
    bundle, _ = _open(built(builder).path)
    assert [name for name, other in formats.items() if other.claims(bundle)] == [format]


@pytest.mark.parametrize(("format", "builder"), cases(), ids=case_id)
def test_a_key_nobody_knows_is_an_error_that_names_it(format, builder, built):
    example = built(builder)
    bundle, _ = _open(example.path)
    base = open_checkpoint(example.base) if example.base else None
    stranger = "lora_unheard_of.0.thing"
    tensors = {**bundle.tensors, stranger: next(iter(bundle.tensors.values()))}
    ledger = Ledger(tensors)
    try:
        formats.get(format).read(Bundle(bundle.path, tensors, bundle.metadata, bundle.config), ledger, base)
        named = ledger.left()
    except InputError as error:
        named = [str(error)]
    assert any(stranger in text for text in named)


@pytest.mark.parametrize(("format", "builder"), cases(), ids=case_id)
def test_writing_and_reading_again_gives_the_same(format, builder, built, tmp_path):
    example = built(builder)
    adapter, base = adapter_and_base(example)
    try:
        files = write(adapter, tmp_path / "one", format)
    except InputError as error:
        pytest.skip(str(error))
    again, _ = read(tmp_path / "one", base), write(adapter, tmp_path / "two", format)
    for file in files:
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    assert set(again.updates) == set(adapter.updates)
    assert set(again.saved) == set(adapter.saved)
    for name, update in adapter.updates.items():
        other = again.updates[name]
        assert {role: stored.dtype for role, stored in other.roles.items()} == {
            role: stored.dtype for role, stored in update.roles.items()
        }
        # The factors are copied bit by bit; only the scale may pass through a division. What a reader computed from
        # several tensors in float64 is rounded once to their dtype, float32.
        wanted, computed = delta_of(update, base), any(isinstance(role, Combined) for role in update.roles.values())
        rounding = 2.0**-21 * np.abs(wanted).max() if computed else 1e-15
        np.testing.assert_allclose(delta_of(other, base), wanted, rtol=1e-14, atol=rounding, err_msg=name)
    for name, stored in adapter.saved.items():
        np.testing.assert_array_equal(again.saved[name].read(), stored.read())
    weights = next(file for file in files if file.suffix == ".safetensors")
    assert open_tensors(weights).metadata.get("format") == ("lorascope" if format == "lorascope" else "pt")
