"""The frozen result: records, counts over ε and k, JSON and table."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

import lorascope
from lorascope.analyses.intruders import findings as words
from lorascope.analyses.intruders import page
from lorascope.analyses.intruders.module import SIDES, ModuleIntruders
from lorascope.blocks import Block, Finding
from lorascope.weights.adapter import Skipped
from lorascope.weights.base_svd import SvdCache

if TYPE_CHECKING:
    import pandas as pd

    from lorascope.analyses.intruders.intervention import Intervention

SCHEMA = 1
EPSILONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class CacheUse:
    """How many decompositions of base weights were read from the disk, and how many were computed."""

    folder: str | None
    read: int
    computed: int
    damaged: int
    read_bytes: int
    written_bytes: int

    @classmethod
    def of(cls, cache: SvdCache) -> "CacheUse":
        folder = str(cache.folder) if cache.folder is not None else None
        return cls(folder, cache.hits, cache.computed, cache.damaged, cache.read_bytes, cache.written_bytes)


@dataclass(frozen=True)
class IntrudersResult:
    """The leading singular vectors of every tuned weight.

    Attributes:
        modules: one record for each weight, in the base's order.
        sides: what was read: `base` and `tuned`, with path and hash.
        k: how many leading vectors of each weight were looked at.
        epsilon: an intruder's largest |cos| is below this.
        epsilons: the grid of the counts.
        skipped: what was not looked at, and why.
        cache: what was read from the cache of decompositions, and what computed.
        intervention: what scaling the intruders did to the scores, where that was asked for.
    """

    modules: tuple[ModuleIntruders, ...]
    sides: Mapping[str, Any]
    k: int
    epsilon: float
    epsilons: tuple[float, ...]
    skipped: tuple[Skipped, ...] = ()
    cache: CacheUse | None = None
    intervention: "Intervention | None" = None

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        return words.findings(self)

    @cached_property
    def changed(self) -> tuple[ModuleIntruders, ...]:
        """The weights whose ΔW is finite and not zero."""
        return tuple(module for module in self.modules if module.delta_norm)

    @cached_property
    def slots(self) -> int:
        """How many vectors were looked at."""
        return sum(len(module.vectors) for module in self.modules)

    def count(
        self, epsilon: float, k: int | None = None, side: str = "left", modules: Iterable[ModuleIntruders] | None = None
    ) -> int:
        """Intruders among the k leading vectors of every weight."""
        chosen = self.modules if modules is None else modules
        return sum(len(m.intruders(epsilon, self.k if k is None else k, side)) for m in chosen)

    def energy_share(self, side: str = "left") -> float | None:
        """What share of the energy of the k leading vectors the intruders hold."""
        all_of_it = sum(v.sigma**2 for m in self.modules for v in m.vectors)
        mine = sum(v.sigma**2 for m in self.modules for v in m.intruders(self.epsilon, self.k, side))
        return mine / all_of_it if all_of_it else None

    def agreement(self) -> dict[str, int]:
        """In how many weights a spike was expected among the k leading values, and an intruder was there, or not."""
        found = {"both": 0, "expected_only": 0, "found_only": 0, "neither": 0}
        for module in self.changed:
            if module.prediction is not None:
                expected, there = module.prediction.in_top > 0, bool(module.intruders(self.epsilon, self.k))
                name = ("neither", "found_only", "expected_only", "both")[2 * expected + there]
                found[name] += 1
        return found

    def table(self) -> "pd.DataFrame":
        """One row per weight, nested records flattened with dots, the vectors left out."""
        import pandas as pd

        return pd.DataFrame(self.flat_rows())

    def flat_rows(self) -> list[dict[str, Any]]:
        rows = []
        for module in self.modules:
            record = self._record(module)
            row = {key: record[key] for key in record if not isinstance(record[key], (dict, list, tuple))}
            row |= {"d_out": module.shape[0], "d_in": module.shape[1], "notes": "; ".join(module.notes)}
            for name in ("intruders", "chance", "prediction"):
                row |= {f"{name}.{key}": value for key, value in (record[name] or {}).items()}
            rows.append(row)
        return rows

    def summary(self) -> dict[str, Any]:
        def median(values: Iterable[Any]) -> float | None:
            known = [value for value in values if value is not None]
            return float(np.median(known)) if known else None

        return {
            "modules": len(self.modules),
            "changed": len(self.changed),
            "slots": self.slots,
            "intruders": {side: self.count(self.epsilon, side=side) for side in SIDES},
            "modules_with_intruders": {
                side: sum(bool(m.intruders(self.epsilon, self.k, side)) for m in self.modules) for side in SIDES
            },
            "energy_share": {side: self.energy_share(side) for side in SIDES},
            "median_spike_margin": median(m.spike_margin for m in self.changed),
            "median_chance": {side: median((m.chance or {}).get(side) for m in self.modules) for side in SIDES},
            "agreement": self.agreement(),
        }

    def counts(self) -> dict[str, Any]:
        """By side the number of intruders for each ε and each k from 1 on: {"left": [[…], …]}, a row for each ε."""
        return {
            "epsilon": list(self.epsilons),
            "k": list(range(1, self.k + 1)),
            **{side: [[self.count(e, k, side) for k in range(1, self.k + 1)] for e in self.epsilons] for side in SIDES},
        }

    def to_json(self) -> dict[str, Any]:
        """Everything; schema 1."""
        return {
            "schema": SCHEMA,
            "lorascope": lorascope.__version__,
            **self.sides,
            "k": self.k,
            "epsilon": self.epsilon,
            "summary": self.summary(),
            "counts": self.counts(),
            "modules": [self._record(module) for module in self.modules],
            "intervention": self.intervention.to_json() if self.intervention is not None else None,
            "skipped": [asdict(item) for item in self.skipped],
            "cache": asdict(self.cache) if self.cache is not None else None,
            "findings": [{"severity": f.severity, "module": f.module, "text": f.text} for f in self.findings],
        }

    def _record(self, module: ModuleIntruders) -> dict[str, Any]:
        counts = {side: len(module.intruders(self.epsilon, self.k, side)) for side in SIDES}
        return {**asdict(module), "intruders": counts}

    def blocks(self) -> tuple[Block, ...]:
        return page.blocks(self)
