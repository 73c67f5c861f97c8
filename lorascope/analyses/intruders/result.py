"""What a search for intruders gives: a record of each weight, counts over ε and k, scores with intruders scaled."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from lorascope.analyses.base import Result
from lorascope.analyses.intruders.module import SIDES, ModuleIntruders, TunedVector
from lorascope.analyses.toolkit import Row, flat, median, value
from lorascope.weights.adapter import Skipped
from lorascope.weights.base_svd import SvdCache

EPSILONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
ARMS = ("intruder", "neighbour", "shrink", "step", "random")
Scores = Mapping[str, float]  # "loss", "accuracy", and where other texts were given "retained_loss"


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
class Intervention:
    """Scores by arm and λ; see `intervention` for the arms.

    Attributes:
        run: the folder of the run.
        scaled: "top", the first intruder of each weight, or "all" among the k leading vectors.
        modules: the weights that were changed, with the positions of their intruders and of the neighbours.
        without: weights with an intruder all of whose leading vectors are intruders, so that there is no neighbour.
        base: scores of the base weights, with whatever else was trained (a head) as trained.
        trained: scores as trained, λ = 1.
        points: one record for each arm and λ < 1: arm, lambda, loss, accuracy, retained_loss, and `norm`, ‖ΔW‖_F over
            the changed weights relative to the trained one's.
        texts: how many texts each score is of.
    """

    run: str
    scaled: str
    modules: tuple[Mapping[str, Any], ...]
    without: tuple[str, ...]
    base: Scores
    trained: Scores
    points: tuple[Mapping[str, Any], ...]
    texts: Mapping[str, int] = field(default_factory=dict)

    def at(self, arm: str, factor: float) -> Mapping[str, Any]:
        """The record of one arm at one λ; at 1 all are the trained model."""
        if factor == 1:
            return {"arm": arm, "lambda": 1.0, "norm": 1.0, **self.trained}
        return next(p for p in self.points if p["arm"] == arm and p["lambda"] == factor)

    def lambdas(self) -> list[float]:
        return sorted({point["lambda"] for point in self.points} | {1.0})


@dataclass(frozen=True, repr=False)
class IntrudersResult(Result):
    """The leading singular vectors of every tuned weight.

    Attributes:
        rows: one record for each weight, in the base's order.
        inputs: what was read: `base` and `tuned`, with path and hash.
        k: how many leading vectors of each weight were compared.
        epsilon: a vector is an intruder where its largest |cos| is below this.
        epsilons: the grid of the counts.
        skipped: what was not measured, and why.
        cache: what was read from the cache of decompositions, and what computed.
        intervention: what scaling the intruders did to the scores, where it was measured.
    """

    analysis: ClassVar[str] = "intruders"
    rows: tuple[ModuleIntruders, ...]
    inputs: Mapping[str, Any]
    k: int
    epsilon: float
    epsilons: tuple[float, ...]
    skipped: tuple[Skipped, ...] = ()
    cache: CacheUse | None = None
    intervention: Intervention | None = None

    @cached_property
    def changed(self) -> tuple[ModuleIntruders, ...]:
        """The weights whose ΔW is finite and not zero."""
        return tuple(module for module in self.rows if module.delta_norm)

    @cached_property
    def slots(self) -> int:
        """How many vectors were compared."""
        return sum(len(module.vectors) for module in self.rows)

    def of(self, module: ModuleIntruders, side: str = "left") -> tuple[TunedVector, ...]:
        """The intruders of one weight."""
        return module.intruders(self.epsilon, self.k, side)

    def count(
        self, epsilon: float, k: int | None = None, side: str = "left", modules: Iterable[ModuleIntruders] | None = None
    ) -> int:
        """Intruders among the k leading vectors of every weight."""
        chosen = self.rows if modules is None else modules
        return sum(len(m.intruders(epsilon, self.k if k is None else k, side)) for m in chosen)

    def energy_share(self, side: str = "left", modules: Iterable[ModuleIntruders] | None = None) -> float | None:
        """What share of the energy of the k leading vectors the intruders carry."""
        chosen = self.rows if modules is None else tuple(modules)
        total = sum(v.sigma**2 for m in chosen for v in m.vectors)
        return sum(v.sigma**2 for m in chosen for v in self.of(m, side)) / total if total else None

    def agreement(self) -> dict[str, int]:
        """In how many weights a spike was expected among the k leading values, and an intruder was there, or not."""
        counts = {"both": 0, "expected_only": 0, "found_only": 0, "neither": 0}
        for module in self.changed:
            if module.prediction is not None:
                expected, there = module.prediction.in_top > 0, bool(self.of(module))
                counts[("neither", "found_only", "expected_only", "both")[2 * expected + there]] += 1
        return counts

    def record_of(self, module: ModuleIntruders) -> Row:
        return {
            **asdict(module),
            "intruders": {side: len(self.of(module, side)) for side in SIDES},
            "lowest_cosine": min((vector.cosine["left"] for vector in module.vectors), default=None),
            "intruder_energy_share": self.energy_share(modules=[module]),
        }

    def records(self) -> list[Row]:
        return [self.record_of(module) for module in self.rows]

    def flat_rows(self) -> list[Row]:
        """One row per weight, the vectors left out."""
        return [flat({k: v for k, v in row.items() if k not in ("vectors", "base_sigma")}) for row in self.records()]

    def summary(self) -> Row:
        return {
            "modules": len(self.rows),
            "changed": len(self.changed),
            "slots": self.slots,
            "intruders": {side: self.count(self.epsilon, side=side) for side in SIDES},
            "modules_with_intruders": {side: sum(bool(self.of(m, side)) for m in self.rows) for side in SIDES},
            "energy_share": {side: self.energy_share(side) for side in SIDES},
            "median_spike_margin": median(m.spike_margin for m in self.changed),
            "median_chance": {side: median(value(m, f"chance.{side}") for m in self.rows) for side in SIDES},
            "agreement": self.agreement(),
        }

    def counts(self) -> Row:
        """By side the number of intruders for each ε and each k from 1 on: {"left": [[…], …]}, a row for each ε."""
        ks = range(1, self.k + 1)
        return {
            "epsilon": list(self.epsilons),
            "k": list(ks),
            **{side: [[self.count(e, k, side) for k in ks] for e in self.epsilons] for side in SIDES},
        }

    def record(self) -> Row:
        return {
            **self.inputs,
            "k": self.k,
            "epsilon": self.epsilon,
            "summary": self.summary(),
            "counts": self.counts(),
            "modules": self.records(),
            "intervention": asdict(self.intervention) if self.intervention is not None else None,
            "cache": asdict(self.cache) if self.cache is not None else None,
        }
