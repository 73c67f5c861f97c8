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
    (
        "lorascope/linalg/matrix.py",
        "Matrix.singular_values",
        "self, overwrite: bool=False",
        "self, overwrite: bool=True",
    ): "a protocol's default is never used",
    (
        "lorascope/linalg/circulant.py",
        "BlockCirculant.singular_values",
        "self, overwrite: bool=False",
        "self, overwrite: bool=True",
    ): "nothing here is worked on in place",
    (
        "lorascope/linalg/kronecker.py",
        "Kronecker.singular_values",
        "self, overwrite: bool=False",
        "self, overwrite: bool=True",
    ): "nothing here is worked on in place",
    (
        "lorascope/linalg/factored.py",
        "Factored.singular_values",
        "self, overwrite: bool=False",
        "self, overwrite: bool=True",
    ): "nothing here is worked on in place",
    (
        "lorascope/linalg/factored.py",
        "Factored.singular_values",
        "1 / EXTREME < float(values[0]) < EXTREME",
        "2 / EXTREME < float(values[0]) < EXTREME",
    ): "either way is exact well beyond",
    (
        "lorascope/linalg/factored.py",
        "_balanced",
        "min(left.shape[0], right_t.shape[0])",
        "min(left.shape[1], right_t.shape[0])",
    ): "a gauge of a core that is not square changes the factors and not the product",
    (
        "lorascope/linalg/factored.py",
        "_extended_gauge",
        "for _ in range(3): solution += np.linalg.solve(gauge, (target - wide @ solution).astype(np.float64))",
        "for _ in range(2): solution += np.linalg.solve(gauge, (target - wide @ solution).astype(np.float64))",
    ): "two steps converge, but for worse gauges than float64 can hold",
    (
        "lorascope/linalg/factored.py",
        "_gram",
        "for step in PIECES if m % step == 0",
        "for step in PIECES if m * step == 0",
    ): "in pieces or whole: a matter of speed",
    (
        "lorascope/linalg/two_stage.py",
        "_call",
        "[n, max(1, n), -1, -1, 0]",
        "[n, max(1, n), 1, -1, 0]",
    ): "one of the two lengths asks for both",
    (
        "lorascope/linalg/two_stage.py",
        "_call",
        "[n, max(1, n), -1, -1, 0]",
        "[n, max(1, n), -1, 1, 0]",
    ): "one of the two lengths asks for both",
    (
        "lorascope/linalg/two_stage.py",
        "_call",
        "[n, max(1, n), -1, -1, 0]",
        "[n, max(1, n), -1, -1, -1]",
    ): "LAPACK sets it",
    (
        "lorascope/linalg/two_stage.py",
        "_call",
        "[n, max(1, n), -1, -1, 0]",
        "[n, max(1, n), -1, -1, 1]",
    ): "LAPACK sets it",
    (
        "lorascope/linalg/two_stage.py",
        "_call",
        "ctypes.c_size_t(1)",
        "ctypes.c_size_t(0)",
    ): "LAPACK looks at the first letter alone",
    (
        "lorascope/linalg/two_stage.py",
        "_call",
        "ctypes.c_size_t(1)",
        "ctypes.c_size_t(2)",
    ): "LAPACK looks at the first letter alone",
    (
        "lorascope/linalg/dense.py",
        "spectrum",
        "middle * 2 * accuracy < rounding * top",
        "middle * 2 * accuracy <= rounding * top",
    ): "where float64 rounds to just this, either way serves",
    (
        "lorascope/linalg/svd_update.py",
        "_all_found",
        "best <= 100 * ROUGHLY ** 2 * values[0]",
        "best < 100 * ROUGHLY ** 2 * values[0]",
    ): "where float64 rounds to just this, either way serves",
    (
        "lorascope/linalg/subspace.py",
        "principal_angles",
        "u.shape[1] >= v.shape[1]",
        "u.shape[1] > v.shape[1]",
    ): "two subspaces of one dimension have the same angles either way",
    (
        "lorascope/linalg/fastfood.py",
        "gather",
        "x.index_select(0, index)",
        "x.index_select(-1, index)",
    ): "a vector has one axis",
    (
        "lorascope/linalg/deformation.py",
        "levels_of",
        "sigma: np.ndarray, shape: tuple[int, int], k: int=1",
        "sigma: np.ndarray, shape: tuple[int, int], k: int=0",
    ): "the first 64 are looked at in any case",
    (
        "lorascope/linalg/deformation.py",
        "levels_of",
        "sigma: np.ndarray, shape: tuple[int, int], k: int=1",
        "sigma: np.ndarray, shape: tuple[int, int], k: int=2",
    ): "the first 64 are looked at in any case",
    (
        "lorascope/linalg/deformation.py",
        "_solve",
        "4 * (edge + theta)",
        "3 * (edge + theta)",
    ): "a bracket that is wide enough",
    (
        "lorascope/linalg/deformation.py",
        "_solve",
        "4 * (edge + theta)",
        "5 * (edge + theta)",
    ): "a bracket that is wide enough",
    (
        "lorascope/linalg/deformation.py",
        "outlier",
        "(-2 * short / steep, -2 * long / steep) if steep else (0.0, 0.0)",
        "(-2 * short / steep, -2 * long / steep) if steep else (0.0, -1.0)",
    ): "a share below 0 is taken for 0",
    (
        "lorascope/linalg/deformation.py",
        "outlier",
        "(-2 * short / steep, -2 * long / steep) if steep else (0.0, 0.0)",
        "(-2 * short / steep, -2 * long / steep) if steep else (-1.0, 0.0)",
    ): "a share below 0 is taken for 0",
    (
        "lorascope/linalg/subspace.py",
        "coordinates",
        "right_t.shape[0]",
        "right_t.shape[1]",
    ): "what is wide has a singular Gram matrix, which is refused, too",
    (
        "lorascope/linalg/factored.py",
        "_to_range",
        "max(float(xp.max(array)), -float(xp.min(array))) if 0 not in array.shape else 0.0",
        "max(float(xp.max(array)), -float(xp.min(array))) if 0 not in array.shape else -1.0",
    ): "nothing divided by anything is nothing",
    (
        "lorascope/linalg/factored.py",
        "_to_range",
        "max(float(xp.max(array)), -float(xp.min(array))) if 0 not in array.shape else 0.0",
        "max(float(xp.max(array)), -float(xp.min(array))) if 0 not in array.shape else 1.0",
    ): "nothing divided by anything is nothing",
    (
        "lorascope/linalg/spectrum.py",
        "_exp_entropy",
        "np.where(p > 0, p, 1.0)",
        "np.where(p > 0, p, 2.0)",
    ): "it is multiplied by 0",
}
