"""A study's record: every number in one JSON file, from which alone its page is drawn. Schema 1:

    schema, kind     1 and "study"
    name             of the script and of the report's files
    title, question  in words; so are varied, tuned, fixed (the protocol) and reading (the author's, may be empty)
    scale            name; replicates; params (the study's own sizes); config (common to all runs: sections of keys);
                     test_split (null: scored on the held-out texts); test_samples; conclusive (false: no verdicts)
    claims           each with name, text, source, note, verdict (held, not held, undecided) and criteria, of which each
                     has text, at_least, at_most (null: no such bound), unit, estimate (null: not computable, for the
                     reason), low, high (its interval; null: none), verdict, reason, control (true: must not be held).
                     A claim that its script marks has the verdict withdrawn or cannot tell, and only then a key mark:
                     measured (the verdict that its criteria gave) and reason (why it does not stand)
    cost             runs, measurements: how many; seconds_of_work: of all of them, whenever they were done;
                     taken_from_the_store: how many were there already; seconds_of_this_call
    made             command, date, lorascope, python, platform, devices, versions (of packages)
    arms             labels of each, and the changes that it makes in the config; rate and seeds apart
    tuning           each arm's sweep: labels; learning_rate (null: none worked); interior (has neighbours on both
                     sides); curve: pairs of rate and held-out loss (null: diverged or failed)
    failures         title of the run or measurement, and message
    runs, tables     columns, and rows in their order: the final runs, and each measure's table by its name
    strata           of runs and of each table that has rows, the stratum of every row: replicates of one are resampled
                     together, those of others apart
    figures          the page's figures: blocks of `lorascope.blocks`, as `report.serial` writes them
    beside           only where some claims are not about runs of the grid: what they are about, for the line of scope

Numbers have seven digits. What could not be computed is null; there is no NaN and no infinity.
"""

import math
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope import __version__
from lorascope.errors import InputError, LorascopeError
from lorascope.inputs import ANY, misfit, read_json
from lorascope.outputs import finite
from lorascope.report import serial
from lorascope.study.marks import marked
from lorascope.study.results import Results
from lorascope.study.runner import Runner, Tuned
from lorascope.study.verdict import MARKS, VERDICTS, Verdict
from lorascope.training.record import PACKAGES, package_version

if TYPE_CHECKING:
    import pandas as pd

SCHEMA, KIND = 1, "study"
DIGITS = 7  # of every number: more than any of them is accurate to
NUMBER, WORD, SCALAR = (float,), (str,), (str, float, bool, type(None))
MAYBE = (float, type(None))
TABLE = {"columns": [WORD], "rows": [[SCALAR]]}
CRITERION = dict.fromkeys(("at_least", "at_most", "estimate", "low", "high"), MAYBE) | {
    "text": WORD,
    "unit": frozenset(("float", "percent", "int")),
    "verdict": frozenset(VERDICTS),
    "reason": WORD,
    "control": (bool,),
}
# What a record must hold, in the words of `inputs.misfit`.
SHAPE = {
    **dict.fromkeys(("name", "title", "question", "varied", "tuned", "fixed", "reading"), WORD),
    "scale": {
        "name": WORD,
        "replicates": (int,),
        "params": {str: ANY},
        "config": {str: {str: ANY}},
        "test_split": (str, type(None)),
        "test_samples": (int, type(None)),
        "conclusive": (bool,),
    },
    "claims": [
        {
            **dict.fromkeys(("name", "text", "source", "note"), WORD),
            "verdict": frozenset((*VERDICTS, *MARKS)),
            "criteria": [CRITERION],
            "mark?": {"measured": frozenset(VERDICTS), "reason": WORD},
        }
    ],
    "cost": dict.fromkeys(
        ("runs", "measurements", "seconds_of_work", "taken_from_the_store", "seconds_of_this_call"), NUMBER
    ),
    "made": {
        **dict.fromkeys(("command", "date", "lorascope", "python", "platform"), WORD),
        "devices": [WORD],
        "versions": {str: WORD},
    },
    "arms": [{"labels": {str: SCALAR}, "changes": {str: ANY}}],
    "tuning": [{"labels": {str: SCALAR}, "learning_rate": MAYBE, "interior": (bool,), "curve": [[MAYBE]]}],
    "failures": [{"title": WORD, "message": WORD}],
    "runs": TABLE,
    "tables": {str: TABLE},
    "strata": {str: [(int,)]},
    "figures": [ANY],
    "beside?": WORD,
}


class NotAStudyReport(InputError):
    """A JSON file of another kind."""


