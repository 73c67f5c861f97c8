"""One expert's projection in a parameter that fuses it: where a model has `….experts.gate_up_proj` (experts, …, …), and
an adapter has `….experts.3.up_proj`.

Gate and up lie behind each other in the axis of outputs, as transformers 5 joins them; in gpt-oss they alternate
(`GptOssExperts`: gate is `[..., ::2]`). The matrices of some models are (d_in, d_out).
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lorascope.architectures import FUSED_EXPERTS, experts_alternate, experts_transposed
from lorascope.errors import InputError
from lorascope.linalg.arrays import Array
from lorascope.updates.base import Update

_ONE = re.compile(r"(?P<owner>(?:.*\.)?experts)\.(?P<expert>\d+)\.(?P<part>\w+?)(?:\.weight)?")
_ALL = re.compile(r"(?P<owner>(?:.*\.)?experts)\.(?P<part>\w+?)(?:\.weight)?")


@dataclass(frozen=True)
class Place:
    """Where an expert's projection lies.

    Attributes:
        parameter: the fused one's name.
        expert: its number.
        shape: (d_out, d_in).
        transposed: whether the parameter's matrices are (d_in, d_out).
        rows: its own, of a matrix (outputs of all parts, d_in).
    """

    parameter: str
    expert: int
    shape: tuple[int, int]
    transposed: bool
    rows: slice

    def view(self, matrix: Array) -> Array:
        """The projection (d_out, d_in) in the expert's matrix as the parameter has it: a view, numpy's or torch's."""
        return (matrix.T if self.transposed else matrix)[self.rows]


def place(update: Update, shape_of: Callable[[str], tuple[int, ...] | None], config: Mapping[str, Any]) -> Place | None:
    """Where the update's weight lies in a fused parameter; None where there is none that it fits.

    Args:
        shape_of: the shape of a parameter by its name; None where there is no such parameter.
        config: the model's.
    """
    name = update.base_weight or update.name
    match = _ONE.fullmatch(name) or (_ALL.fullmatch(name) if update.expert is not None else None)
    if match is None:
        return None
    try:
        d_out, d_in = update.shape
    except InputError:  # only the base knows both sides
        return None
    expert = int(match["expert"]) if "expert" in match.groupdict() else update.expert
    for fused, spellings in FUSED_EXPERTS.items():
        parts = next((parts for parts in spellings if match["part"] in parts), None)
        sides = shape_of(f"{match['owner']}.{fused}") if parts else None
        if parts is None or sides is None or len(sides) != 3 or expert is None or not expert < sides[0]:
            continue
        ways = [
            transposed
            for transposed in (False, True)
            if (sides[:0:-1] if transposed else sides[1:]) == (len(parts) * d_out, d_in)
        ]
        if not ways:
            continue
        transposed = bool(experts_transposed(config)) if len(ways) > 1 else ways[0]
        part, alternating = parts.index(match["part"]), len(parts) > 1 and experts_alternate(config)
        rows = slice(part, None, len(parts)) if alternating else slice(part * d_out, (part + 1) * d_out)
        return Place(f"{match['owner']}.{fused}", expert, (d_out, d_in), transposed, rows)
    return None
