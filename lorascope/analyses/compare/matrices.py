"""All pairs of many adapters at once: matrices of agreement, groups by initialisation, clusters.

One module at a time, the adapters' bases stand side by side in one wide matrix, and a strip of its Gram matrix after
the other is reduced to one number for each pair: memory is that of one module's bases, whatever the number of modules,
and time is that of matrix products.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lorascope.analyses.compare.pair import least_row_cosine
from lorascope.analyses.subspaces import Subspaces
from lorascope.linalg import haar

STRIP = 512  # columns of the Gram matrix at once
SINGLE_FROM = 64  # adapters: from here on the bases are kept in float32, whose overlaps are good to 1e-6
MAX_ROW_ENTRIES = 1 << 14  # of each A, for the comparison of initialisations: the cosine is good to 1/128
MAX_CLUSTERS = 12
MIN_SILHOUETTE = 0.15  # below this the clusters are no better than one
SHARED_MODULES = 0.5  # of the modules of a pair, for the pair to be of one group


@dataclass(frozen=True)
class Matrices:
    """(N, N) each, NaN where a pair shares no module.

    Attributes:
        cosine: ⟨ΔW_a, ΔW_b⟩/(‖·‖‖·‖) over all common modules together.
        left, right: φ of the whole subspaces, mean over modules; with their chance levels, pooled z over modules (which
            takes the modules to be independent), and effect Σ(φ − chance)/Σ(1 − chance).
        row_cosine: of A's rows one by one, mean over modules.
        shared: the share of the modules whose A have one initialisation.
        modules: how many modules a pair has in common.
    """

    cosine: np.ndarray
    left: np.ndarray
    left_chance: np.ndarray
    left_z: np.ndarray
    left_effect: np.ndarray
    right: np.ndarray
    right_chance: np.ndarray
    right_z: np.ndarray
    right_effect: np.ndarray
    row_cosine: np.ndarray
    shared: np.ndarray
    modules: np.ndarray


@dataclass
class Sums:
    """What is added up over modules for every pair."""

    count: int
    table: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, key: str, at: np.ndarray, values: np.ndarray | float) -> None:
        table = self.table.setdefault(key, np.zeros((self.count, self.count)))
        table[np.ix_(at, at)] += values

    def get(self, key: str) -> np.ndarray:
        return self.table.get(key, np.zeros((self.count, self.count)))

    def module(self, all_spaces: Mapping[int, Subspaces]) -> None:
        """Adds one module; `all_spaces` by the index of the adapter, all of one shape."""
        present = {index: spaces for index, spaces in all_spaces.items() if spaces.directions}
        if len(present) < 2:
            return
        at = np.array(sorted(present))
        ordered = [present[index] for index in at]
        m, n = ordered[0].shape
        stacked = _Stacked.of(ordered, np.float32 if self.count >= SINGLE_FROM else np.float64)
        inner, left, right = stacked.reduced()
        if any(one.whole is not None for one in ordered):
            inner = np.array([[a.cosine(b) * a.norm() * b.norm() for b in ordered] for a in ordered])
        energies = np.array([one.norm() ** 2 for one in ordered])
        self.add("inner", at, inner)
        self.add("energy of a", at, energies[:, None] * np.ones(len(at)))
        self.add("modules", at, 1.0)
        dims = np.array([one.directions for one in ordered])
        for name, size, overlap in (("left", m, left), ("right", n, right)):
            if size < 2:  # the one side of a vector: a line has one subspace
                continue
            least = np.minimum(dims[:, None], dims[None, :])
            self.add(f"{name} modules", at, 1.0)
            mean, variance = haar.moments(size, dims[:, None], dims[None, :])
            self.add(f"{name} phi", at, overlap / least)
            self.add(f"{name} chance", at, mean / least)
            self.add(f"{name} excess", at, overlap - mean)
            self.add(f"{name} variance", at, variance)
        self._rows(at, ordered)

    def _rows(self, at: np.ndarray, ordered: Sequence[Subspaces]) -> None:
        """Compares initialisations: the leading rows that all A of this module have."""
        stored = {k: one.rows for k, one in enumerate(ordered) if one.rows is not None}
        stored = {k: rows for k, rows in stored.items() if np.all(np.any(rows, axis=1))}
        if len(stored) < 2:
            return
        rows = list(stored.values())
        width = rows[0].shape[1]
        height = min(min(map(len, rows)), max(1, MAX_ROW_ENTRIES // width))
        unit = [(a[:height] / np.linalg.norm(a[:height], axis=1, keepdims=True)).ravel() for a in rows]
        stacked: np.ndarray = np.array(unit, dtype=np.float32 if self.count >= SINGLE_FROM else np.float64)
        cosines = np.clip(stacked @ stacked.T / height, -1, 1)
        at = at[list(stored)]
        self.add("row cosine", at, cosines)
        self.add("rows", at, 1.0)
        shared = cosines >= least_row_cosine(height, width)
        self.add("shared", at, shared.astype(float))

    def matrices(self) -> Matrices:
        """The sums as means and pooled numbers."""
        modules, energy = self.get("modules"), self.get("energy of a")
        with np.errstate(divide="ignore", invalid="ignore"):
            made: dict[str, np.ndarray] = {"cosine": self.get("inner") / np.sqrt(energy * energy.T)}
            for side in ("left", "right"):
                excess, number = self.get(f"{side} excess"), self.get(f"{side} modules")
                made[side] = self.get(f"{side} phi") / number
                made[f"{side}_chance"] = self.get(f"{side} chance") / number
                made[f"{side}_z"] = excess / np.sqrt(self.get(f"{side} variance"))
                above = self.get(f"{side} phi") - self.get(f"{side} chance")
                made[f"{side}_effect"] = above / (number - self.get(f"{side} chance"))
            made["row_cosine"] = self.get("row cosine") / self.get("rows")
            made["shared"] = self.get("shared") / self.get("rows")
        return Matrices(modules=modules, **{key: np.where(np.isfinite(v), v, np.nan) for key, v in made.items()})


@dataclass(frozen=True)
class _Stacked:
    """The bases of one module side by side: left (m, Σk), right (n, Σk), sigma (Σk,), the first column of each."""

    left: np.ndarray
    right: np.ndarray
    sigma: np.ndarray
    counted: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, spaces: Sequence[Subspaces], dtype: Any) -> "_Stacked":
        ranks = [one.bases.rank for one in spaces]
        starts = np.concatenate([[0], np.cumsum(ranks)[:-1]])
        m, n = spaces[0].shape
        left, right = np.empty((m, sum(ranks)), dtype, "F"), np.empty((n, sum(ranks)), dtype, "F")
        counted = np.concatenate([np.arange(k) < one.directions for k, one in zip(ranks, spaces, strict=True)])
        for start, one in zip(starts, spaces, strict=True):
            left[:, start : start + one.bases.rank] = one.bases.left
            right[:, start : start + one.bases.rank] = one.bases.right
        sigma = np.concatenate([one.bases.sigma for one in spaces])
        return cls(left, right, sigma.astype(dtype), counted.astype(dtype), starts)

    def reduced(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """⟨ΔW_a, ΔW_b⟩, ‖UᵀU‖_F² and ‖VᵀV‖_F² of all pairs, (N, N) each."""
        ends = np.append(self.starts[1:], len(self.sigma))
        count = len(self.starts)
        whole = np.zeros((3, count, count))
        first = 0
        while first < count:
            last = first + 1
            while last < count and ends[last] - self.starts[first] <= STRIP:
                last += 1
            whole[:, first:last, first:] = self._strip(first, last, int(ends[last - 1]))
            first = last
        upper = np.triu(whole)
        inner, left, right = upper + np.triu(upper, 1).swapaxes(1, 2)
        return inner, left, right

    def _strip(self, first: int, last: int, end: int) -> np.ndarray:
        """(3, last − first, N − first): adapters first..last with themselves and all that follow."""
        begin = int(self.starts[first])
        left, right = (side[:, begin:end].T @ side[:, begin:] for side in (self.left, self.right))
        starts = self.starts[first:] - begin
        sigma, counted = self.sigma[begin:], self.counted[begin:]
        width = end - begin
        weights, kept = sigma[:width, None] * sigma, counted[:width, None] * counted
        reduced = [
            np.add.reduceat(np.add.reduceat(grid, starts, axis=1), starts[: last - first], axis=0, dtype=float)
            for grid in (left * right * weights, left * left * kept, right * right * kept)
        ]
        return np.array(reduced)


def groups(matrices: Matrices) -> list[list[int]]:
    """The adapters whose A have one initialisation, as connected components, the largest first; singletons as well."""
    count = len(matrices.shared)
    linked = np.nan_to_num(matrices.shared) >= SHARED_MODULES
    remaining, components = set(range(count)), []
    while remaining:
        frontier = {min(remaining)}
        group: set[int] = set()
        while frontier:
            group |= frontier
            frontier = {int(k) for k in np.flatnonzero(linked[sorted(frontier)].any(axis=0))} & remaining - group
        components.append(sorted(group))
        remaining -= group
    return sorted(components, key=lambda group: (-len(group), group))


def within_and_between(matrices: Matrices, parts: Sequence[Sequence[int]]) -> dict[str, dict[str, float | None]]:
    """Mean agreement of the pairs inside a part, and of those across parts, by measure."""
    label = np.zeros(len(matrices.shared), dtype=int)
    for number, part in enumerate(parts):
        label[list(part)] = number
    upper = np.triu(np.ones_like(matrices.shared, dtype=bool), 1)
    same = label[:, None] == label[None, :]
    keys = ("cosine", "left", "left_chance", "left_effect", "right", "right_chance", "right_effect", "row_cosine")
    chosen = {"within": upper & same, "between": upper & ~same}
    return {where: {key: _mean(getattr(matrices, key)[pairs]) for key in keys} for where, pairs in chosen.items()}


def _mean(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def cluster(matrices: Matrices) -> dict[str, Any] | None:
    """Average linkage on 1 − left effect, cut where the mean silhouette is largest; None below four adapters.

    Of the left (output) side, because the right side of two adapters is first of all their initialisation.

    Returns:
        order: the leaves of the tree, for drawing; clusters: lists of indices; silhouette; of: what was clustered.
    """
    count = len(matrices.left_effect)
    if count < 3:
        return None
    from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
    from scipy.spatial.distance import squareform

    distance = 1 - np.clip(np.nan_to_num(matrices.left_effect), 0, 1)
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    best, score = np.ones(count, dtype=int), None
    for k in range(2, min(MAX_CLUSTERS, count - 1) + 1):
        cut = fcluster(tree, k, "maxclust")
        value = _silhouette(distance, cut)
        if value is not None and (score is None or value > score):
            best, score = cut, value
    if score is None or score < MIN_SILHOUETTE:
        best = np.ones(count, dtype=int)
    parts = [np.flatnonzero(best == one).tolist() for one in np.unique(best)]
    return {
        "of": "1 − left effect, average linkage",
        "order": leaves_list(tree).tolist(),
        "clusters": sorted(parts, key=lambda part: (-len(part), part)),
        "silhouette": score,
    }


def _silhouette(distance: np.ndarray, cut: np.ndarray) -> float | None:
    """Rousseeuw 1987: the mean of (b − a)/max(a, b); 0 for an adapter alone in its cluster."""
    labels = np.unique(cut)
    if len(labels) < 2:
        return None
    sizes = np.array([np.sum(cut == one) for one in labels])
    to = np.array([distance[:, cut == one].sum(axis=1) for one in labels]).T
    cluster_of = np.searchsorted(labels, cut)
    rows = np.arange(len(cut))
    inside = to[rows, cluster_of] / np.maximum(sizes[cluster_of] - 1, 1)
    others = to / sizes
    others[rows, cluster_of] = np.inf
    outside = others.min(axis=1)
    larger = np.maximum(np.maximum(inside, outside), 1e-300)
    return float(np.mean(np.where(sizes[cluster_of] == 1, 0.0, (outside - inside) / larger)))
