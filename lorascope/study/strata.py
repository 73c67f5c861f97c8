"""Strata: which rows of a study's tables belong to replicates that are resampled together.

Replicate i of one arm has nothing in common with replicate i of another, unless they share a run, a seed, or a
measurement of both. Arms that do are one stratum and are resampled together; all others are resampled apart, so that
no interval depends on how the replicates happen to be numbered.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence

from scipy.cluster.hierarchy import DisjointSet


class Strata:
    """Rows by their owners (an arm, or the values that a measure was given), and which owners are linked."""

    def __init__(self) -> None:
        self._owners: DisjointSet = DisjointSet()
        self._rows: dict[str, list[Hashable]] = {}

    def link(self, owners: Iterable[Hashable]) -> Hashable:
        """Resample them together from now on; the first of them."""
        first, *others = owners
        self._owners.add(first)
        for other in others:
            self._owners.add(other)
            self._owners.merge(first, other)
        return first

    def add(self, table: str, owner: Hashable) -> None:
        """The next row of the table is this owner's."""
        self._owners.add(owner)
        self._rows.setdefault(table, []).append(owner)

    def numbers(self) -> Mapping[str, Sequence[int]]:
        """The stratum of every row, by table; numbered in the order of their first rows."""
        numbers: dict[Hashable, int] = {}
        return {
            table: [numbers.setdefault(self._owners[owner], len(numbers)) for owner in owners]
            for table, owners in self._rows.items()
        }
