"""JSON Schema (2020-12) of what commands write with `--json`.

Records that are dataclasses give their schema by their annotations, so that it cannot fall behind; what is built by
hand is listed here. Objects without `additionalProperties` false have keys that depend on the input.
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lorascope.analyses.base import SCHEMA, analyses
from lorascope.analyses.delta.matrix import ENERGY_RANKS, MatrixDelta, VectorDelta, ratio_of
from lorascope.analyses.resize.measure import ResizedModule
from lorascope.analyses.rules import RULES
from lorascope.analyses.spectrum.module import ModuleSpectrum
from lorascope.weights.adapter import Source

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]
ANY: Schema = {}
OBJECT: Schema = {"type": "object"}
OBJECTS: Schema = {"type": "array", "items": OBJECT}
TEXT, COUNT, NUMBER = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": ["number", "null"]}
COMMANDS = ("analyze", "compare", "delta", "dimension", "intruders", "activations", "resize", "trajectory")


def closed(properties: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """An object of exactly these keys, the optional ones as they come."""
    more = dict(optional or {})
    return {
        "type": "object", "properties": {**properties, **more}, "required": list(properties),
        "additionalProperties": False,
    }  # fmt: skip


def listed(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def of(hint: Any) -> Schema:
    """The schema of an annotation: plain types, unions, tuples, mappings, literals, dataclasses."""
    origin, arguments = get_origin(hint), get_args(hint)
    plain = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
    if hint in plain:
        return {"type": plain[hint]}
    if origin in (Union, types.UnionType):
        return {"anyOf": [of(each) for each in arguments]}
    if origin is Literal:
        return {"enum": list(arguments)}
    if origin in (tuple, list):
        if arguments[1:] == (...,) or origin is list:
            return listed(of(arguments[0]))
        return {"type": "array", "prefixItems": [of(each) for each in arguments], "minItems": len(arguments),
                "maxItems": len(arguments)}  # fmt: skip
    if dataclasses.is_dataclass(hint):
        return closed(fields(hint))
    return OBJECT if origin is not None and issubclass(origin, Mapping) else ANY


def fields(cls: Any) -> dict[str, Schema]:
    hints = get_type_hints(cls)
    return {field.name: of(hints[field.name]) for field in dataclasses.fields(cls)}


FINDING = closed({
    "severity": {"enum": ["error", "warning", "note"]}, "rule": {"enum": list(RULES)},
    "rule_name": {"enum": [rule.name for rule in RULES.values()]}, "module": {"type": ["string", "null"]},
    "modules": listed(TEXT), "text": TEXT, "action": {"type": ["string", "null"]},
    "command": {"type": ["string", "null"]},
})  # fmt: skip
SKIPPED = closed({"name": TEXT, "reason": TEXT}, {"stage": TEXT, "adapter": TEXT})
RANK = {"type": ["integer", "null"], "minimum": 0}


def _module() -> Schema:
    known = fields(ModuleSpectrum)
    known.pop("energy_ranks")
    ranks = {f"energy_rank_{share}": RANK for share in (0.9, 0.95, 0.99)}
    return closed({**known, **ranks, "energy_share": NUMBER, "against_base": or_null(OBJECT)})


def _matrix() -> Schema:
    known = fields(MatrixDelta)
    known.pop("energy_ranks")
    known.pop("energy_ranks_of_null")
    ranks = dict.fromkeys(ENERGY_RANKS, RANK) | {ratio_of(key): NUMBER for key in ENERGY_RANKS}
    return closed({**known, "energy_share": NUMBER}, ranks)


def _records() -> dict[str, tuple[dict[str, Schema], dict[str, Schema]]]:
    """By analysis: the keys that its record always has, and those that it may have."""
    summary = closed({
        "modules": COUNT, "frobenius_norm": NUMBER, "median_stable_rank": NUMBER, "median_effective_rank": NUMBER,
        "median_rank_utilisation": NUMBER, "uniform_rank_0.95": RANK, "uniform_rank_0.99": RANK,
    })  # fmt: skip
    resized = closed({**fields(ResizedModule), "parameters": COUNT, "error_total": NUMBER})
    base = {"type": ["string", "null"]}
    return {
        "analyze": (
            {"source": closed({**fields(Source), "settings": OBJECT, "training": OBJECT}),
             "base": base, "summary": summary,
             "modules": listed(_module()), "notes": listed(TEXT), "method_specific": OBJECT},
            {"against_base": OBJECT, "like": OBJECT},
        ),
        "compare": (
            {"adapters": OBJECTS, "base": base, "pairs": listed(closed({
                "a": TEXT, "b": TEXT, "modules": or_null(OBJECTS), "summary": OBJECT})), "sampled": or_null(OBJECT),
             "matrices": OBJECT, "clusters": or_null(OBJECT), "groups_by_initialisation": OBJECT,
             "groups_by_label": or_null(OBJECT)},
            {},
        ),
        "delta": (
            {"base": OBJECT, "tuned": OBJECT, "adapters": OBJECTS, "top": RANK, "summary": OBJECT,
             "matrices": listed(_matrix()), "vectors": listed(closed(fields(VectorDelta))),
             "extracted": or_null(closed({"rank": COUNT}))},
            {},
        ),
        "resize": (
            {"source": closed(fields(Source)), "kind": TEXT, "dtype": base, "summary": OBJECT,
             "plans": listed(closed({"plan": TEXT, "modules": listed(resized)}))},
            {},
        ),
        "dimension": (
            {"texts": OBJECT, "baseline": OBJECT, "modules": base, "summary": OBJECT, "full": OBJECTS,
             "by_type": OBJECT, "spectra": OBJECTS, "splits": OBJECTS, "adapters": OBJECTS,
             "truncated_adapter": or_null(OBJECT), "runs": OBJECTS, "families": OBJECTS, "axis": OBJECTS,
             "diverged": OBJECTS, "search": or_null(OBJECT)},
            {},
        ),
        "intruders": (
            {"k": COUNT, "epsilon": {"type": "number"}, "summary": OBJECT, "counts": ANY, "modules": OBJECTS,
             "intervention": or_null(OBJECT), "cache": or_null(OBJECT)},
            {"base": ANY, "tuned": ANY},
        ),
        "activations": ({"source": ANY, "summary": OBJECT, "modules": OBJECTS, "cka": OBJECTS}, {}),
    }  # fmt: skip


def of_analysis(name: str) -> Schema:
    """The schema of one analysis's record, as `Result.to_json` gives it."""
    envelope: dict[str, Schema] = {
        "schema": {"const": SCHEMA}, "schema_note": TEXT, "lorascope": TEXT, "analysis": {"const": name},
        "skipped": listed(SKIPPED), "findings": listed(FINDING),
    }  # fmt: skip
    records = _records()
    if name not in records:  # an analysis that is not listed here: what all have
        return {"type": "object", "properties": envelope, "required": list(envelope)}
    known, optional = records[name]
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
