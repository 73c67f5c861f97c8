"""More of `equivalent`, of linalg, updates and study: file, function, why, what stands there and its changes."""

_ROWS: tuple[tuple[str, str, str, str, tuple[str, ...]], ...] = (
    (
        "updates/recomposed.py",
        "Recomposed.delta",
        "what is divided by it is not taken",
        "xp.where(has_length, lengths, 1.0)",
        ("xp.where(has_length, lengths, 2.0)",),
    ),
    (
        "linalg/noise.py",
        "Rounding.effective_dtype",
        "what has no digits here is compared with nothing",
        "_SIGNIFICAND.get(dtype, 53)",
        (
            "_SIGNIFICAND.get(dtype, 52)",
            "_SIGNIFICAND.get(dtype, 54)",
        ),
    ),
    (
        "linalg/factored.py",
        "_gram",
        "in pieces or whole: a matter of speed",
        "not 1 < k <= NARROW",
        ("1 < k <= NARROW",),
    ),
    (
        "linalg/fastfood.py",
        "fingerprint",
        "these eight draws are the same",
        "rng.binomial(10000, 0.01, 8)",
        ("rng.binomial(10001, 0.01, 8)",),
    ),
    (
        "linalg/subspace.py",
        "bases",
        "of zeros none is above zero",
        "s.shape[0] and float(s[0]) > 0",
        (
            "s.shape[0] and float(s[0]) >= 0",
            "s.shape[0] and float(s[0]) > -1",
        ),
    ),
    (
        "linalg/subspace.py",
        "bases",
        "a vector has one axis",
        "s.shape[0] and float(s[0]) > 0",
        ("s.shape[-1] and float(s[0]) > 0",),
    ),
    (
        "linalg/subspace.py",
        "bases",
        "where float64 rounds to just this, either way serves",
        "s > max(tolerance, RANK_FLOOR) * s[0]",
        ("s >= max(tolerance, RANK_FLOOR) * s[0]",),
    ),
    ("linalg/subspace.py", "cuts", "a vector has one axis", "sigma.shape[0] == 0", ("sigma.shape[-1] == 0",)),
    (
        "linalg/factored.py",
        "_triangle",
        "what is wide has a singular Gram matrix, and goes by QR, too",
        "tall.shape[0] >= tall.shape[1]",
        ("tall.shape[1] >= tall.shape[1]",),
    ),
    (
        "linalg/factored.py",
        "Factored.singular_values",
        "either way is exact; without it everything takes the slower one",
        "1 / EXTREME < float(values[0]) < EXTREME",
        ("1 * EXTREME < float(values[0]) < EXTREME",),
    ),
    (
        "linalg/batched.py",
        "windows",
        "the first matrix sets both",
        "first, room = (0, 0)",
        (
            "first, room = (0, -1)",
            "first, room = (0, 1)",
            "first, room = (-1, 0)",
            "first, room = (1, 0)",
        ),
    ),
    (
        "linalg/svd_update.py",
        "_davidson",
        "a step that is not divided by zero: what it gives is checked",
        "1e-09 * values[0]",
        ("1e-09 * values[1]",),
    ),
    (
        "linalg/svd_update.py",
        "_orthonormal",
        "where float64 rounds to just this, either way serves",
        "beyond > DEPENDENT",
        ("beyond >= DEPENDENT",),
    ),
    (
        "linalg/svd_update.py",
        "_of_dense",
        "of a value of zero the image is nothing",
        "np.where(sigma > 0, sigma, 1.0)",
        ("np.where(sigma > 0, sigma, 2.0)",),
    ),
    (
        "linalg/svd_update.py",
        "_of_low_rank",
        "of a value of zero the image is nothing",
        "np.where(sigma > 0, sigma, 1.0)",
        ("np.where(sigma > 0, sigma, 2.0)",),
    ),
    (
        "linalg/svd_update.py",
        "vectors",
        "of a value of zero the image is nothing",
        "np.where(updated.sigma > 0, updated.sigma, 1.0)",
        ("np.where(updated.sigma > 0, updated.sigma, 2.0)",),
    ),
    (
        "linalg/svd_update.py",
        "_all_found",
        "without a gap the answer is no before it is used",
        "float(values[k - 1])",
        (
            "float(values[k + 1])",
            "float(values[k - 2])",
            "float(values[k - 0])",
        ),
    ),
    (
        "linalg/svd_update.py",
        "_canonical",
        "one vector has one basis, and what is not wanted is cut off",
        "start < k and stop - start > 1",
        (
            "start < k or stop - start > 1",
            "start <= k and stop - start > 1",
        ),
    ),
    (
        "linalg/deformation.py",
        "_solve",
        "a bisection to the last digit",
        "transform(sigma, shape, edge + math.exp(middle)) > wanted",
        ("transform(sigma, shape, edge + math.exp(middle)) >= wanted",),
    ),
    (
        "linalg/projections.py",
        "Sparse.__init__",
        "of fewer than 2^38 rows it is more",
        "max(1, int(PIECE // usual))",
        (
            "max(2, int(PIECE // usual))",
            "max(0, int(PIECE // usual))",
        ),
    ),
    (
        "linalg/factored.py",
        "",
        "a gauge that is completed or not gives the same product",
        "RANK_FLOOR = 64 * EPS",
        (
            "RANK_FLOOR = 63 * EPS",
            "RANK_FLOOR = 65 * EPS",
        ),
    ),
    (
        "updates/base.py",
        "Kind.delta",
        "an abstract method's default is never used",
        "self, roles: Mapping[str, Array], scale: float=1.0, base: Array | None=None",
        (
            "self, roles: Mapping[str, Array], scale: float=2.0, base: Array | None=None",
            "self, roles: Mapping[str, Array], scale: float=0.0, base: Array | None=None",
        ),
    ),
    (
        "updates/base.py",
        "Kind.direction",
        "it gives none, whatever the scale is",
        "self, roles: Mapping[str, Array], scale: float=1.0",
        (
            "self, roles: Mapping[str, Array], scale: float=2.0",
            "self, roles: Mapping[str, Array], scale: float=0.0",
        ),
    ),
    (
        "study/power.py",
        "_regions",
        "they reach as far to both sides",
        "np.array(_landmarks(criterion)) + reaches[:, :, None]",
        ("np.array(_landmarks(criterion)) - reaches[:, :, None]",),
    ),
    (
        "linalg/noise.py",
        "noise_measures",
        "noise has a rank",
        "float(value or 0.0)",
        (
            "float(value or -1.0)",
            "float(value or 1.0)",
        ),
    ),
    (
        "linalg/cached_svd.py",
        "CachedSVD.is_of",
        "where float64 rounds to just this, either way serves",
        "residual <= tolerance * self.sigma[0] ** 2",
        ("residual < tolerance * self.sigma[0] ** 2",),
    ),
    (
        "linalg/svd_update.py",
        "_canonical",
        "one vector has one basis",
        "stop - start > 1",
        (
            "stop - start > 0",
            "stop - start >= 1",
        ),
    ),
    (
        "linalg/factored.py",
        "_balanced",
        "a gauge of a core that is not square changes the factors and not the product",
        "min(left.shape[0], right_t.shape[0])",
        ("max(left.shape[0], right_t.shape[0])",),
    ),
    (
        "linalg/factored.py",
        "_balanced",
        "nothing is added to a gauge that is complete",
        (
            "if rank < width: basis, _, _ = xp.linalg.svd(gauge, full_matrices=True) gauge = xp.concat("
            "[gauge, basis[:, rank:]], axis=1)"
        ),
        (
            (
                "if rank <= width: basis, _, _ = xp.linalg.svd(gauge, full_matrices=True) gauge = xp.concat"
                "([gauge, basis[:, rank:]], axis=1)"
            ),
        ),
    ),
    (
        "linalg/factored.py",
        "_times",
        "times one they are the same",
        "units == (1.0, 1.0)",
        (
            "units == (1.0, 2.0)",
            "units == (2.0, 1.0)",
            "units == (1.0, 0.0)",
            "units == (0.0, 1.0)",
        ),
    ),
    (
        "linalg/bootstrap.py",
        "expanded_intervals",
        "fewer than two have no interval",
        "min((sizes[each] for each in of or strata), default=0)",
        (
            "min((sizes[each] for each in of or strata), default=-1)",
            "min((sizes[each] for each in of or strata), default=1)",
        ),
    ),
    (
        "linalg/subspace.py",
        "_decomposed",
        "it has no columns",
        "empty[:1, :].reshape",
        (
            "empty[:2, :].reshape",
            "empty[:0, :].reshape",
        ),
    ),
    (
        "linalg/subspace.py",
        "coordinates",
        "what is wide has a singular Gram matrix, which is refused, too",
        "min(left.shape[0], right_t.shape[0])",
        (
            "min(left.shape[-1], right_t.shape[0])",
            "min(left.shape[0], right_t.shape[-1])",
        ),
    ),
    (
        "linalg/two_stage.py",
        "_call",
        "of one column the stride is not used, and of none nothing is called",
        "[n, max(1, n), -1, -1, 0]",
        (
            "[n, max(2, n), -1, -1, 0]",
            "[n, max(0, n), -1, -1, 0]",
        ),
    ),
    (
        "linalg/two_stage.py",
        "_fastest",
        "any matrix takes as long",
        "np.random.default_rng(0)",
        ("np.random.default_rng(1)",),
    ),
    (
        "study/outcome.py",
        "rules",
        "both ends of what is outside the bounds are on one side of them",
        "wide_effect[0] > criterion.distance",
        (
            "wide_effect[-1] > criterion.distance",
            "wide_effect[1] > criterion.distance",
        ),
    ),
    (
        "linalg/factored.py",
        "_balanced",
        "a gauge of a core that is not square changes the factors and not the product",
        "right_t.shape[0]",
        (
            "right_t.shape[1]",
            "right_t.shape[-1]",
        ),
    ),
    (
        "linalg/factored.py",
        "_balanced",
        "a gauge that is completed or not gives the same product",
        "s > RANK_FLOOR * s[0]",
        ("s >= RANK_FLOOR * s[0]",),
    ),
    ("linalg/svd_update.py", "_davidson", "a matter of speed", "factor.shape[1] // 2", ("factor.shape[0] // 2",)),
    (
        "linalg/subspace.py",
        "coordinates",
        "what is wide has a singular Gram matrix, which is refused, too",
        "right_t.shape[0]",
        ("right_t.shape[-1]",),
    ),
    (
        "linalg/kronecker.py",
        "Kronecker.leading",
        "a vector has one axis",
        "(u1[:, None, i] * u2[None, :, j]).reshape(m, order.shape[0])",
        ("(u1[:, None, i] * u2[None, :, j]).reshape(m, order.shape[-1])",),
    ),
    (
        "linalg/svd_update.py",
        "_all_found",
        "without a gap the answer is no before it is used",
        "best, above = (0.0, 0)",
        (
            "best, above = (-1.0, 0)",
            "best, above = (0.0, 1)",
            "best, above = (0.0, -1)",
        ),
    ),
    (
        "linalg/subspace.py",
        "principal_angles",
        "the singular values of nothing are none",
        "narrow.shape[1] == 0",
        ("narrow.shape[0] == 0",),
    ),
)
MATH = {
    (f"lorascope/{file}", function, before, after): why
    for file, function, why, before, afters in _ROWS
    for after in afters
}
