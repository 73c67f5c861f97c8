"""A study's page, and the index of all studies: drawn from their records alone."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

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
Unit = Literal["int", "float", "text"]
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
            "jointly: replicates of arms that share runs, seeds or a measurement; independently: those of all other "
            "arms, with Welch-Satterthwaite degrees of freedom",
            "Satterthwaite 1946",
        ),
        Definition(
            "Held",
            "the 95 % interval of every criterion lies inside its bound, and every negative control fails",
            "this page",
        ),
        Definition(
            "Not held", "the 95 % interval of at least one criterion lies entirely outside its bound", "this page"
        ),
        Definition(
            "Undecided",
            "an interval contains its bound, a value is missing, or a negative control did not fail",
            "this page",
        ),
        Definition("Withdrawn", "the verdict was retracted, for the reason given; it is not counted", "this page"),
        Definition("Cannot tell", "the test could only come out this way, so its result is uninformative", "this page"),
        Definition("Replicate", "a run with its own initialisation, data subset and data order", "this page"),
    ),
    where="page",
)


def page(record: Record) -> Page:
    """The page of one study."""
    claims = Claims(tuple(_claim(claim) for claim in record["claims"]))
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
        Column("found", "Estimate [95 % interval]"),
        Column("bound", "Bound"),
        Column("source", "Source"),
    )
    rows = [row for record in records for row in _index_rows(record)]
    return Page(
        "Replications of published LoRA claims",
        (
            Table(
                columns,
                tuple(rows),
                "Claims",
                "The first criterion of each claim; the study's page has all of them, "
                "with negative controls. Claims marked withdrawn or cannot tell show the reason instead.",
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
                    Column("hours", "Compute hours", "float"),
                    Column("device", "Device"),
                ),
                tuple(_study_row(record) for record in records),
                "Studies",
            ),
            INTERVAL,
        ),
        kicker="lorascope study",
        summary=f"{scope.common(records)}\n\n{len(verdicts)} claims in {len(records)} studies: {counts}. "
        "Model, task and replicates: see each study.",
    )


def listing(rows: Sequence[Mapping[str, Any]]) -> Page:
    """What `lorascope study list` shows: a table, and beneath it the questions in full, and what was taken back."""
    scales = list(dict.fromkeys(scale for row in rows for scale in row["runs"]))
    marks = [(row["name"], mark) for row in rows if row["last"] for mark in row["last"]["marks"]]
    shown = (*VERDICTS, *(word for word in MARKS if any(mark["verdict"] == word for _, mark in marks)))
    columns = [Column("study", "study"), Column("claims", "claims", "int")]
    columns += [Column(scale, f"runs at {scale}", "int") for scale in scales]
    columns += [Column("scale", "last scale"), Column("hours", "compute hours", "float", 2)]
    columns += [Column(verdict, verdict, "int") for verdict in shown]
    cells = []
    for row in rows:
        last = row["last"]
        summary = (last["scale"], last["hours"], *(last["verdicts"].get(word, 0) for word in shown)) if last else ()
        blank = (None,) * (2 + len(shown) - len(summary))
        cells.append((row["name"], row["claims"], *(row["runs"].get(scale) for scale in scales), *summary, *blank))
    questions = tuple((row["name"], row["question"] or row["error"]) for row in rows)
    caption = "Runs: all learning rates and replicates. Sweeps whose best rate is at the edge add runs; runs already "
    caption += "trained for another study are reused."
    table = Table(tuple(columns), tuple(cells), "", caption)
    reasons = [
        Facts(tuple((f"{n}: {m['claim']}", m["reason"]) for n, m in marks if m["verdict"] == mark), mark.capitalize())
        for mark in shown[len(VERDICTS) :]
    ]
    return Page(f"{len(rows)} studies", (Facts(questions, "Questions"), *reasons, table))


def _index_rows(record: Record) -> list[tuple]:
    rows = []
    for claim in record["claims"]:
        first = _check(claim["criteria"][0])
        name = Link(record["name"], f"{record['name']}.html")
        shown = (first.text, t.interval(first), first.bound)
        if "mark" in claim:  # a number that does not stand is not quoted
            shown = (claim["mark"]["reason"], "", "")
        rows.append((name, claim["text"], claim["verdict"], record["scale"]["name"], *shown, claim["source"]))
    return rows


def _study_row(record: Record) -> tuple:
    cost, scale = record["cost"], record["scale"]
    device = ", ".join(record["made"]["devices"]) or "cpu"
    hours = cost["seconds_of_work"] / 3600
    name = Link(record["title"], f"{record['name']}.html")
    scope_line = scope.line(record).removeprefix("Scope: ")
    return name, record["question"], scope_line, scale["name"], scale["replicates"], cost["runs"], hours, device


def _claim(recorded: Record) -> Claim:
    """A claim; of one whose verdict was taken back no criterion shows one either."""
    checks = tuple(_check(check) for check in recorded["criteria"])
    if "mark" not in recorded:
        return Claim(recorded["text"], recorded["verdict"], recorded["source"], checks, recorded["note"])
    checks = tuple(check if check.control else replace(check, verdict=recorded["verdict"]) for check in checks)
    return Claim(
        recorded["text"], recorded["verdict"], recorded["source"], checks, recorded["note"], recorded["mark"]["reason"]
    )


def _check(recorded: Record) -> Check:
    low, high, unit = recorded["at_least"], recorded["at_most"], recorded["unit"]
    ends = [f"≥ {t.cell(low, unit)}" if low is not None else "", f"≤ {t.cell(high, unit)}" if high is not None else ""]
    bound = " and ".join(end for end in ends if end)
    numbers = (recorded["estimate"], recorded["low"], recorded["high"])
    return Check(recorded["text"], *numbers, bound, recorded["verdict"], unit, recorded["control"], recorded["reason"])


def _warnings(record: Record) -> list[Block]:
    items = []
    scale = record["scale"]
    if not scale["conclusive"]:
        text = f"scale {scale['name']}: smoke test only: no verdicts"
        items.append(Finding("warning", text))
    elif scale["replicates"] < 5:
        items.append(Finding("warning", _few(scale["replicates"])))
    edges = [_named(entry["labels"]) for entry in record["tuning"] if not entry["interior"]]
    if edges:
        items.append(Finding("warning", f"best learning rate is at the edge of its sweep: {'; '.join(edges)}"))
    items += [Finding("warning", entry) for entry in _apart(record["runs"])]
    failures = record["failures"]
    items += [Finding("error", f"{entry['title']}: {entry['message']}") for entry in failures[:MAX_FAILURES]]
    if len(failures) > MAX_FAILURES:
        items.append(Finding("error", f"{len(failures) - MAX_FAILURES} more runs failed; see `failures` in the JSON"))
    return [Findings(tuple(items), "Caveats")] if items else []


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
    warnings = []
    for arm, losses in arms.items():
        lowest, highest = min(losses), max(losses)
        if highest > 2 * abs(lowest) + FAR:
            arm_name = ", ".join(f"{key} {value}" for key, value in zip(labels, arm, strict=True) if value != "")
            warnings.append(
                f"{arm_name}: final losses of the replicates differ widely ({lowest:.3g} to {highest:.3g}); "
                "all are included"
            )
    return warnings


def _few(n: int) -> str:
    """What the intervals of fewer than five replicates are worth: they reach from the least to the greatest."""
    if n < 2:
        return "one replicate gives no interval and no verdict; the protocol requires at least five"
    coverage = 100 * (1 - 2 ** (1 - n))
    return f"{n} replicates, fewer than the five that the protocol requires: intervals cover {coverage:.0f} %, not 95 %"


def _protocol(record: Record) -> Facts:
    scale, cost = record["scale"], record["cost"]
    config = "; ".join(
        f"{section}: {', '.join(f'{key} {_shown(value)}' for key, value in keys.items())}"
        for section, keys in scale["config"].items()
    )
    work = f"{cost['runs']:,} training runs and {cost['measurements']:,} measurements, "
    work += (
        f"{cost['seconds_of_work'] / 3600:.2g} compute hours in total ({', '.join(record['made']['devices']) or 'cpu'})"
    )
    items = [
        ("Varied", record["varied"]),
        ("Tuned", record["tuned"]),
        ("Fixed", record["fixed"]),
        ("Replicates", f"{scale['replicates']}, each with its own initialisation, data subset and data order"),
        ("Scale", scale["name"] + "".join(f"; {key} {_shown(value)}" for key, value in scale["params"].items())),
        ("Config", config),
        ("Scored on", _scored_on(scale) + _scored_elsewhere(record)),
        ("Cost", work),
    ]
    return Facts(tuple((label, value) for label, value in items if value), "Protocol")


def _scored_on(scale: Record) -> str:
    if not scale["test_split"]:
        return "the held-out texts, which are also used to tune learning rates"
    texts = f"{scale['test_samples']:,} texts, drawn once for all runs," if scale["test_samples"] else "all texts"
    return f"{texts} of the {scale['test_split']} split, not used for tuning"


def _scored_elsewhere(record: Record) -> str:
    if not any("data.eval_split" in arm["changes"] for arm in record["arms"]):
        return ""
    return "; arms with their own data.eval_split are scored on that split, which also tunes their learning rates"


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
    labels = list(dict.fromkeys(key for entry in record["tuning"] for key in entry["labels"]))
    columns = [Column(key, key) for key in labels]
    columns += [Column("rate", "learning rate", "float"), Column("sweep", "held-out loss of each rate")]
    rows = []
    for entry in record["tuning"]:
        swept = "  ".join(f"{rate:g}: {'diverged' if loss is None else f'{loss:.4f}'}" for rate, loss in entry["curve"])
        rows.append((*(entry["labels"].get(key) for key in labels), entry["learning_rate"], swept))
    caption = "One run per learning rate, with a seed that no scored run uses; the lowest held-out loss wins."
    return [Table(tuple(columns), tuple(rows), "Learning rates", caption, where="page")]


def _tables(record: Record) -> list[Block]:
    tables = [Heading("All data"), _table("runs", record["runs"])]
    return [*tables, *(_table(name, table) for name, table in record["tables"].items())]


def _table(name: str, table: Record) -> Table:
    rows = table["rows"]
    columns = []
    for j, key in enumerate(table["columns"]):
        values = [row[j] for row in rows if row[j] is not None]
        is_whole = all(isinstance(value, int) or (isinstance(value, float) and value.is_integer()) for value in values)
        numeric = bool(values) and all(isinstance(value, int | float) for value in values)
        unit: Unit = (
            "int" if numeric and is_whole and key != "seed" else "float" if numeric and not is_whole else "text"
        )
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
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
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
