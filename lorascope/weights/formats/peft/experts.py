"""`target_parameters`: LoRA on a parameter itself, usually one that fuses the weights of all experts of a layer.

For E experts PEFT keeps one A (E·r, d_in) and one B (d_out, r·E). Expert e owns the rows e·r … (e+1)·r of A, and the
columns e, E+e, 2E+e, … of B: B is read as (d_out, r, E). The parameter's name is not in the keys: wrappers of several
parameters of one module are nested, the first registered innermost, and show as `.base_layer`.

Where a config lost its `target_parameters`, a module `experts` with such factors has the usual parameters, and a note
says that they were guessed. vLLM, SkyRL and Tinker write the factors in three axes, A (E, r, d_in) and B (E, d_out, r).
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lorascope.architectures import EXPERT_PARAMETERS, USUAL_EXPERT_PARAMETERS, experts_transposed
from lorascope.errors import InputError, preview
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.expert_factors import axes_swapped, in_base, per_expert
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.family import Context, Group, contradiction
from lorascope.weights.safetensors import OnDisk
from lorascope.weights.tensors import Recent, Slice

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

GUESSED = (
    "target_parameters is missing in adapter_config.json: the factors of a module `experts` are read as PEFT's of"
    " {names}; write target_parameters there where they are of other parameters"
)
THREE_AXES = "experts' factors in three axes: read as A (experts, r, d_in) and B (experts, d_out, r), as vLLM does"
NO_RANK = (
    "the factors of all experts in one matrix: how many there are, and which parameter they are of, is in the config,"
    " and there is none"
)


def are_experts(group: Group, config: Config) -> bool:
    """Whether a module's factors are those of the experts of a layer, each with a factor of its own."""
    if "lora_A" not in group or "lora_B" not in group:
        return False
    a, b = group.shape("lora_A"), group.shape("lora_B")
    if parameters_of(group.module, config):
        return True
    segments = group.module.split(".")
    if len(a) == len(b) == 3:
        convolution = a[0] == b[1] and b[2] == 1
        return "experts" in segments or (not convolution and axes_swapped(*_factors(group)) is not None)
    flat = len(a) == len(b) == 2 and a[0] == b[1] > 0
    if segments[-1] == "experts":
        return flat
    if not flat or not config.given or segments[-2:-1] != ["experts"]:
        return False
    rank = config.rank_of(group.module)
    return a[0] > rank and a[0] % rank == 0


def read_experts(groups: Sequence[Group], context: Context) -> Iterator[tuple[Group, list[Update] | str]]:
    """The updates of one module's wrappers, or why there are none. InputError where factors contradict the config."""
    config, base, notes = context.config, context.base, context.notes
    if parameters_of(groups[0].module, config):
        named = assign(groups, config, base, notes)
    else:
        named = _guessed(groups, base, notes)
    for group, parameter in named:
        path = f"{group.module}.{parameter}" if parameter else group.module
        if len(group.shape("lora_A")) == 3 or len(group.shape("lora_B")) == 3:
            yield group, _stacked(group, path, context)
        elif not config.given:
            yield group, NO_RANK
        else:
            yield group, experts(group, path, config, base, context.recent)


def _factors(group: Group) -> tuple[Stored, Stored]:
    return group.stored["lora_A"], group.stored["lora_B"]


def _guessed(groups: Sequence[Group], base: "Checkpoint | None", notes: list[str]) -> list[tuple[Group, str]]:
    """Each wrapper with the parameter that it has in the usual models; "" where the module is one by itself."""
    module = groups[0].module
    inner_first = sorted(groups, key=lambda group: -group.wrapped)
    names = list(USUAL_EXPERT_PARAMETERS.get(len(groups), ("",) * len(groups)))
    if len(groups) == 1 and base is not None and module.endswith("experts"):
        sides = {groups[0].shape("lora_A")[-1], groups[0].shape("lora_B")[-2]}
        there = {name: base.find(f"{module}.{name}") for name in EXPERT_PARAMETERS}
        fits = [name for name, stored in there.items() if stored is not None and set(stored.shape[-2:]) == sides]
        names = fits[:1] if len(fits) == 1 else names
    elif len(groups) > 1 and base is not None:
        names = _by_shape(inner_first, names, base)
    if module.endswith("experts"):
        note = GUESSED.format(names=" and ".join(filter(None, names)) or "one parameter whose name is not known")
        notes += [note] if note not in notes else []
    return list(zip(inner_first, names, strict=True))


def _stacked(group: Group, path: str, context: Context) -> list[Update]:
    """Experts whose factors have three axes."""
    config, (a, b) = context.config, _factors(group)
    keys = group.keys["lora_A"].text, group.keys["lora_B"].text
    if extra := [key.text for role, key in group.keys.items() if role not in ("lora_A", "lora_B")]:
        raise InputError(f"experts with more than A and B are not understood: {path}", found=preview(extra))
    given = config.rank_of(path) if config.given else None
    updates = list(per_expert(path, a, b, 1.0, keys, given))
    rank = updates[0].roles["A"].shape[0]
    if given not in (None, rank):
        raise contradiction(group, "lora_A", rank, f"rank {given}")
    if THREE_AXES not in context.notes:
        context.notes.append(THREE_AXES)
    scale = config.scale_of(path, rank)
    transposed = _stored_transposed(path, updates[0].shape, context.base)
    return [in_base(replace(update, scale=scale, transposed=transposed), context.base) for update in updates]


