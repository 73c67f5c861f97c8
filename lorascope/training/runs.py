"""Finished runs, found, checked and opened for analyses that evaluate models: all scored on the same texts.

From Python, the intrinsic dimension of some runs is two lines:

    runs = Runs(find([Path("runs")]))
    result = dimension.run(runs.candidates, prior=runs.prior, texts=runs.texts_record)
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lorascope.architectures import depth
from lorascope.errors import InputError, preview
from lorascope.linalg.batched import Place
from lorascope.linalg.matrix import Matrix
from lorascope.run_data import FULL, Candidate, RunFacts, ScoreLike, check_same_task, facts_of, labels_of
from lorascope.training.given import NOTHING, Given
from lorascope.training.run_folder import read_config, read_facts, read_summary

if TYPE_CHECKING:  # torch is loaded when the first run is opened: whatever is refused before is refused quickly
    from lorascope.training.batches import Encoded
    from lorascope.training.reopen import Reopened
    from lorascope.weights.adapter import Adapter

MIN_TEXTS = 16
MAX_TEXTS = 1000
SAID = ("none", "layer", "tensor")

OnNote = Callable[[str], None]
Gain = Callable[[Candidate], float]
Searched = tuple[Sequence[Candidate], Mapping[str, Any]]


def find(paths: Iterable[Path], resumed: Path | None = None, given: Given = NOTHING) -> list[Path]:
    """The folders of finished runs among `paths` and in them, each once.

    Args:
        resumed: a folder whose unfinished runs are about to be trained on, and are skipped for now.
        given: with data, each path is an adapter or a tuned model that was trained elsewhere.

    Raises:
        InputError: a path is neither a run's folder nor holds any, or a run in it has not ended.
    """
    folders: list[Path] = []
    if given.data is not None:
        return list(paths)
    for path in paths:
        inside = [path] if _is_run(path) else sorted(p.parent for p in path.glob("**/config.yaml"))
        if not inside:
            hint = "name folders that `lorascope train` wrote"
            raise InputError(f"{path} is not a run directory", found="no config.yaml in it", hint=hint)
        folders += inside
    unique = {folder.resolve(): folder for folder in folders}
    finished = []
    for place, folder in unique.items():
        if os.path.lexists(folder / "summary.json"):
            finished.append(folder)
        elif resumed is None or not place.is_relative_to(resumed.resolve()):
            raise InputError(
                f"the run {folder} has not ended",
                found="no summary.json",
                hint="finish it with --resume, or exclude it",
            )
    return finished


def _is_run(path: Path) -> bool:
    return os.path.lexists(path / "config.yaml")


class Runs:
    """All runs of one comparison.

    Args:
        folders: of the runs.
        split: the split to score on; None is the texts that the first full run held out.
        max_samples: at most so many of them.
        device: where models go.
        on_note: told what a reopened run differs in from the trained model.
        given: of adapters and tuned models that were trained elsewhere, their base and data.

    Raises:
        InputError: a folder's files cannot be read, the runs do not belong together, or hardly a text is left that no
            run was trained on.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        split: str | None = None,
        max_samples: int = MAX_TEXTS,
        device: str = "auto",
        on_note: OnNote = lambda text: None,
        given: Given = NOTHING,
    ):
        self.given = given
        self.folders, self.split, self.max_samples, self.device = list(folders), split, max_samples, device
        self.on_note = on_note
        labels = labels_of([str(folder) for folder in folders])
        self._facts = {folder: self._facts_at(folder, label) for folder, label in zip(folders, labels, strict=True)}
        check_same_task(list(self._facts.values()))
        full = [f for f, facts in self._facts.items() if facts.method == FULL and not facts.diverged]
        self.first = min(full, key=lambda folder: self._facts[folder].seed)
        self._last: tuple[Path, Reopened] | None = None
        self.skipped_texts = 0

    @property
    def candidates(self) -> "list[Candidate[ScoredRun]]":
        ordered = sorted(self._facts, key=lambda folder: self._facts[folder].seed)
        return [self.candidate(folder) for folder in ordered]

    def candidate(self, folder: Path) -> "Candidate[ScoredRun]":
        """A run, also one that was trained since."""
        folder = next((each for each in self._facts if each.resolve() == folder.resolve()), folder)
        if folder not in self._facts:
            self._facts[folder] = self._facts_at(folder, folder.name)
        return Candidate(self._facts[folder], lambda: self._opened(folder))

    def _facts_at(self, folder: Path, label: str) -> RunFacts:
        if self.given.data is None:
            return _facts_of(folder, label)
        from lorascope.training.foreign import facts_of_adapter

        return facts_of_adapter(folder, label, self.given)

    def start(self, baseline: float | str | Path | None) -> float | None:
        """The loss that gain is measured from; None is the full run's with its matrices at W.

        Args:
            baseline: as of `parse_baseline`.

        Raises:
            InputError: the baseline is a run of another model or other data, or "prior" of a language model.
        """
        if isinstance(baseline, Path):
            check_same_task([self._facts[self.first], self.candidate(baseline).facts])
            return float(self._opened(baseline).score().loss)
        if baseline == "prior":
            if self.prior is None:
                raise InputError("--baseline prior needs classes", found="a language model")
            return self.prior
        return None if baseline is None else float(baseline)

    def _opened(self, folder: Path) -> "ScoredRun":
        run = self._reopen(folder)
        return ScoredRun(run, self.texts)

    def _reopen(self, folder: Path) -> "Reopened":
        from lorascope.training.foreign import open_evaluated

        if self._last is None or self._last[0] != folder:
            self._last = None  # free the one before
            limit = None if self.split is None else self.max_samples
            run = open_evaluated(folder, self.given, self.device, self.split, limit)
            for note in run.notes:
                self.on_note(note)
            self._last = (folder, run)
        return self._last[1]

    @cached_property
    def texts(self) -> "Encoded":
        """What every run is scored on: held out by the first full run, and not trained on by any other."""
        from lorascope.training.batches import permutation

        texts = self._reopen(self.first).held_out
        seen = self._trained_on()
        kept = [i for i, tokens in enumerate(texts.tokens) if tuple(tokens) not in seen]
        self.skipped_texts = len(texts) - len(kept)
        if len(kept) < min(MIN_TEXTS, len(texts)):
            raise InputError(
                f"only {len(kept)} of {len(texts)} held-out texts were not trained on by another run",
                hint="give the data an eval_path, so that every seed holds out the same",
            )
        if len(kept) > self.max_samples:
            kept = [kept[i] for i in sorted(permutation(len(kept), 0, 0)[: self.max_samples])]
        if len(kept) == len(texts):
            return texts
        labels = None if texts.labels is None else [texts.labels[i] for i in kept]
        return replace(texts, tokens=[texts.tokens[i] for i in kept], labels=labels)

    def _trained_on(self) -> set[tuple[int, ...]]:
        """The training texts of all runs whose seed holds out other rows than the first one's does."""
        from lorascope.training import config, data

        if self.given.data is not None:  # adapters without a run's config, all scored on one set of texts
            return set()
        first = self._reopen(self.first)
        seen: set[tuple[int, ...]] = set()
        done = {first.config.training.seed_of_data}
        for folder, facts in self._facts.items():
            loaded = config.load(folder / "config.yaml")
            seed = loaded.training.seed_of_data
            if seed not in done and not facts.diverged:
                done.add(seed)
                train, _ = data.load(loaded.data, loaded.model.task_type, first.tokenizer, seed)
                seen |= set(map(tuple, train.tokens))
        return seen

    @property
    def texts_record(self) -> dict[str, Any]:
        """What the record says of the texts."""
        count = len(self.texts)  # first: it counts those that are skipped
        return {
            "split": self.split or self.given.data or "held out",
            "count": count,
            "max_samples": self.max_samples,
            "skipped": self.skipped_texts,
        }

    @cached_property
    def prior(self) -> float | None:
        """The loss of the training texts' class frequencies; None of a language model."""
        train = self._reopen(self.first).train
        if self.given.data is not None:  # the rows it is evaluated on: nothing says what it was trained on
            return None
        if self.texts.labels is None or train.labels is None:
            return None
        return prior_loss(self.texts.labels, train.labels)

    @cached_property
    def full_config(self) -> dict[str, Any]:
        """The first full run's config, resolved, for runs that are to be trained like it."""
        from lorascope.training.config import resolved
        from lorascope.training.run import with_device

        return resolved(with_device(self._reopen(self.first).config, self.device))

    @cached_property
    def size(self) -> int:
        """How many parameters full fine-tuning changes."""
        return sum(m * n for m, n in (update.shape for update in self._reopen(self.first).updates.values()))

    @cached_property
    def layers(self) -> int:
        """Numbered blocks, and one for everything outside them: how many λs SAID by layer has."""
        return len({depth(name) for name in self._reopen(self.first).updates})


