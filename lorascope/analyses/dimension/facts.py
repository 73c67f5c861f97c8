"""What a run is, from its config and its summary; which runs belong together; and what an opened one can do."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lorascope.errors import InputError

FULL = "full"
SUBSPACE = "random_subspace"
# What may differ between runs that are compared: it changes the training, or the texts that are scored, not the task.
FREE = {"model": ("dropout",), "data": ("max_eval_samples",)}
SIZES = ("rank", "d")  # of a method's config: what a family's runs are ordered by
SETTINGS_OF_SIZE = ("alpha",)  # goes with the rank and makes no family of its own
RECIPE = ("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps")
TITLES = {"full": "full", "lora": "LoRA", "rslora": "rsLoRA", "lora_plus": "LoRA+", "lora_fa": "LoRA-FA",
          "dora": "DoRA", "adalora": "AdaLoRA", "vera": "VeRA", "bitfit": "BitFit", "ia3": "(IA)³"}  # fmt: skip


class ScoreLike(Protocol):
    """A held-out result."""

    @property
    def loss(self) -> float: ...
    @property
    def accuracy(self) -> float: ...


class Trained(Protocol):
    """An opened run: its updates by name, and the score of whatever is put in their place."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """(d_out, d_in) of every update; (d, 1) of a vector."""
        ...

    @property
    def head_parameters(self) -> int:
        """Numbers in whole modules that were trained beside the updates."""
        ...

    def delta(self, name: str) -> Any: ...
    def put(self, deltas: Mapping[str, Any]) -> None: ...
    def score(self) -> ScoreLike: ...


@dataclass(frozen=True)
class RunFacts:
    """A run, from its folder's files.

    Attributes:
        label: the folder's name, as short as stays unambiguous.
        path: of the folder.
        method: registered name.
        settings: the method's section of the config.
        optim, training: these sections.
        seed: of the run.
        rank, d: its size, where the method has such a thing.
        trained_parameters: as the run's record counts them, head included; None where it does not say.
        steps: that were taken.
        diverged: why training ended without an adapter; None where it did not.
    """

    label: str
    path: str
    method: str
    settings: Mapping[str, Any]
    optim: Mapping[str, Any]
    training: Mapping[str, Any]
    task: Mapping[str, Mapping[str, Any]]
    seed: int
    rank: int | None
    d: int | None
    trained_parameters: int | None
    steps: int | None
    diverged: str | None

    @property
    def size(self) -> int | None:
        """Rank or d."""
        return self.rank if self.rank is not None else self.d

    @property
    def learning_rate(self) -> float:
        return float(self.optim["learning_rate"])

    @property
    def recipe(self) -> Mapping[str, Any]:
        """All but method, size and seed: what a comparison of methods should have in common."""
        return {key: self.training.get(key) for key in RECIPE}


def facts_of(
    label: str, path: str, config: Mapping[str, Any], summary: Mapping[str, Any], record: Mapping[str, Any]
) -> RunFacts:
    """The facts of a run from its config.yaml, summary.json and run.json.

    Raises:
        InputError: the config lacks a section.
    """
    missing = [name for name in ("model", "data", "method", "optim", "training") if name not in config]
    if missing:
        raise InputError(f"{path}/config.yaml has no section {missing[0]}", hint="name a run of lorascope train")
    settings = config["method"]
    return RunFacts(
        label,
        path,
        settings["name"],
        {key: value for key, value in settings.items() if key != "name"},
        config["optim"],
        config["training"],
        {section: config[section] for section in FREE},
        int(config["training"]["seed"]),
        settings.get("rank"),
        settings.get("d"),
        record.get("trained_parameters"),
        summary.get("steps"),
        summary.get("diverged"),
    )


def check_same_task(runs: Sequence[RunFacts]) -> None:
    """InputError where two runs differ in the model or the data, or where none is a full fine-tuning run."""
    first = runs[0]
    for other in runs[1:]:
        for section, free in FREE.items():
            mine, theirs = first.task[section], other.task[section]
            for key in dict.fromkeys([*mine, *theirs]):
                # A key that an older version did not write is at its default, which is off.
                if key not in free and (mine.get(key) or None) != (theirs.get(key) or None):
                    raise InputError(
                        f"the runs do not share {section}.{key}",
                        found=f"{mine.get(key)!r} ({first.label}) and {theirs.get(key)!r} ({other.label})",
                        hint="name runs of one model on one set of data",
                    )
    full = [run for run in runs if run.method == FULL]
    if not full:
        methods = ", ".join(sorted({run.method for run in runs}))
        raise InputError("no run is a full fine-tuning", found=methods, hint="add a run with method: full")
    if all(run.diverged for run in full):
        raise InputError(
            "every full fine-tuning run diverged", found=full[0].diverged, hint="train one at a lower learning rate"
        )


def labels_of(paths: Sequence[str]) -> list[str]:
    """The last part of each path, with as many before it as tell them apart."""
    parts = [tuple(part for part in path.split("/") if part not in ("", ".")) for path in paths]
    depth = [1] * len(parts)
    while True:
        labels = ["/".join(part[-k:]) for part, k in zip(parts, depth, strict=True)]
        twins = [i for i, label in enumerate(labels) if labels.count(label) > 1 and depth[i] < len(parts[i])]
        if not twins:
            return labels
        for i in twins:
            depth[i] += 1


def families(runs: Sequence[RunFacts]) -> dict[str, list[RunFacts]]:
    """The runs by method, with SAID apart from DID, and one family for each way of setting a method up.

    What makes a family of its own is every setting but the size and what goes with it; the name says which setting.
    """
    variants: dict[str, dict[str, list[RunFacts]]] = {}
    for run in runs:
        variants.setdefault(_title(run), {}).setdefault(repr(sorted(_kind(run).items(), key=str)), []).append(run)
    found: dict[str, list[RunFacts]] = {}
    for title, kinds in variants.items():
        first = [members[0] for members in kinds.values()]
        differing = [k for k in _kind(first[0]) if len({repr(_kind(each).get(k)) for each in first}) > 1]
        for members in kinds.values():
            said = ", ".join(f"{key} = {_plain(_kind(members[0]).get(key))}" for key in differing)
            found[f"{title} ({said})" if said else title] = members
    return found


def _title(run: RunFacts) -> str:
    if run.method == SUBSPACE:
        said = run.settings.get("said", "none")
        return "DID" if said == "none" else f"SAID by {said}"
    return TITLES.get(run.method, run.method)


def _kind(run: RunFacts) -> dict[str, Any]:
    return {k: v for k, v in run.settings.items() if k not in (*SIZES, *SETTINGS_OF_SIZE)}


def _plain(value: Any) -> str:
    return " + ".join(map(str, value)) if isinstance(value, list) else str(value)


def is_vector(shape: tuple[int, int]) -> bool:
    """A bias, a norm's gain or the like: no spectrum."""
    return min(shape) == 1


def freedom(shape: tuple[int, int], rank: int) -> int:
    """r(m + n − r): the dimension of the set of m × n matrices of rank r, r at most min(m, n)."""
    r = min(rank, *shape)
    return r * (sum(shape) - r)


def prior_loss(labels: Sequence[int], classes: Sequence[int]) -> float:
    """Mean cross-entropy on `labels` of always predicting the class frequencies of `classes` (one added to each)."""
    size = max(max(labels), max(classes)) + 1
    counts = np.bincount(np.asarray(classes), minlength=size) + 1.0
    return float(-np.log(counts / counts.sum())[np.asarray(labels)].mean())


def finite(value: float | None) -> float | None:
    """None in place of NaN and infinity, which JSON does not know."""
    return None if value is None or not math.isfinite(value) else float(value)
