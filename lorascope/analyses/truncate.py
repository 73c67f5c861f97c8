"""An adapter at lower rank: the best approximation of every ΔW (Eckart and Young 1936), the ranks chosen by one rule.

Only the factors are decomposed, never the dense product, and one module is in memory at a time: first all spectra, from
which the rule takes the ranks, then the truncated factors, each with √σ, at scale 1 (α = r).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lorascope.architectures import looks_like_convolution
from lorascope.errors import InputError, preview
from lorascope.linalg.factored import RANK_FLOOR, Factored
from lorascope.linalg.matrix import Matrix
from lorascope.linalg.rounding import UNIT_ROUNDOFF, round_to
from lorascope.linalg.spectrum import energy_rank, frobenius_norm
from lorascope.updates.base import Update, kinds
from lorascope.weights.adapter import Adapter, Skipped
from lorascope.weights.caveats import not_for_all_tokens, of_another_base
from lorascope.weights.checkpoint import Checkpoint
from lorascope.weights.tensors import InMemory

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}
WRITABLE = ("F64", "F32", "F16", "BF16")  # what factors are rounded to
# Settings that a plain LoRA keeps of another method's.
_KEPT = ("base_model_name_or_path", "task_type", "modules_to_save", "target_modules", "bias")
_SCALING = ("r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_drop")


@dataclass(frozen=True)
class Spectrum:
    """The singular values (p,), descending, of one module's ΔW, and what a direction of it costs.

    Attributes:
        shape: (d_out, d_in).
        values: all min(d_out, d_in, inner size) of them, in float64.
        low_rank: ΔW is a product by construction, not a dense matrix.
    """

    name: str
    shape: tuple[int, int]
    values: np.ndarray
    low_rank: bool

    @property
    def cost(self) -> int:
        """Parameters of one direction: d_out + d_in."""
        return sum(self.shape)

    @property
    def support(self) -> int:
        """How many values are more than the rounding of the factors."""
        return int(np.sum(self.values > RANK_FLOOR * self.values[0])) if len(self.values) else 0

    @property
    def norm(self) -> float:
        """‖ΔW‖_F."""
        return frobenius_norm(self.values)

    def lost(self, rank: int) -> float:
        """‖ΔW − ΔW_rank‖_F, exactly (Eckart and Young): the norm of the values beyond that rank."""
        return frobenius_norm(self.values[rank:])


class Rule(Protocol):
    """How ranks are chosen. `label` is what a table calls it, `counts` what its number counts."""

    @property
    def label(self) -> str: ...
    @property
    def counts(self) -> str: ...
    def ranks(self, spectra: Sequence[Spectrum]) -> dict[str, int]:
        """The rank of every module; 0 where it gets nothing."""
        ...


@dataclass(frozen=True)
class Uniform:
    """One rank for all modules; of a module whose ΔW has fewer singular values, all of them."""

    rank: int

    @property
    def label(self) -> str:
        return f"rank {self.rank}"

    @property
    def counts(self) -> str:
        return "directions in every module"

    def ranks(self, spectra: Sequence[Spectrum]) -> dict[str, int]:
        return {one.name: min(self.rank, len(one.values)) for one in spectra}


@dataclass(frozen=True)
class Energy:
    """In every module the smallest rank that keeps this share of its own ‖ΔW‖_F²."""

    share: float

    @property
    def label(self) -> str:
        return f"energy {self.share:g}"

    @property
    def counts(self) -> str:
        return "share of each module's ‖ΔW‖_F² that is kept"

    def ranks(self, spectra: Sequence[Spectrum]) -> dict[str, int]:
        return {one.name: min(energy_rank(one.values, self.share) or 0, one.support) for one in spectra}


@dataclass(frozen=True)
class RankBudget:
    """`mean` directions a module on average, given to the largest singular values of all modules first.

    No other choice of as many directions loses less of Σ‖ΔW‖_F².
    """

    mean: float

    @property
    def label(self) -> str:
        return f"budget-rank {self.mean:g}"

    @property
    def counts(self) -> str:
        return "directions over all modules, as a mean rank"

    def ranks(self, spectra: Sequence[Spectrum]) -> dict[str, int]:
        return _spend(spectra, [1] * len(spectra), int(self.mean * len(spectra) + 1e-9), per_cost=False)


@dataclass(frozen=True)
class ParameterBudget:
    """At most `total` parameters in all factors: a direction of a (d_out, d_in) module costs d_out + d_in.

    The largest singular values come first; with `per_parameter` the largest σ²/(d_out + d_in), which loses least of
    Σ‖ΔW‖_F² up to the last direction (the greedy of the fractional knapsack, Dantzig 1957). Where all modules have one
    shape the two agree. A direction that no longer fits ends its own module; cheaper ones of others may follow.
    """

    total: int
    per_parameter: bool = False

    @property
    def label(self) -> str:
        return f"parameters {self.total}" + (" by energy" if self.per_parameter else "")

    @property
    def counts(self) -> str:
        return "parameters of all factors, d_out + d_in for each direction"

    def ranks(self, spectra: Sequence[Spectrum]) -> dict[str, int]:
        return _spend(spectra, [one.cost for one in spectra], self.total, per_cost=self.per_parameter)


def _spend(spectra: Sequence[Spectrum], costs: Sequence[int], total: int, *, per_cost: bool) -> dict[str, int]:
    """Greedy: directions by descending worth, each if the rest of the budget pays it and its module is not ended.

    Equal worths go to the module named first, its larger values first: the order of the file decides nothing else.
    """
    ranks = {one.name: 0 for one in spectra}
    worth, owner = [], []
    for index, (one, cost) in enumerate(zip(spectra, costs, strict=True)):
        values = one.values[: one.support]
        worth.append(values**2 / cost if per_cost else values)
        owner.append(np.full(len(values), index))
    if not worth:
        return ranks
    order = np.argsort(-np.concatenate(worth), kind="stable")
    ended = [False] * len(spectra)
    for index in np.concatenate(owner)[order].tolist():
        if ended[index] or costs[index] > total:
            ended[index] = True
            continue
        ranks[spectra[index].name] += 1
        total -= costs[index]
    return ranks


def rules(
    *,
    rank: int | Sequence[int] | None = None,
    energy: float | Sequence[float] | None = None,
    budget_rank: float | Sequence[float] | None = None,
    parameters: int | Sequence[int] | None = None,
    by_energy: bool = False,
) -> list[Rule]:
    """The rules by the names of the command line, one or several of each: `rules(rank=4)`, `rules(energy=(0.9, 0.95))`.

    Args:
        by_energy: of `parameters`, first what keeps most energy per parameter.

    Raises:
        InputError: a number is not positive, or `by_energy` without `parameters`.
    """
    ranks, shares, means, totals = (
        [given] if isinstance(given, int | float) else list(given or ())
        for given in (rank, energy, budget_rank, parameters)
    )
    if by_energy and not totals:
        raise InputError("--by-energy says how --parameters are spent", hint="give --parameters N as well")
    wrong = [each for each in means if not 0 < each < float("inf")] + [each for each in shares if not 0 < each <= 1]
    wrong += [each for each in (*ranks, *totals) if each < 1]
    if wrong:
        raise InputError("ranks, budgets and shares of the energy are positive", found=wrong[0])
    return [
        *(Uniform(int(each)) for each in ranks),
        *map(Energy, shares),
        *map(RankBudget, means),
        *(ParameterBudget(int(each), by_energy) for each in totals),
    ]


def dtype_named(name: str | None) -> str | None:
    """safetensors' name of a dtype of `DTYPES`; None stays None.

    Raises:
        InputError: factors are not stored in it.
    """
    if name is not None and name not in DTYPES:
        raise InputError(f"dtype {name!r} is not supported", expected=", ".join(DTYPES))
    return None if name is None else DTYPES[name]


@dataclass(frozen=True)
class Decomposed:
    """What an adapter's updates are made of, and which of them have no rank to reduce."""

    spectra: tuple[Spectrum, ...]
    skipped: tuple[Skipped, ...]


