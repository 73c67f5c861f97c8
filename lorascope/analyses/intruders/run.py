"""The run over all weights of an adapter, or of a tuned checkpoint, one at a time."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lorascope.analyses.intruders.module import ModuleIntruders, measure
from lorascope.analyses.intruders.result import EPSILONS, CacheUse, IntrudersResult
from lorascope.analyses.toolkit import choose
from lorascope.architectures import depth, module_types
from lorascope.errors import InputError
from lorascope.linalg import batched
from lorascope.linalg.blas import one_thread
from lorascope.linalg.matrix import Dense, Matrix
from lorascope.weights.adapter import Adapter, Skipped
from lorascope.weights.base_svd import SvdCache
from lorascope.weights.checkpoint import Checkpoint
from lorascope.weights.delta import Pair, base_matrix, difference, match


def run(  # the weights, what counts as an intruder, where SVDs are kept
    tuned: Adapter | Checkpoint,
    base: Checkpoint,
    *,
    k: int = 10,
    epsilon: float = 0.5,
    epsilons: Sequence[float] = EPSILONS,
    modules: str | None = None,
    cache: SvdCache | None = None,
    progress: Callable[[list[Pair]], Any] = iter,
) -> IntrudersResult:
    """Compare the k leading singular vectors of every tuned weight with all of the base weight's.

    Args:
        tuned: an adapter, or a checkpoint of which ΔW is what it has more than the base.
        base: the model before.
        k: how many leading vectors of each weight; fewer where it is smaller.
        epsilon: a vector is an intruder where its largest |cos| is below this.
        epsilons: the grid that counts are given for as well.
        modules: a regular expression; only weights whose name matches are measured.
        cache: of the base's decompositions; without one they are computed and forgotten.
        progress: wraps the list of weights, such as a progress bar.

    Raises:
        InputError: the two have nothing in common, `modules` matches nothing, k is not positive, or an epsilon is not
            in (0, 1].
    """
    if k < 1:
        raise InputError(f"cannot look at the leading {k} singular vectors", expected="1 or more")
    wrong = [e for e in (epsilon, *epsilons) if not 0 < e <= 1]
    if wrong:
        raise InputError("ε is a cosine", found=wrong[0], expected="more than 0 and at most 1")
    matched = match(base, tuned)
    skipped = list(matched.skipped)
    pairs = choose([pair for pair in matched.pairs if not pair.is_vector], modules, lambda pair: pair.name)
    skipped += [
        Skipped(pair.name, "a vector: it has no singular directions") for pair in matched.pairs if pair.is_vector
    ]
    cache = cache if cache is not None else SvdCache(None)
    types = module_types(pair.name for pair in pairs)
    rows: list[ModuleIntruders] = []
    shapes = [(pair.shape[0], pair.shape[1]) for pair in pairs if cache.place is not None]
    ahead = {window.start: pairs[window] for window in batched.windows(shapes, cache.place)}
    with one_thread():
        for i, pair in enumerate(progress(pairs)):
            cache.prepare([base_matrix(each) for each in ahead.get(i, ())])
            one = _one(pair, types[pair.name], k, cache)
            if isinstance(one, Skipped):
                skipped.append(one)
            else:
                rows.append(one)
    inputs: dict[str, Any] = {
        "base": {"path": str(base.path)},
        "tuned": {"path": tuned.source.path if isinstance(tuned, Adapter) else str(tuned.path)},
    }
    if isinstance(tuned, Adapter):
        inputs["tuned"] |= {"sha256": tuned.source.sha256, "method": tuned.source.method, "notes": list(tuned.notes)}
    grid = tuple(sorted({*epsilons, epsilon}))
    return IntrudersResult(tuple(rows), inputs, k, epsilon, grid, tuple(skipped), CacheUse.of(cache))


def _one(pair: Pair, type: str, k: int, cache: SvdCache) -> ModuleIntruders | Skipped:
    weight, delta = weight_and_delta(pair)
    facts: Mapping[str, Any] = {
        "name": pair.name,
        "parameter": pair.parameter,
        "type": type,
        "depth": depth(pair.name),
        "transposed": pair.transposed,
        "kind": pair.update.kind if pair.update is not None else "tuned",
        "notes": (*pair.notes, *(pair.update.notes if pair.update is not None else ())),
    }
    try:
        cached = cache.of(weight)
    except ValueError:
        return Skipped(pair.name, "the base weight contains NaN or infinite entries")
    return measure(facts, cached, weight, delta, k)


def weight_and_delta(pair: Pair) -> tuple[np.ndarray, Matrix]:
    """W (d_out, d_in) in float64 and ΔW, as a product where the adapter has it as one."""
    weight = base_matrix(pair)
    if pair.update is not None and pair.tuned is None:
        return weight, pair.update.delta(weight if pair.update.needs_base else None)
    return weight, Dense(difference(pair).matrix)
