"""Rows of text from packaged sets, files and the `datasets` library: what is trained on and what is held out."""

import csv
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorascope.errors import InputError, preview
from lorascope.inputs import open_regular, parse_json
from lorascope.training import fetched, wordnet
from lorascope.training.batches import permutation
from lorascope.training.config import DataConfig

PACKAGED = ("wordnet-classes", "wordnet-glosses", "cmudict")
READERS = (".csv", ".tsv", ".json", ".jsonl", ".txt")
Row = Mapping[str, Any]


def first_rows(rows: Sequence[Row], count: int | None, seed: int) -> Sequence[Row]:
    """The first `count` rows of a seeded order, as they stand in the data; all where `count` is None."""
    if count is None or count >= len(rows):
        return rows
    return [rows[i] for i in sorted(permutation(len(rows), seed, 0)[:count])]


def load_rows(config: DataConfig, seed: int) -> tuple[Sequence[Row], Sequence[Row]]:
    """Rows to train on and rows to hold out, of the classes that are asked for."""
    train, held_out = _all_rows(config, seed)
    if config.classes is None:
        return train, held_out
    there = {str(row.get(config.label_column)) for row in train}
    if missing := [name for name in config.classes if name not in there]:
        raise InputError(f"{config.path} has no class {missing[0]!r}", expected=preview(sorted(there), 10))
    wanted = set(config.classes)
    return _of_classes(train, config.label_column, wanted), _of_classes(held_out, config.label_column, wanted)


def _of_classes(rows: Sequence[Row], column: str, classes: Collection[str]) -> list[Row]:
    return [row for row in rows if str(row.get(column)) in classes]


def _all_rows(config: DataConfig, seed: int) -> tuple[Sequence[Row], Sequence[Row]]:
    path = Path(config.path)
    file = config.path not in PACKAGED and (path.is_file() or path.suffix.lower() in READERS)
    if config.eval_path and not file:
        raise InputError(
            "data.eval_path goes with a data.path that is a file", found=config.path, hint="use data.eval_split"
        )
    if config.name is not None and (file or config.path in PACKAGED):
        raise InputError("data.name is of a hub dataset", found=config.path, hint="leave it out")
    if config.path in PACKAGED:
        return packaged(config.path, config.train_split), packaged(config.path, config.eval_split)
    if path.is_file() or path.suffix.lower() in READERS:
        train = read_file(path)
        return (train, read_file(Path(config.eval_path))) if config.eval_path else _split(train, config, seed)
    return _hub(config, seed)


def has_split(config: DataConfig, split: str) -> bool:
    """Whether the set comes with texts of that name. Where it does not, the run's seed draws what is held out."""
    if config.path in PACKAGED:
        return split in wordnet.SIZES
    path = Path(config.path)
    if path.is_file() or path.suffix.lower() in READERS:
        return config.eval_path is not None and split == config.eval_split
    import datasets

    return split in datasets.get_dataset_split_names(config.path, config.name)


def _split(rows: Sequence[Row], config: DataConfig, seed: int) -> tuple[Sequence[Row], Sequence[Row]]:
    held_out = max(1, round(len(rows) * config.eval_fraction))
    order = permutation(len(rows), seed, 0)
    return [rows[i] for i in sorted(order[held_out:])], [rows[i] for i in sorted(order[:held_out])]


def packaged(name: str, split: str) -> list[Row]:
    """A split of a set that ships with lorascope, or is fetched once: `text`, and of WordNet the class as `label`."""
    if split not in wordnet.SIZES:
        raise InputError(f"{name} has no split {split!r}", expected=", ".join(wordnet.SIZES))
    if name == "cmudict":
        return [{"text": f"{line}\n"} for line in fetched.cmudict()[split]]
    splits = wordnet.read()
    column = "gloss" if name == "wordnet-classes" else "line"
    return [{"text": getattr(noun, column), "label": noun.label} for noun in splits[split]]


def read_file(path: Path) -> list[Row]:
    """The rows of a CSV, TSV, JSON (a list of objects), JSONL or text (a row per line) file."""
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise InputError(f"cannot tell what {path} is", found=suffix or "no ending", expected=", ".join(READERS))
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline="") as stream:
            rows = list(_parse(stream, suffix))
    except (OSError, ValueError, csv.Error) as error:  # not UTF-8, or no JSON
        raise InputError(f"cannot read {path}", found=getattr(error, "strerror", None) or error) from error
    for i, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(
                f"row {i + 1} of {path} is not an object", found=repr(row)[:60], expected='{"text": ..., ...}'
            )
    return rows


def _parse(stream: Any, suffix: str) -> Iterator[Any]:
    if suffix in (".csv", ".tsv"):
        return csv.DictReader(stream, delimiter="\t" if suffix == ".tsv" else ",", strict=True)
    if suffix == ".json":
        values = parse_json(stream.read())
        return iter(values if isinstance(values, list) else [values])
    lines = (line.rstrip("\r\n") for line in stream)
    return (parse_json(line) if suffix == ".jsonl" else {"text": line} for line in lines if line.strip())


def _hub(config: DataConfig, seed: int) -> tuple[Sequence[Row], Sequence[Row]]:
    """A dataset of the `datasets` library, by hub name or folder."""
    import datasets

    try:
        splits = datasets.load_dataset(config.path, config.name)
    except Exception as error:  # the library raises whatever its network and file layers raise
        raise InputError(
            f"cannot load the dataset {config.path!r}",
            found=" ".join(str(error).split())[:200],
            expected=f"a packaged set ({', '.join(PACKAGED)}), a {' / '.join(READERS)} file, or a hub name",
        ) from error
    if config.train_split not in splits:
        raise InputError(f"{config.path} has no split {config.train_split!r}", expected=", ".join(splits))
    train = _named(splits[config.train_split], config)
    if config.eval_split in splits:
        return train, _named(splits[config.eval_split], config)
    return _split(train, config, seed)


def _named(split: Any, config: DataConfig) -> list[Row]:
    """Rows of a `datasets` split; classes that the dataset has names for, by name."""
    names = getattr(split.features.get(config.label_column), "names", None)
    rows = split.to_list()
    return [{**row, config.label_column: names[row[config.label_column]]} for row in rows] if names else rows