def _facts_of(folder: Path, label: str) -> RunFacts:
    return facts_of(label, str(folder), read_config(folder), read_summary(folder), read_facts(folder))


class ScoredRun:
    """A reopened run as an analysis sees it (`run_data.OpenedRun`), scored on the common texts."""

    def __init__(self, run: "Reopened", texts: "Encoded"):
        self._run, self._texts = run, texts

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        return self._run.shapes

    @property
    def head_parameters(self) -> int:
        return self._run.head_parameters

    @property
    def place(self) -> Place | None:
        return self._run.place

    def delta(self, name: str) -> Matrix:
        return self._run.delta(name)

    def put(self, deltas: Mapping[str, Any]) -> None:
        self._run.put(deltas)

    def score(self) -> ScoreLike:
        return self._run.score(self._texts)


def parse_baseline(text: str) -> float | str | Path | None:
    """What --baseline says, read without opening anything: None ("matrices"), "prior", the folder of a run, or a loss.

    Raises:
        InputError: it is none of these.
    """
    if text == "matrices":
        return None
    if text == "prior":
        return text
    if _is_run(Path(text)):
        return Path(text)
    with suppress(ValueError):
        if math.isfinite(loss := float(text)):
            return loss
    raise InputError("--baseline is unknown", found=text, expected="matrices, prior, the folder of a run, or a loss")


