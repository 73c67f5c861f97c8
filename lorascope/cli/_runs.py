"""Run folders for the commands that evaluate models: found, checked, opened, all scored on the same texts. No command
itself."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorascope.analyses.dimension import Candidate, RunFacts, Trained
    from lorascope.training.batches import Encoded
    from lorascope.training.reopen import Reopened

MIN_TEXTS = 16


def find(paths: Iterable[Path], resumed: Path | None = None) -> list[Path]:
    """The folders of finished runs among `paths` and in them, each once.

    Args:
        resumed: a folder whose unfinished runs are about to be trained on, and are left out for now.

    Raises:
        InputError: a path is neither a run's folder nor holds any, or a run in it has not ended.
    """
    from lorascope.errors import InputError

    found: list[Path] = []
    for path in paths:
        inside = [path] if _is_run(path) else sorted(p.parent for p in path.glob("**/config.yaml"))
        if not inside:
            hint = "name folders that `lorascope train` wrote"
            raise InputError(f"{path} holds no run", found="no config.yaml in it", hint=hint)
        found += inside
    unique = {folder.resolve(): folder for folder in found}
    finished = []
    for place, folder in unique.items():
        if os.path.lexists(folder / "summary.json"):
            finished.append(folder)
        elif resumed is None or not place.is_relative_to(resumed.resolve()):
            raise InputError(
                f"the run {folder} has not ended", found="no summary.json", hint="resume it, or move its folder away"
            )
    return finished


def _is_run(path: Path) -> bool:
    return os.path.lexists(path / "config.yaml")


def opened(folder: Path, *settings: Any, **more: Any) -> "Reopened":
    """A run, reopened; what it differs in from the trained model is said on stderr."""
    import sys

    from lorascope.training.reopen import reopen

    run = reopen(folder, *settings, **more)
    for note in run.notes:
        print(f"note: {note}", file=sys.stderr)
    return run


class Runs:
    """All runs of one comparison.

    Args:
        folders: of the runs.
        split: the split to score on; None is the texts that the first full run held out.
        max_samples: at most so many of them.
        device: where models go.

    Raises:
        InputError: a folder's files cannot be read, the runs do not belong together, or hardly a text is left that no
            run was trained on.
    """

    def __init__(self, folders: Sequence[Path], split: str | None, max_samples: int, device: str):
        from lorascope.analyses.dimension.facts import check_same_task, labels_of

        self.folders, self.split, self.max_samples, self.device = list(folders), split, max_samples, device
        labels = labels_of([str(folder) for folder in folders])
        self._facts = {folder: self._facts_of(folder, label) for folder, label in zip(folders, labels, strict=True)}
        check_same_task(list(self._facts.values()))
        full = [f for f, facts in self._facts.items() if facts.method == "full" and not facts.diverged]
        self.first = min(full, key=lambda folder: self._facts[folder].seed)
        self._last: tuple[Path, Reopened] | None = None
        self.left_out = 0

    @property
    def candidates(self) -> "list[Candidate]":
        ordered = sorted(self._facts, key=lambda folder: self._facts[folder].seed)
        return [self.candidate(folder) for folder in ordered]

    def candidate(self, folder: Path) -> "Candidate":
        """A run, also one that was trained since."""
        from lorascope.analyses.dimension import Candidate

        folder = next((known for known in self._facts if known.resolve() == folder.resolve()), folder)
        if folder not in self._facts:
            self._facts[folder] = self._facts_of(folder, folder.name)
        return Candidate(self._facts[folder], lambda: self._opened(folder))

    def loss(self, folder: Path) -> float:
        """The loss of a run on the common texts. InputError where it is of another model or other data."""
        from lorascope.analyses.dimension.facts import check_same_task

        check_same_task([self._facts[self.first], self.candidate(folder).facts])
        return float(self._opened(folder).score().loss)

    def _facts_of(self, folder: Path, label: str) -> "RunFacts":
        from lorascope.analyses.dimension import facts_of
        from lorascope.training.record import read_config, read_facts, read_summary

        return facts_of(label, str(folder), read_config(folder), read_summary(folder), read_facts(folder))

    def _opened(self, folder: Path) -> "Trained":
        run = self._reopen(folder)
        return Opened(run, self.texts)

    def _reopen(self, folder: Path) -> "Reopened":
        if self._last is None or self._last[0] != folder:
            self._last = None  # free the one before
            limit = None if self.split is None else self.max_samples
            self._last = (folder, opened(folder, self.device, self.split, limit))
        return self._last[1]

    @cached_property
    def texts(self) -> "Encoded":
        """What every run is scored on: held out by the first full run, and not trained on by any other."""
        from lorascope.errors import InputError
        from lorascope.training.batches import permutation

        texts = self._reopen(self.first).held_out
        seen = self._trained_on()
        kept = [i for i, tokens in enumerate(texts.tokens) if tuple(tokens) not in seen]
        self.left_out = len(texts) - len(kept)
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

        first = self._reopen(self.first)
        seen: set[tuple[int, ...]] = set()
        done = {first.config.training.seed}
        for folder, facts in self._facts.items():
            if facts.seed not in done and not facts.diverged:
                done.add(facts.seed)
                own = config.load(folder / "config.yaml")
                train, _ = data.load(own.data, own.model.task_type, first.tokenizer, facts.seed)
                seen |= set(map(tuple, train.tokens))
        return seen

    @property
    def texts_facts(self) -> dict[str, Any]:
        """What the record says of the texts."""
        count = len(self.texts)  # first: it counts those that are left out
        return {
            "split": self.split or "held out",
            "count": count,
            "max_samples": self.max_samples,
            "left_out": self.left_out,
        }

    @cached_property
    def prior(self) -> float | None:
        """The loss of the training texts' class frequencies; None of a language model."""
        from lorascope.analyses.dimension.facts import prior_loss

        train = self._reopen(self.first).train
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
        """How many numbers full fine-tuning changes."""
        return sum(m * n for m, n in (update.shape for update in self._reopen(self.first).updates.values()))

    @cached_property
    def layers(self) -> int:
        """Numbered blocks, and one for everything outside them: how many λs SAID by layer has."""
        from lorascope.architectures import depth

        return len({depth(name) for name in self._reopen(self.first).updates})


class Opened:
    """A reopened run as the analysis sees it, scored on the common texts."""

    def __init__(self, run: "Reopened", texts: "Encoded"):
        self._run, self._texts = run, texts

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        return self._run.shapes

    @property
    def head_parameters(self) -> int:
        import math

        adapter = self._run.adapter
        return sum(
            math.prod(stored.shape) for name, stored in adapter.saved.items() if name not in adapter.non_weight_tensors
        )

    def delta(self, name: str) -> Any:
        return self._run.delta(name)

    def put(self, deltas: Mapping[str, Any]) -> None:
        self._run.put(deltas)

    def score(self) -> Any:
        return self._run.score(self._texts)
