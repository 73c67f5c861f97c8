"""One module of one pair: every measure of agreement, each with its chance level."""

import math

import numpy as np

from lorascope.analyses.compare.relation import relation
from lorascope.analyses.subspaces import Subspaces
from lorascope.analyses.toolkit import Row
from lorascope.linalg import haar, subspace

MAX_SHOWN = 64  # sides of a φ grid, in the record
SHARED_ROWS, SHARED_Z = 0.3, 6.0  # mean cosine of A's rows, one by one, and its z: published groups split at 0.15–0.6
FEW_ROWS, SHARED_FEW = 4, 0.8  # below so many rows training alone may align them: the start must still be there itself
SHARED_SPACE, SHARED_P = 0.5, 1e-6  # of A's row spaces, above chance, where the rows themselves were rotated


def compare(a: Subspaces, b: Subspaces) -> Row:
    """The record of one module, JSON types only; q-values and the name come later."""
    m, n = a.shape
    left, right = a.bases.left.T @ b.bases.left, a.bases.right.T @ b.bases.right
    row: Row = {
        "shape": [m, n],
        "rank": [a.bases.rank, b.bases.rank],
        "frobenius_norm": [a.norm(), b.norm()],
        "kind": [a.update.kind, b.update.kind],
        **_cosine(a, b),
        "left": _space(m, a, b, left, "left"),
        "right": _space(n, a, b, right, "right"),
        "a_alone": _a_alone(n, a, b),
    }
    row["relation"] = relation(row["cosine"], row["frobenius_norm"], row["rank"], row["left"])
    row["initialisation"] = _initialisation(a, b, row["a_alone"])
    if row["initialisation"] and row["relation"]:  # one update: that its A agree says nothing of the seed
        row["initialisation"] |= {"shared": False}
    if row["initialisation"] and row["initialisation"]["shared"] and row["cosine"] is not None:
        row |= _cosine_given_right(m, a, b, right, row["cosine"])
    return row | {"notes": list(dict.fromkeys((*a.notes, *b.notes)))}


def _cosine(a: Subspaces, b: Subspaces) -> Row:
    """⟨ΔW_a, ΔW_b⟩/(‖·‖‖·‖): chance is 0 with standard deviation 1/√(mn), and the tail depends on the spectra."""
    sd = haar.cosine_sd(*a.shape)
    row: Row = {"cosine": None, "cosine_chance": 0.0, "cosine_sd": sd, "cosine_z": None, "cosine_p": None}
    row["cosine_null"] = "both sides rotated"
    if not a.bases.rank or not b.bases.rank:
        return row
    value = a.cosine(b)
    p = haar.cosine_p(value, *a.shape, a.spectrum(), b.spectrum())
    return row | {"cosine": value, "cosine_z": value / sd, "cosine_p": p}


def _cosine_given_right(m: int, a: Subspaces, b: Subspaces, right: np.ndarray, cosine: float) -> Row:
    """The same against updates whose left sides alone are rotated: A is shared, whatever was trained."""
    sd = haar.cosine_sd_given_right(m, right, a.bases.sigma, b.bases.sigma)
    if sd == 0:
        return {}
    p = math.erfc(abs(cosine) / sd / math.sqrt(2))
    return {"cosine_null": "left side rotated", "cosine_sd": sd, "cosine_z": cosine / sd, "cosine_p": p}


def _space(n: int, a: Subspaces, b: Subspaces, cross: np.ndarray, side: str) -> Row | None:
    """One side's subspaces, of dimension i and j in R^n. None where an update is zero, or R^n is a line."""
    i, j = a.directions, b.directions
    if not i or not j or n < 2:
        return None
    u, v = getattr(a.bases, side)[:, :i], getattr(b.bases, side)[:, :j]
    angles = subspace.principal_angles(u, v)
    ties = [subspace.cuts(one.bases.sigma[: count + 1])[:count] for one, count in ((a, i), (b, j))]
    row = _overlap(n, cross[:i, :j], angles, ties)
    return row | _energies(n, a, b, cross, side)


def _overlap(n: int, cross: np.ndarray, angles: np.ndarray, ties: list[list[bool]]) -> Row:
    i, j = cross.shape
    total = float(np.sum(np.cos(angles) ** 2))
    chance = haar.phi(n, i, j)
    whole = total / min(i, j)
    distance = subspace.projection_distance(angles)
    return {
        "dimension": n,
        "dims": [i, j],
        "principal_angles": angles.tolist(),
        "smallest_angle_chance": haar.smallest_angle(n, i, j),
        **_grid(n, cross, ties),
        "phi_whole": whole,
        "phi_chance": chance.mean,
        "phi_sd": chance.sd,
        "z": chance.z(whole),
        "p": chance.p(whole),
        "effect": (whole - chance.mean) / (1 - chance.mean) if chance.mean < 1 else None,
        "top": _top(n, cross, ties),
        "projection_distance": distance,
        "projection_distance_chance": float(np.sqrt(max(min(i, j) * (1 - chance.mean), 0.0))),
        "geodesic_distance": subspace.geodesic_distance(angles),
    }


