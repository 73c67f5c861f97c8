"""The index of all studies, and their list in the terminal: drawn from their records alone."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from lorascope.blocks import Block, Column, Facts, Forest, ForestRow, Link, Page, Table, Text, VerdictWord
from lorascope.report import text as t
from lorascope.study import defined, scope, words
from lorascope.study.record import file_stem

Record = Mapping[str, Any]
VERDICTS: tuple[str, ...] = get_args(VerdictWord)
_CLAIM_COLUMNS = (
    Column("study", "Study"),
    Column("claim", "Claim"),
    Column("verdict", "Verdict", "verdict"),
    Column("setting", "Published setting"),
    Column("measured", "What is measured, and its bound"),
    Column("found", "Here [95 % interval]"),
    Column("why", "Why"),
    Column("power", "Power: effect, absence"),
    Column("scope", "Scope"),
    Column("testbed", "Test bed"),
)


def index(records: Sequence[Record]) -> Page:
    """All claims of all studies that give verdicts, by study; those of other test beds stand next to each other."""
    conclusive = sorted(
        (record for record in records if record["scale"]["conclusive"]),
        key=lambda record: (record["name"], record["scale"]["testbed"]),
    )
    smoke = [record for record in records if not record["scale"]["conclusive"]]
    claims = _claims(conclusive)
    return Page(
        "Replications of published LoRA claims",
        (
            _forest(claims),
            *_disagreements(claims),
            *([_left_out(smoke)] if smoke else []),
            _table(claims),
            *_tally(conclusive),
            Table(
                (
                    Column("study", "Study"),
                    Column("answer", "Answer"),
                    Column("scope", "Scope"),
                    Column("testbed", "Test bed"),
                    Column("replicates", "Replicates", "int"),
                    Column("runs", "Runs", "int"),
                    Column("hours", "Compute hours", "float", 2),
                ),
                tuple(_study_row(record) for record in conclusive),
                "Studies",
            ),
            defined.BLOCK,
        ),
        kicker="lorascope study",
        summary="\n\n".join(part for part in (counts(conclusive), *scope.common(conclusive).split("\n")) if part),
    )


def file_of(record: Record) -> str:
    """The page of a record, in the same folder."""
    return f"{file_stem(record['name'], record['scale']['testbed'])}.html"


def _claims(records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Every claim with its record: by study, then by claim, then by test bed."""
    order: dict[tuple[str, str], int] = {}
    for record in records:
        for claim in record["claims"]:
            order.setdefault((record["name"], claim["name"]), len(order))
    pairs = [(record, claim) for record in records for claim in record["claims"]]
    names = list(dict.fromkeys(record["name"] for record in records))
    return sorted(pairs, key=lambda pair: (names.index(pair[0]["name"]), order[pair[0]["name"], pair[1]["name"]]))


def _forest(claims: Sequence[tuple[Record, Record]]) -> Forest:
    rows: list[ForestRow] = []
    pages = {record["name"]: Link(record["title"], file_of(record)) for record, _ in claims}  # one for all test beds
    for record, claim in claims:
        row = words.forest_row(claim, pages[record["name"]], record["scale"]["testbed"])
        rows += [row] if row else []
    return Forest("All claims", tuple(rows), defined.FOREST + words.not_drawn([claim for _, claim in claims]), True)


def _disagreements(claims: Sequence[tuple[Record, Record]]) -> list[Block]:
    """The claims that several test beds judge, and not alike. One that is out of reach on a test bed is not judged."""
    beds: dict[tuple[str, str], list[tuple[Record, Record]]] = {}
    for record, claim in claims:
        if claim["verdict"] != "out of reach":
            beds.setdefault((record["name"], claim["name"]), []).append((record, claim))
    several = [pairs for pairs in beds.values() if len(pairs) > 1]
    if not several:
        return []
    apart = [pairs for pairs in several if len({claim["verdict"] for _, claim in pairs}) > 1]
    chosen = ("study", "claim", "testbed", "verdict", "found")
    columns = tuple(column for key in chosen for column in _CLAIM_COLUMNS if column.key == key)
    keys = [column.key for column in _CLAIM_COLUMNS]
    cells = [dict(zip(keys, _row(*pair), strict=True)) for pairs in apart for pair in pairs]
    rows = [tuple(row[column.key] for column in columns) for row in cells]
    caption = f"{t.counted(len(apart), 'claim')} of {len(several)} that are judged on several test beds."
    return [Table(columns, tuple(rows), "Where the test beds disagree", caption)]


