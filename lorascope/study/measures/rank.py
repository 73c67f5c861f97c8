"""The rank of trained updates by their spectra, beside that of noise and of changes whose rank is known."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lorascope.linalg.matrix import Dense, Matrix
from lorascope.study.grid import Scalar
from lorascope.study.measures.finished import matrices, opened, singular_values, windows

if TYPE_CHECKING:
    from lorascope.analyses.dimension.spectra import Split
    from lorascope.training.reopen import Reopened

ATTENTION = ("query", "key", "value", "attention.output.dense", "q_proj", "k_proj", "v_proj", "o_proj")
Row = dict[str, Scalar]


def spectral(folders: Sequence[Path]) -> Iterator[Row]:
    """Rank measures of every ΔW of a run; beside them W's, those of iid noise and of ΔW with random signs."""
    run = opened(folders[0])
    rng = np.random.default_rng(run.config.training.seed)
    for names in windows(run):
        changes: dict[tuple[str, str], Matrix] = {}
        for name in names:
            changes["W", name], changes["ΔW", name] = Dense(run.base_weight(name)), run.delta(name)
            if changes["ΔW", name].factors() is None:
                delta, shape = changes["ΔW", name].dense(), run.shapes[name]
                changes["flipped", name] = Dense(delta * rng.choice([-1.0, 1.0], shape))
                changes["planted", name] = Dense(planted(shape, min(shape) // 4, rng))
        sigmas = dict(zip(changes, singular_values(list(changes.values()), run.place), strict=True))
        for name in names:
            yield _row(name, run.shapes[name], {what: sigma for (what, of), sigma in sigmas.items() if of == name})


def _row(name: str, shape: tuple[int, int], sigmas: Mapping[str, np.ndarray]) -> Row:
    """By the singular values of W and ΔW and, of a ΔW that is no product, of two changes of its shape: ΔW with random
    signs ("flipped"), and one whose rank is planted."""
    product = "flipped" not in sigmas
    base = described(name, shape, sigmas["W"], product=False)
    row = {**described(name, shape, sigmas["ΔW"], product), "r90_of_w": base["r90"]}
    if product:
        return row
    randomised, planted_rank = (described(name, shape, sigmas[key], product=False) for key in ("flipped", "planted"))
    return {
        **row,
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
    """A matrix with `rank` equal directions, four times as strong as the edge of its noise."""
    (u, _), (v, _) = (np.linalg.qr(rng.standard_normal((size, rank))) for size in shape)
    strength = 4 * (np.sqrt(shape[0]) + np.sqrt(shape[1]))
    return strength * u @ v.T + rng.standard_normal(shape)


def shared(folders: Sequence[Path], replicate: int) -> Iterator[Row]:
    """Two full runs of different seeds: the rank, and the energy, of what their ΔW share.

    Beside them one run twice, each time with noise of its own and of a quarter of the energy.
    """
    from lorascope.analyses.dimension import spectra

    first, second = map(opened, folders)
    rng = np.random.default_rng(first.config.training.seed)
    for names in windows(first):
        deltas, planted_deltas = {}, {}
        for name in names:
            delta = first.delta(name).dense()
            deltas[name] = [delta, second.delta(name).dense()]
            noise = rng.standard_normal((2, *delta.shape)) * np.linalg.norm(delta) / (2 * delta.size**0.5)
            planted_deltas[name] = [delta + copy_noise for copy_noise in noise]
        types = dict.fromkeys(names, "")
        splits = (spectra.split_all(types, each, first.place) for each in (deltas, planted_deltas))
        yield from _shares(*splits)


def _shares(splits: Mapping[str, "Split | None"], splits_planted: Mapping[str, "Split | None"]) -> Iterator[Row]:
    """A row for each matrix that changed."""
    for name, parts in splits.items():
        parts_planted = splits_planted[name]
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
    sigmas = {kind: _all_singular_values(run) for kind, run in runs.items()}
    for shape in sorted(set(shapes.values())):
        names = [name for name, its_shape in shapes.items() if its_shape == shape]
        spectra = {kind: [of_run[name] for name in names] for kind, of_run in sigmas.items()}
        spectra["noise"] = [noise_spectrum(*shape)]
        means = {
            kind: np.mean([s / np.linalg.norm(s) for s in normalised], axis=0) for kind, normalised in spectra.items()
        }
        for i in sorted({round(x) for x in np.geomspace(1, shape[0], 24)}):
            at = {kind: float(sigma[i - 1]) if i <= len(sigma) else None for kind, sigma in means.items()}
            yield {"shape": f"{shape[0]} × {shape[1]}", "i": i, **at}


def _all_singular_values(run: "Reopened") -> dict[str, np.ndarray]:
    """Of every ΔW of a run, by name."""
    values: dict[str, np.ndarray] = {}
    for names in windows(run):
        values |= zip(names, singular_values([run.delta(name) for name in names], run.place), strict=True)
    return values
