"""How far two trained adapters, or their A before training, span the same directions, beside what chance gives."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]


def agreement(folders: Sequence[Path], what: str, replicate: int) -> list[Row]:
    """Two trained adapters, module by module: φ and z of the leading directions and of whole subspaces, both sides."""
    from lorascope.weights import io

    first, second = (io.read(folder / "adapter").updates for folder in folders)
    return [
        {"module": name, **row} for name, update in first.items() for row in sides(update.delta(), second[name].delta())
    ]


def sides(first: Any, second: Any) -> Iterator[Row]:
    """The overlaps of two ΔW on their output side ("left") and on their input side ("right")."""
    from lorascope.linalg import subspace

    a, b = subspace.bases(first), subspace.bases(second)
    for side, left, right in (("left", a.left, b.left), ("right", a.right, b.right)):
        yield {"side": side, **overlaps(left, right)}


def overlaps(u: np.ndarray, v: np.ndarray) -> Row:
    """φ(i, j) and its z over chance (Haar), of orthonormal columns (n, r) that are ordered by their σ."""
    from lorascope.linalg import haar

    n, r, big = u.shape[0], u.shape[1], v.shape[1]
    cross = (u.T @ v) ** 2
    row: Row = {}
    for name, i, j in (("1", 1, 1), ("2", 2, 2), ("1r", 1, big), ("r", r, big)):
        value = float(cross[:i, :j].sum()) / min(i, j)
        chance = haar.phi(n, i, j)
        row |= {f"phi_{name}": value, f"z_{name}": chance.z(value), f"chance_{name}": chance.mean}
    return row


def at_start(folders: Sequence[Path], what: str, replicate: int) -> list[Row]:
    """The same of A alone (row spaces) before any training."""
    first, second = (started(folder) for folder in folders)
    rows = []
    for name in first:
        u, v = (np.linalg.svd(start[name], full_matrices=False)[2].T for start in (first, second))
        rows.append({"module": name, "side": "A", **overlaps(u, v)})
    return rows


def started(folder: Path) -> dict[str, np.ndarray]:
    """A (r, d_in) of every layer as the run's seed draws it."""
    import torch

    from lorascope.training import config, run

    prepared = run.prepare(config.load(folder / "config.yaml"), torch.device("cpu"))
    layers: dict[str, Any] = dict(prepared.injected.layers)
    return {name: layer.delta.A.detach().double().numpy() for name, layer in layers.items()}


def moved(folders: Sequence[Path]) -> list[Row]:
    """How far A went from where it began: ‖A − A₀‖/‖A₀‖, median over modules."""
    from lorascope.weights import io

    start = started(folders[0])
    updates = io.read(folders[0] / "adapter").updates
    changes = [np.linalg.norm(updates[name].roles["A"].read() - a) / np.linalg.norm(a) for name, a in start.items()]
    return [{"moved": float(np.median(changes))}]


def alone(folders: Sequence[Path], what: str, replicate: int, n: int, small: int, large: int) -> list[Row]:
    """Without runs: Gaussian matrices of two ranks; and A of two ranks as torch draws them from one seed."""
    import torch

    rng = np.random.default_rng([replicate, n])
    gaussian = [np.linalg.qr(rng.standard_normal((n, r)))[0] for r in (small, large)]
    rows = [{"control": "Gaussian", **overlaps(*gaussian)}]
    drawn = []
    for rank in (small, large):
        torch.manual_seed(replicate)
        drawn.append(torch.nn.init.kaiming_uniform_(torch.empty(rank, n), a=5**0.5).double().numpy())
    u, v = (np.linalg.qr(a.T)[0] for a in drawn)
    return [*rows, {"control": "torch, one seed", **overlaps(u, v)}]
