"""The spectral and the denoised reading of ΔW: one SVD for each matrix, its measures, and noise of the same shape."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lorascope.analyses.toolkit import Row
from lorascope.architectures import depth, module_types
from lorascope.linalg import batched, noise, spectrum
from lorascope.linalg.batched import Place
from lorascope.linalg.factored import Factored
from lorascope.linalg.matrix import Matrix
from lorascope.linalg.nulls import random_product
from lorascope.run_data import OpenedRun

SHARES = (0.9, 0.95, 0.99)
NEGLIGIBLE = 1e-12  # of σ₁: below this a direction is rounding
TRACY_WIDOM_MEAN = -1.2065
DIFFERENCE_99 = 4.17  # 2.326 · √2 · 1.268: how far two independent draws of the law differ once in a hundred


@dataclass(frozen=True)
class Parts:
    """U (m, p), S (p,) descending, Vh (p, n) of one ΔW. U and Vh in float32, as the weights that they are put into."""

    u: np.ndarray
    s: np.ndarray
    vh: np.ndarray

    @property
    def shape(self) -> tuple[int, int]:
        return self.u.shape[0], self.vh.shape[1]

    @property
    def rank(self) -> int:
        """How many singular values are more than rounding."""
        return int(np.sum(self.s > NEGLIGIBLE * self.s[0])) if self.s.size and self.s[0] > 0 else 0

    def between(self, start: int, stop: int) -> Factored:
        """The components start … stop − 1, the largest first."""
        at = slice(start, stop)
        return Factored(self.u[:, at] * self.s[at], self.vh[at])


def decompose(delta: Matrix) -> Parts:
    """The SVD, in float64.

    Raises:
        ValueError: an entry is NaN or infinite.
    """
    return _parts(*delta.svd())


def decompose_all(
    trained: OpenedRun, names: Sequence[str], tell: Callable[[str], None] = lambda name: None
) -> dict[str, Parts]:
    """The SVD of each of the ΔW, in float64: where the run's model is, on a GPU those of one shape in one call.

    Args:
        tell: called with each name before its ΔW is taken up.

    Raises:
        ValueError: an entry is NaN or infinite.
    """
    place, shapes = trained.place, trained.shapes
    parts: dict[str, Parts] = {}
    for window in batched.windows([shapes[name] for name in names], place):
        deltas: dict[str, Matrix] = {}
        for name in names[window]:
            tell(name)
            deltas[name] = trained.delta(name)
        dense = {name: delta.dense() for name, delta in deltas.items() if not delta.structured}
        for name, entries in dense.items():
            if not np.isfinite(entries).all():
                raise ValueError(f"ΔW of {name} holds NaN or infinite entries")
        svds = dict(zip(dense, batched.svd(list(dense.values()), place), strict=True))
        parts |= {name: _parts(*svds[name]) if name in svds else decompose(deltas[name]) for name in deltas}
    return parts


def _parts(u: np.ndarray, s: np.ndarray, vh: np.ndarray) -> Parts:
    return Parts(u.astype(np.float32), s, vh.astype(np.float32))


@dataclass(frozen=True)
class MatrixSpectrum:
    """The measures of one ΔW. None where it is zero, or where a measure needs a full spectrum and there is none.

    Attributes:
        run: the label of its run.
        measures: stable_rank, effective_rank, participation_ratio, energy_rank_0.9 / _0.95 / _0.99.
        null: their random baseline: of an iid matrix of this shape for a full ΔW, of Gaussian factors for B·A.
        of_null: measures over null.
        gavish_donoho, marchenko_pastur: singular values above the noise bulk; None for a product.
    """

    run: str
    name: str
    type: str
    depth: int | None
    shape: tuple[int, int]
    singular_values: tuple[float, ...]
    frobenius_norm: float
    measures: Mapping[str, float | None]
    null: Mapping[str, float]
    of_null: Mapping[str, float | None]
    gavish_donoho: int | None
    marchenko_pastur: int | None

    def record(self) -> Row:
        """The measures under their own keys, as in a table."""
        record = {key: each for key, each in vars(self).items() if key not in ("measures", "null", "of_null")}
        return {**record, **self.measures, "null": dict(self.null), "of_null": dict(self.of_null)}


def measure(run: str, name: str, type: str, shape: tuple[int, int], sigma: np.ndarray, product: bool) -> MatrixSpectrum:
    """The measures of a spectrum σ (p,) of ΔW (m, n); a `product` B·A has p = r and the product's null."""
    measures: dict[str, float | None] = {
        "stable_rank": spectrum.stable_rank(sigma),
        "effective_rank": spectrum.effective_rank(sigma),
        "participation_ratio": spectrum.participation_ratio(sigma),
        **{f"energy_rank_{share}": spectrum.energy_rank(sigma, share) for share in SHARES},
    }
    null = random_product(*shape, len(sigma)) if product and len(sigma) else noise.noise_measures(*shape)
    ratio = {key: None if value is None else value / null[key] for key, value in measures.items()}
    above: dict[str, int | None] = {"gavish_donoho": None, "marchenko_pastur": None}
    level = noise.noise_level(sigma, *shape) if not product and len(sigma) == min(shape) else 0.0
    if level > NEGLIGIBLE * sigma.max(initial=0.0):
        above["gavish_donoho"] = int(np.sum(sigma > noise.gavish_donoho(sigma, *shape)))
        above["marchenko_pastur"] = int(np.sum(sigma > noise.marchenko_pastur_edge(level, *shape)))
    return MatrixSpectrum(
        run, name, type, depth(name), shape, tuple(sigma.tolist()), spectrum.frobenius_norm(sigma), measures, null,
        ratio, **above,
    )  # fmt: skip


