"""The file with what each text cost each run, next to a record that names it by its hash.

A NumPy archive, `NAME.texts.npz`, of four arrays a split: `SPLIT.keys` (runs,) of the runs; `SPLIT.loss` (runs, texts)
float16, or float32 where that is too narrow; `SPLIT.hits` (runs, texts) and `SPLIT.targets` (texts,) integers. It has
no other content, and the same scores give the same bytes.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from lorascope.errors import InputError
from lorascope.inputs import open_regular
from lorascope.study.texts import TextScores

MAX_BYTES = 1 << 28  # bytes of the file, and of what is in it
PARTS = ("keys", "loss", "hits", "targets")
ERRORS = (OSError, ValueError, EOFError, KeyError, NotImplementedError, RuntimeError, zipfile.BadZipFile)


def as_stored(texts: Mapping[str, TextScores]) -> dict[str, TextScores]:
    """The scores with the digits that the file keeps: what is judged is what is written."""
    return {split: TextScores(each.keys, _narrow(each.loss), each.hits, each.targets) for split, each in texts.items()}


def packed(texts: Mapping[str, TextScores], name: str) -> tuple[bytes, dict[str, Any]]:
    """The file of a study's scores, and what its record says of it.

    Args:
        name: of the study's files.
    """
    arrays: dict[str, np.ndarray] = {}
    for split, scores in texts.items():
        arrays[f"{split}.keys"] = np.array(scores.keys, dtype=str)
        arrays[f"{split}.loss"] = _narrow(scores.loss)
        arrays[f"{split}.hits"] = _fewest_bytes(scores.hits)
        arrays[f"{split}.targets"] = _fewest_bytes(scores.targets)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **cast(Any, arrays))
    content = buffer.getvalue()
    facts = {
        "file": f"{name}.texts.npz",
        "sha256": hashlib.sha256(content).hexdigest(),
        "splits": {split: len(scores.targets) for split, scores in texts.items()},
    }
    return content, facts


def read(facts: Mapping[str, Any], folder: Path) -> dict[str, TextScores]:
    """The scores by split, of the file that a record names.

    Raises:
        InputError: it is missing, has another hash or size than the record says, or is damaged.
    """
    name = str(facts["file"])
    path = folder / name
    hint = "take it from where the record came from, or run the study again"
    if Path(name).name != name:
        raise InputError("a record names a file of another folder", found=name, expected="a file next to the record")
    with open_regular(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise InputError(f"{path} is too large", found=f"more than {MAX_BYTES:,} bytes", expected="a smaller file")
    if (found := hashlib.sha256(content).hexdigest()) != facts["sha256"]:
        raise InputError(f"{path} is not the record's", found=found[:12], expected=str(facts["sha256"])[:12], hint=hint)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(each.file_size for each in archive.infolist())
        if size > MAX_BYTES:
            raise ValueError(f"arrays of {size:,} bytes")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            texts = {split: _scores(arrays, split, count) for split, count in facts["splits"].items()}
    except ERRORS as error:
        raise InputError(f"{path} is damaged", found=error, hint=hint) from None
    return texts


def _scores(arrays: Mapping[str, np.ndarray], split: str, count: int) -> TextScores:
    keys, loss, hits, targets = (arrays[f"{split}.{part}"] for part in PARTS)
    if loss.dtype.kind != "f" or any(each.dtype.kind not in "iu" for each in (hits, targets)) or keys.dtype.kind != "U":
        raise ValueError(f"scores of {split} that are not numbers")
    if targets.shape != (count,) or keys.shape != loss.shape[:1]:
        raise ValueError(f"scores of {split} for {targets.size} texts, not {count}")
    if not np.isfinite(loss).all() or (targets < 1).any():
        raise ValueError(f"scores of {split} that are not finite")
    return TextScores(tuple(keys.tolist()), loss, hits, targets)


def _narrow(loss: np.ndarray) -> np.ndarray:
    """In float16: its rounding, 1 in 2,000 of a text's loss, is averaged out over the texts."""
    fits = np.abs(loss).max(initial=0.0) < np.finfo(np.float16).max
    return loss.astype(np.float16 if fits else np.float32)


def _fewest_bytes(counts: np.ndarray) -> np.ndarray:
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))
