"""Methods that train vectors only, in PEFT's files: VeRA and IA³."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lorascope.architectures import READ_HIDDEN
from lorascope.errors import InputError
from lorascope.inputs import parse_json
from lorascope.patterns import Pattern
from lorascope.updates.base import MAX_DRAWN, Stored, Update
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.lora import Group
from lorascope.weights.quantised import HINT, Unreadable
from lorascope.weights.tensors import InMemory, Recent, Slice, reshaped

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

WIDTHS = "vera_input_widths"  # in the safetensors header: d_in by module, which PEFT does not write and does not miss
NO_WIDTH = (
    "the file does not say this module's input width, which decides how many columns of the shared projection it uses; "
    "pass --base MODEL"
)
NO_PROJECTION = (
    "the projections are not in the file, and to draw them again from projection_prng_key the widths of all "
    "target modules are needed; pass --base MODEL"
)


@dataclass(frozen=True)
class Projections:
    """The shared A (r, widest d_in) and B (widest d_out, r), each decoded once for all modules."""

    A: Stored
    B: Stored
    recent: Recent

    def update(self, group: Group, d_in: int, transposed: bool) -> Update:
        d, b = group.stored["vera_lambda_d"], group.stored["vera_lambda_b"]
        rank, d_out = d.shape[0], b.shape[0]
        if self.A.shape[0] < rank or self.B.shape[1] < rank or self.A.shape[1] < d_in or self.B.shape[0] < d_out:
            raise InputError(
                f"VeRA's projections are too small for {group.module}",
                found=f"A {tuple(self.A.shape)} and B {tuple(self.B.shape)}",
                expected=f"at least ({rank}, {d_in}) and ({d_out}, {rank})",
            )
        roles = {
            "A": Slice(self.A, (rank, d_in), lambda values: values[:rank, :d_in], self.recent),
            "B": Slice(self.B, (d_out, rank), lambda values: values[:d_out, :rank], self.recent),
            "d": d,
            "b": b,
        }
        return Update(name=group.module, kind="vera", roles=roles, transposed=transposed)


def vera(
    groups: Sequence[Group],
    stored: tuple[Stored, Stored] | None,
    config: Config,
    base: "Checkpoint | None",
    notes: list[str],
    known: Mapping[str, int],
) -> dict[str, Update | str]:
    """VeRA's updates by module, or the reason why a module has none.

    Args:
        known: widths that the file itself tells, d_in by module.
        stored: the projections A and B, where the file has them; else they are drawn again from the config's key.
    """
    if stored is not None and any(len(each.shape) != 2 for each in stored):
        raise InputError("VeRA's projections are no matrices", found=[tuple(each.shape) for each in stored])
    for group in groups:
        group.need("vera_lambda_b", "vera_lambda_d")
        if len(group.shape("vera_lambda_b")) != 1 or len(group.shape("vera_lambda_d")) != 1:
            raise InputError(f"{group.module} has VeRA vectors that are no vectors", found=group.shape("vera_lambda_b"))
        if config.given and group.shape("vera_lambda_d")[0] != config.rank:
            raise InputError(
                f"adapter_config.json contradicts the tensors: {group.keys['vera_lambda_d'].text}",
                found=group.shape("vera_lambda_d"),
                expected=f"rank {config.rank}",
            )
    widths = {group.module: _width(group, config, base, known) for group in groups}
    if stored is None:
        if any(width is None for width in widths.values()) or not config.given:
            return {group.module: NO_PROJECTION for group in groups}
        stored = _redrawn(groups, [width for width, _ in filter(None, widths.values())], config, notes)
    elif base is None and not any(widths.values()) and _all_read_hidden(groups):
        widths = {group.module: (stored[0].shape[1], config.flag("fan_in_fan_out")) for group in groups}
        notes.append(
            "VeRA: every module's input width was taken to be that of the stored projection; --base confirms it"
        )
    projections = Projections(*stored, Recent())
    return {
        group.module: projections.update(group, *width) if (width := widths[group.module]) else NO_WIDTH
        for group in groups
    }


def widths_of(metadata: Mapping[str, str]) -> dict[str, int]:
    """d_in by module as lorascope writes it into the safetensors header; empty where it is not there, or is none."""
    try:
        said = parse_json(metadata.get(WIDTHS, "{}"))
    except ValueError:
        return {}
    fine = isinstance(said, dict) and all(type(width) is int and 0 < width < 1 << 48 for width in said.values())
    return said if fine else {}


def _width(
    group: Group, config: Config, base: "Checkpoint | None", known: Mapping[str, int]
) -> tuple[int, bool] | None:
    """(d_in, whether the base stores (d_in, d_out)) of a module, from the base, or `known`; or None."""
    flag = config.flag("fan_in_fan_out")
    if base is None:
        return (known[group.module], flag) if group.module in known else None
    weight = base.weight(group.module)
    if isinstance(weight, Unreadable):
        raise InputError(f"{group.module}: {weight.reason}", hint=HINT)
    shape = tuple(weight.shape)
    d_out = group.shape("vera_lambda_b")[0]
    for turned in (flag, not flag):
        if len(shape) == 2 and shape[1 if turned else 0] == d_out:
            return shape[0 if turned else 1], turned
    raise InputError(f"the base weight of {group.module} does not fit its VeRA vector", found=shape, expected=d_out)


def _all_read_hidden(groups: Sequence[Group]) -> bool:
    """Whether all modules must have one input width: one kind of module, or kinds that all read the hidden state."""
    outputs: dict[str, set[int]] = {}
    for group in groups:
        outputs.setdefault(group.module.rpartition(".")[2], set()).add(group.shape("vera_lambda_b")[0])
    uniform = all(len(sizes) == 1 for sizes in outputs.values())
    return uniform and (len(outputs) == 1 or set(outputs) <= READ_HIDDEN)


def _redrawn(groups: Sequence[Group], widths: list[int], config: Config, notes: list[str]) -> tuple[Stored, Stored]:
    """A and B as PEFT draws them again, by the config's key."""
    import torch

    key = config.raw.get("projection_prng_key", 0)
    if type(key) is not int or not 0 <= key < 1 << 63:
        raise InputError("adapter_config.json: projection_prng_key is no seed", found=key)
    d_out = max(group.shape("vera_lambda_b")[0] for group in groups)
    notes.append(
        f"VeRA: the projections are not in the file; they were drawn again from projection_prng_key {key} with torch "
        f"{torch.__version__}, which PEFT does too and does not guarantee across systems"
    )
    a, b = draw_projections(key, config.rank, max(widths), d_out)
    return InMemory(a), InMemory(b)


