"""What a user says of an adapter that was trained elsewhere, so that it can be evaluated. Imports nothing heavy."""

from dataclasses import dataclass, fields
from typing import Any


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

    @classmethod
    def taken_from(cls, options: dict[str, Any], base: str | None, data: str | None) -> "Given":
        """With those of the options that are its fields, which are taken out of them."""
        known = {each.name for each in fields(cls)} & options.keys()
        return cls(base, data, **{key: options.pop(key) for key in known})

    def __bool__(self) -> bool:
        return any(getattr(self, each.name) is not None for each in fields(self))


NOTHING = Given()
