"""A study's record: every number in one JSON file, from which alone its page is drawn."""

import json
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope import __version__
from lorascope.errors import InputError, LorascopeError
from lorascope.report import serial
from lorascope.study.definition import Results
from lorascope.study.runner import Runner, Tuned
from lorascope.study.verdict import Verdict
from lorascope.training.record import PACKAGES, package_version

if TYPE_CHECKING:
    import pandas as pd

SCHEMA, KIND = 1, "study"
DIGITS = 7  # of every number: more than any of them means


def make(runner: Runner, scale: str, results: Results, tuned: Sequence[Tuned], verdicts: Sequence[Verdict]) -> dict:
    """The record, JSON types only."""
    study = runner.study
    figures = _figures(runner, results)
    words = {
        name: getattr(study, name) for name in ("name", "title", "question", "varied", "tuned", "fixed", "reading")
    }
    record = {
        "schema": SCHEMA,
        "kind": KIND,
        **words,
        "scale": {"name": scale, **_scale(results)},
        "claims": [asdict(verdict) for verdict in verdicts],
        "cost": _cost(runner),
        "made": _made(runner),
        "tuning": [
            {
                "labels": dict(arm.labels),
                "learning_rate": t.rate,
                "interior": t.interior,
                "curve": [[rate, loss] for rate, loss in t.curve.items()],
            }
            for arm, t in zip(runner.arms, tuned, strict=True)
            if t.curve
        ],
        "failures": [{"title": title, "message": message} for title, message in runner.failures.items()],
        "runs": _rows(results.runs),
        "tables": {name: _rows(table) for name, table in results.tables.items()},
        "figures": figures,
    }
    return _rounded(record)


def read(path: Path) -> dict[str, Any]:
    """A record from its file.

    Raises:
        InputError: it is no study's record, or one of another schema.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no JSON"
        raise InputError(f"cannot read {path}", found=reason, expected="a study's report") from error
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise InputError(f"{path} is no study's report", hint="name a reports/*.json that `lorascope study run` wrote")
    if found.get("schema") != SCHEMA:
        raise InputError(f"{path} has another schema", found=found.get("schema"), expected=SCHEMA)
    return found


def all_in(folder: Path) -> list[dict[str, Any]]:
    """Every study's record in a folder, by name; other JSON is passed over."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(read(path))
        except LorascopeError:
            continue
    return found


def _scale(results: Results) -> dict[str, Any]:
    scale = results.scale
    return {
        "replicates": scale.replicates,
        "params": dict(scale.params),
        "config": {section: dict(keys) for section, keys in scale.config.items()},
        "test_split": scale.test_split,
        "conclusive": scale.conclusive,
        "test_samples": scale.test_samples,
    }


def _figures(runner: Runner, results: Results) -> list[Any]:
    """The study's figures; where they cannot be drawn, the study's numbers are not lost for it."""
    try:
        return serial.to_json(runner.study.figures(results))
    except Exception as error:
        runner.failures["figures"] = f"{type(error).__name__}: {error}"
        return []


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


def _made(runner: Runner) -> dict[str, Any]:
    devices = {facts["device"] for key in runner.used if (facts := runner.store.done(key)) and "device" in facts}
    return {
        "command": shlex.join(["lorascope", *_shown(sys.argv[1:])]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "lorascope": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": sorted(devices),
        "versions": {name: found for name in PACKAGES if (found := package_version(name))},
    }


def _shown(arguments: Sequence[str]) -> list[str]:
    """The command's words, paths by their last part: a page is sent to others."""
    return [Path(each).name if each.startswith(("/", "~")) else each for each in arguments]


def _rows(table: "pd.DataFrame") -> dict[str, Any]:
    """Columns and rows, a missing value as null."""
    rows = [[_scalar(value) for value in row] for row in table.itertuples(index=False, name=None)]
    return {"columns": [str(column) for column in table.columns], "rows": rows}


def _scalar(value: Any) -> Any:
    import numpy as np

    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    return value if value is None or isinstance(value, bool | int | str) else _scalar(value)
