"""Trained token rows in PEFT's files: with the base an update, which analyses make of them, and which a merge puts in.

`trainable_token_indices` (and the method TRAINABLE_TOKENS, `token_indices`): rows (n, width) that replace those rows of
an embedding.
"""

import re
from typing import Any

from lorascope.errors import InputError
from lorascope.weights.adapter import Rows
from lorascope.weights.formats.base import Ledger
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.family import Context, Family, Rest, families
from lorascope.weights.formats.peft.keys import body
from lorascope.weights.support import Support

TOKENS = "rows of trainable tokens, which replace the base's rows: ΔW depends on W"


_KEY = re.compile(r"^(?:(?P<module>.+?)\.)?(?:token_adapter\.)?trainable_tokens_(?:delta|original)(?:\.[^.]+)?$")


class TrainableTokens(Family):
    peft_types = {"TRAINABLE_TOKENS": frozenset({"replaced_rows"})}
    methods = {"replaced_rows": "trainable tokens"}
    fields = "token_indices init_weights"

    def read_rest(self, ledger: Ledger, context: Context) -> Rest:
        any_rows = any(map(is_trained_tokens, ledger.left()))
        return Rest(rows=token_rows(ledger, context.config), methods=("trainable tokens",) if any_rows else ())

    def claims_key(self, key: str) -> bool:
        return key.startswith("base_model.") and is_trained_tokens(key)


families.register("trainable_tokens")(TrainableTokens())


def is_trained_tokens(key: str) -> bool:
    """Whether the key holds the rows of trainable tokens."""
    return _KEY.match(body(key)) is not None


def token_rows(ledger: Ledger, config: Config) -> dict[str, Rows]:
    """The trained rows by their embedding's parameter; their keys are skipped.

    Raises:
        InputError: the config names other rows than the file holds.
    """
    rows: dict[str, Rows] = {}
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
        rows[f"{module}.weight"] = Rows(indices, stored)
    return rows


def _indices(config: Config, module: str) -> tuple[int, ...]:
    """Which rows of this embedding were trained."""
    indices: Any = config.raw.get("trainable_token_indices") or config.raw.get("token_indices")
    if isinstance(indices, dict):
        indices = next((rows for name, rows in indices.items() if module == name or module.endswith(f".{name}")), None)
    if not isinstance(indices, list) or not all(type(index) is int and index >= 0 for index in indices):
        raise InputError(
            f"adapter_config.json does not say which rows of {module} were trained", found=repr(indices)[:100]
        )
    return tuple(indices)


_MERGE, _BASE = "PEFT's merge in float64", "for ΔW"
SUPPORT = (
    Support("trainable tokens", _MERGE, base=_BASE, peft="TRAINABLE_TOKENS"),
    Support("trainable tokens", _MERGE, base=_BASE, peft="LORA.trainable_token_indices"),
)
