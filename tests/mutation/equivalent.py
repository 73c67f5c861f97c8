"""Changes after which everything computes the same (or differs only in speed): none can be noticed, each with why.

The key is (file, function, before, after), as `python -m tests.mutation` prints a survivor.
"""

_TRIPLET = ("lorascope/weights/formats/peft/adalora.py", "triplet", "a.shape[0] if a.shape else 0")
_BISECTIONS = ("lorascope/linalg/haar.py", "", "_BISECTIONS = 60")
EQUIVALENT: dict[tuple[str, str, str, str], str] = {
    (*_BISECTIONS, "_BISECTIONS = 59"): "float64's digits are halved out before",
    (*_BISECTIONS, "_BISECTIONS = 61"): "float64's digits are halved out before",
    (*_TRIPLET, "a.shape[0] if a.shape else 1"): "an A without axes is refused, whatever its rank is taken for",
    (*_TRIPLET, "a.shape[0] if a.shape else -1"): "an A without axes is refused, whatever its rank is taken for",
    (
        "lorascope/linalg/projections.py",
        "Sparse.apply",
        "out.index_add_(0, row, products)",
        "out.index_add_(-1, row, products)",
    ): "a vector has one axis",
    (
        "lorascope/linalg/svd_update.py",
        "_all_found",
        "if room > best: best, shift, above = (room, middle, count)",
        "if room >= best: best, shift, above = (room, middle, count)",
    ): "of two equal gaps either serves",
    (
        "lorascope/linalg/svd_update.py",
        "_error",
        "np.linalg.norm(residual, axis=0).max(initial=0.0)",
        "np.linalg.norm(residual, axis=0).max(initial=-1.0)",
    ): "a length is not negative, and there is at least one",
    (
        "lorascope/weights/formats/lycoris.py",
        "_lokr",
        "alpha_scale(group, ledger, ranks[0])",
        "alpha_scale(group, ledger, ranks[-1])",
    ): "LyCORIS gives both factors of a module one rank",
    (
        "lorascope/weights/formats/peft/saved.py",
        "_no_parameter",
        "'.base_layer.' in text and (not text.endswith('.bias'))",
        "'.base_layer.' in text or not text.endswith('.bias')",
    ): "what is looked at after it has no name without a module, nor a bias",
    (
        "lorascope/linalg/factored.py",
        "_extended_gauge",
        "for _ in range(3): solution += np.linalg.solve(gauge, (target - wide @ solution).astype(np.float64))",
        "for _ in range(4): solution += np.linalg.solve(gauge, (target - wide @ solution).astype(np.float64))",
    ): "one more step of a refinement that has converged",
}
