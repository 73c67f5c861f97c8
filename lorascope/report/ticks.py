"""Ticks of a figure's axes: round numbers, powers of ten, and whole ones where the axis counts."""

import math
from typing import Any

from matplotlib.ticker import LogLocator, MaxNLocator

from lorascope.report.text import number


def at(lo: float, hi: float, log: bool, whole: bool, most: int) -> list[float]:
    """Ticks from `lo` to `hi`, about `most` of them; `whole`: the axis counts."""
    if whole and lo >= 0 and hi >= 4:
        ticks: Any = _whole_ticks(lo, hi, log)
    elif not log:
        ticks = MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(lo, hi)
    elif hi / lo < 120:
        ticks = LogLocator(subs=(1, 2, 5), numticks=20).tick_values(lo, hi)
    else:
        ticks = LogLocator(numticks=most + 1).tick_values(lo, hi)
    return [float(v) for v in ticks if lo * (1 - 1e-9) <= v <= hi * (1 + 1e-9) or lo <= v <= hi]


def _whole_ticks(lo: float, hi: float, log: bool) -> list[int]:
    """Of counts: powers of two on a log axis; else 1 and multiples of a power of two (or of 5, of large counts)."""
    if log:
        powers = [2**k for k in range(int(math.log2(hi)) + 1)]
        return powers[:: 1 + len([p for p in powers if p >= lo]) // 10]
    step = next((s for s in (1, 2, 4, 8, 16, 32, 64, 100) if hi / s <= 9), 0)
    if not step:
        return [int(v) for v in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10], integer=True).tick_values(lo, hi)]
    first = [0] if lo <= 0 else [1]
    return first + [v for v in range(step, int(hi) + 1, step) if v - first[0] >= step / 2]


_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def labels(ticks: list[float]) -> list[str]:
    """0.01, 2, 2000; and all as powers of ten where any would be long."""
    if all(v == 0 or 1e-3 <= abs(v) < 1e5 for v in ticks):
        return [f"{v:.6g}".replace("-", "−") for v in ticks]
    return [_power(v) if v else "0" for v in ticks]


def _power(value: float) -> str:
    power = math.floor(math.log10(abs(value)) + 1e-9)
    factor = number(value / 10.0**power, 2).removesuffix(".0")
    if power == 0:
        return factor
    lead = {"1": "", "−1": "−"}.get(factor, factor + "·")
    return f"{lead}10{str(power).translate(_SUPERSCRIPT)}"
