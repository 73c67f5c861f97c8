"""Every tuner of PEFT's and every format has its row in FORMATS.md, and the page is what the readers declare."""

import dataclasses
from collections import Counter

import pytest

from lorascope.updates.base import kinds
from lorascope.weights.formats.base import formats
from lorascope.weights.formats.peft.family import families
from lorascope.weights.formats.peft.recognise import all_families, family_of_type, known_fields
from tests.contracts.formats_page import PAGE, declared, page

peft = pytest.importorskip("peft")

ROWS = {row.peft: row for rows in declared().values() for row in rows if row.peft}
# What a LoraConfig's field says is no option of ΔW's meaning: where the layers are, how they were trained or started.
PLAIN = frozenset(
    """
    task_type peft_type auto_mapping peft_version base_model_name_or_path revision inference_mode r target_modules
    exclude_modules lora_alpha lora_dropout fan_in_fan_out bias modules_to_save layers_to_transform layers_pattern
    rank_pattern alpha_pattern megatron_config megatron_core runtime_config ensure_weight_tying qalora_group_size
    """.split()  # noqa: SIM905
)


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run `python -m tests.contracts.formats_page`"


def test_every_tuner_of_peft_is_read_or_refused_by_name():
    """PEFT's own registry: a release with a new tuner fails here until it has a family and a row."""
    types = {str(getattr(type, "value", type)) for type in peft.mapping.PEFT_TYPE_TO_TUNER_MAPPING}
    types |= {type.value for type in peft.PeftType}
    assert {type for type in types if family_of_type(type) is None} == set()
    assert {key for key in ROWS if "." not in key} >= types


def test_every_option_of_loras_is_known():
    """PEFT's own fields: an option of a new release fails here until a row says what it does to ΔW."""
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields - known_fields() == set()
    assert {field for field in fields - PLAIN if f"LORA.{field}" not in ROWS} == set()


def test_every_format_and_family_has_a_row():
    """Or more, in the module that registers it."""
    owners = set(declared())
    readers = [*formats.built_in(), *families.items()]
    without = {type(reader).__module__ for _, reader in readers} - owners
    assert without == {"lorascope.weights.formats.peft.format"}  # PEFT's rows are its families'


def test_no_row_is_there_twice():
    names = Counter((module, row.name, row.peft) for module, rows in declared().items() for row in rows)
    assert [name for name, count in names.items() if count > 1] == []
    keys = Counter(row.peft for rows in declared().values() for row in rows if row.peft)
    assert [key for key, count in keys.items() if count > 1] == []


@pytest.mark.parametrize("family", all_families(), ids=lambda family: type(family).__name__)
def test_a_row_says_what_its_kinds_need(family):
    """A type with kinds of update is read; one whose every kind needs the base says so."""
    for type, of_type in family.peft_types.items():
        row = ROWS[type]
        assert bool(of_type) == bool(row.verified_against)
        if of_type and all(kinds.get(kind).needs_base for kind in of_type):
            assert "ΔW" in row.base