def decompose(
    adapter: Adapter, base: Checkpoint | None = None, progress: Callable[[list], Iterable] = iter
) -> Decomposed:
    """The spectrum of every ΔW, one module at a time.

    Args:
        base: completes updates that depend on it, as DoRA's and (IA)³'s do.
        progress: wraps the list of updates.

    Raises:
        InputError: there is no ΔW, one depends on a base that was not given, or holds NaN or infinite entries; or A and
            B belong to a base from which their beginning was taken away (PiSSA).
    """
    _check(adapter, base)
    spectra, skipped = [], []
    for update in progress(list(adapter.updates.values())):
        try:
            change = delta(update, base)
            low_rank = change.structured
            if not low_rank and 1 in change.shape:
                skipped.append(Skipped(update.name, "a vector: no rank to reduce"))
                continue
            values = change.singular_values()
        except ValueError as error:
            raise InputError(
                f"{update.name} cannot be decomposed: {error}", hint="`lorascope analyze` says which factors to mend"
            ) from None
        spectra.append(Spectrum(update.name, change.shape, np.asarray(values), low_rank))
    if not spectra:
        raise InputError(
            "the adapter has no ΔW whose rank could be reduced", found=preview([item.reason for item in skipped])
        )
    return Decomposed(tuple(spectra), tuple(skipped))


