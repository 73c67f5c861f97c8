"""Verdicts that were taken back: a claim of a script that is `withdrawn`, or whose test `cannot_tell`.

A record keeps what was measured. A mark is the script's: where a record is written or drawn and its script is at hand,
the script's marks are put on it, and marks that the script no longer has are taken off. Without the script those that
the record has stay. A scale that gives no verdicts has none to take back.
"""

from collections.abc import Mapping
from typing import Any

from lorascope.study.definition import Claim, Study
from lorascope.study.verdict import CANNOT_TELL, WITHDRAWN


def marked(record: Mapping[str, Any], study: Study) -> dict[str, Any]:
    """The record with its study's marks, and with what its line of scope says beside the grid.

    A marked claim's `verdict` is the mark, and its `mark` has the reason and the verdict as measured. Claims that the
    script no longer has stay as they are.
    """
    claims = {claim.name: claim for claim in study.claims}
    conclusive = record["scale"]["conclusive"]
    found = [
        _marked(each, claims[each["name"]], conclusive) if each["name"] in claims else each for each in record["claims"]
    ]
    rest = {key: value for key, value in record.items() if key != "beside"}
    sizes = {
        name: ", ".join(map(str, size)) if isinstance(size, list | tuple) else size
        for name, size in record["scale"]["params"].items()
    }
    beside = study.beside.format(**sizes)
    return rest | {"claims": found} | ({"beside": beside} if beside else {})


def _marked(found: Mapping[str, Any], claim: Claim, conclusive: bool) -> dict[str, Any]:
    measured = found["mark"]["measured"] if "mark" in found else found["verdict"]
    rest = {key: value for key, value in found.items() if key != "mark"} | {"verdict": measured}
    marks = {WITHDRAWN: claim.withdrawn, CANNOT_TELL: claim.cannot_tell}
    for mark, reason in marks.items():
        if reason is not None and conclusive:
            return rest | {"verdict": mark, "mark": {"measured": measured, "reason": reason}}
    return rest
