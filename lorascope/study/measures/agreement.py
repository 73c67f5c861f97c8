"""Whether two trained adapters agree in the leading directions of their updates, module by module."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.study.grid import Scalar

DIRECTIONS = 8


def agreement(folders: Sequence[Path], what: str, replicate: int) -> list[Mapping[str, Scalar]]:
    """φ and z of the leading directions, 1 and DIRECTIONS of them, on both sides, and φ of the same directions with one
    adapter's entries shuffled; rows (module, side).

    Args:
        folders: of the two runs.
        what: is compared.
        replicate: seeds the shuffling.
    """
    from lorascope.linalg import haar, subspace

    first, second = map(deltas, folders)
    rng = np.random.default_rng(replicate)
    rows: list[Mapping[str, Scalar]] = []
    for name, delta in first.items():
        ours, theirs = subspace.bases(delta), subspace.bases(second[name])
        for side in ("left", "right"):
            u, v = getattr(ours, side), getattr(theirs, side)
            row: dict[str, Scalar] = {"module": name, "side": side}
            for k in (1, DIRECTIONS):
                chance = haar.phi(len(u), k, k)
                for label, other in (("", v), ("shuffled_", rng.permutation(v))):
                    phi = float(np.sum((u[:, :k].T @ other[:, :k]) ** 2)) / k
                    row |= {f"{label}phi_{k}": phi, f"{label}z_{k}": chance.z(phi), f"chance_{k}": chance.mean}
            rows.append(row)
    return rows


def deltas(folder: Path) -> dict[str, Any]:
    """ΔW of every module."""
    from lorascope.training.reopen import reopen
    from lorascope.weights import io

    updates = io.read(folder / "adapter").updates
    if not any(update.needs_base for update in updates.values()):
        return {name: update.delta() for name, update in updates.items()}
    opened = reopen(folder, device="cpu")
    return {name: opened.delta(name) for name in updates}


def sizes(folders: Sequence[Path]) -> list[Mapping[str, Scalar]]:
    """The largest entry of ΔW over all modules."""
    from lorascope.updates.base import dense
    from lorascope.weights import io

    updates = io.read(folders[0] / "adapter").updates.values()
    return [{"largest": max(float(abs(dense(update.delta())).max()) for update in updates)}]
