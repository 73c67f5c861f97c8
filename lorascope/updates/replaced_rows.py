"""Rows of an embedding replaced: ΔW = s·(T − W_rows)ᵀ·E, E saying which, one row of it for each.

PEFT's trainable tokens (PEFT 0.21.2, tuners/trainable_tokens/layer.py) store the rows T that take the place of W's. As
a map from one-hot tokens, ΔW (d_out, d_in) has them as columns, and zeros elsewhere.
"""

from collections.abc import Mapping

from lorascope.linalg.arrays import Array
from lorascope.linalg.factored import Factored
from lorascope.updates.base import Kind, Role, kinds


class ReplacedRows(Kind):
    name = "replaced_rows"
    formula = "ΔW = s·(T − W_rows)ᵀ·E"
    roles = {
        "T": Role(("r", "d_out"), "the new rows"),
        "before": Role(("r", "d_out"), "the base's rows in these places"),
        "E": Role(("r", "d_in"), "a 1 in each row, at the place of the embedding's row"),
    }

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Factored:
        return Factored((roles["T"] - roles["before"]).T * scale, roles["E"])


kinds.register("replaced_rows")(ReplacedRows())
