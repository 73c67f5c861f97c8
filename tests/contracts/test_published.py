"""What is published of the studies: each record alone, with its script, gives the verdicts that it has."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from lorascope.study import judging, record, work
from lorascope.study.answers import Answers
from lorascope.study.frozen import claim_hash
from lorascope.study.verdict import JudgedCriterion, Verdict

ROOT = Path(__file__).parents[2]
REPORTS = ROOT / "reports"
PUBLISHED, _ = record.read_folder(REPORTS)
DIGITS = re.compile(r"[\d.,]+")
QUICK = ("lora_fa", "alternatives")  # of scale small and of scale smoke, and soon judged
# Verdicts that had changed before claims were frozen (git log -- reports), the oldest first.
CHANGED = {
    "delta_vs_base": {"fall": "held", "excess": "not held"},
    "full_finetuning_rank": {"energy": "held", "trained": "held"},
    "learns_less_forgets_less": {"rank-forgets": "undecided"},
    "rank_sweep": {"capacity": "undecided", "full": "held", "root": "held"},
    "vera_vs_vectors": {"shared": "undecided", "xs": "held"},
}
JUDGE = "judge it again with `lorascope study judge`"

each_published = pytest.mark.parametrize("found", PUBLISHED, ids=lambda found: found["name"])


def script_of(found):
    return work.script(ROOT / "studies" / f"{found['name']}.py").study


@pytest.mark.parametrize(
    "found",
    [pytest.param(f, id=f["name"], marks=() if f["name"] in QUICK else pytest.mark.slow) for f in PUBLISHED],
)
def test_the_record_alone_gives_its_verdicts_again(found):
    assert judging.again(found, script_of(found), REPORTS, "2100-01-01") == found, JUDGE


@each_published
def test_its_claims_are_those_of_its_script(found):
    """By their hashes, which is sooner done than judging."""
    assert "converted" not in found, JUDGE
    testbed = found["scale"]["testbed"]
    now = {claim.name: claim_hash(claim, testbed) for claim in script_of(found).on(testbed).claims}
    assert {claim["name"]: claim["frozen"]["hash"] for claim in found["claims"]} == now, JUDGE


@each_published
def test_its_words_are_those_of_its_script(found):
    """The texts, each claim's and the answer, made of the recorded verdicts: without judging, so for every record."""
    study = script_of(found).on(found["scale"]["testbed"])
    assert {name: found[name] for name in judging.TEXTS} == {name: getattr(study, name) for name in judging.TEXTS}
    texts = ("name", "text", "source", "note", "setting", "kind")
    recorded = [{name: claim[name] for name in texts} for claim in found["claims"]]
    assert recorded == [{name: getattr(claim, name) for name in texts} for claim in study.claims], JUDGE
    scale = record.results({**found, "texts": None}, REPORTS).scale
    if study.reading and scale.conclusive:
        again = study.reading(Answers([verdict(claim) for claim in found["claims"]], scale))
        assert DIGITS.sub("#", found["reading"]) == DIGITS.sub("#", again), JUDGE  # recorded numbers are rounded


def verdict(claim):
    """A recorded claim's."""
    values = {field.name: claim[field.name] for field in fields(Verdict)}
    names = [field.name for field in fields(JudgedCriterion)]
    criteria = tuple(JudgedCriterion(**{name: each[name] for name in names}) for each in claim["criteria"])
    return Verdict(**{**values, "criteria": criteria})


@each_published
def test_its_answer_and_figures_could_be_made(found):
    assert not {failure["title"] for failure in found["failures"]} & set(judging.MADE_OF_VERDICTS)


@each_published
def test_a_change_is_told_with_its_reason(found):
    for each in (*found["removed"], *(a for claim in found["claims"] for a in claim["amendments"])):
        assert judging.NO_REASON not in each["why"], each
    told = {claim["name"]: [a["verdict"] for a in claim["amendments"]] for claim in found["claims"]}
    changed = CHANGED.get(found["name"], {}) if found["scale"]["testbed"] == "encoder" else {}  # others came later
    for name, verdict in changed.items():
        assert verdict in told.get(name, [verdict]), name  # a claim that is gone has its last verdict alone


def test_a_claim_that_was_removed_before_claims_were_frozen_is_told():
    (found,) = (f for f in PUBLISHED if (f["name"], f["scale"]["testbed"]) == ("delta_vs_base", "encoder"))
    assert "amplifies" in {each["name"] for each in found["removed"]}
