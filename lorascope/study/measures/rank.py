"""The rank of trained updates by their spectra, beside that of noise and of changes whose rank is known."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lorascope.study.definition import Scalar
from lorascope.study.measures.finished import matrices, opened, singular_values

ATTENTION = ("query", "key", "value", "attention.output.dense")
Row = dict[str, Scalar]


def spectral(folders: Sequence[Path]) -> Iterator[Row]:
    """Rank measures of every ΔW of a run; beside them W's, those of iid noise and of ΔW with random signs."""
    run = opened(folders[0])
    rng = np.random.default_rng(run.config.training.seed)
    for name in matrices(run):
        delta, shape = run.delta(name), run.shapes[name]
        base = described(name, shape, np.linalg.svd(run.base_weight(name), compute_uv=False), product=False)
        product = delta.factors() is not None
        row = {**described(name, shape, singular_values(delta), product), "r90_of_w": base["r90"]}
        yield row if product else {**row, **_known(name, delta.dense(), rng)}


def _known(name: str, delta: np.ndarray, rng: np.random.Generator) -> Row:
    """What the measures give for ΔW with random signs, and for a rank that was planted."""
    flipped = np.linalg.svd(delta * rng.choice([-1.0, 1.0], delta.shape), compute_uv=False)
    randomised = described(name, delta.shape, flipped, product=False)
    planted_rank = described(name, delta.shape, planted(delta.shape, min(delta.shape) // 4, rng), product=False)
    return {
        "r90_flipped": randomised["r90"],
        "stable_rank_flipped": randomised["stable_rank"],
        "r90_planted": planted_rank["r90"],
        "gavish_donoho_planted": planted_rank["gavish_donoho"],
    }


def described(name: str, shape: tuple[int, int], sigma: np.ndarray, product: bool) -> Row:
    """A row on the singular values of a ΔW; of a `product` B·A, whose noise is not iid, some are None."""
    from lorascope.analyses.dimension import spectra
    from lorascope.architectures import depth
    from lorascope.linalg.noise import noise_measures

    spectrum = spectra.measure("", name, "", shape, sigma, product)
    noise = noise_measures(*shape)
    return {
        "part": part_of(name),
        "module": name,
        "depth": depth(name),
        "smaller_side": min(shape),
        "r90": spectrum.measures["energy_rank_0.9"],
        "r90_noise": noise["energy_rank_0.9"],
        "stable_rank": spectrum.measures["stable_rank"],
        "stable_rank_noise": noise["stable_rank"],
        "effective_rank": spectrum.measures["effective_rank"],
        "gavish_donoho": spectrum.gavish_donoho,
        "marchenko_pastur": spectrum.marchenko_pastur,
    }


def part_of(name: str) -> str:
    return "attention" if name.endswith(ATTENTION) else "MLP"


def planted(shape: tuple[int, int], rank: int, rng: np.random.Generator) -> np.ndarray:
    """Singular values of a matrix with `rank` equal directions, four times as strong as the edge of its noise."""
    (u, _), (v, _) = (np.linalg.qr(rng.standard_normal((size, rank))) for size in shape)
    strength = 4 * (np.sqrt(shape[0]) + np.sqrt(shape[1]))
    return np.linalg.svd(strength * u @ v.T + rng.standard_normal(shape), compute_uv=False)


def shared(folders: Sequence[Path], replicate: int) -> Iterator[Row]:
    """Two full runs of different seeds: the rank, and the energy, of what their ΔW share.

    Beside them one run twice, each time with noise of its own and of a quarter of the energy.
    """
    from lorascope.analyses.dimension import spectra

    first, second = map(opened, folders)
    rng = np.random.default_rng(first.config.training.seed)
    for name in matrices(first):
        delta = first.delta(name).dense()
        parts = spectra.split(name, "", [delta, second.delta(name).dense()])
        noise = rng.standard_normal((2, *delta.shape)) * np.linalg.norm(delta) / (2 * delta.size**0.5)
        parts_planted = spectra.split(name, "", [delta + copy_noise for copy_noise in noise])
        if parts is not None and parts_planted is not None:
            yield {
                "module": name,
                "shared_rank": parts.rank,
                "signal_share": parts.signal_share,
                "signal_share_planted": parts_planted.signal_share,
                "cosine": parts.cosine,
                "cosine_chance": parts.cosine_chance,
            }


def curves(folders: Sequence[Path], replicate: int) -> Iterator[Row]:
    """A full run and a LoRA: singular values over ‖ΔW‖_F at a few places, means over the matrices of one shape."""
    from lorascope.linalg.noise import noise_spectrum

    runs = {"full": opened(folders[0]), "lora": opened(folders[1])}
    shapes = {name: tuple(sorted(runs["full"].shapes[name])) for name in matrices(runs["full"])}
    for shape in sorted(set(shapes.values())):
        names = [name for name, its_shape in shapes.items() if its_shape == shape]
        spectra = {kind: [singular_values(run.delta(name)) for name in names] for kind, run in runs.items()}
        spectra["noise"] = [noise_spectrum(*shape)]
        means = {
            kind: np.mean([s / np.linalg.norm(s) for s in normalised], axis=0) for kind, normalised in spectra.items()
        }
        for i in sorted({round(x) for x in np.geomspace(1, shape[0], 24)}):
            at = {kind: float(sigma[i - 1]) if i <= len(sigma) else None for kind, sigma in means.items()}
            yield {"shape": f"{shape[0]} × {shape[1]}", "i": i, **at}
