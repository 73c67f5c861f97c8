"""A study's record: every number in one JSON file, from which alone its page is drawn and its claims are judged.
Schema 2:

    schema, kind     2 and "study"
    name             of the script and of the report's files
    title, question  in words; so are varied, tuned, fixed (the protocol) and reading (the answer: "" where none is
                     written)
    scale            name; replicates; params (the study's own sizes); config (common to all runs: sections of keys);
                     test_split (null: scored on the held-out texts); test_samples; conclusive (false: no verdicts);
                     testbed
    claims           each with name, text, source, note, setting (of the published claim), kind, verdict, reason,
                     decided_by (the place of the criterion that decided), p, q, and
        criteria     each with text, at_least, at_most (null: no such bound), no_effect, published, supposed, origin,
                     margin, unit, estimate (null: not computable, for the reason), low, high (its interval; null:
                     none), se, df, outcome, reason, control (true: must not pass), power (null, or reproduced, absent
                     and noise) and also (the effect in other units: unit, estimate, low, high)
        frozen       null, or hash (of what decides the claim: `frozen`), date, before_runs (false: it was stated, or
                     changed, when runs were there already)
        amendments   what it was before, the oldest first: date (of the change), verdict, text, bounds, why
    removed          claims that are no longer tested: name, text, verdict, date (of the removal), why
    noise            of criteria in an earlier record, for the power: claim, place, se, df, words
    cost             runs, measurements: how many; seconds_of_work: of all of them, whenever they were done;
                     taken_from_the_store: how many were there already; seconds_of_this_call
    made             command, date (of the runs), judged (date), lorascope, python, platform, devices, versions (of
                     packages), and again (absent: never) for arms that were run again later: date, arms (their labels),
                     command
    arms             labels of each, and the changes that it makes in the config; rate and seeds apart
    tuning           each arm's sweep: labels; learning_rate (null: none worked); interior (has neighbours on both
                     sides); curve: pairs of rate and the held-out losses of its replicates (null: diverged or failed)
    failures         title of the run or measurement, and message
    runs, tables     columns, and rows in their order: the final runs, and each measure's table by its name
    candidates       like runs, of all rates between which a draw chooses (`results.Results`); absent: none chooses
    texts            null, or the file with the score of each text (`text_files`): file, sha256, splits (texts of each),
                     without (how many of the runs have no such scores; absent: none)
    strata           of runs, candidates and each table that has rows, the stratum of every row: replicates of one are
                     resampled together, those of others apart
    figures          the page's figures: blocks of `lorascope.blocks`, as `report.serial` writes them
    beside           only where some claims are not about runs of the grid: what they are about, for the line of scope

Numbers have seven digits. What could not be computed is null; there is no NaN and no infinity. A record of schema 1 is
read as `earlier` converts it, with `converted`: a sentence that says so.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorascope.errors import InputError, LorascopeError
from lorascope.inputs import ANY, misfit, read_json
from lorascope.outputs import finite
from lorascope.study import earlier, text_files
from lorascope.study.grid import ENCODER, StudyScale
from lorascope.study.results import CANDIDATES, RUNS, Results
from lorascope.study.verdict import OUTCOMES, VERDICTS

if TYPE_CHECKING:
    import pandas as pd

SCHEMA, KIND = 2, "study"
NUMBER, WORD, SCALAR = (float,), (str,), (str, float, bool, type(None))
MAYBE = (float, type(None))
TABLE = {"columns": [WORD], "rows": [[SCALAR]]}


def maybe(shape: Any) -> Any:
    """The shape of what may be null."""
    return lambda value: value is None or misfit(value, shape) is None


CRITERION = dict.fromkeys(
    ("at_least", "at_most", "no_effect", "published", "supposed", "margin", "estimate", "low", "high", "se", "df"),
    MAYBE,
) | {
    **dict.fromkeys(("text", "origin", "reason"), WORD),
    "unit": frozenset(("float", "percent", "int")),
    "outcome": frozenset(OUTCOMES),
    "control": (bool,),
    "power": maybe({"reproduced": MAYBE, "absent": MAYBE, "noise": WORD}),
    "also": [{"unit": WORD, **dict.fromkeys(("estimate", "low", "high"), MAYBE)}],
}
CLAIM = {
    **dict.fromkeys(("name", "text", "source", "note", "setting", "kind", "reason"), WORD),
    "verdict": frozenset(VERDICTS),
    "criteria": [CRITERION],
    "decided_by": (int, type(None)),
    "p": MAYBE,
    "q": MAYBE,
    "frozen": maybe({"hash": WORD, "date": WORD, "before_runs": (bool,)}),
    "amendments": [dict.fromkeys(("date", "verdict", "text", "bounds", "why"), WORD)],
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
        "testbed": WORD,
    },
    "claims": [CLAIM],
    "removed": [dict.fromkeys(("name", "text", "verdict", "date", "why"), WORD)],
    "noise": [{"claim": WORD, "place": (int,), "se": NUMBER, "df": NUMBER, "words": WORD}],
    "cost": dict.fromkeys(
        ("runs", "measurements", "seconds_of_work", "taken_from_the_store", "seconds_of_this_call"), NUMBER
    ),
    "made": {
        **dict.fromkeys(("command", "date", "judged", "lorascope", "python", "platform"), WORD),
        "devices": [WORD],
        "versions": {str: WORD},
        "again?": [{"date": WORD, "arms": [{str: SCALAR}], "command": WORD}],
    },
    "arms": [{"labels": {str: SCALAR}, "changes": {str: ANY}}],
    "tuning": [{"labels": {str: SCALAR}, "learning_rate": MAYBE, "interior": (bool,), "curve": [[ANY]]}],
    "failures": [{"title": WORD, "message": WORD}],
    "runs": TABLE,
    "tables": {str: TABLE},
    "candidates?": TABLE,
    "texts": maybe({"file": WORD, "sha256": WORD, "splits": {str: (int,)}, "without?": (int,)}),
    "strata": {str: [(int,)]},
    "figures": [ANY],
    "beside?": WORD,
}


class NotAStudyReport(InputError):
    """A JSON file of another kind."""


def read(path: Path) -> dict[str, Any]:
    """A record from its file; one of schema 1 is converted.

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
    if record.get("schema") not in (earlier.SCHEMA, SCHEMA):
        raise InputError(
            f"{path} has an unsupported schema", found=repr(record.get("schema"))[:40], expected=f"1 or {SCHEMA}"
        )
    if damage := _damage(record):
        raise InputError(f"{path} is damaged", found=damage, hint="write it again with `lorascope study run`")
    return earlier.converted(record) if record["schema"] == earlier.SCHEMA else record


