"""A finished run as data: what analyses that evaluate models are handed, and what `training` hands out.

Neither room imports the other; what passes between them is defined here: the facts of a run and which runs belong
together, an opened run as an analysis sees it, and what was recorded of a model's activations.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from lorascope.errors import InputError
from lorascope.linalg.batched import Place
from lorascope.linalg.matrix import Matrix
from lorascope.weights.adapter import Skipped

FULL = "full"  # the method of full fine-tuning
# What may differ between runs that are compared: it changes the training, or the texts that are scored, not the task.
FREE = {"model": ("dropout",), "data": ("max_eval_samples",)}
RECIPE = ("max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps")


class ScoreLike(Protocol):
    """A held-out result: mean cross-entropy in nats, and the share of targets that the model gets right."""

    @property
    def loss(self) -> float: ...
    @property
    def accuracy(self) -> float: ...


class OpenedRun(Protocol):
    """An opened run: its updates by name, and the score of whatever is put in their place."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, int]]:
        """(d_out, d_in) of every update; (d, 1) of a vector."""
        ...

    @property
    def head_parameters(self) -> int:
        """Parameters of whole modules that were trained in addition to the updates."""
        ...

    @property
    def place(self) -> Place | None:
        """What puts an array where the model is, such as on a GPU, to be decomposed there; None where that is here."""
        ...

    def delta(self, name: str) -> Matrix: ...
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
        task: the sections `model` and `data`.
        seed: of the run.
        rank, d: its size, where the method has such a thing.
        trained_parameters: as the run's record counts them, head included; None where it does not say.
        steps: how many were taken.
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
    def learning_rate(self) -> float | None:
        """None of a run that was trained elsewhere, whose files do not say."""
        rate = self.optim.get("learning_rate")
        return None if rate is None else float(rate)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """All but method, size and seed: what a comparison of methods should have in common."""
        return {key: self.training.get(key) for key in RECIPE}


Opened = TypeVar("Opened", covariant=True)


@dataclass(frozen=True)
class Candidate(Generic[Opened]):
    """A run that can be opened. Only the run opened last is kept in memory."""

    facts: RunFacts
    open: Callable[[], Opened]


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
            here, there = first.task[section], other.task[section]
            for key in dict.fromkeys([*here, *there]):
                # A key that an older version did not write is at its default, which is off.
                if key not in free and (here.get(key) or None) != (there.get(key) or None):
                    raise InputError(
                        f"the runs do not share {section}.{key}",
                        found=f"{here.get(key)!r} ({first.label}) and {there.get(key)!r} ({other.label})",
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


@dataclass(frozen=True)
class LayerActivations:
    """What was recorded of one updated layer.

    Attributes:
        values: (k, 5), one row per token and use: ‖ΔW x‖², ‖W x‖², ‖(W + ΔW) x‖², ⟨ΔW x, W x⟩, ‖x‖².
        uses: how often one pass calls it.
        shape: (d_out, d_in).
        update_norm, base_norm: ‖ΔW‖_F, ‖W‖_F.
    """

    name: str
    values: np.ndarray
    uses: int
    shape: tuple[int, int]
    update_norm: float
    base_norm: float


@dataclass(frozen=True)
class RunActivations:
    """One trained model: its layers' responses, what has none, and its hidden states (n, width) by layer."""

    label: str
    method: str
    layers: tuple[LayerActivations, ...]
    skipped: tuple[Skipped, ...]
    hidden: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Recorded:
    """The activations of several runs of one base model on the same texts.

    Attributes:
        base: the base model's hidden states, (n, width) by layer.
        texts: (n,) the text that each sample of hidden states comes from.
        pooled: a sample is the mean over a text's tokens; else one token.
        tokens: how many tokens the layers' responses were recorded on.
        source: the texts, in words.
        notes: what should be known about the runs.
    """

    runs: tuple[RunActivations, ...]
    base: tuple[np.ndarray, ...]
    texts: np.ndarray
    pooled: bool = False
    tokens: int = 0
    source: str = ""
    notes: tuple[str, ...] = ()
