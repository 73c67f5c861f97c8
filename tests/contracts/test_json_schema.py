"""What analyses write against the schema that `lorascope schema` prints, and the schema against its dialect."""

import json

import jsonschema
import numpy as np
import pytest

from lorascope.analyses import analyze, delta, json_schema
from lorascope.analyses.base import analyses
from lorascope.weights import io
from tests.analyses.test_delta import checkpoint, low_rank
from tests.cli.command import here, refused
from tests.contracts.test_analyses import inputs_of

COMMANDS = [name for name in json_schema.COMMANDS if name in analyses.names()]


def validator(schema):
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def plain(record):
    """As a reader of the file has it: lists for tuples, no NaN."""
    return json.loads(json.dumps(record, allow_nan=False))


@pytest.mark.parametrize("name", COMMANDS)
def test_each_record_is_what_its_schema_says(name, lora_folder):
    analysis = analyses.get(name)
    record = plain(analysis.run(*inputs_of(analysis, io.read(lora_folder))).to_json())
    check = validator(json_schema.of_command(name))
    check.validate(record)
    with pytest.raises(jsonschema.ValidationError):
        check.validate({key: value for key, value in record.items() if key != "findings"})
    with pytest.raises(jsonschema.ValidationError):
        check.validate(record | {"another_key": 1})


def test_delta_with_vectors_and_an_adapters_share(rng):
    base = rng.standard_normal((32, 24))
    before = checkpoint(layers__0__q__weight=base, layers__0__norm__weight=np.ones(24))
    after = checkpoint(
        layers__0__q__weight=base + low_rank(rng, 32, 24, [1.0, 0.5]), layers__0__norm__weight=np.full(24, 1.1)
    )
    validator(json_schema.of_command("delta")).validate(plain(delta.run(before, after).to_json()))


def test_analyze_with_the_base_and_of_several(lora_folder):
    adapter = io.read(lora_folder)
    _, base = inputs_of(analyses.get("intruders"), adapter)
    check = validator(json_schema.of_command("analyze"))
    check.validate(plain(analyze.run(adapter, base=base).to_json()))
    check.validate(json.loads(here("analyze", lora_folder, lora_folder, "--json", "-").stdout))


def test_the_command_prints_them(tmp_path):
    whole = json.loads(here("schema").stdout)
    assert whole["$schema"].endswith("2020-12/schema")
    assert set(COMMANDS) == set(whole["$defs"])
    assert json.loads(here("schema", "resize").stdout)["properties"]["analysis"] == {"const": "resize"}
    assert "analyse" in refused(here("schema", "analyse"))


def test_the_page_of_checks_has_every_rule():
    """FINDINGS.md is made by a run of some minutes; a rule that is new is in it before that."""
    from lorascope.analyses.rules import RULES
    from tests.calibration.findings import PAGE

    text = PAGE.read_text(encoding="utf-8")
    for rule in RULES.values():
        assert f"| {rule.code} | {rule.name} | {rule.severity} | {rule.about} |" in text
