"""Two records of one study joined: what arms have that were run again stands in the place of what they had."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorascope.study.json_values import rounded
from lorascope.study.results import ARM, CANDIDATES, PLACE, RUNS
from lorascope.study.strata import Strata

Record = Mapping[str, Any]
Table = Mapping[str, Any]  # columns and rows, as a record has them
Key = frozenset[tuple[str, Any]]  # of an arm
Places = list[tuple[int, int]]  # of each element the side, 0 for the old one and 1 for the new one, and its place there
EMPTY: Table = {"columns": [], "rows": []}


def arm_key(labels: Mapping[str, Any]) -> Key:
    """An arm by its labels. One that is null is as one that is missing: so it is in tables."""
    return frozenset((name, value) for name, value in rounded(labels).items() if value is not None)


def row_keys(table: Table, arms: Sequence[Record]) -> list[Key | None]:
    """The arm of every row; None in a table that does not have all labels of these arms."""
    names, columns = list(dict.fromkeys(name for arm in arms for name in arm["labels"])), table["columns"]
    if not names or not set(names) <= set(columns):
        return [None] * len(table["rows"])
    at = [(name, columns.index(name)) for name in names]
    return [arm_key({name: row[i] for name, i in at}) for row in table["rows"]]


@dataclass(frozen=True)
class Splice:
    """Joins lists and tables of the old record and the new one.

    Attributes:
        old, new: the arms of each record.
        picked: those that were run again.
        kept: tables that stay as they are: none of their rows is of one run.
    """

    old: Sequence[Record]
    new: Sequence[Record]
    picked: Collection[Key]
    kept: Collection[str] = ()

    def places(self, old: Sequence[Key | None], new: Sequence[Key | None]) -> Places:
        """Where each element of the joined list comes from: what is new of an arm stands where its old ones began, and
        of an arm that had none at the end."""
        waiting: dict[Key | None, Places] = {}
        for i, key in enumerate(new):
            waiting.setdefault(key, []).append((1, i))
        places: Places = []
        for i, key in enumerate(old):
            places += waiting.pop(key, []) if key in self.picked else [(0, i)]
        return places + [place for those in waiting.values() for place in those]

    def lists(self, old: Sequence[Record], new: Sequence[Record]) -> list[Record]:
        """What there is by arm, with its labels."""
        keys = [[arm_key(each["labels"]) for each in side] for side in (old, new)]
        return [(old, new)[side][i] for side, i in self.places(*keys)]

    def table(self, name: str, old: Table, new: Table) -> tuple[dict[str, Any], Places]:
        """The joined table, with the columns of both, null where one does not have them; and its places."""
        if name in self.kept:
            return dict(old), [(0, i) for i in range(len(old["rows"]))]
        places = self.places(row_keys(old, self.old), row_keys(new, self.new))
        columns = list(dict.fromkeys([*old["columns"], *new["columns"]]))
        at = [{name: i for i, name in enumerate(table["columns"])} for table in (old, new)]
        rows = [
            [(old, new)[side]["rows"][place][at[side][name]] if name in at[side] else None for name in columns]
            for side, place in places
        ]
        return {"columns": columns, "rows": rows}, places

    def tables(self, old: Record, new: Record, strata: Strata) -> dict[str, Any]:
        """The runs, tables, candidates and strata of two records.

        Args:
            strata: knows which strata of both, as (side, number), are linked.
        """
        sides = (old, new)

        def joined(name: str, tables: Sequence[Table], stratum_of: Sequence[Sequence[int]]) -> dict[str, Any]:
            table, places = self.table(name, *tables)
            for side, i in places:
                strata.add(name, (side, stratum_of[side][i]))
            return table

        joined_tables: dict[str, Any] = {
            RUNS: joined(RUNS, [side[RUNS] for side in sides], [_strata(side, RUNS, side[RUNS]) for side in sides])
        }
        joined_tables["tables"] = {
            name: joined(name, tables, [_strata(side, name, of) for side, of in zip(sides, tables, strict=True)])
            for name in dict.fromkeys([*old["tables"], *new["tables"]])
            for tables in [[side["tables"].get(name, EMPTY) for side in sides]]
        }
        if any(CANDIDATES in side for side in sides):
            tables, numbers = zip(*map(_candidates, sides), strict=True)
            joined_tables[CANDIDATES] = self._numbered(joined(CANDIDATES, tables, numbers))
        return joined_tables | {"strata": {name: list(numbers) for name, numbers in strata.numbers().items()}}

    def _numbered(self, candidates: dict[str, Any]) -> dict[str, Any]:
        """With numbers of the arms that are the joined record's."""
        arms = self.lists(self.old, self.new)
        number = {arm_key(arm["labels"]): i for i, arm in enumerate(arms)}
        at = candidates["columns"].index(ARM)
        keys = row_keys(candidates, arms)
        for row, key in zip(candidates["rows"], keys, strict=True):
            row[at] = number[key] if key is not None else 0
        return candidates


def _strata(record: Record, name: str, table: Table) -> Sequence[int]:
    return record["strata"].get(name, [0] * len(table["rows"]))


def _candidates(record: Record) -> tuple[Table, Sequence[int]]:
    """The runs between which a draw chooses, and their strata; in a record that has none, each run is the only one."""
    if CANDIDATES in record:
        return record[CANDIDATES], _strata(record, CANDIDATES, record[CANDIDATES])
    runs = record[RUNS]
    table = {"columns": [*runs["columns"], ARM, PLACE], "rows": [[*row, 0, 0] for row in runs["rows"]]}
    return table, _strata(record, RUNS, runs)
