"""A study's page: the answer, a forest plot, the claims, caveats, protocol and numbers. Drawn from its record alone."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lorascope.blocks import (
    Block,
    Claims,
    Column,
    Facts,
    Finding,
    Findings,
    Forest,
    Heading,
    Lines,
    Link,
    Marker,
    Page,
    Series,
    Table,
)
from lorascope.report import serial
from lorascope.report import text as t
from lorascope.study import defined, scope, words

Record = Mapping[str, Any]
Unit = Literal["int", "float", "text"]
MAX_FAILURES = 20
MAX_ROWS = 400  # of a table of data on the page; a decoder has 210 modules in each of a dozen runs
FAR = 0.1  # nats: differences below it are no sign of a run that broke
FINE = 1.81  # the widest step of a sweep, next to its best rate, that needs no caveat
FEW = 2  # runs per rate that need none


def page(record: Record) -> Page:
    """The page of one study."""
    return Page(
        record["title"],
        (
            *_forest(record),
            Claims(tuple(words.claim(claim) for claim in record["claims"])),
            *_removed(record),
            *_caveats(record),
            *_figures(record),
            _protocol(record),
            *_arms(record),
            *_tuning(record),
            *_tables(record),
            defined.BLOCK,
        ),
        kicker="lorascope study",
        answer=record["reading"],
        summary="\n\n".join(
            (*([] if record["reading"] else [record["question"]]), scope.line(record), _set_up(record))
        ),
        made_by=_made_by(record),
        up=Link("All studies", "index.html"),
    )


def _forest(record: Record) -> list[Block]:
    rows = tuple(row for claim in record["claims"] if (row := words.forest_row(claim)))
    caption = defined.FOREST + words.not_drawn(record["claims"])
    return [Forest("Published and here", rows, caption)] if rows else []


def _set_up(record: Record) -> str:
    """The set-up in one line: how many runs of what, and how they were tuned and scored."""
    scale, cost = record["scale"], record["cost"]
    replicates, arms = t.counted(scale["replicates"], "replicate"), len(record["arms"])
    runs = f"{t.counted(arms, 'arm')} × {replicates}" if arms else f"{replicates}, no training"
    total = f"{cost['runs']:,} training runs with those that tune" if cost["runs"] else ""
    parts = [runs, total, _tuned(record), f"scored on {_scored_on(record)}"]
    return f"Set-up: {'; '.join(part for part in parts if part)}."


def _figures(record: Record) -> list[Block]:
    """The study's own figures and tables."""
    found = serial.from_json(record["figures"])
    return [Heading("More results"), *found] if found else []


def _removed(record: Record) -> list[Block]:
    """Claims of earlier versions that are no longer tested."""
    rows = [tuple(each[key] for key in ("text", "verdict", "date", "why")) for each in record.get("removed") or ()]
    columns = (
        Column("text", "Claim"),
        Column("verdict", "Last verdict"),
        Column("date", "Removed"),
        Column("why", "Why"),
    )
    return [Table(columns, tuple(rows), "Claims no longer tested")] if rows else []


# --- caveats ----------------------------------------------------------------------------------------------------------


def _caveats(record: Record) -> list[Block]:
    """What limits the verdicts, with the error messages of runs that failed."""
    limits = [*_of_scale(record["scale"]), *_of_tuning(record), *_apart(record["runs"])]
    found = [Finding("warning", words.sentence(text)) for text in limits]
    failures = record["failures"]
    found += [Finding("error", f"{entry['title']}: {entry['message']}") for entry in failures[:MAX_FAILURES]]
    if len(failures) > MAX_FAILURES:
        found.append(Finding("error", f"{len(failures) - MAX_FAILURES} more runs failed; see `failures` in the JSON"))
    notes = (_texts(record), *_multiplicity(record["claims"]))
    return [Findings((*found, *(Finding("note", words.sentence(text)) for text in notes)), "Caveats")]


def _of_scale(scale: Record) -> list[str]:
    if not scale["conclusive"]:
        return [f"scale {scale['name']}: smoke test only: no verdicts"]
    return [_few(scale["replicates"])] if scale["replicates"] < 5 else []


def _few(n: int) -> str:
    """What the intervals of fewer than five replicates are worth."""
    if n < 2:
        return "one replicate gives no interval and no verdict; the protocol requires at least five"
    return f"{n} replicates, fewer than the five that the protocol requires"


