"""The run: spectra, ranks by each rule, the factors where they are written or scored."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lorascope.analyses.resize import truncate as resize
from lorascope.analyses.resize.result import Plan, ResizedModule, ResizeResult
from lorascope.analyses.resize.truncate import Energy, Rule, Spectrum, Truncated, Uniform
from lorascope.architectures import depth, module_types
from lorascope.errors import InputError
from lorascope.linalg.blas import one_thread
from lorascope.linalg.noise import noise_spectrum
from lorascope.linalg.nulls import structureless_energy
from lorascope.weights.adapter import Adapter
from lorascope.weights.checkpoint import Checkpoint

Evaluate = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # ΔW by module in; loss and accuracy out


def run(
    adapter: Adapter,
    rules: Sequence[Rule] = (),
    *,
    base: Checkpoint | None = None,
    dtype: str | None = None,
    build: bool = False,
    evaluate: Evaluate | None = None,
    scored_on: str = "",
    progress: Callable[[list], Iterable] = iter,
) -> ResizeResult:
    """What each rule makes of `adapter`.

    Args:
        rules: ways to choose ranks; none: ranks by powers of two, and a few shares of the energy.
        base: completes updates that depend on it.
        dtype: safetensors' name of what factors are stored in; None: what the source has.
        build: keep the resized adapter, of the only rule.
        evaluate: scores a ΔW for every module, absent ones being zero.
        scored_on: what `evaluate` scores on, in words.
        progress: wraps each list of modules.

    Raises:
        InputError: there is no ΔW to truncate; several rules and one adapter to build; a rule leaves nothing.
    """
    if build and len(rules) != 1:
        raise InputError("one adapter is made by one rule", found=f"{len(rules)} rules")
    with one_thread():
        found = resize.decompose(adapter, base, progress)
        spectra = found.spectra
        plans, resized = [], None
        for rule in rules or _usual(spectra):
            ranks = rule.ranks(spectra)
            truncated = None
            if build or evaluate is not None:
                if not any(ranks.values()):
                    raise InputError(f"{rule.label} leaves no module with a direction", hint="allow more")
                truncated = resize.truncate(adapter, ranks, base, dtype, progress)
            score = None
            if evaluate is not None and truncated is not None:
                score = evaluate({name: update.delta() for name, update in truncated.updates.items()})
            plans.append(_plan(rule, spectra, ranks, truncated, score))
            if build and truncated is not None:
                resized = resize.resized(adapter, truncated, base)
        scores = {}
        if evaluate is not None:
            whole = {one.name: resize.delta(adapter.updates[one.name], base) for one in spectra}
            scores = {"base": evaluate({}), "before": evaluate(whole)}
    return ResizeResult(
        adapter.source,
        ", ".join(sorted({update.kind for update in adapter.updates.values()})),
        tuple(plans),
        sum(len(one.values) * one.cost for one in spectra),
        found.left_out,
        dtype,
        scores,
        scored_on,
        adapter.notes,
        resized,
    )


def _usual(spectra: Sequence[Spectrum]) -> list[Rule]:
    """Ranks by powers of two up to the largest, and shares of the energy."""
    most = max(len(one.values) for one in spectra)
    ranks = [1 << k for k in range(most.bit_length()) if 1 << k <= most]
    return [*map(Uniform, ranks), *map(Energy, (0.5, 0.9, 0.95, 0.99))]


def _plan(
    rule: Rule,
    spectra: Sequence[Spectrum],
    ranks: Mapping[str, int],
    truncated: Truncated | None,
    score: Mapping[str, Any] | None,
) -> Plan:
    types = module_types([one.name for one in spectra])
    modules = []
    for one in spectra:
        rank, norm = ranks[one.name], one.norm
        rounding = truncated.rounding.get(one.name) if truncated is not None else None
        modules.append(
            ResizedModule(
                name=one.name,
                type=types[one.name],
                depth=depth(one.name),
                shape=one.shape,
                rank_before=len(one.values),
                rank=rank,
                norm=norm,
                error=one.lost(rank) / norm if norm else None,
                error_null=_null(one, rank) if norm else None,
                rounding=rounding / norm if rounding is not None and norm else None,
            )
        )
    uniform, error = _uniform(spectra, sum(ranks[one.name] * one.cost for one in spectra))
    return Plan(rule.label, rule.counts, tuple(modules), uniform, error, score)


def _null(one: Spectrum, rank: int) -> float:
    """Relative error of the same truncation without structure: of a product B·A, or of an iid matrix for a dense ΔW."""
    width = len(one.values)
    if rank == 0:
        return 1.0
    if rank >= width:
        return 0.0
    if one.low_rank and width < min(one.shape):
        return math.sqrt(max(0.0, 1 - structureless_energy(*one.shape, width)[rank - 1]))
    squares = noise_spectrum(*one.shape) ** 2
    return math.sqrt(float(squares[rank:].sum() / squares.sum()))


def _uniform(spectra: Sequence[Spectrum], parameters: int) -> tuple[int, float | None]:
    """The largest uniform rank that takes no more parameters, and its error over all modules; (0, None) if none."""
    whole = math.hypot(*(one.norm for one in spectra))
    rank = 0
    most = max(len(one.values) for one in spectra)
    while rank < most and sum(min(rank + 1, len(one.values)) * one.cost for one in spectra) <= parameters:
        rank += 1
    if rank == 0 or whole == 0 or not math.isfinite(whole):
        return rank, None
    return rank, math.hypot(*(one.lost(rank) / whole for one in spectra))
