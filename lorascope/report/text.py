"""Cells as strings, the same in the terminal and on the page. Standard library only."""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence

from lorascope.blocks import Cell, Check, Column, ForestRow, Link, Rich
from lorascope.errors import printable

ABSENT = "–"
_SPACES = {"\u00a0", "\u2009", "\u202f"}  # typographic spaces, which str.isprintable() rejects


def visible(text: str) -> str:
    """`text` on one line with everything invisible escaped: controls, bidi overrides, lone surrogates."""
    text = str(text)
    if text.isprintable():
        return text
    return "".join(c if c in _SPACES else printable(c) for c in text)


def number(value: float, digits: int = 3, scientific: bool | None = None) -> str:
    """`value` with `digits` significant digits; by default scientific below 0.001 and from 100,000 on."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    mantissa, power = _parts(value, digits)
    if scientific is None:
        scientific = _is_scientific(power)
    shown = f"{mantissa}e{power}" if scientific else f"{value:,.{max(0, digits - 1 - power)}f}"
    return shown.replace("-", "−")


def _parts(value: float, digits: int) -> tuple[str, int]:
    """Mantissa and power of ten, as rounded to `digits`."""
    mantissa, exponent = f"{value:.{max(digits, 1) - 1}e}".split("e")
    return mantissa, int(exponent)


def _is_scientific(power: int) -> bool:
    return not -3 <= power < 5


def one_format(values: Iterable[Cell], digits: int = 3) -> bool | None:
    """How to show the numbers of one column so that they can be compared: None where each fits the usual way, else all
    as decimals (False), or all in scientific notation (True) where decimals would be long."""
    powers = {
        _parts(v, digits)[1]
        for v in values
        if isinstance(v, int | float) and not isinstance(v, bool) and v and math.isfinite(v)
    }
    if len({_is_scientific(power) for power in powers}) < 2:
        return None
    return not (min(powers) >= -5 and max(powers) < 7)


EXACT = 1000.0  # per cent, from which on decimals say nothing


def percent(share: float, digits: int = 3) -> str:
    """A share as a percentage, 1.0 being 100 %; one decimal at the default `digits`, as columns and intervals line up,
    from 1,000 % on three digits."""
    if not math.isfinite(share):
        return number(share)
    decimals = max(0, digits - 2)
    least = 10.0**-decimals
    if 0 < share * 100 < least / 2:
        return f"<{least:.{decimals}f} %"
    if round(abs(share) * 100, decimals) >= EXACT:
        return significant_percent(share, digits)
    return f"{share * 100:.{decimals}f} %".replace("-", "−")


def significant_percent(share: float, digits: int = 2) -> str:
    """A share as a percentage in sentences, by its significant digits: 0.2912 is "29 %", 11.284 "1,130 %".

    Above 100 % at least three digits; scientific below 0.01 % and from 10,000,000 % on, where zeros are hard to count.
    """
    if not math.isfinite(share):
        return f"{number(share)} %"
    value = 100 * share
    if value and not 0.01 <= abs(value) < 1e7:
        return f"{number(value, digits, scientific=True)} %"
    power = _parts(value, digits)[1] if value else 0
    digits = max(digits, 3) if abs(value) > 100 else digits
    shown = f"{round(value, digits - 1 - power):,.{max(0, digits - 1 - power)}f}"
    shown = shown.rstrip("0").rstrip(".") if "." in shown else shown
    return f"{shown} %".replace("-", "−")


def integer(value: float) -> str:
    """A count, its thousands separated."""
    if not math.isfinite(value):
        return number(value)
    return f"{round(value):,}".replace("-", "−")


def counted(n: int, thing: str) -> str:
    """ "1 claim", "12 claims"."""
    return f"{integer(n)} {thing}" if n == 1 else f"{integer(n)} {thing}s"


def cell(value: Cell, unit: str = "text", digits: int = 3, scientific: bool | None = None) -> str:
    """One cell of a table as `unit` asks; None is a dash, a string is itself with control characters escaped.

    `scientific` is what `one_format` says of the column.
    """
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Link | Rich):
        return visible(value.text)
    if isinstance(value, str):
        return visible(value)
    if unit == "percent":
        return percent(value, digits)
    if unit == "int" or (unit == "text" and isinstance(value, int)):
        return integer(value)
    return number(value, digits, scientific)


def interval(check: Check | ForestRow) -> str:
    """A number with its interval, "0.93 [0.91, 0.96]"; a dash where it could not be computed."""
    if check.value is None:
        return ABSENT
    value, *ends = (cell(each, check.unit) for each in (check.value, check.low, check.high))
    return value if check.low is None else f"{value} [{ends[0]}, {ends[1]}]"


def here(verdict: str) -> str:
    """A verdict as it is shown: "reproduced here", and never without where."""
    return verdict if verdict == "withdrawn" else f"{verdict} here"


OUTCOMES = {
    "failed": "did not pass, as expected ✓",
    "passed": "passed: the statistic does not discriminate",
    "not judged": "no verdict",
}  # criteria have the verdicts' words


def outcome(check: Check) -> str:
    """What came out of a check, in words."""
    return OUTCOMES.get(check.outcome, "not decided" if check.control else here(check.outcome))


_SPARKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int = 16) -> str:
    """Values as a line of blocks, from 0 to the largest; several that share a place are averaged.

    "·" stands for zero and " " for None, so that neither looks like a small value.
    """
    count = min(width, len(values))
    places = [values[i * len(values) // count : (i + 1) * len(values) // count] for i in range(count)]
    means = [sum(known) / len(known) if (known := [v for v in at if v is not None]) else None for at in places]
    top = max((mean for mean in means if mean is not None and math.isfinite(mean)), default=0.0)
    return "".join(_spark(mean, top) for mean in means)


def _spark(value: float | None, top: float) -> str:
    if value is None or not math.isfinite(value):
        return " "
    return "·" if value == 0 or top == 0 else _SPARKS[min(int(len(_SPARKS) * value / top), len(_SPARKS) - 1)]


def is_numeric(column: Column) -> bool:
    return column.unit in ("int", "float", "percent")


def width_of(text: str) -> int:
    """How many terminal columns `text` takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF") for c in text)


