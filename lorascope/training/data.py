"""Text in, token batches out: packaged sets, files, and the `datasets` library.

The order of training is a function of (seed, epoch) and the position in it a function of the step, so that a run can
start again at any step without having kept an iterator.
"""

import csv
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lorascope.errors import InputError, preview
from lorascope.inputs import open_regular, parse_json
from lorascope.models.config import TaskType
from lorascope.training import wordnet
from lorascope.training.config import DataConfig
from lorascope.training.wordnet import digest

IGNORE = -100  # torch's label for "no target here"
PACKAGED = ("wordnet-classes", "wordnet-glosses")
READERS = (".csv", ".tsv", ".json", ".jsonl", ".txt")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Batch:
    """Tensors of one pass: `input_ids` and `attention_mask` (b, t); `labels` (b,), or (b, t) with IGNORE."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Encoded:
    """Tokenised text.

    Attributes:
        tokens: ids of each text, or of each packed block.
        labels: class of each text; None for a language model, whose targets are the next tokens.
        pad: the id that fills a batch up to its longest text.
        label_names: the classes, by number.
    """

    tokens: Sequence[Sequence[int]]
    labels: Sequence[int] | None
    pad: int
    label_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    def targets(self, indices: Sequence[int]) -> int:
        """How many predictions these texts are scored on: one each, or one per token after the first."""
        return len(indices) if self.labels is not None else sum(len(self.tokens[i]) - 1 for i in indices)

    def batch(self, indices: Sequence[int]) -> Batch:
        """These texts, padded on the right to the longest of them."""
        longest = max(len(self.tokens[i]) for i in indices)
        ids = np.full((len(indices), longest), self.pad, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, i in enumerate(indices):
            ids[row, : len(self.tokens[i])] = self.tokens[i]
            mask[row, : len(self.tokens[i])] = 1
        labels = np.where(mask, ids, IGNORE) if self.labels is None else np.array([self.labels[i] for i in indices])
        return Batch(torch.from_numpy(ids), torch.from_numpy(mask), torch.from_numpy(labels))

    def by_length(self, size: int) -> list[list[int]]:
        """All texts in batches of similar length, longest first: for evaluation, where order does not matter."""
        order = sorted(range(len(self)), key=lambda i: -len(self.tokens[i]))
        return [order[start : start + size] for start in range(0, len(order), size)]


def joined(batches: Sequence[Batch], pad: int) -> Batch:
    """Batches one after another, all padded on the right to the longest of them."""
    if len(batches) == 1:
        return batches[0]
    longest = max(batch.input_ids.shape[1] for batch in batches)

    def wide(tensor: Tensor, value: int) -> Tensor:
        return F.pad(tensor, (0, longest - tensor.shape[1]), value=value)

    return Batch(
        torch.cat([wide(batch.input_ids, pad) for batch in batches]),
        torch.cat([wide(batch.attention_mask, 0) for batch in batches]),
        torch.cat([wide(b.labels, IGNORE) if b.labels.ndim == 2 else b.labels for b in batches]),
    )


class Order:
    """The endless stream of training texts: epoch after epoch, each in an order of its own.

    Args:
        length: how many texts there are.
        seed: of the run.
        lengths: tokens of each text. Where given, texts of similar length come together: each window of 50 passes is
            sorted by length and cut into passes, whose order is then drawn anew. Far less is padding then.
        size: texts in one pass.
    """

    WINDOW = 50

    def __init__(self, length: int, seed: int, lengths: Sequence[int] | None = None, size: int = 1):
        self.length, self.seed, self.size = length, seed, size
        self.lengths = None if lengths is None else np.asarray(lengths)
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> int:
        epoch, place = divmod(position, self.length)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, self._of(epoch)
        return int(self._order[place])

    def _of(self, epoch: int) -> np.ndarray:
        order = permutation(self.length, self.seed, epoch)
        if self.lengths is None:
            return order
        window = self.WINDOW * self.size
        for start in range(0, self.length, window):
            piece = order[start : start + window]
            order[start : start + window] = piece[np.argsort(self.lengths[piece], kind="stable")]
        passes = [order[start : start + self.size] for start in range(0, self.length, self.size)]
        whole = self.length // self.size  # an incomplete pass stays last, so that the others stay whole
        drawn = [passes[i] for i in permutation(whole, self.seed, epoch)]
        return np.concatenate([*drawn, *passes[whole:]])

    def micro_batches(self, step: int, size: int, count: int) -> list[list[int]]:
        """Step `step`'s texts as `count` passes of `size`. No text is used twice in an epoch, and none is left out."""
        start = step * size * count
        return [[self[start + k * size + i] for i in range(size)] for k in range(count)]