def parse_rates(text: str | None) -> tuple[float, ...]:
    """Learning rates as "1e-2,3e-2"; none for None. InputError where it is not a list of positive numbers."""
    if text is None:
        return ()
    try:
        rates = tuple(float(each) for each in text.split(","))
    except ValueError:
        rates = ()
    if not rates or min(rates) <= 0:
        raise InputError("--learning-rates is not a list of rates", found=repr(text), expected="as 1e-2,3e-2")
    return rates


def prior_loss(labels: Sequence[int], classes: Sequence[int]) -> float:
    """Mean cross-entropy on `labels` of always predicting the class frequencies of `classes` (one added to each)."""
    size = max(max(labels), max(classes)) + 1
    counts = np.bincount(np.asarray(classes), minlength=size) + 1.0
    return float(-np.log(counts / counts.sum())[np.asarray(labels)].mean())


@dataclass(frozen=True)
class SubspaceSearch:
    """How d90 is searched for: which random subspaces are trained.

    Attributes:
        folder: of the search's runs; those that are finished are not trained again. None: nothing is searched.
        said: "none" (DID), or a trained factor by "layer" or "tensor" (SAID).
        start: the first d.
        tolerance: the bracket's high / low to stop at.
        seeds: how many at each d.
        rates: learning rates; the best of them counts. Without any, a grid around 2e-2·√(1000/d).
        command: for the runs' record.
        before: called before training starts.

    Raises:
        InputError: `said` is none of these, or `tolerance` is not above 1.
    """

    folder: Path | None
    said: str = "none"
    start: int = 1000
    tolerance: float = 1.5
    seeds: int = 1
    rates: tuple[float, ...] = ()
    command: tuple[str, ...] = ()
    before: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        if self.said not in SAID:
            raise InputError("--said-scaling is unknown", found=self.said, expected="none, layer or tensor")
        if self.tolerance <= 1:
            raise InputError("--tolerance is too small", found=self.tolerance, expected="a ratio above 1, such as 1.5")

    def of(self, runs: Runs) -> Callable[[Gain], Searched] | None:
        """What trains the search's runs, given how to score one: the `search` of `dimension.run`; None without
        folder."""
        folder = self.folder
        if folder is None:
            return None

        def searched(gain: Gain) -> Searched:
            self.before()
            return self._run(folder, runs, gain)

        return searched

    def _run(self, folder: Path, runs: Runs, gain: Gain) -> Searched:
        from lorascope.training.search import SubspaceRuns, search

        train = SubspaceRuns(
            runs.full_config,
            folder,
            lambda path: gain(runs.candidate(path)),
            said=self.said,
            rates=self.rates,
            command=self.command,
        )
        first = int(runs.full_config["training"]["seed"])
        outcome = search(
            train,
            lowest=runs.layers + 1 if self.said != "none" else 2,
            highest=runs.size,
            start=self.start,
            seeds=tuple(range(first, first + self.seeds)),
            tolerance=self.tolerance,
        )
        tried = [
            {"d": each.d, "gains": list(map(_number, each.gains)), "mean": _number(each.mean)} for each in outcome.tried
        ]
        record = asdict(outcome) | {
            "folder": str(folder),
            "said": self.said,
            "trained": train.trained,
            "found": len(train.folders) - train.trained,
            "tried": tried,
        }
        return [runs.candidate(path) for path in dict.fromkeys(train.folders)], record


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def scorer(run: "Reopened", adapter: "Adapter") -> tuple[Callable[[Mapping[str, Any]], dict[str, float]], str]:
    """A function that scores ΔW by module in the run's model, and in words what it scores on.

    Args:
        adapter: whose modules will be scored.

    Raises:
        InputError: the run has no such modules.
    """
    if unknown := [name for name in adapter.updates if name not in run.updates]:
        raise InputError(
            f"{run.folder} has no such modules",
            found=preview(unknown, 3),
            expected=f"those of its adapter: {preview(run.updates, 3)}",
        )
    same_file = run.adapter.source.sha256 == adapter.source.sha256
    head = "" if same_file else f", under the head and biases of {run.folder}"

    def score(deltas: Mapping[str, Any]) -> dict[str, float]:
        run.put(deltas)
        scored = run.score()
        return {"loss": scored.loss, "accuracy": scored.accuracy}

    return score, f"{run.held_out_texts}{head}"
