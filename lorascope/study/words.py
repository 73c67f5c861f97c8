"""A judged claim in words: what its bound is, what decided, and how far to trust it. From a record alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorascope.blocks import Check, Claim, ForestRow, Link
from lorascope.report import text as t

Record = Mapping[str, Any]
UNJUDGED = ("out of reach", "withdrawn")  # verdicts that say nothing of the numbers
KINDS = {
    "identity": "an identity: it tests the code, and is no evidence for the paper",
    "random baseline": "a comparison with a random baseline",
}
SENTENCES = {
    "reproduced": "the whole interval lies inside the bound",
    "weaker": "the whole interval lies between no effect and the bound",
    "absent or opposite": "the interval is on the other side of no effect, or close to it",
    "inconclusive": "the interval contains the bound or no effect",
}


def claim(recorded: Record) -> Claim:
    """A recorded claim as the page's."""
    unjudged = recorded["verdict"] in UNJUDGED
    checks = tuple(check(criterion, unjudged) for criterion in recorded["criteria"])
    parts = () if unjudged else (_controls(recorded["criteria"]), _power(decisive(recorded)), _chance(recorded))
    parts = (KINDS.get(recorded["kind"], ""), *parts)
    return Claim(
        recorded["text"],
        recorded["verdict"],
        recorded["source"],
        checks,
        why(recorded),
        recorded["setting"],
        place(recorded),
        tuple(part for part in parts if part),
        recorded["note"],
        tuple(amendment(each) for each in recorded["amendments"]),
    )


def check(criterion: Record, unjudged: bool = False) -> Check:
    """A recorded criterion or control; `unjudged`: of a claim about which no verdict is drawn."""
    outcome: Any = "not judged" if unjudged else criterion["outcome"]
    numbers = (criterion["estimate"], criterion["low"], criterion["high"])
    reason = "" if unjudged and criterion["estimate"] is not None else criterion["reason"]
    details = (*_landmarks(criterion), *_other_units(criterion))
    return Check(
        criterion["text"], *numbers, bound(criterion), outcome, criterion["unit"], criterion["control"], reason, details
    )


def bound(criterion: Record) -> str:
    """The bound and where it comes from: "≥ 50.0 % (half of the published value)"."""
    low, high, unit = criterion["at_least"], criterion["at_most"], criterion["unit"]
    ends = [f"{sign} {t.cell(end, unit)}" for sign, end in (("≥", low), ("≤", high)) if end is not None]
    numbers = f"= {t.cell(low, unit)}" if low is not None and low == high else " and ".join(ends)
    return f"{numbers} ({criterion['origin']})" if criterion["origin"] else numbers


def why(recorded: Record) -> str:
    """What decided the verdict, as a sentence."""
    verdict, criteria, decided = recorded["verdict"], recorded["criteria"], recorded["decided_by"]
    if verdict in UNJUDGED or decided is None:
        return sentence(recorded["reason"])
    decisive = criteria[decided]
    if decisive["control"]:
        control = f"the negative control “{decisive['text']}”"
        if verdict == "not specific":
            return f"The criteria are met, and so is {control}: the statistic does not discriminate."
        return sentence(f"the criteria are met, but {control} is not decided: {decisive['reason']}")
    count = sum(not criterion["control"] for criterion in criteria)
    if count > 1 and verdict == "reproduced":
        return f"All {count} criteria are met; the one with the least room is shown."
    reason = recorded["reason"] or SENTENCES.get(decisive["outcome"], "")
    return sentence(f"{reason} (criterion {decided + 1} of {count})" if count > 1 else reason)


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    text = text[:1].upper() + text[1:]
    return text if not text or text.endswith((".", "?", "!", "✓")) else f"{text}."


def _landmarks(criterion: Record) -> tuple[str, ...]:
    """The published value, and no effect."""
    named = (("published", criterion["published"]), ("no effect", criterion["no_effect"]))
    values = [f"{name} {t.cell(value, criterion['unit'])}" for name, value in named if value is not None]
    return ("; ".join(values),) if values else ()


