"""Which arms of a study are run again, and whether what a record has of all others can stand next to them."""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from lorascope.errors import InputError
from lorascope.report import text as t
from lorascope.study.grid import Arm, StudyScale
from lorascope.study.json_values import rounded
from lorascope.study.making import without_paths
from lorascope.study.runner import named
from lorascope.study.splicing import Key, arm_key

Record = Mapping[str, Any]
HELD_OUT = "max_eval_samples"  # of the data
SIZES = ("replicates", "params", "test_split", "conclusive")  # of a scale: the same for all arms
WHOLE = "run the whole study, without --arms"
TOO = "name it with --arms, too"


def matching(arms: Sequence[Arm], options: Sequence[str]) -> list[Arm]:
    """The arms that have all labels of one of the options, such as "task=memorise,rank=2".

    Raises:
        InputError: an option is no list of labels, or no arm has them.
    """
    names = list(dict.fromkeys(name for arm in arms for name in arm.labels))
    found: set[int] = set()
    for option in options:
        wanted = _wanted(option, names)
        those = {i for i, arm in enumerate(arms) if all(_has(arm, *each) for each in wanted.items())}
        if not those:
            stated = [",".join(f"{name}={value}" for name, value in arm.labels.items()) for arm in arms]
            near = " or ".join(difflib.get_close_matches(option, stated, n=3, cutoff=0.0))
            raise InputError("no arm has the labels of --arms", found=option, hint=f"near it are {near}")
        found |= those
    return [arm for i, arm in enumerate(arms) if i in found]


def _wanted(option: str, names: Sequence[str]) -> dict[str, str]:
    """Values by label. A comma divides only where a label follows: values have commas, too."""
    parts = re.split(rf",\s*(?=(?:{'|'.join(map(re.escape, names))})\s*=)", option) if names else [option]
    pairs = [(name.strip(), value.strip()) for name, _, value in (part.partition("=") for part in parts)]
    if len(dict(pairs)) < len(pairs) or any(name not in names for name, _ in pairs):
        labels = f"the labels {', '.join(names)}" if names else "a study that has arms"
        raise InputError("--arms takes labels of arms", found=option, expected=f"LABEL=VALUE,LABEL=VALUE of {labels}")
    return dict(pairs)


def _has(arm: Arm, name: str, shown: str) -> bool:
    value = arm.labels.get(name)
    forms = [str(value), t.cell(value)] + ([f"{value:g}"] if isinstance(value, float) else [])
    return name in arm.labels and shown in forms


def as_recorded(scale: StudyScale, before: Record) -> StudyScale:
    """The scale with as many held-out and test texts as the record's: new runs are scored on those of the kept ones."""
    data, recorded = scale.config.get("data", {}), before["scale"]["config"].get("data", {})
    if data.get(HELD_OUT) != recorded.get(HELD_OUT):
        scale = replace(scale, config={**scale.config, "data": {**data, HELD_OUT: recorded.get(HELD_OUT)}})
    return replace(scale, test_samples=before["scale"]["test_samples"])


def check_kept(before: Record, scale: StudyScale, arms: Sequence[Arm], picked: Collection[Key]) -> None:
    """Raises InputError where the record's set-up, or an arm that is kept, is not what the script has now.

    Args:
        before: the record to be replaced.
        scale: see `as_recorded`.
        arms: all of the script.
    """
    now = rounded(asdict(scale))
    sizes = [{name: each[name] for name in SIZES} | _flat(each["config"]) for each in (before["scale"], now)]
    if differ := _differences(*sizes):
        raise InputError("the record is of another set-up than the study", found=differ, hint=WHOLE)
    recorded = {arm_key(arm["labels"]): arm["changes"] for arm in before["arms"]}
    for arm in arms:
        if (key := arm_key(arm.labels)) in picked:
            continue
        if key not in recorded:
            raise InputError(f"the record does not have the arm {named(arm)}", hint=TOO)
        if differ := _differences(recorded[key], rounded(arm.changes)):
            raise InputError(f"the record has the arm {named(arm)} with other settings", found=differ, hint=TOO)
        if arm.rate_of is not None and arm_key(arm.rate_of) in picked:
            raise InputError(f"the arm {named(arm)} takes the learning rate of an arm that is run again", hint=TOO)


def _flat(config: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Values by "section.key", as a record has them."""
    return {f"{section}.{key}": v for section, keys in config.items() for key, v in without_paths(keys).items()}


def _differences(old: Record, new: Record) -> str:
    """Which values differ, in words; null is as good as missing."""
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return "; ".join(f"{name} {old.get(name)}, now {new.get(name)}" for name in names)


def with_rate(arm: Arm, arms: Sequence[Arm], before: Record, picked: Collection[Key]) -> Arm:
    """The arm; one that takes the rate of a kept arm has it from the record.

    Raises:
        InputError: the record does not have it.
    """
    if arm.rate_of is None or (source := arm_key(arm.rate_of)) in picked:
        return arm
    rates = [sweep["learning_rate"] for sweep in before["tuning"] if arm_key(sweep["labels"]) == source]
    rates = rates or [rate for each in arms if arm_key(each.labels) == source for rate in each.learning_rates]
    if len(rates) != 1 or rates[0] is None:
        what = f"the arm {named(arm)} takes a learning rate that the record does not have"
        raise InputError(what, hint=f"name the arm {dict(arm.rate_of)} with --arms, too")
    return replace(arm, rate_of=None, learning_rates=(rates[0],))
