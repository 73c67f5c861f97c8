"""What a study's numbers are of, in one line, from its record: model and layers, task, examples, steps, seeds, rates.

Of each part the value that most arms have is said, and beside it what other arms have instead.
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
    beside = f" {record['beside']}" if record.get("beside") else ""
    return f"Scope: {', '.join(part for part in parts if part)}.{beside}"


def common(records: Sequence[Record]) -> str:
    """What the studies that give verdicts have in common, in one line; empty where there is nothing."""
    bases = [[base for base, _ in _parts(record)] for record in records if record["scale"]["conclusive"]]
    shared = [said[0] for said in zip(*bases, strict=True) if len(set(said)) == 1 and said[0]]
    return f"Scope: {', '.join(shared)}; exceptions stand in each study's own line." if shared else ""


def _joined(base: str, others: Sequence[str]) -> str:
    beside = "; ".join(others)
    return f"{base} ({beside})" if base and beside else base or beside


def _parts(record: Record) -> list[tuple[str, list[str]]]:
    """Each part: what most arms have, empty where that goes without saying, and what others have."""
    of = _Arms(record).of
    steps, other_steps = of("training.max_steps", lambda n: "" if n is None else _count(n, "steps"))
    batch, other_batches = of(
        "training.per_device_train_batch_size", lambda n: "" if n is None else f" of {n} examples"
    )
    return [
        of("model.num_hidden_layers", lambda layers: _model(record, layers)),
        of("model.random_init", lambda drawn: "random initial weights" if drawn else "", "pre-trained weights"),
        of("data.path", lambda path: TASKS.get(str(path), str(path))),
        of("data.classes", lambda some: _count(len(some), "of these classes") if some else "", "all classes"),
        of("data.random_labels", lambda drawn: "random labels" if drawn else "", "true labels"),
        of("data.max_train_samples", lambda n: _count(n, "training examples")),
        ((steps or "steps by passes over them") + batch, other_steps + other_batches),
        (_count(record["scale"]["replicates"], "seeds"), []),
        (_rates(record), []),
        (_scored(record["scale"]), of("data.eval_split", lambda split: f"on the {split} split" if split else "")[1]),
    ]


class _Arms:
    """Config values over a record's arms; a study without arms has the common config alone."""

    def __init__(self, record: Record):
        self.config = record["scale"]["config"]
        self.changes = [arm["changes"] for arm in record["arms"]] or [{}]

    def of(self, key: str, say: Callable[[Any], str], unsaid: str = "") -> tuple[str, list[str]]:
        """The most frequent value in words, and in words with counts those of other arms.

        Args:
            say: a value in words; empty where it goes without saying, as long as all arms have it.
            unsaid: that value's words beside others.
        """
        section, _, name = key.partition(".")
        default = self.config.get(section, {}).get(name)
        counts = Counter(say(changes.get(key, default)) for changes in self.changes)
        base = max(counts, key=lambda said: (counts[said], said == say(default)))
        others = {said or unsaid: n for said, n in counts.items() if said != base}
        return base, [f"{said} in {n} of {len(self.changes)} arms" for said, n in others.items()]


def _count(n: Any, what: str) -> str:
    """A number of things; None takes all there are. A stranger's record may have anything."""
    if n is None:
        return f"all {what}"
    return f"{n:,} {what}" if isinstance(n, int) else f"{n} {what}"


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
    sweeps = [sorted(rate for rate, _ in each["curve"]) for each in record["tuning"]]
    steps = [high / low for rates in sweeps for low, high in pairwise(rates) if low > 0]
    if not steps:
        return "no learning rate tuned"
    return f"one tuning run per learning rate on a grid of factor {max(steps):.2g}"


def _scored(scale: Record) -> str:
    if not scale["test_split"]:
        return "scored on the held-out texts that tuned"
    return "scored on " + _count(scale["test_samples"], f"{scale['test_split']} texts")
