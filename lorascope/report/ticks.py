"""Ticks of a figure's axes: round numbers, powers of ten, and where the axis counts whole ones."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from matplotlib.ticker import LogLocator, MaxNLocator

from lorascope.report.text import number

STEPS = [1, 2, 2.5, 5, 10]


def at(lo: float, hi: float, log: bool, most: int) -> list[float]:
    """Ticks from `lo` to `hi`, about `most` of them: 1, 2 or 5 times a power of ten."""
    if not log:
        ticks: Any = MaxNLocator(most, steps=STEPS).tick_values(lo, hi)
    elif hi / lo < 120:
        ticks = LogLocator(subs=(1, 2, 5), numticks=20).tick_values(lo, hi)
    else:
        ticks = LogLocator(numticks=most + 1).tick_values(lo, hi)
    return _within(lo, hi, ticks)


def of_counts(limits: tuple[float, float], data: Sequence[float], log: bool, width: float) -> list[float]:
    """Ticks of an axis that counts, `width` pixels long: the data's own values where these are few and round; powers of
    two and their multiples for ranks and indices; else whole numbers as in `at`. Empty where `at` does as well."""
    lo, hi = limits
    if lo < 0 or hi < 4:
        return [] if log else _within(lo, hi, MaxNLocator(6, steps=STEPS, integer=True).tick_values(lo, hi))
    if _are_few_and_round(limits, data, log, width):
        return list(data)
    by_two = _count_by_two(data)
    if log:
        return _within(lo, hi, _powers(lo, hi)) if by_two else []
    step = next((s for s in (1, 2, 4, 8, 16, 32, 64) if hi / s <= 9), 0) if by_two else 0
    if not step:
        return _within(lo, hi, MaxNLocator(6, steps=STEPS, integer=True).tick_values(lo, hi))
    first = [0] if lo <= 0 else [1]
    return _within(lo, hi, first + [v for v in range(step, int(hi) + 1, step) if v - first[0] >= step / 2])


def _within(lo: float, hi: float, ticks: Any) -> list[float]:
    return [float(v) for v in ticks if lo * (1 - 1e-9) <= v <= hi * (1 + 1e-9) or lo <= v <= hi]


def _powers(lo: float, hi: float) -> list[int]:
    powers = [2**k for k in range(int(math.log2(hi)) + 1)]
    return powers[:: 1 + len([p for p in powers if p >= lo]) // 10]


def _is_power(value: float) -> bool:
    whole = int(value)
    return whole > 0 and whole & (whole - 1) == 0


def _are_few_and_round(limits: tuple[float, float], data: Sequence[float], log: bool, width: float) -> bool:
    """Whether each value of the data can have its own tick."""
    if not 2 <= len(data) <= 10 or not all(_is_power(v) or v % 5 == 0 or v <= 12 for v in data):
        return False
    if max(data) >= 10_000 or (log and min(data) <= 0):
        return False
    lo, hi = map(math.log, limits) if log else limits
    places = [width * ((math.log(v) if log else v) - lo) / (hi - lo) for v in data]
    room = 7 * len(labels([max(data)])[0]) + 10
    return all(b - a >= room for a, b in itertools.pairwise(places))


def _count_by_two(data: Sequence[float]) -> bool:
    """Ranks, many of which are powers of two, or indices from first to last."""
    if max(data) > 4096:
        return False
    return 5 * sum(map(_is_power, data)) >= len(data) or data[-1] - data[0] == len(data) - 1


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def labels(ticks: list[float]) -> list[str]:
    """0.01, 2, 2,000; and all as powers of ten where any would be long."""
    if all(v == 0 or 1e-3 <= abs(v) < 1e5 for v in ticks):
        return [f"{v:,.6g}".replace("-", "−") for v in ticks]
    return [_power(v) if v else "0" for v in ticks]


def _power(value: float) -> str:
    power = math.floor(math.log10(abs(value)) + 1e-9)
    factor = number(value / 10.0**power, 2).removesuffix(".0")
    if power == 0:
        return factor
    lead = {"1": "", "−1": "−"}.get(factor, factor + "·")
    return f"{lead}10{str(power).translate(_SUPERSCRIPT)}"
