"""JSON values that a careless reader stumbles over, and such a value in place of part of another."""

import json
import random
from typing import Any

from tests.fuzz.drawing import Raw

HUGE = int("9" * 400)
DEEP = Raw("[" * 20_000 + "]" * 20_000)
REGEXES = (
    "(a+)+$", "((a|a)*)*$", "(.*)*x$", "(\\w+\\.?)+!", "(.*.*)*(.*.*)*=", "(?:(?:(?:a?){30}){30}){30}b", "(", "[",
    "*", "a{99999999}", "(?P<x>a)(?P<x>b)", "(?i)x", "\\1", "(?<=a+)b", "()" * 120, "(x" * 200 + ")" * 200,
    ".*" * 30 + "!", "\\", "",
)  # fmt: skip
TEXTS = (
    "", " ", "=1+1", "+1", "-1", "@SUM(A1)", "\x00", "\x1b[2J", "\u202eabc", "\u2066x", "\ud800", "\n", "\r", ",",
    '"', "'", "x" * 5000, "é" * 2000, "\U0001f600", "../../x", "/etc/passwd", "<script>", "%s", "{0}", "\ufeff",
    "\u2028", "a.b.", "..", "LORA", "lora", "VERA", "IA3", "LOHA", "LOKR", "ADALORA", "LN_TUNING", "PREFIX_TUNING",
    "OFT", "pissa", "olora", "1e5",
)  # fmt: skip
NUMBERS = (
    0, 1, -1, 2, 3, 8, 255, 1 << 20, 1 << 31, (1 << 31) - 1, 1 << 47, 1 << 53, 1 << 63, (1 << 64) - 1, -(1 << 63),
    HUGE, -HUGE, 0.0, -0.0, 0.5, 2.0, 1e-320, 1e-168, 1e168, 1e300, 1.7e308, float("nan"), float("inf"),
    float("-inf"), Raw("1e400"), Raw("-1e400"), Raw("1e-400"), Raw("1.0e0"),
)  # fmt: skip
OTHERS = (
    None, True, False, [], {}, [[]], [None], [0], [-1], [""], ["x"], [1.5], {"": 0}, {"x": None}, {"a": {"b": []}},
    DEEP, Raw('{"a": 1, "a": 2}'), Raw("[1,]"), Raw("'x'"), Raw(""), [0] * 300, {str(n): n for n in range(300)},
)  # fmt: skip


def hostile(chance: random.Random) -> Any:
    """A JSON value of any type that a careless reader stumbles over."""
    return chance.choice(chance.choice((REGEXES, TEXTS, NUMBERS, NUMBERS, OTHERS)))


def altered(tree: Any, chance: random.Random, depth: int = 0) -> Any:
    """A JSON value with one node in place of which something hostile stands, or with a key renamed or gone."""
    children = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else []
    if not children or chance.random() < 0.25 * depth:
        return hostile(chance)
    at, how = chance.choice(list(children)), chance.random()
    tree = tree.copy()
    if how < 0.1:
        tree.pop(at)
    elif how < 0.2 and isinstance(tree, dict):
        tree[chance.choice((*TEXTS, *REGEXES))] = tree.pop(at)
    else:
        tree[at] = altered(tree[at], chance, depth + 1)
    return tree


def text_of(value: Any) -> str:
    """A value as JSON, and text as it is."""
    if isinstance(value, str):
        return str(value)
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
