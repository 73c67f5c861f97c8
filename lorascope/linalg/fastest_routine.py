"""Which of several routines for the same thing is the fastest on this machine: timed once, and kept on disk.

OpenBLAS and MKL each win on one maker's processors, by factors of up to two, so no constant is right.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from lorascope.errors import LorascopeError
from lorascope.outputs import write_json
from lorascope.portable import processor, user_cache

ROUNDS = 2  # the better of them counts
GAIN = 0.1  # of its time, that another routine must save to take the first one's place
_FILE = "calibration.json"
_known: dict[str, str] = {}


def fastest(question: str, candidates: Mapping[str, Callable[[], object]], versions: Sequence[str] = ()) -> str:
    """The name of the candidate that costs the least CPU time on one thread; the first, unless another saves `GAIN`.

    Args:
        question: what is asked, with the size that it is asked at: part of the key, as are the processor, the
            candidates' names and the `versions` of their libraries.
        candidates: by name. Each is called `ROUNDS` times, in turns, where the answer is not known yet.
    """
    if len(candidates) == 1:
        return next(iter(candidates))
    key = " | ".join((question, *candidates, *versions, processor()))
    if key not in _known:
        kept = _read().get(key)
        if kept is not None and kept in candidates:
            _known[key] = kept
        else:
            _known[key] = _timed(candidates)
            _write(key, _known[key])
    return _known[key]


def _timed(candidates: Mapping[str, Callable[[], object]]) -> str:
    from threadpoolctl import threadpool_limits

    seconds: dict[str, float] = dict.fromkeys(candidates, float("inf"))
    with threadpool_limits(1):
        for _ in range(ROUNDS):
            for name, call in candidates.items():
                began = time.process_time()
                call()
                seconds[name] = min(seconds[name], time.process_time() - began)
    first, best = next(iter(seconds)), min(seconds, key=seconds.__getitem__)
    return best if seconds[best] < (1 - GAIN) * seconds[first] else first


def _read() -> dict[str, str]:
    """What is known by key; nothing where the file is missing or is not one of ours."""
    try:
        found = json.loads((user_cache() / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(key: str, name: str) -> None:
    """Keep an answer. Without a folder that can be written, the next process measures again."""
    file = user_cache() / _FILE
    with suppress(OSError, LorascopeError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, _read() | {key: name})