def _other_units(criterion: Record) -> tuple[str, ...]:
    """The effect in other units: "−0.018 nats [−0.04, 0.004]"."""
    effects = []
    for other in criterion["also"]:
        if other["estimate"] is not None:
            value, *ends = (t.number(n) for n in (other["estimate"], other["low"], other["high"]) if n is not None)
            effects.append(f"{value} {other['unit']}" + (f" [{', '.join(ends)}]" if len(ends) == 2 else ""))
    return (f"in other units: {'; '.join(effects)}",) if effects else ()


def _controls(criteria: Sequence[Record]) -> str:
    """That no negative control passed; empty where there is none, or one did not come out so."""
    controls = [criterion["outcome"] for criterion in criteria if criterion["control"]]
    if not controls or set(controls) != {"failed"}:
        return ""
    return (
        f"{'negative control' if len(controls) == 1 else f'{len(controls)} negative controls'}: {t.OUTCOMES['failed']}"
    )


def _power(criterion: Record) -> str:
    """How likely the verdicts are that a true effect, and no effect, should give."""
    power = criterion["power"]
    if power is None:
        return ""
    size = "at the published size"
    if criterion["published"] is None:
        size = f"at {t.cell(criterion['supposed'], criterion['unit'])}"
    chances = ((power["reproduced"], size), (power["absent"], "for absence"))
    shares = [f"{round(100 * chance)} % {where}" for chance, where in chances if chance is not None]
    return f"power {', '.join(shares)} (noise: {power['noise']})" if shares else ""


def power_in_short(criterion: Record) -> str:
    """The two numbers of `_power` alone: "82 %, 64 %"; empty where there is none."""
    if criterion["power"] is None:
        return ""
    shares = (criterion["power"]["reproduced"], criterion["power"]["absent"])
    return ", ".join(t.ABSENT if share is None else f"{round(100 * share)} %" for share in shares)


def _chance(recorded: Record) -> str:
    """p and q."""
    values = [f"{name} {_probability(recorded[name])}" for name in ("p", "q") if recorded[name] is not None]
    return ", ".join(values)


def _probability(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {t.number(value, 2)}"


def amendment(recorded: Record) -> str:
    """What a claim was before it, or its verdict, changed after results had been seen."""
    parts = (f"“{recorded['text']}”", f"verdict “{recorded['verdict']}”", recorded["bounds"])
    before = "; ".join(part for part in parts if part)
    return sentence(f"Amended {recorded['date']}. Before: {before}. Why: {recorded['why']}")


def forest_row(recorded: Record, group: Link | str = "", tag: str = "") -> ForestRow | None:
    """A claim's line in a forest plot, of the criterion that decided; None of a claim that was withdrawn."""
    if place(recorded) is None:
        return None
    criterion = decisive(recorded)
    numbers = {name: criterion[name] for name in ("low", "high", "at_least", "at_most", "no_effect", "published")}
    return ForestRow(
        recorded["text"],
        criterion["estimate"],
        verdict=recorded["verdict"],
        unit=criterion["unit"],
        group=group,
        tag=tag,
        **numbers,
    )


def place(recorded: Record) -> int | None:
    """Which criterion a claim is shown by: the one that decided, or the first where a control did; None of a claim
    that was withdrawn: a number that does not stand is not quoted."""
    if recorded["verdict"] == "withdrawn":
        return None
    decided = recorded["decided_by"] or 0
    return 0 if recorded["verdict"] == "out of reach" or recorded["criteria"][decided]["control"] else decided


def decisive(recorded: Record) -> Record:
    """The criterion that a claim is shown by."""
    return recorded["criteria"][place(recorded) or 0]


def not_drawn(claims: Sequence[Record]) -> str:
    """What a forest plot of these claims does not have, in words."""
    count = sum(place(claim) is None for claim in claims)
    return f" Not drawn: {t.counted(count, 'withdrawn claim')}." if count else ""
