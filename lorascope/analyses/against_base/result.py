"""The frozen result: records, summary, findings, JSON."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

import lorascope
from lorascope.analyses.adapter_updates import selected
from lorascope.analyses.against_base import page
from lorascope.analyses.against_base.module import ModuleAgainstBase, measure
from lorascope.analyses.compare.side import read
from lorascope.architectures import depth, module_types
from lorascope.blocks import Block, Finding
from lorascope.linalg.blas import one_thread
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Skipped
from lorascope.weights.base_svd import SvdCache
from lorascope.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
CLEAR = 4.0  # standard deviations
_NOT_AGAIN = ("name", "type", "depth", "shape", "base_norm", "delta_norm", "notes")  # the spectrum's record has these


@dataclass(frozen=True)
class AgainstBaseResult:
    """ΔW against W in every adapted weight that the base has.

    Attributes:
        modules: one record each, in the file's order.
        skipped: what could not be measured, and why.
    """

    modules: tuple[ModuleAgainstBase, ...]
    skipped: tuple[Skipped, ...] = ()

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        if not self.modules:
            return ()
        whole = self.summary()
        text = (
            f"‖UᵀWV‖ in ΔW's directions is {_times(whole['ratio'])} that in random ones in the median module; in W's"
            f" own leading directions it is {_times(whole['top_ratio'])} that in ΔW's"
        )
        found = [Finding("note", text)]
        text = (
            f"amplification ‖ΔW‖/‖UᵀWV‖: {_short(whole['amplification'])} in the median module, where a random ΔW of"
            f" the same norm would have {_short(whole['amplification_random'])}"
        )
        found.append(Finding("note", text))
        for name, of in (("tenth", "top 10 %"), ("r", "top r")):
            over = {side: [getattr(m, side)[name] for m in self.modules if name in getattr(m, side)] for side in _SIDES}
            if over["left"]:
                clear = {side: sum((o.z or 0) >= CLEAR for o in over[side]) for side in _SIDES}
                text = ", ".join(
                    f"{side} {np.median([o.phi for o in over[side]]):.3f}"
                    f" (chance {np.median([o.chance for o in over[side]]):.3f}; z ≥ {CLEAR:g} in {clear[side]} of"
                    f" {len(over[side])})"
                    for side in _SIDES
                )
                found.append(Finding("note", f"overlap φ of ΔW's directions with W's {of}: {text}"))
        if any(m.method != "exact" for m in self.modules):
            number = sum(m.method != "exact" for m in self.modules)
            text = "the overlap with W's top 10 % is left out where W was not decomposed before; `lorascope intruders`"
            found.append(Finding("note", f"{text} with the same base does that, and keeps it: {number} modules"))
        return tuple(found)

    def table(self) -> "pd.DataFrame":
        """One row per weight, nested records flattened with dots."""
        import pandas as pd

        return pd.DataFrame([{"name": m.name, **self.flat(m.name)} for m in self.modules])

    def summary(self) -> dict[str, Any]:
        """Medians over the modules."""

        def median(key: str) -> float | None:
            known = [value for m in self.modules if (value := getattr(m, key)) is not None]
            return float(np.median(known)) if known else None

        keys = ("ratio", "top_ratio", "amplification", "amplification_random", "z")
        return {"modules": len(self.modules), **{key: median(key) for key in keys}}

    def extra(self, name: str) -> Mapping[str, Any]:
        """What a module's record says more than the spectrum's `against_base`; empty where it was not measured."""
        module = self._by_name.get(name)
        return {} if module is None else {k: v for k, v in asdict(module).items() if k not in _NOT_AGAIN}

    def flat(self, name: str) -> dict[str, Any]:
        """The same with dots between, for a table."""
        row: dict[str, Any] = {}
        for key, value in self.extra(name).items():
            if key in _SIDES:
                row |= {f"{key}.{top}.{k}": v for top, one in value.items() for k, v in one.items()}
            else:
                row[key] = value
        return row

    @cached_property
    def _by_name(self) -> dict[str, ModuleAgainstBase]:
        return {module.name: module for module in self.modules}

    def to_json(self) -> dict[str, Any]:
        """Everything; schema 1."""
        return {
            "schema": SCHEMA,
            "lorascope": lorascope.__version__,
            "summary": self.summary(),
            "modules": [asdict(module) for module in self.modules],
            "skipped": [asdict(item) for item in self.skipped],
            "findings": [{"severity": f.severity, "module": f.module, "text": f.text} for f in self.findings],
        }

    def blocks(self) -> tuple[Block, ...]:
        return page.blocks(self)


_SIDES = ("left", "right")


def _times(value: float | None) -> str:
    return "not known against" if value is None else f"{value:.3g} times"


def _short(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"


def run(
    adapter: Adapter,
    base: Checkpoint,
    *,
    modules: str | None = None,
    cache: SvdCache | None = None,
    progress: Callable[[list[Update]], Any] = iter,
) -> AgainstBaseResult:
    """Measure every weight of `adapter` that the base has, one at a time.

    Args:
        adapter: as `weights.io.read` gives it.
        base: the model it belongs to.
        modules: a regular expression; only modules whose name it finds are measured.
        cache: of the base's decompositions; without one they are computed, where they are small, and forgotten.
        progress: wraps the list of updates, such as a progress bar.

    Raises:
        InputError: `modules` is no regular expression or finds nothing.
    """
    updates, _ = selected(adapter, base, modules)
    types = module_types(update.name for update in updates)
    cache = cache if cache is not None else SvdCache(None)
    found, skipped = [], []
    with one_thread():
        for update in progress(updates):
            one = _one(update, types[update.name], base, cache)
            if isinstance(one, str):
                skipped.append(Skipped(update.name, one))
            else:
                found.append(one)
    return AgainstBaseResult(tuple(found), tuple(skipped))


def _one(update: Update, type: str, base: Checkpoint, cache: SvdCache) -> ModuleAgainstBase | str:
    stored = base.lookup(update)
    if isinstance(stored, str):
        return stored
    if min(stored.shape) < 2:
        return "a vector: it has no singular directions"
    side = read(update, stored, with_a=False)
    if isinstance(side, str):
        return side
    return measure(side, stored.read(), cache, type=type, depth=depth(update.name))
