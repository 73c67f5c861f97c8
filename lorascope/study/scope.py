"""The scope of a study, from its record: on what its numbers were found, in one short line, and in full.

In full each part gives the value that most arms have, followed in brackets by what other arms have instead.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

Record = Mapping[str, Any]
LAYERS = {"minilm": 6, "smollm2": 30}  # of the packaged models that a config may cut
MODELS = {"minilm": "MiniLM (encoder)", "smollm2": "SmolLM2-135M (decoder)"}
CLASSES = 25
TASKS = {
    "wordnet-classes": f"{CLASSES} classes of WordNet glosses",
    "wordnet-glosses": "WordNet glosses",
    "cmudict": "how words are pronounced (CMUdict)",
}
LIMIT = "says nothing about large language models"


def line(record: Record) -> str:
    """The scope in short, for under a title: "Screening: first 3 of 6 layers of MiniLM (encoder), ..."."""
    note = f". {record['beside']}" if record.get("beside") else ""
    return _worded([shown for _, shown in _short(record)], [record]) + note


def common(records: Sequence[Record]) -> str:
    """What most arms of all studies that give verdicts have in common, a line for each test bed; empty without any."""
    by_testbed: dict[str, list[Record]] = {}
    for record in records:
        if record["scale"]["conclusive"]:
            by_testbed.setdefault(record["scale"]["testbed"], []).append(record)
    lines = []
    for same in by_testbed.values():
        parts = zip(*([base for base, _ in _short(record)] for record in same), strict=True)
        shared = [values[0] for values in parts if len(set(values)) == 1]
        lines.append(f"{_worded(shared, same)}. Exceptions are in each study's own line.")
    return "\n".join(lines)


def full(record: Record) -> str:
    """The scope with the size of the model, the examples, how learning rates were tuned, and the arms that differ."""
    parts = [_joined(*part) for part in _parts(record)]
    note = f" {record['beside']}" if record.get("beside") else ""
    return f"{', '.join(part for part in parts if part)}.{note}"


def _worded(parts: Sequence[str], records: Sequence[Record]) -> str:
    kind = "Screening" if all(record["scale"]["conclusive"] for record in records) else "Smoke test"
    packaged = all(record["scale"]["config"].get("model", {}).get("name") in MODELS for record in records)
    return f"{kind}: {', '.join(part for part in parts if part)}" + (f"; {LIMIT}" if packaged else "")


def _short(record: Record) -> list[tuple[str, str]]:
    """Each part: of most arms, and of all."""
    values = _ArmValues(record)
    replicates = _count(record["scale"]["replicates"], "replicates")
    devices = ", ".join(_device(name) for name in record["made"]["devices"]) or "CPU"
    return [
        _depths(record, values),
        values.between("model.random_init", lambda drawn: "random weights" if drawn else "", "pre-trained weights"),
        values.between("data.path", lambda path: TASKS.get(str(path), str(path))),
        values.between(
            "data.classes", lambda classes: _count(len(classes), "of these classes") if classes else "", "all"
        ),
        values.between("data.random_labels", lambda drawn: "random labels" if drawn else "", "true labels"),
        values.between("training.max_steps", lambda n: "" if n is None else _count(n, "steps")),
        (replicates, replicates),
        (devices, devices),
    ]


def _depths(record: Record, values: "_ArmValues") -> tuple[str, str]:
    """The model of most arms, and of all: of those with all layers the model is not named again."""
    base, shown = values.between("model.num_hidden_layers", lambda layers: _short_model(record, layers))
    again = f" or {_short_model(record, None)}"
    return base, f"{shown.removesuffix(again)} or all of them" if shown.endswith(again) else shown


def _device(name: str) -> str:
    return name.upper() if name == "cpu" else name


def _short_model(record: Record, layers: Any) -> str:
    name = str(record["scale"]["config"].get("model", {}).get("name"))
    title = MODELS.get(name, name)
    if layers is None or LAYERS.get(name) == layers:
        return title
    first = "first" if layers == 1 else f"first {layers}"
    return f"{first} of {LAYERS[name]} layers of {title}" if name in LAYERS else f"{first} layers of {title}"


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
        (_count(record["scale"]["replicates"], "replicates"), []),
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

    def between(self, key: str, words: Callable[[Any], str], default_words: str = "") -> tuple[str, str]:
        """The most frequent value in words; and the values of all arms: numbers from the least to the greatest."""
        base, _ = self.in_words(key, words, default_words)
        section, _, name = key.partition(".")
        default = self.config.get(section, {}).get(name)
        values = list({repr(value): value for value in (each.get(key, default) for each in self.changes)}.values())
        if len(values) > 1 and all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            return base, f"{min(values):,} to {words(max(values))}"
        shown = list(dict.fromkeys(words(value) or default_words for value in values))
        return base, " or ".join(sorted(shown, key=lambda each: each != default_words)) if len(shown) > 1 else base


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
    """How learning rates were chosen: the runs of a rate, and the widest step to a neighbour of the chosen one."""
    steps = []
    for sweep in record["tuning"]:
        chosen = sweep["learning_rate"]
        pairs = [pair for pair in pairwise(sorted(rate for rate, _ in sweep["curve"])) if pair[0] > 0]
        near = [pair for pair in pairs if chosen in pair] or pairs
        steps += [high / low for low, high in near]
    if not steps:
        return "no learning rate tuned"
    counts = [len(losses) for sweep in record["tuning"] for _, losses in sweep["curve"]]
    runs = "one tuning run" if max(counts) == 1 else f"{min(counts)} to {max(counts)} tuning runs"
    return f"{runs} per learning rate, neighbours of the best a factor of {max(steps):.2g} apart at most"


def _scored(scale: Record) -> str:
    if not scale["test_split"]:
        return "scored on the held-out texts that tuned"
    return "scored on " + _count(scale["test_samples"], f"{scale['test_split']} texts")
