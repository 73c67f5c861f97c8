"""Records of schema 1 as those of schema 2: what they said is kept, and waits to be judged again.

Schema 1 had three verdicts, held, not held and undecided, and two marks in their place: withdrawn and cannot tell.
"Not held" stood for a weaker effect, for none and for an opposite one; which it is, the record alone does not say.
"""

from collections.abc import Mapping
from typing import Any

from lorascope.study.verdict import FAILED, INCONCLUSIVE, PASSED, REPRODUCED, WITHDRAWN

SCHEMA = 1
VERDICTS = HELD, NOT_HELD, UNDECIDED = "held", "not held", "undecided"
MARKS = OLD_WITHDRAWN, CANNOT_TELL = "withdrawn", "cannot tell"
NOTE = (
    "This record is of schema 1. Its verdicts are in other words than they were judged in; "
    "`lorascope study judge` judges it under the rules of today."
)
UNCLEAR = "judged as not held, which does not tell a weaker effect from none or an opposite one"
OUTSIDE = "the interval is outside the bound"
OUTCOMES = {HELD: REPRODUCED, NOT_HELD: INCONCLUSIVE, UNDECIDED: INCONCLUSIVE}
OF_CRITERIA = ("text", "at_least", "at_most", "unit", "estimate", "low", "high", "reason", "control")
OF_CONTROLS = {HELD: PASSED, NOT_HELD: FAILED, UNDECIDED: INCONCLUSIVE}


def same_meaning(old: str, new: str) -> bool:
    """Whether a verdict of today says what one of schema 1 said."""
    return (old, new) in ((HELD, REPRODUCED), (UNDECIDED, INCONCLUSIVE), (OLD_WITHDRAWN, WITHDRAWN))


def misplaced_mark(record: Mapping[str, Any]) -> str | None:
    """Which claim has a mark and the verdict of one that has none, or the other way round, in words."""
    for i, claim in enumerate(record["claims"]):
        if ("mark" in claim) != (claim["verdict"] in MARKS):
            return f"claims[{i}] with a mark and a verdict that do not fit"
    return None


def converted(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record of schema 1 as one of schema 2, with `converted`: a sentence that says so."""
    return {
        **record,
        "schema": 2,
        "converted": NOTE,
        "scale": {**record["scale"], "testbed": "encoder"},
        "made": {**record["made"], "judged": record["made"]["date"]},
        "claims": [_claim(claim) for claim in record["claims"]],
        "removed": record.get("removed", []),
        "noise": [],
        "tuning": [{**sweep, "curve": [[rate, [loss]] for rate, loss in sweep["curve"]]} for sweep in record["tuning"]],
        "texts": None,
    }


def _claim(claim: Mapping[str, Any]) -> dict[str, Any]:
    """The claim, with `was`: its verdict in the words of schema 1, and why it was taken back, where it was."""
    verdict = claim["verdict"]
    words = {HELD: (REPRODUCED, ""), NOT_HELD: (INCONCLUSIVE, UNCLEAR), UNDECIDED: (INCONCLUSIVE, "")}
    mark = claim.get("mark", {})
    words |= {OLD_WITHDRAWN: (WITHDRAWN, mark.get("reason", "")), CANNOT_TELL: (INCONCLUSIVE, mark.get("reason", ""))}
    word, reason = words[verdict]
    return {
        **{key: claim[key] for key in ("name", "text", "source", "note")},
        "setting": "",
        "kind": "observation",
        "verdict": word,
        "reason": reason,
        "criteria": [_criterion(criterion) for criterion in claim["criteria"]],
        "decided_by": None,
        "p": None,
        "q": None,
        "frozen": None,
        "amendments": claim.get("amendments", []),
        "was": {
            "verdict": f"{mark['measured']}, later {verdict}" if mark else verdict,
            "reason": mark.get("reason", ""),
        },
    }


def _criterion(criterion: Mapping[str, Any]) -> dict[str, Any]:
    words = OF_CONTROLS if criterion["control"] else OUTCOMES
    is_outside = criterion["verdict"] == NOT_HELD and not criterion["control"]
    return {
        **{key: value for key, value in criterion.items() if key != "verdict"},
        "reason": OUTSIDE if is_outside else criterion["reason"],
        **dict.fromkeys(("no_effect", "published", "supposed", "margin", "se", "df", "power")),
        "origin": "",
        "outcome": words[criterion["verdict"]],
        "also": [],
    }