def _grid(n: int, cross: np.ndarray, ties: list[list[bool]]) -> Row:
    """φ(i, j), and z of each; null where i or j cuts through equal singular values."""
    cross = cross[:MAX_SHOWN, :MAX_SHOWN]
    rows, columns = (np.array(one[:MAX_SHOWN], dtype=bool) for one in ties)
    ordered = rows[:, None] & columns[None, :]  # no tie is cut
    values = subspace.overlap_grid(cross)
    i, j = np.arange(1, len(rows) + 1)[:, None], np.arange(1, len(columns) + 1)[None, :]
    mean, variance = haar.moments(n, i, j)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(variance > 0, (values * np.minimum(i, j) - mean) / np.sqrt(variance), np.nan)
    cut = [[int(k) + 1 for k in np.flatnonzero(~one)] for one in (rows, columns)]
    return {"phi": _listed(values, ordered, 10), "phi_z": _listed(z, ordered, 3), "tied_after": cut}


def _listed(values: np.ndarray, keep: np.ndarray, digits: int) -> list[list[float | None]]:
    keep = keep & np.isfinite(values)
    lines = zip(np.round(values, digits), keep, strict=True)
    return [[float(v) if k else None for v, k in zip(*line, strict=True)] for line in lines]


def _top(n: int, cross: np.ndarray, ties: list[list[bool]]) -> Row:
    """φ(1, 1): whether the strongest directions agree; its Beta law is exact."""
    if not ties[0][0] or not ties[1][0]:
        return {"phi": None, "phi_chance": 1 / n, "z": None, "p": None}
    value, chance = min(float(cross[0, 0] ** 2), 1.0), haar.phi(n, 1, 1)
    return {"phi": value, "phi_chance": chance.mean, "z": chance.z(value), "p": chance.p(value)}


def _energies(n: int, a: Subspaces, b: Subspaces, cross: np.ndarray, side: str) -> Row:
    """The overlap weighted by energy, and how much of one's energy lies in the other's subspace."""
    made: Row = {"energy_overlap": {"value": None, "chance": None, "z": None, "p": None}}
    if a.whole is None and b.whole is None:
        s, t = a.bases.sigma / a.bases.sigma[0], b.bases.sigma / b.bases.sigma[0]
        size = float(np.linalg.norm(s**2) * np.linalg.norm(t**2))
        chance = haar.weighted(n, s**2, t**2).scaled(1 / size)
        made["energy_overlap"] = _with_chance(subspace.energy_overlap(cross, s, t), chance)
    for key, space, other, overlap in (("b_in_a", a, b, cross), ("a_in_b", b, a, cross.T)):
        shares = (other.spectrum() / other.norm()) ** 2
        value = _captured(space, other, overlap, side)
        made[f"energy_of_{key}"] = _with_chance(value, haar.weighted(n, np.ones(space.directions), shares))
    return made


def _captured(space: Subspaces, other: Subspaces, cross: np.ndarray, side: str) -> float:
    """The share of the energy of `other` in the subspace of `space`."""
    if other.whole is None:
        return subspace.captured(cross[: space.directions], other.bases.sigma)
    basis = getattr(space.bases, side)[:, : space.directions]
    whole = other.whole if side == "left" else other.whole.T
    return float(np.linalg.norm(basis.T @ whole) ** 2) / other.norm() ** 2


def _with_chance(value: float, chance: haar.Chance) -> Row:
    return {"value": value, "chance": chance.mean, "z": chance.z(value), "p": chance.p(value)}


def _a_alone(n: int, a: Subspaces, b: Subspaces) -> Row | None:
    """The row spaces of A, in the order of A's own singular values: Hu et al. 2021, §7.2. None where there is no A."""
    if a.a_alone is None or b.a_alone is None:
        return None
    (u, s), (v, t) = a.a_alone, b.a_alone
    if not s.shape[0] or not t.shape[0] or u.shape[0] != v.shape[0]:
        return None
    return _overlap(n, u.T @ v, subspace.principal_angles(u, v), [subspace.cuts(s), subspace.cuts(t)])


def _initialisation(a: Subspaces, b: Subspaces, alone: Row | None) -> Row | None:
    """Whether the two A have one initialisation. None where there is no A.

    In one stream of random numbers A (8, d) is the leading rows of A (64, d), and training moves A little: so its rows,
    one by one and as stored, still point the same way. Two A that were only trained towards one subspace have no such
    reason to agree row by row. Where the rows were rotated since (a truncation, a merge), their space still tells.
    """
    if a.rows is None or b.rows is None or alone is None:
        return None
    cosine, z = row_cosine(a.rows, b.rows)
    least = least_row_cosine(min(len(a.rows), len(b.rows)), a.rows.shape[1])
    by_row = cosine is not None and cosine >= least
    many = min(alone["dims"]) >= FEW_ROWS
    by_space = (
        many and (alone["effect"] or 0.0) >= SHARED_SPACE and (1.0 if alone["p"] is None else alone["p"]) < SHARED_P
    )
    return {"row_cosine": cosine, "row_cosine_z": z, "shared": bool(by_row or by_space)}


def least_row_cosine(rows: int, width: int) -> float:
    """The mean cosine from which on the rows of two A are taken for one start, trained apart."""
    return max(SHARED_ROWS if rows >= FEW_ROWS else SHARED_FEW, SHARED_Z / float(np.sqrt(max(rows * width, 1))))


def row_cosine(a: np.ndarray, b: np.ndarray) -> tuple[float | None, float | None]:
    """The mean cosine of row k of either A over the rows that both have, and its z: by chance 0 ± 1/√(rows · d_in)."""
    rows = min(len(a), len(b))
    if not rows or a.shape[1] != b.shape[1]:
        return None, None
    x, y = a[:rows], b[:rows]
    lengths = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    if not np.all(lengths > 0):
        return None, None
    cosine = float(np.mean(np.sum(x * y, axis=1) / lengths))
    return cosine, cosine * float(np.sqrt(x.size))
