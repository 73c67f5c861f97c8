"""A record's claims, judged: on its own numbers, and with what they were before.

The same function judges a study that has just been run and a record that is judged again, so that a record and its
script alone give the verdicts that stand in it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lorascope.report import serial
from lorascope.study import earlier, record
from lorascope.study.answers import Answers
from lorascope.study.claims import Claim
from lorascope.study.definition import Study
from lorascope.study.frozen import bounds_in_words, claim_hash
from lorascope.study.json_values import rounded
from lorascope.study.results import Results
from lorascope.study.verdict import Verdict, judge_all

MADE_OF_VERDICTS = ("reading", "figures")  # and of the results
OLD_STATED = ("text", "at_least", "at_most", "unit")  # of a criterion in schema 1
STATED = (*OLD_STATED, "no_effect", "published", "supposed", "margin")
TEXTS = ("title", "question", "varied", "tuned", "fixed")
NO_REASON = "no reason given"
NOT_JUDGED = "not judged yet"
UNFROZEN = "before claims were frozen: "
NEW_RUNS = "from new runs; the claim is unchanged"
NEW_RULE = "by a new rule for verdicts; the claim is unchanged"
Record = Mapping[str, Any]
Frozen = Mapping[str, Sequence[Mapping[str, Any]]]  # of every claim all that was frozen, the newest last
Progress = Callable[[int, int], None]


def again(found: Record, study: Study, folder: Path, date: str, progress: Progress | None = None) -> dict[str, Any]:
    """The record judged again, on its own numbers, by the claims that its script has now.

    Args:
        folder: of the record.
        date: of today: of a claim that differs from the record's.

    Raises:
        InputError: the file with the scores of texts is not as the record says.
    """
    results = record.results(found, folder)
    base = {key: value for key, value in found.items() if key not in ("converted", "beside")}
    testbed = found["scale"]["testbed"]
    study = study.on(testbed)
    now = {
        claim.name: [{"hash": claim_hash(claim, testbed), "date": date, "before_runs": False}] for claim in study.claims
    }
    judged = judge(Case(base, study, found, now, date, same_runs=True), results, progress)
    return dict(found) if judged | {"made": found["made"]} == found else judged


def changes(before: Record, after: Record) -> list[str]:
    """A line for every claim whose verdict is another one now, or that is no longer tested."""
    verdicts = {claim["name"]: _verdict_in_record(claim) for claim in before["claims"]}
    lines = [
        f"{after['name']}: {claim['name']}: {verdicts.get(claim['name'], 'new')} → {claim['verdict']}"
        for claim in after["claims"]
        if verdicts.get(claim["name"]) != claim["verdict"]
    ]
    gone = verdicts.keys() - {claim["name"] for claim in after["claims"]}
    return lines + [f"{after['name']}: {name}: {verdicts[name]} → removed" for name in verdicts if name in gone]


@dataclass(frozen=True)
class Case:
    """What is judged, by which claims, and what was before.

    Attributes:
        base: the record without what is judged: its scale, tables and texts, how it was made, its `noise`.
        study: the script's.
        before: the record that the new one replaces; None where there is none.
        frozen: of every claim all that was frozen, the newest last.
        date: of today.
        same_runs: whether the record before is of the same runs.
    """

    base: Record
    study: Study
    before: Record | None
    frozen: Frozen
    date: str
    same_runs: bool = False


def judge(case: Case, results: Results, progress: Progress | None = None) -> dict[str, Any]:
    """The whole record: the base with the study's words, its verdicts, reading, figures and amendments.

    Args:
        results: of the base.
        progress: called with the number of resamples done and their total.
    """
    testbed = case.base["scale"]["testbed"]
    case = replace(case, study=case.study.on(testbed))
    base, study = case.base, case.study
    verdicts = judge_all(study.claims, results, testbed=testbed, noise=_noise(case) or None, progress=progress)
    texts, failures = _reading_and_figures(study, verdicts, results)
    others = [failure for failure in base["failures"] if failure["title"] not in MADE_OF_VERDICTS]
    return {
        **base,
        **{name: getattr(study, name) for name in TEXTS},
        **texts,
        "claims": [_claim(case, *each) for each in zip(study.claims, verdicts, strict=True)],
        "removed": _removed(case),
        "failures": others + failures,
        "made": {**base["made"], "judged": case.date},
        **_beside(base, study),
    }


def _claim(case: Case, claim: Claim, verdict: Verdict) -> dict[str, Any]:
    """The claim with its verdict, when it was frozen, and what it was before."""
    judged = rounded(asdict(verdict))
    *versions, newest = case.frozen[claim.name]
    before = _known(case).get(claim.name)
    kept = before["frozen"] if before else None
    is_same = kept is not None and (kept["hash"] == newest["hash"] or _is_rewritten(case, before, judged))
    if kept is None or not is_same:
        kept = {key: newest[key] for key in ("hash", "date", "before_runs")}
    if before is None:
        unjudged = {"date": case.date, "verdict": NOT_JUDGED, "why": claim.amended or NO_REASON}
        amendments = [{**unjudged, "text": each["text"], "bounds": each["bounds"]} for each in versions]
    else:
        amendments = _amendments(case, before, claim, judged["verdict"], not is_same)
    return {**judged, "frozen": {**kept, "hash": newest["hash"]}, "amendments": amendments}


def _verdict_in_record(claim: Record) -> str:
    """A recorded claim's verdict, in the words in which it was judged."""
    return claim["was"]["verdict"] if "was" in claim else claim["verdict"]


