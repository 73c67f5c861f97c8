"""The checks behind findings: each has a code that stays, a name, and the worst it can mean.

`--check` and SARIF go by these. A finding of a rule is one sentence for all modules that it is true of. LSx00 and
LSx50 are what an analysis says of its numbers without judging them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, cast

from lorascope.blocks import Finding, Severity


@dataclass(frozen=True)
class Rule:
    """One check.

    Attributes:
        code: "LS106"; never given to another check.
        name: the same in words, "scale-out-of-range".
        severity: of its findings, where they do not say another.
        about: what it looks for, one sentence.
    """

    code: str
    name: str
    severity: Severity
    about: str

    def finding(self, text: str, severity: str | None = None, **more: Any) -> Finding:
        """A finding of this rule; `more`: the other fields of `Finding`."""
        return replace(Finding(cast(Severity, severity or self.severity), text, rule=self.code), **more)


MEASURED = Rule("LS100", "measured", "note", "What the analysis measured, in words.")
NON_FINITE = Rule("LS101", "non-finite", "error", "NaN or infinite values in the file.")
NO_CHANGE = Rule("LS102", "no-change", "error", "ΔW = 0 in every module.")
UNCHANGED_MODULES = Rule("LS103", "unchanged-modules", "warning", "ΔW = 0 in some modules.")
TOO_LARGE = Rule("LS104", "update-too-large", "error", "ΔW is as large as the weights, or larger.")
VERY_SMALL = Rule("LS105", "update-very-small", "warning", "ΔW hardly changes the weights.")
SCALE = Rule("LS106", "scale-out-of-range", "warning", "The scale α/r is far from what trainers use.")
ONE_MODULE = Rule("LS107", "one-module-dominates", "warning", "One module has most of the energy of the update.")
COLLAPSE = Rule("LS108", "rank-collapse", "warning", "A few of the r directions carry the update.")
ALL_DIRECTIONS = Rule("LS109", "all-directions-used", "note", "All r directions are used, as in random factors.")
SMALLER = Rule("LS110", "can-be-smaller", "note", "A plan with fewer parameters keeps 99 % of every module's energy.")
MERGE_ROUNDING = Rule("LS111", "merge-rounding", "warning", "Merging into the base's dtype loses part of the update.")
SKIPPED = Rule("LS112", "tensors-skipped", "note", "Tensors of the file without a measured update.")
NO_BASE = Rule("LS113", "no-base", "note", "Without the base the size of the update relative to W is unknown.")
ANOTHER_BASE = Rule("LS114", "another-base", "warning", "Modules that the given base does not have.")
MISSING_TARGETS = Rule("LS115", "missing-targets", "warning", "Target modules of the config that are not in the file.")
PARTIAL_UPDATE = Rule("LS116", "partial-update", "warning", "Only a part of ΔW can be computed without the base.")
FILE = Rule("LS117", "about-the-file", "note", "What the reader of the file says about it.")
AT_START = Rule("LS118", "hardly-trained", "note", "A still looks like its random initialisation.")
NO_UPDATE = Rule("LS119", "no-weight-update", "warning", "The file has no weight update, or none without the base.")
SCALE_UNKNOWN = Rule(
    "LS120", "scale-unknown", "warning", "The file does not say its scale: norms are those of scale 1."
)
UNKNOWN_FIELDS = Rule("LS121", "unknown-fields", "warning", "Fields of the config that are not understood.")
LIKE = Rule("LS122", "among-others", "note", "How far its measures are from those of other adapters (--like).")

BASE_MEASURED = Rule("LS200", "measured-against-base", "note", "ΔW against W, in words.")

COMPARED = Rule("LS300", "compared", "note", "What the comparison measured, in words.")
VERDICT = Rule("LS301", "verdict", "note", "What the adapters have in common, in one sentence.")
SAME_UPDATE = Rule("LS302", "same-update", "warning", "Two adapters hold one update: equal, rescaled or truncated.")
SAME_SEED = Rule("LS303", "same-initialisation", "warning", "A of two adapters began from the same random numbers.")
NOT_SHARED = Rule("LS304", "modules-not-shared", "warning", "Modules that not all adapters have, or of another shape.")
HIGH_CHANCE = Rule("LS305", "high-chance-level", "warning", "The ranks are so large that chance alone overlaps.")
ZERO_COMPARED = Rule("LS306", "zero-update", "warning", "ΔW = 0 in modules of one adapter.")

DELTA_MEASURED = Rule("LS400", "delta-measured", "note", "What was measured of tuned − base, in words.")
DELTA_NON_FINITE = Rule("LS401", "delta-non-finite", "error", "NaN or infinite values in a checkpoint.")
DELTA_ZERO = Rule("LS402", "no-difference", "error", "The checkpoints do not differ.")
DELTA_ROUNDING = Rule("LS403", "below-rounding", "warning", "Part of ΔW is rounding error of the storage dtype.")
DELTA_CHANGED = Rule("LS404", "what-changed", "note", "Which module types changed by more than rounding.")
DELTA_UNRELATED = Rule("LS405", "unrelated-checkpoints", "warning", "ΔW is larger than W: hardly a fine-tuned model.")
DELTA_CODED = Rule("LS406", "dequantised-weights", "warning", "ΔW holds the error of weights stored in a few bits.")
DELTA_RESIZED = Rule("LS407", "resized-vocabulary", "warning", "A vocabulary differs in size: some rows are skipped.")
DELTA_BASE = Rule("LS408", "base-below-rounding", "warning", "ΔW may be the rounding of a base stored more coarsely.")
DELTA_ADAPTER = Rule("LS409", "nothing-captured", "warning", "An adapter has no update where the checkpoints differ.")
NOT_EXTRACTED = Rule("LS410", "not-extracted", "warning", "Changes that the extracted adapter does not hold.")

RESIZED = Rule("LS500", "resized", "note", "What each plan keeps, in words.")
RECOMMENDED = Rule("LS501", "recommended-plan", "note", "The smallest plan that keeps enough of every module.")
FULL_RANK = Rule("LS502", "full-rank-used", "warning", "Truncation loses what it would of random factors.")
LOST = Rule("LS503", "dropped-modules", "warning", "Updates that a resized adapter does not hold.")
RESIZE_ROUNDING = Rule("LS504", "resize-rounding", "warning", "Rounding to the dtype adds much to a plan's own error.")
NOTHING_GAINED = Rule("LS505", "adapter-without-gain", "warning", "The full adapter does not reduce the held-out loss.")

DIMENSION = Rule("LS600", "dimension-measured", "note", "What was measured of the runs, in words.")
NOT_RANKED = Rule("LS601", "runs-not-comparable", "error", "The runs differ in steps or recipe and are not ranked.")
NO_GAIN = Rule("LS602", "no-gain", "error", "Full fine-tuning did not reduce the held-out loss.")
BASELINE = Rule("LS603", "overstated-gains", "warning", "Gains are measured from a baseline worse than guessing.")
DIVERGED = Rule("LS604", "diverged-runs", "warning", "Runs that diverged and are in no figure.")
CONTROL = Rule("LS605", "control-not-failed", "warning", "A control that should lose the gain keeps much of it.")

INTRUDERS = Rule("LS700", "intruders-measured", "note", "What was measured of intruder dimensions, in words.")
STRENGTH = Rule("LS701", "strength-not-novelty", "note", "What the number of intruders measures.")
BLIND = Rule("LS702", "epsilon-below-chance", "warning", "ε is so low that not even a random direction is counted.")
NO_SHRINKAGE = Rule("LS703", "scaling-enlarges", "warning", "Scaling the intruders down makes ΔW larger, not smaller.")
NO_NEIGHBOUR = Rule("LS704", "no-neighbour", "warning", "Weights without a neighbouring direction for the control.")

ACTIVATIONS = Rule("LS800", "activations-measured", "note", "What was measured on real inputs, in words.")
FEW_SAMPLES = Rule("LS801", "few-samples", "warning", "Fewer samples than features: the usual CKA is biased.")
NO_INPUTS = Rule("LS802", "no-inputs", "warning", "No adapted layer received inputs.")
METHOD = Rule("LS900", "method-specific", "note", "What is specific to the method, in words.")
BAD_SETTING = Rule("LS901", "unreadable-setting", "warning", "A setting of the method that cannot be read.")
NO_SCORES = Rule("LS902", "scores-all-zero", "warning", "LoRA-drop's scores are all zero.")
BUDGET = Rule("LS903", "budget-not-met", "warning", "AdaLoRA kept more or fewer ranks than its budget.")
NOT_ORTHOGONAL = Rule("LS904", "not-orthogonal", "warning", "AdaLoRA's P or Q is far from orthogonal.")
DRAWN_AGAIN = Rule(
    "LS905", "projections-drawn-again", "warning", "VeRA's A and B are not in the file, but drawn again."
)
TRAJECTORY = Rule("LS950", "trajectory-measured", "note", "What was measured over the checkpoints, in words.")
NOT_ONE_RUN = Rule("LS951", "not-one-run", "warning", "Checkpoints that are copies, or not of one run.")
EARLIER_BETTER = Rule(
    "LS952", "earlier-is-better", "warning", "The evaluation loss was lower at an earlier checkpoint."
)
OTHER = Rule("LS000", "finding", "note", "A finding of an analysis that names no rule.")

RULES = MappingProxyType({rule.code: rule for rule in tuple(vars().values()) if isinstance(rule, Rule)})
BY_ANALYSIS = MappingProxyType({
    "spectrum": MEASURED, "analyze": MEASURED, "against_base": BASE_MEASURED, "compare": COMPARED,
    "delta": DELTA_MEASURED, "resize": RESIZED, "dimension": DIMENSION, "intruders": INTRUDERS,
    "activations": ACTIVATIONS, "method_specific": METHOD, "trajectory": TRAJECTORY,
})  # fmt: skip


_DOUBTS = (  # how notes begin that put numbers in doubt, and what to do
    ("scale unknown", SCALE_UNKNOWN, "Put the training's config next to the file, or multiply norms by its α/r"),
    ("unknown fields", UNKNOWN_FIELDS, "Look up whether they change ΔW; a newer lorascope may know them"),
)


def about_file(note: str, whose: str = "") -> Finding:
    """What the reader of a file says about it: a warning where it puts the numbers in doubt, else a note.

    Args:
        whose: whose file, where there are several.
    """
    text = re.sub(r"^[a-z](?=[a-z]+ )", lambda letter: letter[0].upper(), note)  # a word, and no name
    text = f"{whose}: {note}" if whose else text
    for beginning, rule, action in _DOUBTS:
        if note.startswith(beginning):
            return rule.finding(text, action=action)
    return FILE.finding(text)


def with_rules(findings: Iterable[Finding], analysis: str) -> list[Finding]:
    """The findings, those that name no rule under the analysis's own."""
    code = BY_ANALYSIS.get(analysis, OTHER).code
    return [finding if finding.rule else replace(finding, rule=code) for finding in findings]


def record(finding: Finding) -> dict[str, object]:
    """For JSON: what there is of a finding, its rule by code and name."""
    rule = RULES.get(finding.rule, OTHER)
    modules = finding.modules or ((finding.module,) if finding.module else ())
    return {
        "severity": finding.severity, "rule": rule.code, "rule_name": rule.name, "module": finding.module,
        "modules": list(modules), "text": finding.text, "action": finding.action or None,
        "command": finding.command or None,
    }  # fmt: skip
