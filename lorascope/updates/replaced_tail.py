"""W's trailing singular directions replaced: ΔW = U·diag(S)·V − (W − W_h), W_h the best approximation of W of rank h.

OSF ("Sculpting Subspaces: Constrained Full Fine-Tuning in LLMs for Continual Learning"; PEFT 0.21.2,
tuners/osf/layer.py) freezes the h leading directions of W and trains the others, min(d_out, d_in) − h of them, which
start as W's own. The file has what they became; what they were is W's.
"""

from collections.abc import Mapping

from lorascope.errors import InputError
from lorascope.linalg.arrays import Array, namespace
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.updates.base import Kind, Role, kinds, needed


class ReplacedTail(Kind):
    name = "replaced_tail"
    formula = "ΔW = s·(U·diag(S)·V − (W − W_h))"
    needs_base = True
    roles = {
        "U": Role(("d_out", "tail"), "left directions"),
        "S": Role(("tail",), "their weights"),
        "V": Role(("tail", "d_in"), "right directions"),
    }

    def rank(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.dimensions(shapes)

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Matrix:
        """ΔW (d_out, d_in), dense. InputError without `base`, where it has another shape or fewer directions."""
        weight, tail = needed(self, roles, base), len(roles["S"])
        kept = min(weight.shape) - tail
        if kept < 0:
            raise InputError("the base weight has another shape", found=tuple(weight.shape), expected=f"{tail} or more")
        u, sigma, vh = namespace(weight).linalg.svd(weight, full_matrices=False)
        before = (u[:, kept:] * sigma[kept:]) @ vh[kept:, :]
        return Dense(((roles["U"] * roles["S"]) @ roles["V"] - before) * scale)


kinds.register("replaced_tail")(ReplacedTail())