def told_apart(names: Sequence[str]) -> tuple[list[str], str]:
    """Dotted names by the parts in which they differ ("0.query"), and what was taken away ("encoder.layer.*.self.*").

    The names as they are, and "", where they have nothing in common or are too few to tell.
    """
    parts = [name.split(".") for name in names]
    least = min(map(len, parts), default=0)
    if len({len(part) for part in parts}) == 1:
        differing = [i for i in range(least) if len({part[i] for part in parts}) > 1]
        pattern = ".".join("*" if i in differing else part for i, part in enumerate(parts[0]))
    else:
        first = next((i for i in range(least) if len({part[i] for part in parts}) > 1), least - 1)
        differing = list(range(max(first, 0), max(map(len, parts), default=0)))
        pattern = ".".join([*parts[0][:first], "*"]) if parts else ""
    short = [".".join(part[i] for i in differing if i < len(part)) for part in parts]
    if len(set(names)) < 2 or not differing or short == list(names):
        return list(names), ""
    return short, pattern


def without_common(names: Sequence[str]) -> tuple[list[str], str]:
    """Names without the words that all begin with and all end with, and these ("lora_unet_…_weight"); "" for none.

    Words end at dots, underscores, slashes and spaces; each name keeps at least one.
    """
    split = [re.findall(r"[^._/ ]*[._/ ]+|[^._/ ]+", name) for name in names]
    most = min(map(len, split), default=0) - 1
    if len(set(names)) < 2 or most < 1:
        return list(names), ""
    head = next((i for i in range(most) if len({parts[i] for parts in split}) > 1), most)
    most -= head
    tail = next((i for i in range(most) if len({parts[-1 - i] for parts in split}) > 1), most)
    if not head + tail:
        return list(names), ""
    short = ["".join(parts[head : len(parts) - tail]).strip("._/ ") for parts in split]
    first = split[0]
    return short, f"{''.join(first[:head])}…{''.join(first[len(first) - tail :])}"


def shorten(text: str, width: int) -> str:
    """`text` cut in the middle to `width` columns: both ends of a module's name say something, and its
    end says most."""
    if width_of(text) <= width:
        return text
    if width <= 1:
        return "…"[:width]
    tail_room, tail, head = -(-(width - 1) * 3 // 4), "", ""
    for c in reversed(text):
        if width_of(c + tail) > tail_room:
            break
        tail = c + tail
    head_room = width - 1 - width_of(tail)
    for c in text:
        if width_of(head + c) > head_room:
            break
        head += c
    return f"{head}…{tail}"
