"""The frozen result: one record for each run's layer, one for each pair of models and layer; JSON and table."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

import lorascope
from lorascope.analyses.activations import findings as words
from lorascope.analyses.activations import page
from lorascope.blocks import Block, Finding
from lorascope.linalg.cka import Cka
from lorascope.weights.adapter import Skipped

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1


@dataclass(frozen=True)
class ModuleResponse:
    """One updated layer of one run, over tokens of real texts.

    Attributes:
        run, name, type, depth, shape: whose it is; (d_out, d_in).
        uses: how often one pass calls it; tokens: rows that were looked at, over all uses.
        share: ‖ΔW x‖/‖W x‖: mean and the quantiles q05 … q95 over tokens. None where W x is zero.
        share_of_output: ‖ΔW x‖/‖(W + ΔW) x‖, a bias left out.
        cosine: of ΔW x and W x; None where ΔW is zero.
        chance_share: mean of ‖ΔW‖_F‖x‖/(√d_in ‖W x‖): the share by a random ΔW of this norm.
        chance_cosine: 1/√d_out, the standard deviation of one token's cosine for a random ΔW; its mean is 0.
        weight_ratio: ‖ΔW‖_F/‖W‖_F.
        update_gain: root mean square of ‖ΔW x‖ over that of a random ΔW of its norm; base_gain: the same of W.
    """

    run: str
    name: str
    type: str
    depth: int | None
    shape: tuple[int, int]
    uses: int
    tokens: int
    share: Mapping[str, float] | None
    share_of_output: Mapping[str, float] | None
    cosine: Mapping[str, float] | None
    chance_share: float | None
    chance_cosine: float
    weight_ratio: float | None
    update_gain: float | None
    base_gain: float | None


@dataclass(frozen=True)
class Similarity:
    """Hidden states of two models after one layer; layer 0 is the embeddings."""

    a: str
    b: str
    layer: int
    cka: Cka

    def record(self) -> dict[str, Any]:
        return {"a": self.a, "b": self.b, "layer": self.layer, **asdict(self.cka)}


@dataclass(frozen=True)
class ActivationsResult:
    """Responses of every run's layers, and similarities between all models.

    Attributes:
        runs: their labels; `methods` what each trained.
        left_out: by run, updates without such numbers, and why.
        samples: of CKA, from `texts` texts; a sample is one token, or with `pooled` the mean over a text.
        tokens: that the shares were measured on.
        width: of the hidden states.
        source: the texts, in words.
    """

    runs: tuple[str, ...]
    methods: Mapping[str, str]
    modules: tuple[ModuleResponse, ...]
    similarities: tuple[Similarity, ...]
    left_out: Mapping[str, tuple[Skipped, ...]]
    samples: int
    texts: int
    tokens: int
    pooled: bool
    width: int
    source: str = ""
    notes: tuple[str, ...] = ()

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        return words.findings(self)

    def of(self, run: str) -> tuple[ModuleResponse, ...]:
        return tuple(module for module in self.modules if module.run == run)

    @cached_property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        return tuple(dict.fromkeys((one.a, one.b) for one in self.similarities))

    @property
    def layers(self) -> int:
        """How many layers have hidden states, the embeddings among them."""
        return 1 + max((one.layer for one in self.similarities), default=-1)

    def similarity(self, a: str, b: str) -> tuple[Similarity, ...]:
        """By layer."""
        return tuple(one for one in self.similarities if (one.a, one.b) == (a, b))

    def table(self) -> "pd.DataFrame":
        """One row per layer of a run, and per pair and layer of hidden states; `kind` says which."""
        import pandas as pd

        return pd.DataFrame(self.flat_rows())

    def flat_rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = [{"kind": "module", **_flat(asdict(module))} for module in self.modules]
        return rows + [{"kind": "cka", **one.record()} for one in self.similarities]

    def summary(self) -> dict[str, Any]:
        def median(values: list[float | None]) -> float | None:
            known = [value for value in values if value is not None]
            return float(np.median(known)) if known else None

        runs = {
            label: {
                "method": self.methods[label],
                "modules": len(self.of(label)),
                "median_share": median([m.share["mean"] if m.share else None for m in self.of(label)]),
                "median_chance_share": median([m.chance_share for m in self.of(label)]),
                "median_weight_ratio": median([m.weight_ratio for m in self.of(label)]),
                "median_update_gain": median([m.update_gain for m in self.of(label)]),
                "median_base_gain": median([m.base_gain for m in self.of(label)]),
                "median_cosine": median([m.cosine["mean"] if m.cosine else None for m in self.of(label)]),
                "left_out": len(self.left_out.get(label, ())),
            }
            for label in self.runs
        }
        last = {f"{one.a} · {one.b}": one.cka.value for one in self.similarities if one.layer == self.layers - 1}
        sample = "mean over a text's tokens" if self.pooled else "token"
        return {
            "runs": runs,
            "last_layer_cka": last,
            "sample": sample,
            "samples": self.samples,
            "texts": self.texts,
            "width": self.width,
            "tokens": self.tokens,
        }

    def to_json(self) -> dict[str, Any]:
        """Everything; schema 1."""
        return {
            "schema": SCHEMA,
            "lorascope": lorascope.__version__,
            "source": self.source,
            "summary": self.summary(),
            "modules": [asdict(module) for module in self.modules],
            "cka": [one.record() for one in self.similarities],
            "left_out": {label: [asdict(item) for item in items] for label, items in self.left_out.items()},
            "findings": [{"severity": f.severity, "module": f.module, "text": f.text} for f in self.findings],
        }

    def blocks(self) -> tuple[Block, ...]:
        return page.blocks(self)


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without nesting: `share.mean`, `d_out`, `d_in`."""
    row: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            row |= {f"{key}.{inner}": number for inner, number in value.items()}
        elif key == "shape":
            row |= {"d_out": value[0], "d_in": value[1]}
        else:
            row[key] = value
    return row