def file_stem(name: str, testbed: str) -> str:
    """What a study's files are called, on each test bed: `rank_sweep.json`, `rank_sweep-decoder.json`."""
    return name if testbed == ENCODER else f"{name}-{testbed}"


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


def results(record: Mapping[str, Any], folder: Path) -> Results:
    """The results that the record's claims are judged on: its tables, and the scores of texts.

    Args:
        folder: of the record, in which the file with the scores of texts is.

    Raises:
        InputError: that file is missing, damaged, or of another record.
    """
    import pandas as pd

    scale = record["scale"]
    curves = [
        {
            **sweep["labels"],
            "learning_rate": rate,
            "replicate": replicate,
            "held_out_loss": loss,
            "chosen": rate == sweep["learning_rate"],
            "interior": sweep["interior"],
        }
        for sweep in record["tuning"]
        for rate, losses in sweep["curve"]
        for replicate, loss in enumerate(losses)
    ]
    return Results(
        _frame(record[RUNS]),
        {name: _frame(table) for name, table in record["tables"].items()},
        StudyScale(**{key: value for key, value in scale.items() if key != "name"}),
        pd.DataFrame(curves),
        record["strata"],
        _frame(record[CANDIDATES]) if CANDIDATES in record else None,
        text_files.read(record["texts"], folder) if record["texts"] else {},
    )


def _frame(table: Mapping[str, Any]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(table["rows"], columns=table["columns"])


def _damage(record: dict[str, Any]) -> str | None:
    """What is wrong with a record, in words; None where nothing is."""
    try:
        if finite(record) != record:
            return "a number that is not finite"
        if record["schema"] == earlier.SCHEMA:
            return misfit(record, EARLIER) or earlier.misplaced_mark(record) or _wrong_length(record)
        return misfit(record, SHAPE) or _wrong_length(record) or _wrong_curve(record) or _wrong_place(record)
    except RecursionError:
        return "something that is nested too deep"


def _wrong_length(record: Mapping[str, Any]) -> str | None:
    """What has another length than it must, in words."""
    named = {key: record[key] for key in (RUNS, CANDIDATES) if key in record}
    for name, table in {**named, **record["tables"]}.items():
        if any(len(row) != len(table["columns"]) for row in table["rows"]):
            return f"rows of another length than the columns of {name[:40]}"
        if len(record["strata"].get(name, table["rows"])) != len(table["rows"]):
            return f"strata of another length than the rows of {name[:40]}"
    if any(len(pair) != 2 or pair[0] is None for sweep in record["tuning"] for pair in sweep["curve"]):
        return "a learning rate without its loss"
    return None if all(claim["criteria"] for claim in record["claims"]) else "a claim without criteria"


def _wrong_curve(record: Mapping[str, Any]) -> str | None:
    shape = [MAYBE]
    for i, sweep in enumerate(record["tuning"]):
        for rate, losses in sweep["curve"]:
            if misfit(rate, NUMBER) or misfit(losses, shape):
                return f"tuning[{i}].curve"
    return None


def _wrong_place(record: Mapping[str, Any]) -> str | None:
    for i, claim in enumerate(record["claims"]):
        if claim["decided_by"] is not None and not 0 <= claim["decided_by"] < len(claim["criteria"]):
            return f"claims[{i}].decided_by"
    return None


# A record of schema 1, in the same words.
EARLIER = {
    **{
        key: shape
        for key, shape in SHAPE.items()
        if key not in ("removed", "noise", "candidates?", "texts", "claims", "made", "scale", "tuning")
    },
    "scale": {key: shape for key, shape in SHAPE["scale"].items() if key != "testbed"},
    "made": {key: shape for key, shape in SHAPE["made"].items() if key != "judged"},
    "tuning": [{"labels": {str: SCALAR}, "learning_rate": MAYBE, "interior": (bool,), "curve": [[MAYBE]]}],
    "claims": [
        {
            **dict.fromkeys(("name", "text", "source", "note"), WORD),
            "verdict": frozenset((*earlier.VERDICTS, *earlier.MARKS)),
            "criteria": [
                {
                    **{key: CRITERION[key] for key in earlier.OF_CRITERIA},
                    "verdict": frozenset(earlier.VERDICTS),
                }
            ],
            "mark?": {"measured": frozenset(earlier.VERDICTS), "reason": WORD},
            "amendments?": CLAIM["amendments"],
        }
    ],
    "removed?": SHAPE["removed"],
}  # fmt: skip
