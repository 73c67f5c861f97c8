"""Claims as they stand before the first run, by a hash, so that a later change is seen.

A claim's hash is of what decides it: its text, and of every criterion and control the text, bounds, landmarks and the
code of the statistic (`source`); and whether it is said to be out of reach or withdrawn. Wording of notes and sources
is not part of it.

When a study is first run at a scale, the hashes go into the store with the day, before any of its runs. A claim that
differs from the one that was frozen is frozen anew, and its record says that the runs were there before it.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lorascope.errors import InputError
from lorascope.inputs import read_json
from lorascope.outputs import write_json
from lorascope.report import text as t
from lorascope.study.claims import Claim, Control, Criterion
from lorascope.study.definition import Study
from lorascope.study.source import source

LANDMARKS = ("text", "at_least", "at_most", "no_effect", "published", "expected", "margin", "unit")
WORD = (str,)
ENTRY = {"hash": WORD, "date": WORD, "before_runs": (bool,), "text": WORD, "bounds": WORD}
SHAPE = {"study": WORD, "scale": WORD, "testbed": WORD, "claims": {str: [ENTRY]}}


def claim_hash(claim: Claim, testbed: str) -> str:
    """64 hexadecimal digits."""
    stated = [
        claim.text,
        [_stated(criterion) for criterion in (*claim.criteria, *claim.controls)],
        claim.beyond(testbed) is not None,
        claim.withdrawn is not None,
    ]
    text = json.dumps(stated, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _stated(criterion: Criterion) -> list[Any]:
    landmarks = {name: getattr(criterion, name) for name in LANDMARKS}
    return [isinstance(criterion, Control), landmarks, source(criterion.statistic)]


def freeze(study: Study, scale: str, root: Path, date: str, *, is_first: bool) -> dict[str, list[dict[str, Any]]]:
    """Write a study's claims into the store, before it is run: of every claim all that was frozen, the newest last.

    Args:
        root: the store's folder.
        date: of today.
        is_first: whether no record of this study, scale and test bed has been published.

    Raises:
        InputError: the file of an earlier call is damaged.
        LorascopeError: the store cannot be written.
    """
    testbed = study.scales[scale].testbed
    path = root / "claims" / file_name(study.name, scale, testbed)
    known: dict[str, list[dict[str, Any]]] = {}
    if path.exists():
        hint = f"restore it, or remove it: the claims of {study.name} are then frozen again, from today on"
        known = read_json(path, SHAPE, hint=hint)["claims"]
        if not all(known.values()):
            raise InputError(f"{path} is damaged", found="a claim without a hash", hint=hint)
    is_first = is_first and not known
    for claim in study.on(testbed).claims:
        entry = {
            "hash": claim_hash(claim, testbed),
            "date": date,
            "before_runs": is_first,
            "text": claim.text,
            "bounds": bounds_in_words(criterion_facts(claim)),
        }
        versions = known.setdefault(claim.name, [])
        if not versions or versions[-1]["hash"] != entry["hash"]:
            versions.append(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"study": study.name, "scale": scale, "testbed": testbed, "claims": known})
    return known


def file_name(study: str, scale: str, testbed: str) -> str:
    """Of the frozen claims, in the store's folder `claims`."""
    return f"{study}-{scale}-{testbed}.json"


def criterion_facts(claim: Claim) -> list[dict[str, Any]]:
    """Of every criterion and control what `bounds_in_words` reads."""
    return [
        {
            **{name: getattr(criterion, name) for name in ("text", "at_least", "at_most", "unit")},
            "control": isinstance(criterion, Control),
        }
        for criterion in (*claim.criteria, *claim.controls)
    ]


def bounds_in_words(criteria: Iterable[Mapping[str, Any]]) -> str:
    """Every criterion with its bounds, the controls last: "gain of A less that of B ≥ 2 %; control: … ≥ 2 %"."""
    parts = []
    for each in criteria:
        ends = [
            f"{sign} {t.cell(each[end], each['unit'])}"
            for sign, end in (("≥", "at_least"), ("≤", "at_most"))
            if each[end] is not None
        ]
        parts.append(f"{'control: ' if each['control'] else ''}{each['text']} {' and '.join(ends)}")
    return "; ".join(parts)