def draw_projections(key: int, rank: int, d_in: int, d_out: int) -> tuple[np.ndarray, np.ndarray]:
    """A (r, d_in) and B (d_out, r) of VeRA in float32, as PEFT draws them from its `projection_prng_key`.

    Kaiming uniform with gain √2, so U(±√(6/columns)); A first, then B, from one generator of torch on the CPU.
    """
    import torch

    if rank * max(d_in, d_out) > MAX_DRAWN:
        raise InputError(
            "VeRA's projections are too large to draw", found=f"({rank}, {d_in}) and ({d_out}, {rank})",
            expected=f"at most {MAX_DRAWN:,} entries",
        )  # fmt: skip
    generator = torch.Generator(device="cpu").manual_seed(key)
    bounds = [math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(columns)) for columns in (d_in, rank)]  # PEFT's rounding
    a = torch.empty(rank, d_in).uniform_(-bounds[0], bounds[0], generator=generator)
    b = torch.empty(d_out, rank).uniform_(-bounds[1], bounds[1], generator=generator)
    return a.numpy(), b.numpy()


def ia3(group: Group, config: Config, base: "Checkpoint | None" = None) -> Update:
    """IA³: one factor for each output, stored (d_out, 1), or for each input of a feed-forward module, (1, d_in).

    A convolution's is (1, channels, 1, ...) either way, and the config says which.
    """
    l = group.stored["ia3_l"]
    shape = tuple(l.shape)
    size = math.prod(shape)
    feedforward = _is_feedforward(group.module, config)
    if len(shape) < 2 or sum(side != 1 for side in shape) > 1:
        raise InputError(f"{group.keys['ia3_l'].text} is no vector", found=shape, expected="(d_out, 1) or (1, d_in)")
    inward = shape[0] == 1 if len(shape) == 2 and size > 1 else feedforward
    if config.given and inward != feedforward:
        raise InputError(
            f"adapter_config.json contradicts the tensors: {group.keys['ia3_l'].text} scales "
            f"{'inputs' if inward else 'outputs'}",
            found=shape,
            expected="feedforward_modules to say the same",
        )
    note = () if inward else ("it scales the output's bias too",)
    return Update(
        name=group.module,
        kind="scaling",
        roles={"in_scale" if inward else "out_scale": reshaped(l, size)},
        transposed=_is_turned(group.module, size, 1 if inward else 0, config, base),
        kernel=(1,) * (len(shape) - 2),
        notes=note,
    )


def _is_turned(module: str, size: int, axis: int, config: Config, base: "Checkpoint | None") -> bool:
    """Whether the base stores (d_in, d_out): the only way round that the vector fits, else what the config says."""
    stored = base.find(module) if base is not None else None
    if stored is None or len(stored.shape) != 2 or stored.shape[0] == stored.shape[1]:
        return config.flag("fan_in_fan_out")
    return stored.shape[1 - axis] == size


def _is_feedforward(module: str, config: Config) -> bool:
    """PEFT's own test: a string is a regex for the whole path, a list is of endings."""
    named = config.raw.get("feedforward_modules")
    if isinstance(named, str):
        return Pattern(named, "adapter_config.json: feedforward_modules").fullmatch(module) is not None
    return any(module.endswith(ending) for ending in config.names("feedforward_modules"))