def of_run(
    run: str, sigmas: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, int]], product: bool
) -> tuple[MatrixSpectrum, ...]:
    """The measures of every matrix of a run."""
    types = module_types(sigmas)
    return tuple(measure(run, name, types[name], shapes[name], sigma, product) for name, sigma in sigmas.items())


@dataclass(frozen=True)
class Split:
    """ΔW of several seeds, taken apart into what they share and how they differ.

    With ΔW_i = signal + noise_i and independent noise, the mean over n seeds is signal + noise/√n, and a contrast
    Σ c_i ΔW_i with Σ c_i = 0 and Σ c_i² = 1/n is noise/√n alone: of the same law as the noise in the mean, whatever its
    spectrum is.

    Attributes:
        rank: how many singular values of the mean lie above `edge`.
        edge: the largest singular value of the n − 1 contrasts, with a margin (the difference of two draws of the
            Tracy–Widom law, at 99 %), so that noise alone exceeds it once in a hundred matrices.
        signal_share: (‖mean‖² − mean ‖contrast‖²) / mean ‖ΔW_i‖²: the shared part of the energy, without bias.
        energy_rank: the smallest k whose Σ (σ_i(mean)² − σ_i(contrast)²) is 90 % of all of it; None without signal.
        cosine: mean of ⟨ΔW_i, ΔW_j⟩ / (‖ΔW_i‖‖ΔW_j‖) over pairs; by chance its root mean square is 1/√(mn).
    """

    name: str
    type: str
    shape: tuple[int, int]
    seeds: int
    rank: int
    edge: float
    signal_share: float
    energy_rank: int | None
    cosine: float
    cosine_chance: float
    shared: tuple[float, ...]
    contrast: tuple[float, ...]


def split(name: str, type: str, deltas: Sequence[np.ndarray]) -> Split | None:
    """Take ΔW (m, n) of two or more seeds apart. None where one of them is zero."""
    return split_all({name: type}, {name: deltas})[name]


def split_all(
    types: Mapping[str, str], deltas: Mapping[str, Sequence[np.ndarray]], place: Place | None = None
) -> dict[str, Split | None]:
    """The same of several matrices by name. `place`: as of `linalg.batched.singular_values`."""
    changed = {name: each for name, each in deltas.items() if all(np.linalg.norm(delta) for delta in each)}
    mixed = [_mean_and_contrasts(each) for each in changed.values()]
    values = iter(batched.singular_values([matrix for each in mixed for matrix in each], place))
    sigmas = {name: [next(values) for _ in each] for name, each in changed.items()}
    return {
        name: _split(name, types[name], each, sigmas[name]) if name in changed else None
        for name, each in deltas.items()
    }


def _mean_and_contrasts(deltas: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The mean, and Helmert's contrasts: the j-th against the mean of those before it."""
    count = len(deltas)
    mixed = [np.sum(deltas, axis=0) / count]
    for j in range(1, count):
        c = np.zeros(count)
        c[:j], c[j] = 1 / j, -1
        c /= np.linalg.norm(c) * np.sqrt(count)
        mixed.append(np.tensordot(c, np.stack(deltas), axes=1))
    return mixed


def _split(name: str, type: str, deltas: Sequence[np.ndarray], sigmas: Sequence[np.ndarray]) -> Split:
    """From the singular values of the mean and of the contrasts."""
    count = len(deltas)
    sizes = [float(np.linalg.norm(delta)) for delta in deltas]
    m, n = deltas[0].shape
    shared, *contrasts = sigmas
    typical = np.sqrt(np.mean(np.square(contrasts), axis=0))
    excess = np.cumsum(shared**2 - typical**2)
    mean_energy = float(np.mean(np.square(sizes)))
    reach = np.flatnonzero(excess >= 0.9 * excess[-1]) if excess[-1] > 0 else np.empty(0, int)
    cosines = [float(np.vdot(deltas[i], deltas[j])) / (sizes[i] * sizes[j]) for i in range(count) for j in range(i)]
    margin = noise.largest_noise(m, n, TRACY_WIDOM_MEAN + DIFFERENCE_99) / noise.largest_noise(m, n, TRACY_WIDOM_MEAN)
    edge = margin * float(max(each[0] for each in contrasts))
    return Split(
        name, type, (m, n), count, int(np.sum(shared > edge)), edge, float(excess[-1] / mean_energy),
        int(reach[0]) + 1 if len(reach) else None, float(np.mean(cosines)), (m * n) ** -0.5,
        tuple(shared.tolist()), tuple(typical.tolist()),
    )  # fmt: skip
