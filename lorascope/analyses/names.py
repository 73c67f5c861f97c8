"""What a module's path says: how deep it lies and which type it is."""

import re
from collections.abc import Iterable

_INDEX = re.compile(r"(?:^|[._])(\d+)(?=[._]|$)")


def depth(name: str) -> int | None:
    """The first index in the path: `model.layers.7.mlp.experts.3.up_proj` lies at 7; None where there is none."""
    found = _INDEX.search(name)
    return int(found[1]) if found else None


def module_types(names: Iterable[str]) -> dict[str, str]:
    """Module path to type: what follows the layer index, as short as stays unambiguous.

    `…layer.0.attention.self.query` is "query", but BERT's two kinds of `output.dense` keep their full tails. Later
    indices (experts) become `*`.
    """
    tails = {name: _tail(name) for name in names}
    last: dict[str, set[str]] = {}
    for tail in tails.values():
        last.setdefault(_short(tail), set()).add(tail)
    return {name: _short(tail) if len(last[_short(tail)]) == 1 else tail for name, tail in tails.items()}


def _tail(name: str) -> str:
    found = _INDEX.search(name)
    tail = name[found.end() :].lstrip("._") if found else name
    return re.sub(r"(?<![^._\[])\d+(?![^._\]])", "*", tail) or name


def _short(tail: str) -> str:
    parts = tail.split(".")
    meaningful = [part for part in parts if part != "*"]
    return meaningful[-1] if meaningful else tail