def permutation(length: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: randperm of a generator seeded by (seed, epoch)."""
    state = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
    return torch.randperm(length, generator=torch.Generator().manual_seed(state)).numpy()


def load(config: DataConfig, task: TaskType, tokenizer: Any, seed: int) -> tuple[Encoded, Encoded]:
    """The training and the held-out texts.

    Raises:
        InputError: the data cannot be read, a column is missing, or a value is not what its column must hold.
    """
    everything, held_out = _rows(config, seed)
    train = _first(everything, config.max_train_samples, seed)
    held_out = _first(held_out, config.max_eval_samples, seed)
    if not train or not held_out:
        raise InputError(f"{config.path} has no rows to {'hold out' if train else 'train on'}")
    if task == "CAUSAL_LM":
        _refuse_pieces(train, config)
        return tuple(encode_lm(_texts(rows, config), tokenizer, config) for rows in (train, held_out))
    names = label_names(everything, config)  # the classes do not depend on how many texts are taken
    return tuple(encode_classes(rows, names, tokenizer, config) for rows in (train, held_out))


def held_out_classes(config: DataConfig, names: tuple[str, ...], tokenizer: Any, seed: int) -> Encoded:
    """The held-out texts alone, of classes that are known already."""
    _, rows = _rows(config, seed)
    return encode_classes(_first(rows, config.max_eval_samples, seed), names, tokenizer, config)


def encode_classes(rows: Sequence[Row], names: tuple[str, ...], tokenizer: Any, config: DataConfig) -> Encoded:
    """Texts, or pairs of texts, and their classes."""
    pairs = (_texts(rows, config, config.text_pair_column),) if config.text_pair_column else ()
    encoded = tokenizer(_texts(rows, config), *pairs, truncation=True, max_length=config.max_length)
    if [] in (tokens := encoded["input_ids"]):
        raise InputError(f"a text of {config.path} is empty", found=f"row {tokens.index([]) + 1} of its part")
    if config.random_labels:
        drawn = [int(digest(text), 16) % len(names) for text in _texts(rows, config)]
        return Encoded(encoded["input_ids"], drawn, tokenizer.pad_token_id, names)
    number = {name: i for i, name in enumerate(names)}
    labels = [number.get(str(_whole(row.get(config.label_column)))) for row in rows]
    if None in labels:
        row = rows[labels.index(None)]
        label = row.get(config.label_column)
        raise InputError(f"the held-out label {label!r} is not in the training data", expected=preview(names, 10))
    return Encoded(encoded["input_ids"], labels, tokenizer.pad_token_id, names)


def encode_lm(texts: Sequence[str], tokenizer: Any, config: DataConfig) -> Encoded:
    """Texts for a language model: each with the beginning tokens before it and the end token after it, as the config
    says, and joined and cut into blocks where `packing` says so.

    Without packing a text is cut at max_length, and then does not end with the end token. Packed texts see each other
    within a block, and the last, incomplete block is dropped.
    """
    most = config.max_length
    limit = {} if config.packing else {"truncation": True, "max_length": most + 1}  # one more shows that it goes on
    tokens = tokenizer(list(texts), add_special_tokens=False, verbose=False, **limit)["input_ids"]
    start = beginning(tokenizer, config)
    end = [] if tokenizer.eos_token_id is None or not config.add_eos_token else [tokenizer.eos_token_id]
    tokens = [[*start, *ids, *end] for ids in tokens]
    if config.packing:
        stream = [token for ids in tokens for token in ids]
        tokens = [stream[begin : begin + most] for begin in range(0, len(stream) - most + 1, most)]
        if not tokens:
            raise InputError(
                f"{config.path} is too short to fill a block",
                found=f"{len(stream)} tokens",
                expected=most,
                hint="lower data.max_length, or set data.packing to false to train on each text by itself",
            )
    tokens = [ids[:most] for ids in tokens if len(ids) > 1]
    if not tokens:
        raise InputError(f"no text of {config.path} has a token to predict", expected="texts of two tokens or more")
    return Encoded(tokens, None, tokenizer.pad_token_id)


def beginning(tokenizer: Any, config: DataConfig) -> list[int]:
    """The tokens before each text: what the tokenizer itself puts there, unless the config says otherwise.

    Raises:
        InputError: a beginning token is asked for and the tokenizer has none.
    """
    if config.add_bos_token is False:
        return []
    probe = "a"
    bare, full = (tokenizer(probe, add_special_tokens=special)["input_ids"] for special in (False, True))
    starts = [i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare]
    own = list(full[: starts[0]]) if starts else []
    if own or config.add_bos_token is None:
        return own
    if tokenizer.bos_token_id is None:
        raise InputError("data.add_bos_token is true and the tokenizer has no beginning token", hint="leave it out")
    return [tokenizer.bos_token_id]


def notes(tokenizer: Any, config: DataConfig) -> list[str]:
    """A sentence on what each text of a language model begins and ends with, where it begins with anything."""
    start = tokenizer.convert_ids_to_tokens(beginning(tokenizer, config))
    if not start:
        return []
    whose = "the tokenizer's own beginning token" if config.add_bos_token is None else "the beginning token"
    return [f"each text begins with {whose}, {' '.join(start)} (data.add_bos_token: false leaves it away)"]


def label_names(rows: Sequence[Row], config: DataConfig) -> tuple[str, ...]:
    """The classes, sorted: as numbers where all are whole numbers, else as text."""
    column = config.label_column
    missing = [i for i, row in enumerate(rows) if row.get(column) in (None, "")]
    if missing:
        raise InputError(
            f"row {missing[0] + 1} of {config.path} has no {column!r}",
            found=f"the columns {preview(rows[missing[0]], 10)}",
            hint="name the column with data.label_column",
        )
    listed = next((row[column] for row in rows if isinstance(row[column], list | tuple | dict)), None)
    if listed is not None:
        raise InputError(
            f"{column!r} of {config.path} holds lists, and a text can have one class",
            found=repr(listed)[:60],
            hint="several classes of a text (multi-label) and classes of its tokens are not offered",
        )
    values = {_whole(row[column]) for row in rows}
    if any(isinstance(value, float) for value in values) or _scores(values):
        fraction = next(value for value in values if isinstance(value, float) or not _WHOLE.fullmatch(str(value)))
        raise InputError(
            f"{column!r} of {config.path} holds fractions",
            found=repr(fraction),
            expected="classes",
            hint="regression is not offered; classes that are numbers are written as whole numbers",
        )
    try:
        return tuple(map(str, sorted(values, key=int)))
    except (TypeError, ValueError):
        return tuple(sorted(map(str, values)))


def _whole(value: Any) -> Any:
    """A class that a column of floats has made 1.0 of, as the whole number it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_NUMBER = re.compile(r"\s*[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?\s*")
_WHOLE = re.compile(r"\s*[+-]?\d+\s*")


def _scores(values: Collection[Any]) -> bool:
    """Whether every label is a number and one of them is no whole one: "4.69" of a CSV, and "1.0" too, which a
    column of floats gives.
    """
    texts = list(map(str, values))
    return all(map(_NUMBER.fullmatch, texts)) and not all(map(_WHOLE.fullmatch, texts))


def _texts(rows: Sequence[Row], config: DataConfig, column: str | None = None) -> list[str]:
    column = column or config.text_column
    for i, row in enumerate(rows):
        if not isinstance(row.get(column), str):
            joint = {str(name).lower() for name in row} & {*PIECES, *CHATS}
            raise InputError(
                f"row {i + 1} of {config.path} has no text in the column {column!r}",
                found=f"the columns {preview(row, 10)}" if column not in row else repr(row[column])[:60],
                hint=JOIN if joint and config.text_pair_column is None else "name the column with data.text_column",
            )
    return [row[column] for row in rows]


# Columns that hold a part of what a model is to read or to answer, and those that may as well be something else.
PIECES = ("prompt", "completion", "instruction", "output", "question", "answer", "response", "chosen", "rejected")
MAYBE_PIECES = ("input", "query", "context", "system", "source", "target", "user", "assistant")
WHOLES = ("text", "content", "document")  # what a column of whole texts is called; others are metadata then
CHATS = ("messages", "conversations", "conversation")
JOIN = (
    "loss on completions only, and chat templates, are not offered: join prompt and completion, or the conversation, "
    "into one column of text and name it with data.text_column"
)


def _refuse_pieces(rows: Sequence[Row], config: DataConfig) -> None:
    """InputError where a language model would be trained on a part of what the rows say: on prompts, say, without their
    completions. A column of text that holds all the others' is the whole.
    """
    used = config.text_column
    names = {*CHATS, "completion", "response"} if used.lower() in WHOLES else {*PIECES, *CHATS}
    names = names - {"rejected"} if used.lower() == "chosen" else names  # plain training on what was preferred
    names = names | (set(MAYBE_PIECES) if used.lower() in {*PIECES, *MAYBE_PIECES} else set())
    for row in rows[:20]:
        text = row.get(used)
        for column, value in row.items():
            if column == used or str(column).lower() not in names or not isinstance(text, str):
                continue
            if any(words.strip() not in text for words in _words(value)):
                raise InputError(
                    f"{config.path} would be trained on its column {used!r} alone, without what {column!r} says",
                    found=f"the columns {preview(row, 10)}",
                    hint=JOIN,
                )


def _words(value: object) -> list[str]:
    """What a cell says: its text, or the contents of a conversation's messages."""
    if isinstance(value, list):
        contents = [each.get("content", each.get("value")) for each in value if isinstance(each, Mapping)]
        return [content for content in contents if isinstance(content, str)]
    return [value] if isinstance(value, str) else []


def _first(rows: Sequence[Row], most: int | None, seed: int) -> Sequence[Row]:
    return (
        rows if most is None or most >= len(rows) else [rows[i] for i in sorted(permutation(len(rows), seed, 0)[:most])]
    )


def _rows(config: DataConfig, seed: int) -> tuple[Sequence[Row], Sequence[Row]]:
    """Rows to train on and rows to hold out, of the classes that are asked for."""
    train, held_out = _all_rows(config, seed)
    if config.classes is None:
        return train, held_out
    there = {str(row.get(config.label_column)) for row in train}
    if missing := [name for name in config.classes if name not in there]:
        raise InputError(f"{config.path} has no class {missing[0]!r}", expected=preview(sorted(there), 10))
    return tuple(
        [row for row in rows if str(row.get(config.label_column)) in config.classes] for rows in (train, held_out)
    )


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
    """A split of a set that ships with lorascope: `text`, and the class as `label`."""
    splits = wordnet.read()
    if split not in splits:
        raise InputError(f"{name} has no split {split!r}", expected=", ".join(splits))
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
            raise InputError(f"row {i + 1} of {path} is no object", found=repr(row)[:60], expected='{"text": ..., ...}')
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
