"""From a study that has been run to its record: what the runs gave, how they were made, what they took."""

import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorascope import __version__
from lorascope.study import judging, record, text_files
from lorascope.study.definition import Study
from lorascope.study.json_values import rounded, rows
from lorascope.study.results import CANDIDATES, RUNS, Results
from lorascope.study.runner import Runner, Tuned
from lorascope.study.texts import TextScores
from lorascope.training.run_folder import PACKAGES, package_version


def today() -> str:
    """The day of a record, in UTC: 2026-11-29."""
    return datetime.now(UTC).strftime("%Y-%m-%d")


def make(
    runner: Runner,
    scale: str,
    results: Results,
    tuned: Sequence[Tuned],
    frozen: judging.Frozen,
    before: Mapping[str, Any] | None,
    progress: judging.Progress | None = None,
) -> tuple[dict[str, Any], bytes | None]:
    """The record, JSON types only, and the file with the scores of texts, where there are any.

    The claims are judged on the numbers that the record has, so that it alone gives the same verdicts again.

    Args:
        frozen: the claims before the runs, by name (`frozen.freeze`).
        before: the record that this one replaces; None where there is none of this study, scale and test bed.
    """
    return judged(unjudged(runner, scale, results, tuned), results.texts, runner.study, frozen, before, progress)


def judged(
    base: Mapping[str, Any],
    texts: Mapping[str, TextScores],
    study: Study,
    frozen: judging.Frozen,
    before: Mapping[str, Any] | None,
    progress: judging.Progress | None = None,
) -> tuple[dict[str, Any], bytes | None]:
    """The whole record and the file with the scores of texts, from what `unjudged` gives; otherwise as `make`."""
    stem = record.file_stem(study.name, base["scale"]["testbed"])
    content, facts = text_files.packed(texts, stem) if texts else (None, None)
    if facts is not None and (without := _without_scores(base[RUNS], texts)):
        facts["without"] = without
    base = {**rounded(base), "noise": judging.noise_of(before), "texts": facts}
    written = replace(record.results({**base, "texts": None}, Path()), texts=text_files.as_stored(texts))
    return judging.judge(judging.Case(base, study, before, frozen, today()), written, progress), content


def _without_scores(runs: Mapping[str, Any], texts: Mapping[str, TextScores]) -> int:
    """Of how many runs the texts are not resampled."""
    at = runs["columns"].index("key")
    return sum(not any(row[at] in scores.rows for scores in texts.values()) for row in runs["rows"])


def replaced(path: Path, study: str, scale: str, testbed: str) -> dict[str, Any] | None:
    """The record that a run of this study is going to replace; None where there is none, or it is of another scale.

    Raises:
        InputError: it is damaged: what it says of earlier verdicts would be lost.
    """
    if not path.exists():
        return None
    earlier = record.read(path)
    is_same = (earlier["name"], earlier["scale"]["name"], earlier["scale"]["testbed"]) == (study, scale, testbed)
    return earlier if is_same else None


def unjudged(runner: Runner, scale: str, results: Results, tuned: Sequence[Tuned]) -> dict[str, Any]:
    """The record without what is judged."""
    study, root = runner.study, str(runner.store.root.resolve())
    return {
        "schema": record.SCHEMA,
        "kind": record.KIND,
        "name": study.name,
        **dict.fromkeys(judging.TEXTS, ""),  # in their place on top
        "reading": "",
        "scale": {"name": scale, **_scale(results)},
        "claims": [],
        "removed": [],
        "noise": [],
        "cost": _cost(runner),
        "made": _provenance(runner),
        "arms": [{"labels": dict(arm.labels), "changes": dict(arm.changes)} for arm in runner.arms],
        "tuning": [
            {
                "labels": dict(arm.labels),
                "learning_rate": t.rate,
                "interior": t.interior,
                "curve": [[rate, [losses[n] for n in sorted(losses)]] for rate, losses in t.curve.items()],
            }
            for arm, t in zip(runner.arms, tuned, strict=True)
            if t.curve
        ],
        "failures": [
            {"title": title, "message": message.replace(root, "the store")}
            for title, message in runner.failures.items()
        ],
        RUNS: rows(results.runs),
        "tables": {name: rows(table) for name, table in results.tables.items()},
        **({} if results.candidates is None else {CANDIDATES: rows(results.candidates)}),
        "texts": None,
        "strata": {name: list(strata) for name, strata in results.strata.items()},
        "figures": [],
    }


def _scale(results: Results) -> dict[str, Any]:
    scale = {key: value for key, value in asdict(results.scale).items() if key != "by_arm"}  # an order of work
    config = {section: without_paths(keys) for section, keys in scale["config"].items()}
    return {**scale, "config": config}


def without_paths(keys: Mapping[str, Any]) -> dict[str, Any]:
    """A section of a config, absolute paths by their last part."""
    return {k: Path(v).name if isinstance(v, str) and Path(v).is_absolute() else v for k, v in keys.items()}


def _cost(runner: Runner) -> dict[str, Any]:
    """What the work took, wherever and whenever it was done."""
    done = {key: runner.store.done(key) or {} for key in runner.used}
    kinds = {key: job.spec["kind"] for key, job in runner.used.items()}
    return {
        "runs": sum(kind == "train" for kind in kinds.values()),
        "measurements": sum(kind == "measure" for kind in kinds.values()),
        "seconds_of_work": round(sum(facts.get("seconds", 0.0) for facts in done.values()), 1),
        "taken_from_the_store": runner.reused,
        "seconds_of_this_call": round(runner.seconds, 1),
    }


def _provenance(runner: Runner) -> dict[str, Any]:
    devices = {facts["device"] for key in runner.used if (facts := runner.store.done(key)) and "device" in facts}
    return {
        "command": shlex.join(["lorascope", *_without_folders(sys.argv[1:])]),
        "date": today(),
        "judged": today(),
        "lorascope": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": sorted(devices),
        "versions": {name: version for name in PACKAGES if (version := package_version(name))},
    }


def _without_folders(arguments: Sequence[str]) -> list[str]:
    """The command's words, paths by their last part: a page is sent to others."""
    return [re.sub(r"(^|=)[/~]\S*/", r"\1", argument) for argument in arguments]
