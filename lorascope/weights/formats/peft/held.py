"""What a PEFT file holds that is no update by itself, and that a merge needs: trained token rows, copies of the base.

`trainable_token_indices` (and the method TRAINABLE_TOKENS, `token_indices`): rows (n, width) that replace those rows of
an embedding. A copy of the base, `….base_layer.weight`, is what PEFT loads into the base before it adds the update; it
writes one where the vocabulary was resized, and then the base on disk has fewer rows than the trained model had.
"""

from typing import Any

from lorascope.errors import InputError
from lorascope.updates.base import Stored
from lorascope.weights.adapter import Rows
from lorascope.weights.formats.base import Ledger
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.keys import body, is_trained_tokens

TOKENS = "rows of trainable tokens: they replace the base's rows, and are no update by themselves"
COPY = "a copy of the base's weight, stored beside the update by PEFT"
COPIES = ("weight", "in_proj_weight", "in_proj_bias", "out_proj.weight")


def token_rows(ledger: Ledger, config: Config) -> dict[str, Rows]:
    """The trained rows by their embedding's parameter; their keys are set aside.

    Raises:
        InputError: the config names other rows than the file holds.
    """
    found: dict[str, Rows] = {}
    for key in ledger.left():
        if not is_trained_tokens(key):
            continue
        text = body(key)
        if "trainable_tokens_delta" not in text:
            ledger.skip(key, "the base's own copy of the rows of trainable tokens")
            continue
        stored = ledger.peek(key)
        ledger.skip(key, TOKENS)
        module = text.partition(".trainable_tokens_delta")[0].removesuffix(".token_adapter")
        indices = _indices(config, module)
        if len(stored.shape) != 2 or len(indices) != stored.shape[0]:
            raise InputError(
                f"{key} does not hold the rows that adapter_config.json names",
                found=f"shape {tuple(stored.shape)}",
                expected=f"({len(indices)}, width)",
            )
        found[f"{module}.weight"] = Rows(indices, stored)
    return found


def _indices(config: Config, module: str) -> tuple[int, ...]:
    """Which rows of this embedding were trained."""
    said: Any = config.raw.get("trainable_token_indices") or config.raw.get("token_indices")
    if isinstance(said, dict):
        said = next((rows for name, rows in said.items() if module == name or module.endswith(f".{name}")), None)
    if not isinstance(said, list) or not all(type(index) is int and index >= 0 for index in said):
        raise InputError(
            f"adapter_config.json does not say which rows of {module} were trained", found=repr(said)[:100]
        )
    return tuple(said)


def base_copies(ledger: Ledger) -> dict[str, Stored]:
    """The base's weights that stand beside the updates, by parameter. Their keys stay open, for `saved.take_saved`."""
    found: dict[str, Stored] = {}
    for key in ledger.left():
        text = body(key)
        module, below, tail = text.rpartition(".base_layer.")
        if below and tail in COPIES and ".original_module." not in text:
            owner = module.replace(".base_layer", "").removesuffix(".token_adapter")
            found[f"{owner}.{tail}"] = ledger.peek(key)
    return found
