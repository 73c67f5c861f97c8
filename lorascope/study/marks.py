"""Verdicts that were taken back: a claim of a script that is `withdrawn`, or whose test `cannot_tell`.

A record keeps what was measured. A mark is the script's: where a record is written or drawn and its script is at hand,
the script's marks are put on it, and marks that the script no longer has are taken off. Without the script those that
the record has stay. A scale that gives no verdicts has none to take back.
"""

from collections.abc import Mapping
from typing import Any

from lorascope.study.claims import Claim
from lorascope.study.definition import Study
from lorascope.study.verdict import CANNOT_TELL, WITHDRAWN


def marked(record: Mapping[str, Any], study: Study) -> dict[str, Any]:
    """The record with its study's marks, and with the study's note for the line of scope.

    A marked claim's `verdict` is the mark, and its `mark` has the reason and the verdict as measured. Claims that the
    script no longer has stay as they are.
    """
    by_name = {claim.name: claim for claim in study.claims}
    conclusive = record["scale"]["conclusive"]
    claims = [
        _marked(recorded, by_name[recorded["name"]], conclusive) if recorded["name"] in by_name else recorded
        for recorded in record["claims"]
    ]
    rest = {key: value for key, value in record.items() if key != "beside"}
    sizes = {
        name: ", ".join(map(str, size)) if isinstance(size, list | tuple) else size
        for name, size in record["scale"]["params"].items()
    }
    note = study.scope_note.format(**sizes)
    return rest | {"claims": claims} | ({"beside": note} if note else {})


def _marked(recorded: Mapping[str, Any], claim: Claim, conclusive: bool) -> dict[str, Any]:
    measured = recorded["mark"]["measured"] if "mark" in recorded else recorded["verdict"]
    unmarked = {key: value for key, value in recorded.items() if key != "mark"} | {"verdict": measured}
    reasons = {WITHDRAWN: claim.withdrawn, CANNOT_TELL: claim.cannot_tell}
    for mark, reason in reasons.items():
        if reason is not None and conclusive:
            return unmarked | {"verdict": mark, "mark": {"measured": measured, "reason": reason}}
    return unmarked
