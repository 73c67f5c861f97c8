"""What a study judges: claims, each with criteria, their landmarks, and negative controls."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from lorascope.study.results import Results


@dataclass(frozen=True)
class Criterion:
    """One number with its landmarks: what counts as reproduced, and what as no effect.

    Attributes:
        text: what the number is, in words.
        statistic: of the results; None, or an error it raises as ValueError, where it cannot be computed.
        at_least, at_most: the bound beyond which the claim is reproduced: a stated share of the published size, or
            ours; either or both.
        unit: how it is shown.
        no_effect: the value if there were no effect. None: there is none, such as of a claim that two are equal.
        published: the published value, in this statistic's own unit; None where the paper has no such number.
        expected: the value at which the power is computed where nothing is published; by default as far beyond the
            bound as the bound is from no effect.
        origin: where the bound comes from: "half of the published 0.30 (Table 2)", or "ours: why".
        margin: so near to no effect counts as absent (an equivalence test); by default the bound's distance from it.
        fixed: what it is computed from that no resample draws again, such as "the tuned learning rates": it then has no
            interval, and no verdict is drawn. Empty: nothing.
    """

    text: str
    statistic: Callable[[Results], float | None]
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "float"
    no_effect: float | None = None
    published: float | None = None
    expected: float | None = None
    origin: str = ""
    margin: float | None = None
    fixed: str = ""

    def __post_init__(self) -> None:
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"the criterion {self.text!r} has no bound")
        if self.no_effect is not None and self.satisfied_by(self.no_effect):
            raise ValueError(f"no effect, {self.no_effect}, satisfies the criterion {self.text!r}")

    def satisfied_by(self, value: float) -> bool:
        low = -math.inf if self.at_least is None else self.at_least
        high = math.inf if self.at_most is None else self.at_most
        return low <= value <= high

    @property
    def upward(self) -> bool:
        """Whether the bound is above no effect."""
        return self.at_least is not None and self.no_effect is not None and self.no_effect < self.at_least

    @property
    def distance(self) -> float:
        """Of the bound on the side of no effect, from there."""
        bound = self.at_least if self.upward else self.at_most
        return math.nan if bound is None or self.no_effect is None else abs(bound - self.no_effect)

    @property
    def supposed(self) -> float | None:
        """The value if the claim were true here, for the power: published, expected, or twice the bound's distance."""
        for value in (self.published, self.expected):
            if value is not None:
                return value
        if self.no_effect is None:
            return None
        return self.no_effect + 2 * (self.distance if self.upward else -self.distance)


class Control(Criterion):
    """A negative control: the same question where the answer is known to be no. It must not pass; where it does, the
    statistic does not discriminate, which is the finding."""


@dataclass(frozen=True)
class Claim:
    """A statement of the literature, and the criteria under which it is reproduced here.

    Attributes:
        name: short, unique in the study.
        text: the statement.
        source: paper, section or table.
        criteria: all of them must be met.
        controls: none of them may pass.
        note: what a reader of the verdict should know.
        setting: of the published claim: model, data, steps.
        kind: what sort of statement it is: an observation; an identity, which the code must fulfil; a comparison with
            a random baseline.
        out_of_reach: why this set-up cannot enter the published regime, said before the run; by test bed where they
            differ. The numbers are shown, and no verdict is drawn from them.
        amended: why its text, statistic, bound or control was changed after results had been seen, in one sentence.
        withdrawn: why a published verdict no longer stands. It is shown in the verdict's place.
    """

    name: str
    text: str
    source: str
    criteria: tuple[Criterion, ...]
    controls: tuple[Control, ...] = ()
    note: str = ""
    setting: str = ""
    kind: Literal["observation", "identity", "random baseline"] = "observation"
    out_of_reach: str | Mapping[str, str] | None = None
    amended: str = ""
    withdrawn: str | None = None

    def beyond(self, testbed: str) -> str | None:
        """Why this test bed cannot tell; None where it can."""
        reason = self.out_of_reach
        return reason.get(testbed) if isinstance(reason, Mapping) else reason


def reworded(claims: Iterable[Claim], words: Mapping[str, str]) -> tuple[Claim, ...]:
    """The claims with other words in their notes and in the origins of bounds, of which no hash is made.

    Args:
        words: what is written in place of each phrase.

    Raises:
        ValueError: a phrase is in none of them.
    """
    claims = tuple(claims)
    places = [text for claim in claims for text in (claim.note, *(each.origin for each in claim.criteria))]
    if missing := [phrase for phrase in words if not any(phrase in text for text in places)]:
        raise ValueError(f"no note or origin has the words {missing[0]!r}")

    def written(text: str) -> str:
        for phrase, other in words.items():
            text = text.replace(phrase, other)
        return text

    return tuple(
        replace(
            claim,
            note=written(claim.note),
            criteria=tuple(replace(each, origin=written(each.origin)) for each in claim.criteria),
        )
        for claim in claims
    )
