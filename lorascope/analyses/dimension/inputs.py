"""What goes in: opened runs by family, and which of their updates are matrices."""

from collections.abc import Mapping, Sequence
from typing import Any

from lorascope.run_data import RunFacts

SUBSPACE = "random_subspace"
SIZES = ("rank", "d")  # of a method's config: what a family's runs are ordered by
SETTINGS_OF_SIZE = ("alpha",)  # goes with the rank and makes no family of its own
TITLES = {"full": "full", "lora": "LoRA", "rslora": "rsLoRA", "lora_plus": "LoRA+", "lora_fa": "LoRA-FA",
          "dora": "DoRA", "adalora": "AdaLoRA", "vera": "VeRA", "bitfit": "BitFit", "ia3": "(IA)³"}  # fmt: skip


def families(runs: Sequence[RunFacts]) -> dict[str, list[RunFacts]]:
    """The runs by method, with SAID apart from DID, and one family for each way of setting a method up.

    What makes a family of its own is every setting but the size and what goes with it; the name tells which setting.
    """
    variants: dict[str, dict[str, list[RunFacts]]] = {}
    for run in runs:
        variants.setdefault(_title(run), {}).setdefault(repr(sorted(_kind(run).items(), key=str)), []).append(run)
    named: dict[str, list[RunFacts]] = {}
    for title, kinds in variants.items():
        first = [members[0] for members in kinds.values()]
        differing = [k for k in _kind(first[0]) if len({repr(_kind(each).get(k)) for each in first}) > 1]
        for members in kinds.values():
            settings = ", ".join(f"{key} = {_plain(_kind(members[0]).get(key))}" for key in differing)
            named[f"{title} ({settings})" if settings else title] = members
    return named


def _title(run: RunFacts) -> str:
    if run.method == SUBSPACE:
        scaling = run.settings.get("said", "none")
        return "DID" if scaling == "none" else f"SAID by {scaling}"
    return TITLES.get(run.method, run.method)


def _kind(run: RunFacts) -> dict[str, Any]:
    return {k: v for k, v in run.settings.items() if k not in (*SIZES, *SETTINGS_OF_SIZE)}


def _plain(value: Any) -> str:
    return " + ".join(map(str, value)) if isinstance(value, list) else str(value)


def is_vector(shape: tuple[int, int]) -> bool:
    """A bias, a norm's gain or the like: no spectrum."""
    return min(shape) == 1


def matrices(shapes: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """Those of the updates that are not vectors."""
    return {name: shape for name, shape in shapes.items() if not is_vector(shape)}


def freedom(shape: tuple[int, int], rank: int) -> int:
    """r(m + n − r): the dimension of the set of m × n matrices of rank r, r at most min(m, n)."""
    r = min(rank, *shape)
    return r * (sum(shape) - r)