def _known(case: Case) -> dict[str, Record]:
    """The claims of the record before, by name."""
    return {} if case.before is None else {claim["name"]: claim for claim in case.before["claims"]}


def _is_rewritten(case: Case, before: Record | None, judged: Record) -> bool:
    """Whether only the code of the statistics differs, and gives the same numbers of the same runs."""
    if before is None or not case.same_runs or len(before["criteria"]) != len(judged["criteria"]):
        return False
    return (before["text"], before["verdict"]) == (judged["text"], judged["verdict"]) and all(
        all(old[key] == new[key] for key in (*STATED, "control"))
        and all(_are_close(old[key], new[key]) for key in ("estimate", "low", "high"))
        for old, new in zip(before["criteria"], judged["criteria"], strict=True)
    )


def _are_close(one: float | None, other: float | None) -> bool:
    """Equal but for rounding."""
    return one == other or (one is not None and other is not None and math.isclose(one, other, rel_tol=1e-5))


def _amendments(case: Case, old: Record, claim: Claim, verdict: str, changed: bool) -> list[dict[str, Any]]:
    """What the claim was before, the oldest first: one more where it, or its verdict, differs from the record's."""
    old_verdict, was = _verdict_in_record(old), old.get("was")
    if was is not None:  # it has no hash
        changed = bool(claim.amended) or not _is_stated_so(claim, old, OLD_STATED)
    if not changed and (old_verdict == verdict if was is None else earlier.same_meaning(old_verdict, verdict)):
        return old["amendments"]
    why = NEW_RULE if case.same_runs else NEW_RUNS
    if changed or was:
        taken_back = was["reason"] if was else ""
        why = claim.amended or taken_back or claim.withdrawn or (NO_REASON if changed else why)
    entry = {"date": case.date, "verdict": old_verdict, "text": old["text"], "bounds": bounds_in_words(old["criteria"])}
    return [*old["amendments"], {**entry, "why": f"{UNFROZEN if was else ''}{why}"}]


def _is_stated_so(claim: Claim, recorded: Record, keys: Sequence[str]) -> bool:
    """Whether the script's claim has the recorded one's text, and its criteria the same values of these keys."""
    now = rounded([{key: getattr(each, key) for key in keys} for each in (*claim.criteria, *claim.controls)])
    then = [{key: each[key] for key in keys} for each in recorded["criteria"]]
    return (
        claim.text == recorded["text"]
        and now == then
        and len(claim.controls) == sum(each["control"] for each in recorded["criteria"])
    )


def _removed(case: Case) -> list[dict[str, Any]]:
    """Claims of the record before that the script no longer has, and those that were gone then: with the script's
    reason, where it has one."""
    if case.before is None:
        return []
    names = {claim.name for claim in case.study.claims}
    gone = [
        {
            "name": name,
            "text": claim["text"],
            "verdict": _verdict_in_record(claim),
            "date": case.date,
            "why": case.study.removed.get(name, NO_REASON),
        }
        for name, claim in _known(case).items()
        if name not in names
    ]
    earlier = [{**each, "why": case.study.removed.get(each["name"], each["why"])} for each in case.before["removed"]]
    return [*earlier, *gone]


def _noise(case: Case) -> dict[tuple[str, int], tuple[float, float, str]]:
    """Of the criteria whose noise was known before these runs; of claims that are stated as they were then."""
    known = _known(case)
    same = {
        claim.name
        for claim in case.study.claims
        if claim.name in known and _is_stated_so(claim, known[claim.name], STATED)
    }
    return {
        (each["claim"], each["place"]): (each["se"], each["df"], each["words"])
        for each in case.base["noise"]
        if each["claim"] in same
    }


def noise_of(before: Record | None) -> list[dict[str, Any]]:
    """What a new record takes from the one that it replaces: the noise of every criterion."""
    if before is None or not before["scale"]["conclusive"]:
        return []
    words = f"the record of {before['made']['date']}, before these runs"
    return [
        {"claim": claim["name"], "place": place, "se": criterion["se"], "df": criterion["df"], "words": words}
        for claim in before["claims"]
        for place, criterion in enumerate(claim["criteria"])
        if criterion["se"] and criterion["df"]
    ]


def _reading_and_figures(
    study: Study, verdicts: Sequence[Verdict], results: Results
) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The reading and the figures; where they cannot be made, the study's numbers are not lost for it."""
    texts: dict[str, Any] = {"reading": "", "figures": []}
    failures = []
    answers = Answers(verdicts, results.scale)
    for name, make in (
        ("reading", lambda: study.reading(answers) if study.reading and results.scale.conclusive else ""),
        ("figures", lambda: _figures(study, results)),
    ):
        try:
            texts[name] = make()
        except Exception as error:
            failures.append({"title": name, "message": f"{type(error).__name__}: {error}"})
    return texts, failures


def _figures(study: Study, results: Results) -> list[Any]:
    figures = rounded(serial.to_json(study.figures(results)))
    serial.from_json(figures)  # what cannot be read again is told now
    return figures


def _beside(base: Record, study: Study) -> dict[str, str]:
    """The study's note for the line of scope, with the scale's sizes."""
    sizes = {
        name: ", ".join(map(str, size)) if isinstance(size, list | tuple) else size
        for name, size in base["scale"]["params"].items()
    }
    note = study.scope_note.format(**sizes)
    return {"beside": note} if note else {}