def parameters_of(module: str, config: Config) -> list[str]:
    """The parameters of a module that `target_parameters` names: the last component of each entry that fits."""
    parameters = []
    for target in config.names("target_parameters"):
        owner, _, parameter = target.rpartition(".")
        if not owner or f".{module}".endswith(f".{owner}"):
            parameters.append(parameter)
    return list(dict.fromkeys(parameters))


def assign(
    groups: Sequence[Group], config: Config, base: "Checkpoint | None", notes: list[str]
) -> list[tuple[Group, str]]:
    """Each wrapper of one module with the parameter it wraps, innermost first.

    With one wrapper and one name there is no choice. Otherwise the base's shapes decide, and without a base the order
    in which the usual models register these parameters, which a note then says.
    """
    module = groups[0].module
    names = parameters_of(module, config)
    inner_first = sorted(groups, key=lambda group: -group.wrapped)
    if len(names) != len(inner_first):
        raise InputError(
            f"{module} has {len(inner_first)} wrapped parameters, and target_parameters names {len(names)}",
            found=preview(names) or "none",
            expected="the config that was saved with these weights",
        )
    order = {name: place for place, name in enumerate(EXPERT_PARAMETERS)}
    names.sort(key=lambda name: (order.get(name, len(order)), name))
    if len(names) > 1 and base is not None:
        names = _by_shape(inner_first, names, base)
    elif len(names) > 1:
        notes.append(
            f"fused parameters: the keys do not name them, so {' and '.join(names)} are told apart by the order in "
            "which models register them; --base confirms it by their shapes"
        )
    return list(zip(inner_first, names, strict=True))


def _by_shape(groups: Sequence[Group], names: list[str], base: "Checkpoint") -> list[str]:
    """`names` in the order of the wrappers, by the shapes in the base; as they were where shapes do not decide. One
    that the base does not have fits every wrapper, so those that fit fewer come before it."""
    fits = {}
    for name in names:
        stored = base.find(f"{groups[0].module}.{name}")
        sides = set(stored.shape[-2:]) if stored is not None else None
        fits[name] = [sides in (None, {_d_out(group), _d_in(group)}) for group in groups]
    ordered = sorted(names, key=lambda name: ((*fits[name], True).index(True), sum(fits[name])))
    for index, name in enumerate(ordered):
        if not fits[name][index]:
            raise InputError(
                f"the base's {groups[0].module}.{name} does not fit the adapter",
                found=f"A {groups[index].shape('lora_A')} and B {groups[index].shape('lora_B')}",
            )
    return ordered


def _d_in(group: Group) -> int:
    return group.shape("lora_A")[1]


def _d_out(group: Group) -> int:
    return group.shape("lora_B")[0]


def experts(group: Group, path: str, config: Config, base: "Checkpoint | None", recent: Recent) -> list[Update]:
    """One update for each expert, `path[e]`; or one for a parameter that is a single matrix."""
    group.need("lora_A", "lora_B")
    a, b = _factors(group)
    rank = config.rank_of(path)
    fits = len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1] and a.shape[0] % rank == 0
    if not fits or 0 in (*a.shape, *b.shape):  # without entries a shape may promise any number of experts
        raise InputError(
            f"the factors of {path} do not fit together",
            found=f"{group.keys['lora_A'].text} {tuple(a.shape)} and {group.keys['lora_B'].text} {tuple(b.shape)}",
            expected=f"A (experts · {rank}, d_in) and B (d_out, {rank} · experts)",
        )
    count = a.shape[0] // rank
    transposed = _stored_transposed(path, (b.shape[0], a.shape[1]), base)
    scale = config.scale_of(path, rank)
    if count == 1:
        name = group.module if path == f"{group.module}.weight" else path
        return [Update(name, "low_rank", {"A": a, "B": b}, scale, transposed, base_weight=path)]
    updates = (
        Update(
            name=f"{path}[{expert}]",
            kind="low_rank",
            roles={"A": _rows(a, expert, rank, recent), "B": _columns(b, expert, rank, count, recent)},
            scale=scale,
            transposed=transposed,
            base_weight=path,
            expert=expert,
        )
        for expert in range(count)
    )
    return [in_base(update, base) for update in updates]


def _rows(a: Stored, expert: int, rank: int, recent: Recent) -> Stored:
    start, stop = expert * rank, (expert + 1) * rank
    if isinstance(a, OnDisk):
        return a.rows(start, stop)
    return Slice(a, (rank, a.shape[1]), lambda values: values[start:stop], recent)


def _columns(b: Stored, expert: int, rank: int, count: int, recent: Recent) -> Stored:
    return Slice(b, (b.shape[0], rank), lambda values: values.reshape(-1, rank, count)[:, :, expert], recent)


def _stored_transposed(path: str, shape: tuple[int, int], base: "Checkpoint | None") -> bool:
    """Whether the base stores each expert as (d_in, d_out): by its shape, and of a square by the model's class."""
    stored = base.find(path) if base is not None else None
    if base is None or stored is None:
        return False
    if shape[0] == shape[1]:
        return len(stored.shape) == 3 and bool(experts_transposed(base.config))
    return tuple(stored.shape[-2:]) == shape[::-1]