def delta(update: Update, base: Checkpoint | None) -> Matrix:
    """ΔW in float64, completed by the base where it needs that."""
    return update.delta(base.of(update).read() if update.needs_base and base is not None else None)


def _check(adapter: Adapter, base: Checkpoint | None) -> None:
    if not adapter.updates:
        raise InputError(f"{adapter.source.path or 'the adapter'} holds no ΔW to resize", found=adapter.source.method)
    needy = {update.kind: name for name, update in adapter.updates.items() if update.needs_base}
    if needy and base is None:
        raise InputError(
            f"ΔW of {adapter.source.method or 'this adapter'} depends on the base weights",
            found=preview(needy.values(), 3),
            hint="pass --base MODEL",
        )
    if why := not_for_all_tokens(adapter):
        raise InputError(f"{adapter.source.path or 'the adapter'} is not one fixed ΔW", found=why)
    if why := of_another_base(adapter):
        raise InputError(
            why,
            expected="an adapter of the original base: only there is B·A the update",
            hint="save it with PEFT's path_initial_model_for_weight_conversion first",
        )


@dataclass(frozen=True)
class Truncated:
    """The factors at their new rank, as they will be stored.

    Attributes:
        updates: by module; those of rank 0 are not among them.
        rounding: ‖stored − ΔW_rank‖_F, what the storage dtype adds to the truncation, by module.
    """

    updates: Mapping[str, Update]
    rounding: Mapping[str, float]


def truncate(
    adapter: Adapter,
    ranks: Mapping[str, int],
    base: Checkpoint | None = None,
    dtype: str | None = None,
    progress: Callable[[list], Iterable] = iter,
) -> Truncated:
    """Every ΔW at its rank, as B (d_out, r) and A (r, d_in) with scale 1, rounded to `dtype` (None: the source's)."""
    updates, rounding = {}, {}
    for name in progress([name for name, rank in ranks.items() if rank > 0]):
        update = adapter.updates[name]
        kept = delta(update, base).truncated(ranks[name])
        stored_as = dtype or storage(update)
        stored = Factored(round_to(kept.left, stored_as), round_to(kept.right, stored_as))
        if not (np.isfinite(stored.left).all() and np.isfinite(stored.right).all()):
            raise InputError(f"{name} does not fit into {stored_as}", hint="choose another --dtype")
        difference = np.concatenate([kept.left, -stored.left], axis=1), np.concatenate([kept.right, stored.right])
        rounding[name] = Factored(*difference).frobenius_norm()
        roles = {"A": InMemory(stored.right, stored_as), "B": InMemory(stored.left, stored_as)}
        updates[name] = Update(
            name, "low_rank", roles, 1.0, update.transposed, kernel_of(update, base), update.base_weight, update.expert,
            update.notes, update.embedding,
        )  # fmt: skip
    return Truncated(updates, rounding)