def _left_out(records: Sequence[Record]) -> Text:
    names = ", ".join(f"{record['name']} ({t.counted(len(record['claims']), 'claim')})" for record in records)
    return Text(f"Not listed, because a smoke test shows that a study runs and gives no verdicts: {names}.")


def counts(records: Sequence[Record]) -> str:
    """How many claims were tested and how many verdicts that gave: one for each test bed of a claim."""
    verdicts = Counter(claim["verdict"] for record in records for claim in record["claims"])
    if not verdicts:
        return "No claims yet."
    claims = Counter((record["name"], claim["name"]) for record in records for claim in record["claims"])
    again, studies = sum(n > 1 for n in claims.values()), len({record["name"] for record in records})
    text = f"{t.counted(len(claims), 'claim')} from {studies} {'study' if studies == 1 else 'studies'}"
    if again:
        text += f", {again} of them on several test beds, which makes {t.counted(verdicts.total(), 'verdict')}"
    return f"{text}: {', '.join(f'{verdicts[word]} {word}' for word in VERDICTS if verdicts[word])}."


def _table(claims: Sequence[tuple[Record, Record]]) -> Table:
    rows = [_row(record, claim) for record, claim in claims]
    caption = "Each row shows the criterion that decided the verdict; all criteria and negative controls are on the "
    caption += "study's page."
    return Table(_CLAIM_COLUMNS, tuple(rows), "Claims", caption, interactive=True)


def _row(record: Record, claim: Record) -> tuple:
    shown = ("", "")
    if words.place(claim) is not None:
        check = words.check(words.decisive(claim))
        shown = (f"{check.text} {check.bound}", t.interval(check))
    return (
        Link(record["title"], file_of(record)),
        f"{claim['text']} ({claim['source']})",
        claim["verdict"],
        claim["setting"],
        *shown,
        words.why(claim),
        words.power_in_short(words.decisive(claim)),
        scope.line(record),
        record["scale"]["testbed"],
    )


def _tally(records: Sequence[Record]) -> list[Block]:
    """How many claims of each study have each verdict, by test bed."""
    shown = [word for word in VERDICTS if any(c["verdict"] == word for record in records for c in record["claims"])]
    columns = [Column("study", "Study"), Column("testbed", "Test bed")]
    columns += [Column(word, word.capitalize(), "int") for word in shown]
    rows = []
    for record in records:
        verdicts = Counter(claim["verdict"] for claim in record["claims"])
        counts = (verdicts[word] for word in shown)
        rows.append((Link(record["title"], file_of(record)), record["scale"]["testbed"], *counts))
    return [Table(tuple(columns), tuple(rows), "Verdicts by study")] if rows else []


def _study_row(record: Record) -> tuple:
    cost, scale = record["cost"], record["scale"]
    return (
        Link(record["title"], file_of(record)),
        record["reading"] or record["question"],
        scope.line(record),
        scale["testbed"],
        scale["replicates"],
        cost["runs"],
        cost["seconds_of_work"] / 3600,
    )


def listing(rows: Sequence[Mapping[str, Any]]) -> Page:
    """What `lorascope study list` shows: the questions in full, and a table with costs and the last verdicts."""
    scales = list(dict.fromkeys(scale for row in rows for scale in row["runs"]))
    shown = [word for word in VERDICTS if any(row["last"] and row["last"]["verdicts"].get(word) for row in rows)]
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
    return Page(f"{len(rows)} studies", (Facts(questions, "Questions"), table), summary=_listed(rows))


def _listed(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many of the studies have given verdicts, and on how many claims."""
    run = [row["last"] for row in rows if row["last"]]
    judged = [last for last in run if last["scale"] != "smoke"]
    claims = t.counted(sum(sum(last["verdicts"].values()) for last in judged), "claim")
    smoke = f"; {len(run) - len(judged)} ran as a smoke test only, which gives none" if len(run) > len(judged) else ""
    return f"{len(judged)} of {len(rows)} have given verdicts, on {claims}{smoke}."