def _of_tuning(record: Record) -> list[str]:
    """Whether the choice of learning rates is noise that the intervals do not have, and where it was at an edge."""
    sweeps = [sweep for sweep in record["tuning"] if len(sweep["curve"]) > 1]
    coarse = [sweep for sweep in sweeps if _runs_per_rate(sweep) < FEW or _step(sweep) > FINE]
    limits = []
    if coarse:
        which = "" if len(coarse) == len(record["tuning"]) else f" ({len(coarse)} of {len(record['tuning'])} arms)"
        inside = "" if _are_chosen_again(record, coarse) else "; the intervals do not include this noise"
        limits.append(f"{_tuned({'tuning': coarse})}{which}{inside}")
    edges = [_named(sweep["labels"]) for sweep in record["tuning"] if not sweep["interior"]]
    if edges:
        limits.append(f"best learning rate is at the edge of its sweep: {'; '.join(edges)}")
    return limits


def _are_chosen_again(record: Record, sweeps: Sequence[Record]) -> bool:
    """Whether every resample chooses the learning rates of these sweeps again, between two candidates at least."""
    table = record.get("candidates") or {"columns": [], "rows": []}
    at = {name: i for i, name in enumerate(table["columns"])}
    choices = [row for row in table["rows"] if row[at["_place"]]]
    return all(
        any(all(row[at[key]] == value for key, value in sweep["labels"].items()) for row in choices) for sweep in sweeps
    )


def _tuned(record: Record) -> str:
    """How learning rates were chosen: "tuned with one run per rate on a grid of factor 3.3"."""
    sweeps = [sweep for sweep in record["tuning"] if len(sweep["curve"]) > 1]
    if not sweeps:
        return "no learning rate tuned"
    fewest = min(map(_runs_per_rate, sweeps))
    runs = "one run" if fewest <= 1 else f"{fewest} runs"
    return f"tuned with {runs} per rate on a grid of factor {max(map(_step, sweeps)):.2g}"


def _runs_per_rate(sweep: Record) -> int:
    """The fewest runs of a rate next to the chosen one, itself included."""
    near = _near(sweep)
    return min((len(losses) for rate, losses in sweep["curve"] if rate in near), default=0)


def _step(sweep: Record) -> float:
    """The widest step between the chosen rate and its neighbours."""
    return max((high / low for low, high in itertools.pairwise(_near(sweep)) if low > 0), default=1.0)


def _near(sweep: Record) -> list[float]:
    """The chosen rate and its neighbours, ascending; all rates where none was chosen."""
    rates = sorted(rate for rate, _ in sweep["curve"])
    if sweep["learning_rate"] not in rates:
        return rates
    at = rates.index(sweep["learning_rate"])
    return rates[max(at - 1, 0) : at + 2]


def _texts(record: Record) -> str:
    """Over what the intervals are, and how often they contain the true value."""
    over = "over seeds and texts" if record["texts"] else "over seeds only, given these texts"
    if record["texts"] and (without := record["texts"].get("without")):
        over += f", but for {without:,} of {len(record['runs']['rows']):,} runs over seeds only, given their texts"
    if not record["scale"]["conclusive"] or record["scale"]["replicates"] < 2:
        return f"intervals are {over}"
    return "; ".join(part for part in (f"intervals are {over}", defined.coverage(record)) if part)


def _multiplicity(claims: Sequence[Record]) -> list[str]:
    """How many claims are tested, and how many of them their q-values support."""
    tested = [claim["q"] for claim in claims if claim["q"] is not None]
    if not tested:
        return []
    low = sum(q <= 0.05 for q in tested)
    return [
        f"{t.counted(len(tested), 'claim')} tested: at 95 % about one verdict in 20 is wrong by chance; "
        f"{low} of {len(tested)} have q ≤ 0.05, the level that allows for the number of claims"
    ]


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


# --- protocol and numbers ---------------------------------------------------------------------------------------------


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
        ("Question", record["question"]),
        ("Varied", record["varied"]),
        ("Tuned", record["tuned"]),
        ("Fixed", record["fixed"]),
        ("Replicates", f"{scale['replicates']}, each with its own initialisation, data subset and data order"),
        ("Test bed", scale["testbed"]),
        ("Scale", scale["name"] + "".join(f"; {key} {_shown(value)}" for key, value in scale["params"].items())),
        ("Config", config),
        ("Scored on", _scored_on(record)),
        ("Claims", _frozen(record["claims"])),
        ("Run again", _again(record)),
        ("Cost", work),
    ]
    return Facts(tuple((label, value) for label, value in items if value), "Protocol")


