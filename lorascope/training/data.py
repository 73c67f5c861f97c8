"""Texts in, tokens out: what a model is trained on, encoded for its task."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lorascope.errors import InputError, preview
from lorascope.models.config import TaskType
from lorascope.training.batches import Encoded
from lorascope.training.config import DataConfig
from lorascope.training.rows import Row, first_rows, load_rows
from lorascope.training.wordnet import digest


def load(config: DataConfig, task: TaskType, tokenizer: Any, seed: int) -> tuple[Encoded, Encoded]:
    """The training and the held-out texts.

    Raises:
        InputError: the data cannot be read, a column is missing, or a value is not what its column must hold.
    """
    everything, held_out = load_rows(config, seed)
    train = first_rows(everything, config.max_train_samples, seed)
    held_out = first_rows(held_out, config.max_eval_samples, seed)
    if not train or not held_out:
        raise InputError(f"{config.path} has no rows to {'hold out' if train else 'train on'}")
    if task == "CAUSAL_LM":
        _refuse_pieces(train, config)
        return (
            encode_lm(_texts(train, config), tokenizer, config),
            encode_lm(_texts(held_out, config), tokenizer, config),
        )
    names = label_names(everything, config)  # the classes do not depend on how many texts are taken
    return (
        encode_classes(train, names, tokenizer, config),
        encode_classes(held_out, names, tokenizer, config),
    )


def held_out_classes(config: DataConfig, names: tuple[str, ...], tokenizer: Any, seed: int) -> Encoded:
    """The held-out texts alone, of classes that are known already."""
    _, rows = load_rows(config, seed)
    return encode_classes(first_rows(rows, config.max_eval_samples, seed), names, tokenizer, config)


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
    labels = []
    for row in rows:
        label = row.get(config.label_column)
        if (name := str(_whole(label))) not in number:
            raise InputError(f"the held-out label {label!r} is not in the training data", expected=preview(names, 10))
        labels.append(number[name])
    return Encoded(encoded["input_ids"], labels, tokenizer.pad_token_id, names)


def encode_lm(texts: Sequence[str], tokenizer: Any, config: DataConfig) -> Encoded:
    """Texts for a language model: each with the beginning tokens before it and the end token after it, as the config
    says, and joined and cut into blocks where `packing` says so.

    Without packing a text is cut at max_length, and then does not end with the end token. Packed texts see each other
    within a block, and the last, incomplete block is dropped.
    """
    length = config.max_length
    limit = {} if config.packing else {"truncation": True, "max_length": length + 1}  # one more shows that it goes on
    tokens = tokenizer(list(texts), add_special_tokens=False, verbose=False, **limit)["input_ids"]
    start = beginning(tokenizer, config)
    end = [] if tokenizer.eos_token_id is None or not config.add_eos_token else [tokenizer.eos_token_id]
    tokens = [[*start, *ids, *end] for ids in tokens]
    if config.packing:
        stream = [token for ids in tokens for token in ids]
        tokens = [stream[begin : begin + length] for begin in range(0, len(stream) - length + 1, length)]
        if not tokens:
            raise InputError(
                f"{config.path} is too short to fill a block",
                found=f"{len(stream)} tokens in {len(texts)} text{'s' * (len(texts) != 1)}",
                expected=f"{length} or more, the data.max_length of one block",
                hint="take more texts, lower data.max_length, or set data.packing to false: each text by itself",
            )
    tokens = [ids[:length] for ids in tokens if len(ids) > 1]
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
    bare, full = (tokenizer(probe, add_special_tokens=added)["input_ids"] for added in (False, True))
    starts = [i for i in range(len(full) - len(bare) + 1) if full[i : i + len(bare)] == bare]
    special = list(full[: starts[0]]) if starts else []
    if special or config.add_bos_token is None:
        return special
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
            hint="several classes of a text (multi-label) and classes of its tokens are not supported",
        )
    values = {_whole(row[column]) for row in rows}
    if any(isinstance(value, float) for value in values) or _scores(values):
        fraction = next(value for value in values if isinstance(value, float) or not _WHOLE.fullmatch(str(value)))
        raise InputError(
            f"{column!r} of {config.path} holds fractions",
            found=repr(fraction),
            expected="classes",
            hint="regression is not supported; classes that are numbers are written as whole numbers",
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
    "loss on completions only, and chat templates, are not supported: join prompt and completion, or the conversation, "
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
