"""Findings as SARIF 2.1.0 (OASIS, 2020), which CI systems show next to the code.

One run; every rule that LS codes name is in the driver, so that a result's `ruleIndex` holds for any version of the
output. A finding is about a file and modules in it: the file is its physical location, the modules logical ones. Of an
analysis of several files the first one is the location, the others are related ones.
"""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

import lorascope
from lorascope.analyses.rules import OTHER, RULES, Rule
from lorascope.blocks import Finding

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
MAX_MODULES = 100  # logical locations of one result
Found = tuple[Sequence[str], Sequence[Finding]]  # the paths of what was analysed together, and what was found
_ORDER = {code: index for index, code in enumerate(RULES)}


def sarif(found: Sequence[Found]) -> dict[str, Any]:
    """The log of one analysis or more."""
    results = [_result(paths, finding) for paths, findings in found for finding in findings]
    driver = {
        "name": "lorascope",
        "semanticVersion": lorascope.__version__,
        "rules": [_rule(rule) for rule in RULES.values()],
    }
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.code,
        "name": "".join(part.capitalize() for part in rule.name.split("-")),
        "shortDescription": {"text": rule.about},
        "defaultConfiguration": {"level": rule.severity},
    }


def _result(paths: Sequence[str], finding: Finding) -> dict[str, Any]:
    code = finding.rule if finding.rule in RULES else OTHER.code
    modules = finding.modules or ((finding.module,) if finding.module else ())
    text = f"{finding.module}: {finding.text}" if finding.module else finding.text
    message = ". ".join(part.rstrip(".") for part in (text, finding.action, finding.command) if part)
    location, *others = [_location(path) for path in paths]
    if modules:
        location["logicalLocations"] = [
            {"fullyQualifiedName": name, "kind": "module"} for name in modules[:MAX_MODULES]
        ]
    result = {
        "ruleId": code, "ruleIndex": _ORDER[code], "level": finding.severity, "message": {"text": message},
        "locations": [location],
    }  # fmt: skip
    return result | {"relatedLocations": others} if others else result


def _location(path: str) -> dict[str, Any]:
    return {"physicalLocation": {"artifactLocation": {"uri": _uri(path)}}}


def _uri(path: str) -> str:
    """A path as a URI reference: relative as it is, absolute as file:."""
    pure = PurePath(path or ".")
    text = quote(pure.as_posix())
    return f"file://{text if text.startswith('/') else '/' + text}" if pure.is_absolute() else text