def _frozen(claims: Sequence[Record]) -> str:
    """When claims were fixed, and how many were changed after results."""
    frozen = [claim["frozen"] for claim in claims if claim["frozen"]]
    parts = []
    for is_before, which in ((True, "before the runs"), (False, "when runs were there already")):
        dates = sorted(each["date"] for each in frozen if each["before_runs"] is is_before)
        if dates:
            days = " and ".join(dict.fromkeys((dates[0], dates[-1])))
            parts.append(f"{len(dates)} of {len(claims)} fixed by a hash {which} ({days})")
    amended = sum(bool(claim["amendments"]) for claim in claims)
    return "; ".join([*parts, f"{amended} amended, as told with each"] if amended else parts)


def _again(record: Record) -> str:
    """Which arms were run again later than all others."""
    later = [
        f"{'; '.join(_named(arm) for arm in entry['arms'])} ({entry['date']})"
        for entry in record["made"].get("again", ())
    ]
    return f"{'; '.join(later)}; all other arms are of {record['made']['date']}" if later else ""


def _scored_on(record: Record) -> str:
    """On which texts runs are scored, as they were drawn."""
    scale = record["scale"]
    if not scale["test_split"]:
        return "the held-out texts, which are also used to tune learning rates" + _scored_elsewhere(record)
    n = scale["test_samples"]
    texts = f"{n:,} texts drawn at random, once for all runs," if n else "all texts"
    return f"{texts} of the {scale['test_split']} split, not used for tuning" + _scored_elsewhere(record)


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


# --- learning rates ---------------------------------------------------------------------------------------------------


def _tuning(record: Record) -> list[Block]:
    """The held-out loss over learning rates, with the seeds: as a figure and as a table."""
    sweeps = [sweep for sweep in record["tuning"] if sweep["curve"]]
    if not sweeps:
        return []
    series, markers = [], []
    for sweep in sweeps:
        if len(sweep["curve"]) > 1:
            panel = _named(sweep["labels"])
            series += _curve(sweep, panel)
            markers += _chosen(sweep, panel)
    caption = "Of each arm the mean over its runs (line) and every run (points); the dotted line is the chosen rate. "
    caption += "Runs that diverged or failed are not drawn."
    axes = ("learning rate", "held-out loss")
    figure = Lines("Learning rates", tuple(series), *axes, log_x=True, markers=tuple(markers), caption=caption)
    drawn = [figure] if any(one.weight == "normal" and one.x for one in series) else []
    return [Heading("Tuning"), *drawn, _sweeps(sweeps)]


def _curve(sweep: Record, panel: str) -> list[Series]:
    means = [(rate, sum(known) / len(known)) for rate, losses in sweep["curve"] if (known := _known(losses))]
    runs = [(rate, loss, i) for rate, losses in sweep["curve"] for i, loss in enumerate(losses) if loss is not None]
    if not means:
        return []
    names = tuple(f"run {i + 1} at {rate:g}: {loss:.4f}" for rate, loss, i in runs)
    x, y = zip(*means, strict=True)
    mean = Series("mean of the runs", x, y, panel)
    return [mean, Series("a run", tuple(r for r, _, _ in runs), tuple(v for _, v, _ in runs), panel, points=names)]


def _known(losses: Sequence[float | None]) -> list[float]:
    """The losses, unless any of the runs has none: a rate at which one diverged is not chosen."""
    known = [loss for loss in losses if loss is not None]
    return known if len(known) == len(losses) else []


def _chosen(sweep: Record, panel: str) -> list[Marker]:
    rate = sweep["learning_rate"]
    return [] if rate is None else [Marker("x", rate, "chosen rate", panel)]


def _sweeps(sweeps: Sequence[Record]) -> Table:
    labels = list(dict.fromkeys(key for sweep in sweeps for key in sweep["labels"]))
    columns = [Column(key, key) for key in labels]
    columns += [Column("rate", "learning rate", "float"), Column("sweep", "held-out losses of each rate")]
    rows = []
    for sweep in sweeps:
        swept = "  ".join(
            f"{rate:g}: {', '.join('diverged' if loss is None else f'{loss:.4f}' for loss in losses)}"
            for rate, losses in sweep["curve"]
        )
        rows.append((*(sweep["labels"].get(key) for key in labels), sweep["learning_rate"], swept))
    caption = "The lowest mean held-out loss wins; a rate at which a run diverged is not chosen."
    return Table(tuple(columns), tuple(rows), "Learning rates", caption, where="page")


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
    shown = tuple(
        tuple(_cell(column.unit, v) for column, v in zip(columns, row, strict=True)) for row in rows[:MAX_ROWS]
    )
    more = len(rows) > MAX_ROWS
    caption = f"The first {t.integer(MAX_ROWS)} of {t.integer(len(rows))} rows; the JSON has all." if more else ""
    return Table(tuple(columns), shown, name, caption, interactive=True, where="page")


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