def kernel_of(update: Update, base: Checkpoint | None) -> tuple[int, ...]:
    """The kernel's sides as the base's weight has them; without a base, as the update tells.

    LoHa and LoKr store the factors of a convolution as those of a matrix, or with a last axis of one for a
    one-dimensional one, and (IA)³ has an axis of one for every side.
    """
    stored = base.find(update.base_weight or update.name) if base is not None else None
    if stored is None or update.expert is not None:
        return update.kernel
    return tuple(stored.shape[2:])


def _refuse_unknown_kernels(adapter: Adapter) -> None:
    """InputError where a module may be a convolution whose kernel only the base tells.

    LoHa's and LoKr's factors look alike for a linear map and a convolution.
    """
    hidden = [u for u in adapter.updates.values() if u.kind in ("hadamard", "kronecker") and _may_be_convolution(u)]
    if hidden or any(_sided(update) for update in adapter.updates.values()):
        raise InputError(
            "the kernels of convolutions are not in the file, and LoRA's factors have them",
            found=preview(
                [update.name for update in hidden] or [u.name for u in adapter.updates.values() if _sided(u)], 3
            ),
            hint="pass --base MODEL",
        )


def _sided(update: Update) -> bool:
    """Whether a kernel k × 1 may as well be that of a one-dimensional convolution."""
    return update.kind in ("hadamard", "kronecker") and len(update.kernel) == 2 and update.kernel[1] == 1


def _may_be_convolution(update: Update) -> bool:
    return not update.kernel and looks_like_convolution(update.name)


def storage(update: Update) -> str:
    """The widest float dtype of the update's arrays; F32 for narrower ones than factors are rounded to (fp8)."""
    dtypes = [stored.dtype for stored in update.roles.values() if stored.dtype in WRITABLE]
    return min(dtypes, key=lambda dtype: UNIT_ROUNDOFF[dtype], default="F32")


def resized(adapter: Adapter, truncated: Truncated, base: Checkpoint | None = None) -> Adapter:
    """The truncated updates with everything else the adapter held: heads, trained biases, settings."""
    if base is None:
        _refuse_unknown_kernels(adapter)
    plain = all(update.kind == "low_rank" for update in adapter.updates.values())
    plain = plain and adapter.settings.get("peft_type") in (None, "LORA")
    settings = {
        key: value
        for key, value in adapter.settings.items()
        if (key not in _SCALING if plain else key in _KEPT)
        and (key != "target_modules" or len(truncated.updates) == len(adapter.updates))
    }
    saved = {**adapter.saved, **_changed_biases(adapter, base)}
    if len(saved) > len(adapter.saved):
        settings["bias"] = "lora_only"
    return Adapter(
        truncated.updates, settings, adapter.source, saved, adapter.skipped, adapter.notes, adapter.non_weight_tensors,
        adapter.rows, adapter.base,
    )  # fmt: skip


def _changed_biases(adapter: Adapter, base: Checkpoint | None) -> dict[str, InMemory]:
    """Biases that an update changes with the weight, as (IA)³'s scaling of the output does."""
    biases = {}
    for name, update in adapter.updates.items():
        bias = base.find(f"{name}.bias") if base is not None and update.needs_base else None
        if bias is None:
            continue
        weight = base.of(update).read() if base is not None else None
        change = kinds.get(update.kind).bias_change(update.read(), update.scale, bias.read(), weight)
        if change is not None:
            biases[f"{name}.bias"] = InMemory(bias.read() + change, bias.dtype)
    return biases
