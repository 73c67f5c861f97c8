"""The scope of a study in one line, from its record: model and layers, task, examples, steps, seeds, learning rates.

Each part gives the value that most arms have, followed in brackets by what other arms have instead.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

Record = Mapping[str, Any]
LAYERS = {"minilm": 6, "smollm2": 30}  # of the packaged models that a config may cut
TASKS = {"wordnet-classes": "WordNet glosses in 25 classes", "wordnet-glosses": "WordNet glosses"}


def line(record: Record) -> str:
    """The line of scope of one study."""
    parts = [_joined(*part) for part in _parts(record)]
    note = f" {record['beside']}" if record.get("beside") else ""
    return f"Scope: {', '.join(part for part in parts if part)}.{note}"


def common(records: Sequence[Record]) -> str:
    """What the studies that give verdicts have in common, in one line; empty where there is nothing."""
    bases = [[base for base, _ in _parts(record)] for record in records if record["scale"]["conclusive"]]
    shared = [values[0] for values in zip(*bases, strict=True) if len(set(values)) == 1 and values[0]]
    return f"Scope: {', '.join(shared)}; exceptions stand in each study's own line." if shared else ""


def _joined(base: str, others: Sequence[str]) -> str:
    exceptions = "; ".join(others)
    return f"{base} ({exceptions})" if base and exceptions else base or exceptions


def _parts(record: Record) -> list[tuple[str, list[str]]]:
    """Each part: what most arms have (empty where it is the default and needs no words), and what others have."""
    of = _ArmValues(record).in_words
    steps, other_steps = of("training.max_steps", lambda n: "" if n is None else _count(n, "steps"))
    batch, other_batches = of(
        "training.per_device_train_batch_size", lambda n: "" if n is None else f" of {n} examples"
    )
    return [
        of("model.num_hidden_layers", lambda layers: _model(record, layers)),
        of("model.random_init", lambda drawn: "random initial weights" if drawn else "", "pre-trained weights"),
        of("data.path", lambda path: TASKS.get(str(path), str(path))),
        of("data.classes", lambda classes: _count(len(classes), "of these classes") if classes else "", "all classes"),
        of("data.random_labels", lambda drawn: "random labels" if drawn else "", "true labels"),
        of("data.max_train_samples", lambda n: _count(n, "training examples")),
        ((steps or "steps by passes over them") + batch, other_steps + other_batches),
        (_count(record["scale"]["replicates"], "seeds"), []),
        (_rates(record), []),
        (_scored(record["scale"]), of("data.eval_split", lambda split: f"on the {split} split" if split else "")[1]),
    ]


class _ArmValues:
    """Config values over a record's arms; a study without arms has the common config alone."""

    def __init__(self, record: Record):
        self.config = record["scale"]["config"]
        self.changes = [arm["changes"] for arm in record["arms"]] or [{}]

    def in_words(self, key: str, words: Callable[[Any], str], default_words: str = "") -> tuple[str, list[str]]:
        """The most frequent value in words, and those of other arms in words with counts.

        Args:
            words: of a value; empty where it needs no words as long as all arms have it.
            default_words: what such a value is called where arms differ.
        """
        section, _, name = key.partition(".")
        default = self.config.get(section, {}).get(name)
        counts = Counter(words(changes.get(key, default)) for changes in self.changes)
        base = max(counts, key=lambda value: (counts[value], value == words(default)))
        others = {value or default_words: n for value, n in counts.items() if value != base}
        return base, [f"{value} in {n} of {len(self.changes)} arms" for value, n in others.items()]


def _count(n: Any, things: str) -> str:
    """A number of things; None means all. A record from elsewhere may hold any value."""
    if n is None:
        return f"all {things}"
    return f"{n:,} {things}" if isinstance(n, int) else f"{n} {things}"


def _model(record: Record, layers: Any) -> str:
    from lorascope.models.assets import ASSETS

    name = str(record["scale"]["config"].get("model", {}).get("name"))
    title, *_, size = ASSETS[name].about.split(", ") if name in ASSETS else (name, "")
    if layers is None:
        return f"all layers of {title}" + (f" ({size})" if size else "")
    first = "first" if layers == 1 else f"first {layers}"
    cut = f"{first} of {LAYERS[name]} layers" if name in LAYERS else f"{first} layers"
    return f"{cut} of {title}" + (f" ({size} when whole)" if size else "")


def _rates(record: Record) -> str:
    """How learning rates were chosen: the widest step of all sweeps."""
    sweeps = [sorted(rate for rate, _ in sweep["curve"]) for sweep in record["tuning"]]
    steps = [high / low for rates in sweeps for low, high in pairwise(rates) if low > 0]
    if not steps:
        return "no learning rate tuned"
    return f"one tuning run per learning rate on a grid of factor {max(steps):.2g}"


def _scored(scale: Record) -> str:
    if not scale["test_split"]:
        return "scored on the held-out texts that tuned"
    return "scored on " + _count(scale["test_samples"], f"{scale['test_split']} texts")
