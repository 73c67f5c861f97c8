"""What a user says of an adapter that was trained elsewhere, so that it can be evaluated. Imports nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from lorascope.errors import InputError


@dataclass(frozen=True)
class Given:
    """What an adapter's files do not say. None is the default in each.

    Attributes:
        base: the base model; by default the one that the files name.
        data: a file, a packaged set or a dataset; every row of a file is held out.
        task: SEQ_CLS or CAUSAL_LM; by default the config's task_type, or what the base is.
        text_column, text_pair_column, label_column: of the rows.
        template: of a language model, the text with {column} in it, such as "Q: {question} A: {answer}"; by default
            the text column, a conversation by the tokenizer's chat template, or prompt and completion.
        max_length: tokens of a text; by default what tokenizer and model allow, at most 1,024.
        labels: the classes' names in their order; by default the base's own.
        adapter_name: which adapter, of a file or a folder that holds several.
    """

    base: str | None = None
    data: str | None = None
    task: str | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    template: str | None = None
    max_length: int | None = None
    labels: tuple[str, ...] | None = None
    adapter_name: str | None = None

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) is not None for each in fields(self))


NOTHING = Given()


def given_by(
    base: str | None,
    data: str | None,
    labels: str | Sequence[str] | None = None,
    adapter_name: str | None = None,
    **columns: Any,
) -> Given:
    """What options say of an adapter; `labels` also as the command line has them, with commas between.

    Raises:
        InputError: an option that describes the data, and no data.
    """
    named = [key for key, value in {**columns, "labels": labels}.items() if value is not None]
    if named and data is None:
        raise InputError(f"--{named[0].replace('_', '-')} describes the data", hint="name them with --data")
    split = labels.split(",") if isinstance(labels, str) else labels
    return Given(base, data, labels=None if split is None else tuple(split), adapter_name=adapter_name, **columns)