def make(runner: Runner, scale: str, results: Results, tuned: Sequence[Tuned], verdicts: Sequence[Verdict]) -> dict:
    """The record, JSON types only."""
    study = runner.study
    figures = _figures(runner, results)
    root = str(runner.store.root.resolve())
    texts = ("name", "title", "question", "varied", "tuned", "fixed", "reading")
    record = {
        "schema": SCHEMA,
        "kind": KIND,
        **{name: getattr(study, name) for name in texts},
        "scale": {"name": scale, **_scale(results)},
        "claims": [asdict(verdict) for verdict in verdicts],
        "cost": _cost(runner),
        "made": _provenance(runner),
        "arms": [{"labels": dict(arm.labels), "changes": dict(arm.changes)} for arm in runner.arms],
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
        "failures": [
            {"title": title, "message": message.replace(root, "the store")}
            for title, message in runner.failures.items()
        ],
        "runs": _rows(results.runs),
        "tables": {name: _rows(table) for name, table in results.tables.items()},
        "strata": dict(results.strata),
        "figures": figures,
    }
    return _rounded(marked(record, study))


def read(path: Path) -> dict[str, Any]:
    """A record from its file.

    Raises:
        NotAStudyReport: it is something else.
        InputError: it is a study's record of an unsupported schema, or damaged.
    """
    try:
        record = read_json(path, ANY)
    except InputError as error:
        raise InputError(error.what, found=error.found, expected="a study report") from error
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise NotAStudyReport(
            f"{path} is not a study report", hint="name a reports/*.json that `lorascope study run` wrote"
        )
    if record.get("schema") != SCHEMA:
        raise InputError(
            f"{path} has an unsupported schema", found=repr(record.get("schema"))[:40], expected=str(SCHEMA)
        )
    if damage := _damage(record):
        raise InputError(f"{path} is damaged", found=damage, hint="write it again with `lorascope study run`")
    return record


def read_folder(folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Every study's record in a folder, by name, and why others could not be read; other JSON is passed over."""
    records, errors = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(read(path))
        except NotAStudyReport:
            continue
        except LorascopeError as error:
            errors.append(str(error))
    return records, errors


def _damage(record: dict[str, Any]) -> str | None:
    """What is wrong with a record, in words; None where nothing is."""
    try:
        if finite(record) != record:
            return "a number that is not finite"
        return misfit(record, SHAPE) or _wrong_mark(record) or _wrong_length(record)
    except RecursionError:
        return "something that is nested too deep"


def _wrong_mark(record: Mapping[str, Any]) -> str | None:
    """Which claim has a mark and the verdict of one that has none, or the other way round, in words."""
    for i, claim in enumerate(record["claims"]):
        if ("mark" in claim) != (claim["verdict"] in MARKS):
            return f"claims[{i}] with a mark and a verdict that do not fit"
    return None


def _wrong_length(record: Mapping[str, Any]) -> str | None:
    """What has another length than it must, in words."""
    for name, table in {"runs": record["runs"], **record["tables"]}.items():
        if any(len(row) != len(table["columns"]) for row in table["rows"]):
            return f"rows of another length than the columns of {name[:40]}"
        if len(record["strata"].get(name, table["rows"])) != len(table["rows"]):
            return f"strata of another length than the rows of {name[:40]}"
    if any(len(pair) != 2 or pair[0] is None for sweep in record["tuning"] for pair in sweep["curve"]):
        return "a learning rate without its loss"
    return None if all(claim["criteria"] for claim in record["claims"]) else "a claim without criteria"


def _scale(results: Results) -> dict[str, Any]:
    scale = results.scale
    return {
        "replicates": scale.replicates,
        "params": dict(scale.params),
        "config": {section: _without_paths(keys) for section, keys in scale.config.items()},
        "test_split": scale.test_split,
        "conclusive": scale.conclusive,
        "test_samples": scale.test_samples,
    }


def _without_paths(keys: Mapping[str, Any]) -> dict[str, Any]:
    """A section of a config, absolute paths by their last part."""
    return {k: Path(v).name if isinstance(v, str) and Path(v).is_absolute() else v for k, v in keys.items()}


def _figures(runner: Runner, results: Results) -> list[Any]:
    """The study's figures; where they cannot be drawn, the study's numbers are not lost for it."""
    try:
        figures = _rounded(serial.to_json(runner.study.figures(results)))
        serial.from_json(figures)  # what cannot be read again is told now
        return figures
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


def _provenance(runner: Runner) -> dict[str, Any]:
    devices = {facts["device"] for key in runner.used if (facts := runner.store.done(key)) and "device" in facts}
    return {
        "command": shlex.join(["lorascope", *_without_folders(sys.argv[1:])]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "lorascope": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": sorted(devices),
        "versions": {name: version for name in PACKAGES if (version := package_version(name))},
    }


def _without_folders(arguments: Sequence[str]) -> list[str]:
    """The command's words, paths by their last part: a page is sent to others."""
    return [re.sub(r"(^|=)[/~]\S*/", r"\1", argument) for argument in arguments]


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
        return {str(key): _rounded(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(element) for element in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else _scalar(value)
