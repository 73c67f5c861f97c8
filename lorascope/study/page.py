"""A study's page, and the index of all studies: drawn from their records alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorascope.blocks import (
    Block,
    Check,
    Claim,
    Claims,
    Column,
    Definition,
    Definitions,
    Facts,
    Finding,
    Findings,
    Heading,
    Link,
    Page,
    Table,
    Text,
)
from lorascope.report import serial
from lorascope.report import text as t
from lorascope.study import scope
from lorascope.study.verdict import MARKS, VERDICTS

Record = Mapping[str, Any]
MAX_FAILURES = 20
FAR = 0.1  # nats: differences below it are no sign of a run that broke
INTERVAL = Definitions(
    (
        Definition(
            "Interval",
            "95 %, expanded percentile bootstrap over replicates, tail Φ(−√(n/(n−1)) · t₀.₉₇₅); 5,000 resamples where "
            "they cannot be enumerated",
            "Hesterberg 2015, §4.2",
        ),
        Definition(
            "Resampled",
            "together: replicates of arms that share runs, seeds or a measurement; apart: those of all other arms, "
            "then with the degrees of freedom of Welch and Satterthwaite",
            "Satterthwaite 1946",
        ),
        Definition("Held", "every criterion's whole interval keeps its bound, and every control fails", "this page"),
        Definition("Not held", "some criterion's interval lies wholly beyond its bound", "this page"),
        Definition("Undecided", "an interval contains its bound, a number is missing, or a control did not fail", ""),
        Definition("Withdrawn", "the verdict does not stand, for the reason beside it; it counts as none", "this page"),
        Definition("Cannot tell", "the test could not have come out otherwise, so that it shows nothing", "this page"),
        Definition("Replicate", "a run with an initialisation, data subset and order of its own", "this page"),
    ),
    where="page",
)


def page(record: Record) -> Page:
    """The page of one study."""
    claims = Claims(tuple(_claim(each) for each in record["claims"]))
    return Page(
        record["title"],
        (
            *_warnings(record),
            claims,
            *([Heading("Reading"), Text(record["reading"])] if record["reading"] else []),
            *serial.from_json(record["figures"]),
            _protocol(record),
            *_arms(record),
            *_tuning(record),
            *_tables(record),
            INTERVAL,
        ),
        kicker="lorascope study",
        summary=f"{scope.line(record)}\n\n{record['question']}",
        made_by=_made_by(record),
    )


def index(records: Sequence[Record]) -> Page:
    """All claims of all studies in one table, those of studies that can give verdicts first."""
    records = sorted(records, key=lambda record: (not record["scale"]["conclusive"], record["name"]))
    verdicts = [claim["verdict"] for record in records for claim in record["claims"]]
    counts = ", ".join(f"{verdicts.count(v)} {v}" for v in (*VERDICTS, *MARKS) if v in verdicts)
    columns = (
        Column("study", "Study"),
        Column("claim", "Claim"),
        Column("verdict", "Verdict", "verdict"),
        Column("scale", "Scale"),
        Column("measured", "What is measured"),
        Column("found", "Found [95 % interval]"),
        Column("bound", "Bound"),
        Column("source", "Source"),
    )
    rows = [row for record in records for row in _index_rows(record)]
    return Page(
        "The claims of low-rank adaptation, re-run",
        (
            Table(
                columns,
                tuple(rows),
                "Claims",
                "The first criterion of each claim; the study's page has all of them, "
                "with the controls that had to fail. Of a claim that is withdrawn or cannot tell: why.",
                interactive=True,
            ),
            Table(
                (
                    Column("study", "Study"),
                    Column("question", "Question"),
                    Column("scope", "Scope"),
                    Column("scale", "Scale"),
                    Column("replicates", "Replicates", "int"),
                    Column("runs", "Runs", "int"),
                    Column("hours", "Hours of work", "float"),
                    Column("device", "Device"),
                ),
                tuple(_study_row(record) for record in records),
                "Studies",
            ),
            INTERVAL,
        ),
        kicker="lorascope study",
        summary=f"{scope.common(records)}\n\n{len(verdicts)} claims of {len(records)} studies: {counts}.",
    )


def listing(rows: Sequence[Mapping[str, Any]]) -> Page:
    """What `lorascope study list` shows: a table, and beneath it the questions in full, and what was taken back."""
    scales = list(dict.fromkeys(scale for row in rows for scale in row["runs"]))
    marks = [(row["name"], mark) for row in rows if row["last"] for mark in row["last"]["marks"]]
    shown = (*VERDICTS, *(each for each in MARKS if any(mark["verdict"] == each for _, mark in marks)))
    columns = [Column("study", "study"), Column("claims", "claims", "int")]
    columns += [Column(scale, f"runs at {scale}", "int") for scale in scales]
    columns += [Column("scale", "last scale"), Column("hours", "hours of work", "float", 2)]
    columns += [Column(verdict, verdict, "int") for verdict in shown]
    cells = []
    for row in rows:
        last = row["last"]
        said = (last["scale"], last["hours"], *(last["verdicts"].get(each, 0) for each in shown)) if last else ()
        blank = (None,) * (2 + len(shown) - len(said))
        cells.append((row["name"], row["claims"], *(row["runs"].get(scale) for scale in scales), *said, *blank))
    questions = tuple((row["name"], row["question"] or row["error"]) for row in rows)
    caption = "Runs: every learning rate and every replicate; sweeps whose best rate is at an end add some, runs that "
    caption += "another study has trained are taken from the store."
    table = Table(tuple(columns), tuple(cells), "", caption)
    reasons = [
        Facts(tuple((f"{n}: {m['claim']}", m["reason"]) for n, m in marks if m["verdict"] == each), each.capitalize())
        for each in shown[len(VERDICTS) :]
    ]
    return Page(f"{len(rows)} studies", (Facts(questions, "Questions"), *reasons, table))


def _index_rows(record: Record) -> list[tuple]:
    rows = []
    for claim in record["claims"]:
        first = _check(claim["criteria"][0])
        name = Link(record["name"], f"{record['name']}.html")
        found = (first.text, t.interval(first), first.bound)
        if "mark" in claim:  # a number that does not stand is not quoted
            found = (claim["mark"]["reason"], "", "")
        rows.append((name, claim["text"], claim["verdict"], record["scale"]["name"], *found, claim["source"]))
    return rows


def _study_row(record: Record) -> tuple:
    cost, scale = record["cost"], record["scale"]
    device = ", ".join(record["made"]["devices"]) or "cpu"
    hours = cost["seconds_of_work"] / 3600
    name = Link(record["title"], f"{record['name']}.html")
    said = scope.line(record).removeprefix("Scope: ")
    return name, record["question"], said, scale["name"], scale["replicates"], cost["runs"], hours, device


def _claim(found: Record) -> Claim:
    """A claim; of one whose verdict was taken back no criterion shows one either."""
    checks = tuple(_check(each) for each in found["criteria"])
    if "mark" not in found:
        return Claim(found["text"], found["verdict"], found["source"], checks, found["note"])
    checks = tuple(each if each.control else replace(each, verdict=found["verdict"]) for each in checks)
    return Claim(found["text"], found["verdict"], found["source"], checks, found["note"], found["mark"]["reason"])


def _check(found: Record) -> Check:
    low, high, unit = found["at_least"], found["at_most"], found["unit"]
    ends = [f"≥ {t.cell(low, unit)}" if low is not None else "", f"≤ {t.cell(high, unit)}" if high is not None else ""]
    bound = " and ".join(end for end in ends if end)
    numbers = (found["estimate"], found["low"], found["high"])
    return Check(found["text"], *numbers, bound, found["verdict"], unit, found["control"], found["reason"])


def _warnings(record: Record) -> list[Block]:
    items = []
    scale = record["scale"]
    if not scale["conclusive"]:
        text = f"scale {scale['name']}: this shows that the study runs, and decides nothing"
        items.append(Finding("warning", text))
    elif scale["replicates"] < 5:
        items.append(Finding("warning", _few(scale["replicates"])))
    edges = [_named(each["labels"]) for each in record["tuning"] if not each["interior"]]
    if edges:
        items.append(Finding("warning", f"the best learning rate stayed at an end of its sweep: {'; '.join(edges)}"))
    items += [Finding("warning", each) for each in _apart(record["runs"])]
    failures = record["failures"]
    items += [Finding("error", f"{each['title']}: {each['message']}") for each in failures[:MAX_FAILURES]]
    if len(failures) > MAX_FAILURES:
        items.append(Finding("error", f"and {len(failures) - MAX_FAILURES} more runs failed; the JSON names them"))
    return [Findings(tuple(items), "What to know first")] if items else []


def _apart(runs: Record) -> list[str]:
    """A sentence for every arm whose replicates ended far apart: some of them may have broken without diverging."""
    names = runs["columns"]
    if "loss" not in names or "replicate" not in names:
        return []
    labels, loss = names[: names.index("replicate")], names.index("loss")
    arms: dict[tuple[str, ...], list[float]] = {}
    for row in runs["rows"]:
        if isinstance(row[loss], int | float):
            arms.setdefault(tuple(map(_worded, row[: len(labels)])), []).append(row[loss])
    found = []
    for arm, losses in arms.items():
        least, most = min(losses), max(losses)
        if most > 2 * abs(least) + FAR:
            where = ", ".join(f"{key} {value}" for key, value in zip(labels, arm, strict=True) if value != "")
            found.append(f"{where}: replicates ended at losses from {least:.3g} to {most:.3g}; all are counted")
    return found


def _few(n: int) -> str:
    """What the intervals of fewer than five replicates are worth: they reach from the least to the greatest."""
    if n < 2:
        return "one replicate has no interval, and decides nothing; the protocol asks for five or more"
    covered = 100 * (1 - 2 ** (1 - n))
    return f"{n} replicates; the protocol asks for five or more: intervals of so few cover {covered:.0f} %, not 95 %"


def _protocol(record: Record) -> Facts:
    scale, cost = record["scale"], record["cost"]
    config = "; ".join(
        f"{section}: {', '.join(f'{key} {_shown(value)}' for key, value in keys.items())}"
        for section, keys in scale["config"].items()
    )
    work = f"{cost['runs']:,} training runs and {cost['measurements']:,} measurements, "
    work += (
        f"{cost['seconds_of_work'] / 3600:.2g} hours of work in all ({', '.join(record['made']['devices']) or 'cpu'})"
    )
    items = [
        ("Varied", record["varied"]),
        ("Tuned", record["tuned"]),
        ("Fixed", record["fixed"]),
        ("Replicates", f"{scale['replicates']}, each with its own initialisation, data subset and order"),
        ("Scale", scale["name"] + "".join(f"; {key} {_shown(value)}" for key, value in scale["params"].items())),
        ("Config", config),
        ("Scored on", _scored_on(scale) + _scored_elsewhere(record)),
        ("Cost", work),
    ]
    return Facts(tuple((label, value) for label, value in items if value), "Protocol")


def _scored_on(scale: Record) -> str:
    if not scale["test_split"]:
        return "the held-out texts, on which learning rates are tuned as well"
    some = f"{scale['test_samples']:,} texts, drawn once for all runs," if scale["test_samples"] else "all texts"
    return f"{some} of the {scale['test_split']} split, on which nothing is tuned"


def _scored_elsewhere(record: Record) -> str:
    if not any("data.eval_split" in arm["changes"] for arm in record["arms"]):
        return ""
    return "; arms that name a data.eval_split of their own on that, by which their rates are tuned as well"


def _arms(record: Record) -> list[Block]:
    """What each arm changes in the common config; its rate and seeds apart."""
    arms = record["arms"]
    labels = list(dict.fromkeys(key for arm in arms for key in arm["labels"]))
    columns = [*(Column(key, key) for key in labels), Column("changes", "changes in the config")]
    rows = [
        (
            *(arm["labels"].get(key) for key in labels),
            ", ".join(f"{key} {_shown(value)}" for key, value in arm["changes"].items()),
        )
        for arm in arms
    ]
    return [Table(tuple(columns), tuple(rows), "Arms", where="page")] if rows else []


def _shown(value: Any) -> str:
    return (" ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def _tuning(record: Record) -> list[Block]:
    if not record["tuning"]:
        return []
    labels = list(dict.fromkeys(key for each in record["tuning"] for key in each["labels"]))
    columns = [Column(key, key) for key in labels]
    columns += [Column("rate", "learning rate", "float"), Column("sweep", "held-out loss of each rate")]
    rows = []
    for each in record["tuning"]:
        swept = "  ".join(f"{rate:g}: {'diverged' if loss is None else f'{loss:.4f}'}" for rate, loss in each["curve"])
        rows.append((*(each["labels"].get(key) for key in labels), each["learning_rate"], swept))
    caption = "One run a rate, with a seed that no judged run has; the rate of the lowest held-out loss is taken."
    return [Table(tuple(columns), tuple(rows), "Learning rates", caption, where="page")]


def _tables(record: Record) -> list[Block]:
    tables = [Heading("Every number"), _table("runs", record["runs"])]
    return [*tables, *(_table(name, table) for name, table in record["tables"].items())]


def _table(name: str, table: Record) -> Table:
    rows = table["rows"]
    columns = []
    for j, key in enumerate(table["columns"]):
        values = [row[j] for row in rows if row[j] is not None]
        whole = all(isinstance(value, int) or (isinstance(value, float) and value.is_integer()) for value in values)
        numeric = bool(values) and all(isinstance(value, int | float) for value in values)
        unit = "int" if numeric and whole and key != "seed" else "float" if numeric and not whole else "text"
        columns.append(Column(key, key.replace("_", " "), unit, 4))
    shown = tuple(tuple(_cell(column.unit, v) for column, v in zip(columns, row, strict=True)) for row in rows)
    return Table(tuple(columns), shown, name, interactive=True, where="page")


def _worded(label: Any) -> str:
    return f"{label:g}" if isinstance(label, float) else str(label)


def _cell(unit: str, value: Any) -> Any:
    """Whole numbers as such: pandas makes a column of them floats where one is missing. A seed is a name."""
    if value is None or isinstance(value, bool):
        return value
    return int(value) if unit == "int" else str(value) if unit == "text" else value


def _made_by(record: Record) -> tuple[tuple[str, str], ...]:
    made = record["made"]
    versions = ", ".join(f"{name} {found}" for name, found in made["versions"].items())
    return (
        ("command", made["command"]),
        ("date", made["date"]),
        ("lorascope", made["lorascope"]),
        ("device", ", ".join(made["devices"]) or "cpu"),
        ("python", f"{made['python']} on {made['platform']}"),
        ("versions", versions),
    )


def _named(labels: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in labels.items())
