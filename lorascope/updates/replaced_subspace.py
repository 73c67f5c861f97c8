"""A subspace of W's outputs replaced: ΔW = Q·(s·R − Pᵀ·W), with Q (d_out, r), P (d_out, r) and R (r, d_in).

DEFT ("Decompositional Efficient Fine-Tuning for Text-to-Image Models", NeurIPS 2025; PEFT 0.21.2, tuners/deft/layer.py)
takes the part of W in span(P) away and puts R in its place; PaRa takes it away only. How P and Q come from what was
trained (orthonormalised, or through a ReLU) is the reader's matter.
"""

from collections.abc import Mapping

from lorascope.linalg.arrays import Array
from lorascope.linalg.factored import Factored
from lorascope.updates.base import Kind, Role, kinds, needed


class ReplacedSubspace(Kind):
    name = "replaced_subspace"
    formula = "ΔW = Q·(s·R − Pᵀ·W)"
    needs_base = True
    roles = {
        "Q": Role(("d_out", "r"), "where the replacement is put"),
        "P": Role(("d_out", "r"), "what is taken away"),
        "R": Role(("r", "d_in"), "the replacement; absent where there is none", optional=True),
    }

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Factored:
        """ΔW as a product of inner size r. InputError without `base`, or where it has another shape."""
        removed = roles["P"].T @ needed(self, roles, base)
        return Factored(roles["Q"], roles["R"] * scale - removed if "R" in roles else -removed)


kinds.register("replaced_subspace")(ReplacedSubspace())
