"""W composed anew in a given basis: ΔW = U·T − W, where U has W's coordinates in the basis V, each column of length 1.

FRoD (PEFT 0.21.2, tuners/frod/layer.py): W = (U·Λ₀)·Vᵀ with a basis V (d_in, d_in) that modules of one type share, so
U·Λ₀ = W·V⁻ᵀ with Λ₀ the lengths of its columns. Λ₀ is trained, and a sparse S is added to it: W' = U·(S + Λ)·Vᵀ. T is
(S + Λ)·Vᵀ. PEFT rounds U to float32, which is left out here.
"""

from collections.abc import Mapping

import numpy as np

from lorascope.linalg.arrays import Array, namespace
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.updates.base import Kind, Role, kinds, needed

NO_LENGTH = 1e-12  # a column of this length or less has no direction, as in PEFT
CUTOFF = 1e-6  # of singular values, in the pseudoinverse of a basis that is singular, as in PEFT


class Recomposed(Kind):
    name = "recomposed"
    formula = "ΔW = s·(U·T − W), of W·V⁻ᵀ = U·Λ₀"
    needs_base = True
    roles = {
        "V": Role(("d_in", "d_in"), "the basis"),
        "T": Role(("d_in", "d_in"), "what U is multiplied by, (S + Λ)·Vᵀ"),
    }

    def rank(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.dimensions(shapes)

    def delta(self, roles: Mapping[str, Array], scale: float = 1.0, base: Array | None = None) -> Matrix:
        """ΔW (d_out, d_in), dense. InputError without `base`, or where it has another shape."""
        weight, basis = needed(self, roles, base), roles["V"]
        xp = namespace(weight, basis)
        try:
            coordinates = xp.linalg.solve(basis, weight.T).T
        except (np.linalg.LinAlgError, RuntimeError):  # numpy's and torch's word for a singular basis
            coordinates = weight @ xp.linalg.pinv(basis, rtol=CUTOFF).T
        lengths = xp.linalg.vector_norm(coordinates, axis=0)
        has_length = lengths > NO_LENGTH
        unit = xp.where(has_length, coordinates / xp.where(has_length, lengths, 1.0), 0.0)
        return Dense((unit @ roles["T"] - weight) * scale)


kinds.register("recomposed")(Recomposed())
