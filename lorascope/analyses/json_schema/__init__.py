"""JSON Schema (2020-12) of what commands write with `--json`.

Records that are dataclasses give their schema by their annotations, so that it cannot fall behind; what is built by
hand is listed here. Objects without `additionalProperties` false have keys that depend on the input.
"""

from lorascope.analyses.base import SCHEMA, analyses
from lorascope.analyses.json_schema.parts import FINDING, SKIPPED, TEXT, Schema, closed, listed

DIALECT = "https://json-schema.org/draft/2020-12/schema"
COMMANDS = ("analyze", "compare", "delta", "dimension", "intruders", "activations", "resize", "trajectory")


def of_analysis(name: str) -> Schema:
    """The schema of one analysis's record, as `Result.to_json` gives it."""
    envelope: dict[str, Schema] = {
        "schema": {"const": SCHEMA}, "schema_note": TEXT, "lorascope": TEXT, "analysis": {"const": name},
        "skipped": listed(SKIPPED), "findings": listed(FINDING),
    }  # fmt: skip
    if name not in COMMANDS:  # of a plug-in, say: what all have
        return {"type": "object", "properties": envelope, "required": list(envelope)}
    from lorascope.analyses.json_schema import of_several, of_weights

    made = getattr(of_weights, name, None) or getattr(of_several, name)
    known, optional = made()
    return closed({**envelope, **known}, optional)


def of_command(name: str) -> Schema:
    """The schema of what `lorascope NAME --json` writes, complete.

    Raises:
        InputError: there is no such analysis.
    """
    analyses.get(name)
    one = of_analysis(name)
    title = {"$schema": DIALECT, "title": f"lorascope {name} --json"}
    if name != "analyze":
        return {**title, **one}
    several = closed({"schema": {"const": SCHEMA}, "schema_note": TEXT, "lorascope": TEXT,
                      "adapters": listed({"$ref": "#/$defs/one"})})  # fmt: skip
    return {**title, "anyOf": [{"$ref": "#/$defs/one"}, several], "$defs": {"one": one}}


def of_all() -> Schema:
    """One document for the output of every command that analyses."""
    definitions = {name: of_analysis(name) for name in COMMANDS if name in analyses.names()}
    return {
        "$schema": DIALECT, "title": "lorascope --json",
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in definitions], "$defs": definitions,
    }  # fmt: skip
