"""VeRA in PEFT's files: two vectors of each module, and one pair of projections for all of them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lorascope.architectures import READ_HIDDEN
from lorascope.errors import InputError
from lorascope.inputs import parse_json
from lorascope.updates.base import MAX_DRAWN, Stored, Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.peft.config import Config, ScaleFields
from lorascope.weights.formats.peft.draws import drawn_again, seed_of
from lorascope.weights.formats.peft.family import Context, Family, Group, Written, families, refuse
from lorascope.weights.formats.peft.keys import PREFIX
from lorascope.weights.quantised import HINT, Unreadable
from lorascope.weights.support import Support
from lorascope.weights.tensors import InMemory, Recent, Slice

if TYPE_CHECKING:
    from lorascope.weights.checkpoint import Checkpoint

KEY = "projection_prng_key"
WIDTHS = "vera_input_widths"  # in the safetensors header: d_in by module, which PEFT does not write and does not miss
NO_WIDTH = (
    "the file does not say this module's input width, which decides how many columns of the shared projection it uses; "
    "pass --base MODEL"
)
NO_PROJECTION = (
    "the projections are not in the file, and to draw them again from projection_prng_key the widths of all "
    "target modules are needed; pass --base MODEL"
)


class VeRA(Family):
    """The shared projections stand under no module, or (in a raw state dict) again under each."""

    peft_types = {"VERA": frozenset({"vera"})}
    methods = {"vera": "VeRA"}
    roles = ("vera_lambda_b", "vera_lambda_d", "vera_A", "vera_B")
    marks = frozenset(roles)
    fields = "projection_prng_key save_projection vera_dropout d_initial init_weights"
    scales = ScaleFields(default_rank=256)
    kinds_written = frozenset({"vera"})
    rows_of_a: ClassVar[int] = 1  # times r; the first r are ΔW's

    def waits(self, group: Group, context: Context) -> bool:
        return True

    def read_together(self, groups: Sequence[Group], context: Context) -> Iterator[tuple[Group, list[Update] | str]]:
        modules = [group for group in groups if "vera_lambda_b" in group or "vera_lambda_d" in group]
        holders = sorted((group for group in groups if "vera_A" in group), key=lambda group: group.module)
        stored = None
        if holders:
            holders[0].need("vera_A", "vera_B")
            stored = holders[0].stored["vera_A"], holders[0].stored["vera_B"]
        results = vera(modules, stored, context, self.methods["vera"], self.rows_of_a) if modules else {}
        read_any = any(isinstance(result, Update) for result in results.values())
        for group in sorted(groups, key=lambda group: group.module not in results):  # the projections last
            result = results.get(group.module)
            if isinstance(result, Update):
                yield group, [result]
            elif result is None and holders and group is holders[0] and read_any:
                yield group, []
            else:
                yield group, result or "VeRA's projection, of which one copy is enough"

    def write(self, adapter: Adapter) -> Written:
        return _written(adapter)


families.register("vera")(VeRA())


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
    context: Context,
    method: str = "VeRA",
    rows_of_a: int = 1,
) -> dict[str, Update | str]:
    """VeRA's updates by module, or the reason why a module has none.

    Args:
        stored: the projections A and B, where the file has them; else they are drawn again from the config's key.
        method: its name.
        rows_of_a: how many times r rows A has.
    """
    config, base, notes = context.config, context.base, context.notes
    if stored is not None and any(len(each.shape) != 2 for each in stored):
        raise InputError("VeRA's projections are not matrices", found=[tuple(each.shape) for each in stored])
    for group in groups:
        group.need("vera_lambda_b", "vera_lambda_d")
        if len(group.shape("vera_lambda_b")) != 1 or len(group.shape("vera_lambda_d")) != 1:
            raise InputError(f"the VeRA tensors of {group.module} are not vectors", found=group.shape("vera_lambda_b"))
        if config.given and group.shape("vera_lambda_d")[0] != config.rank:
            raise InputError(
                f"adapter_config.json contradicts the tensors: {group.keys['vera_lambda_d'].text}",
                found=group.shape("vera_lambda_d"),
                expected=f"rank {config.rank}",
            )
    known_widths = widths_of(context.metadata)
    widths = {group.module: _width(group, config, base, known_widths) for group in groups}
    if stored is None:
        if any(width is None for width in widths.values()) or not config.given:
            return {group.module: NO_PROJECTION for group in groups}
        widest = max(width for width, _ in filter(None, widths.values()))
        stored = _redrawn(groups, widest, config, rows_of_a)
        notes.append(drawn_again(f"{method}: the projections", KEY, seed_of(config, KEY)))
    elif base is None and not any(widths.values()) and _all_read_hidden(groups):
        widths = {group.module: (stored[0].shape[1], config.flag("fan_in_fan_out")) for group in groups}
        notes.append(
            f"{method}: every module's input width was taken to be that of the stored projection; --base confirms it"
        )
    projections = Projections(*stored, Recent())
    return {
        group.module: projections.update(group, *width) if (width := widths[group.module]) else NO_WIDTH
        for group in groups
    }


def widths_of(metadata: Mapping[str, str]) -> dict[str, int]:
    """d_in by module as lorascope writes it into the safetensors header; empty where it is not there, or is none."""
    try:
        widths = parse_json(metadata.get(WIDTHS, "{}"))
    except ValueError:
        return {}
    valid = isinstance(widths, dict) and all(type(width) is int and 0 < width < 1 << 48 for width in widths.values())
    return widths if valid else {}


def _width(
    group: Group, config: Config, base: "Checkpoint | None", known_widths: Mapping[str, int]
) -> tuple[int, bool] | None:
    """(d_in, whether the base stores (d_in, d_out)) of a module, from the base, or `known_widths`; or None."""
    flag = config.flag("fan_in_fan_out")
    if base is None:
        return (known_widths[group.module], flag) if group.module in known_widths else None
    weight = base.weight(group.module)
    if isinstance(weight, Unreadable):
        raise InputError(f"{group.module}: {weight.reason}", hint=HINT)
    shape = tuple(weight.shape)
    d_out = group.shape("vera_lambda_b")[0]
    for transposed in (flag, not flag):
        if len(shape) == 2 and shape[1 if transposed else 0] == d_out:
            return shape[0 if transposed else 1], transposed
    raise InputError(f"the base weight of {group.module} does not fit its VeRA vector", found=shape, expected=d_out)


def _all_read_hidden(groups: Sequence[Group]) -> bool:
    """Whether all modules must have one input width: one kind of module, or kinds that all read the hidden state."""
    outputs: dict[str, set[int]] = {}
    for group in groups:
        outputs.setdefault(group.module.rpartition(".")[2], set()).add(group.shape("vera_lambda_b")[0])
    uniform = all(len(sizes) == 1 for sizes in outputs.values())
    return uniform and (len(outputs) == 1 or set(outputs) <= READ_HIDDEN)


def _redrawn(groups: Sequence[Group], d_in: int, config: Config, rows_of_a: int) -> tuple[Stored, Stored]:
    """A and B as PEFT draws them again, by the config's key."""
    d_out = max(group.shape("vera_lambda_b")[0] for group in groups)
    a, b = draw_projections(seed_of(config, KEY), config.rank, d_in, d_out, rows_of_a)
    return InMemory(a), InMemory(b)


def draw_projections(key: int, rank: int, d_in: int, d_out: int, rows_of_a: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A (r · rows_of_a, d_in) and B (d_out, r) of VeRA in float32, as PEFT draws them from its `projection_prng_key`.

    Kaiming uniform with gain √2, so U(±√(6/columns)); A first, then B, from one generator of torch on the CPU.
    """
    import torch

    if rank * max(rows_of_a * d_in, d_out) > MAX_DRAWN:
        raise InputError(
            "VeRA's projections are too large to draw", found=f"({rank}, {d_in}) and ({d_out}, {rank})",
            expected=f"at most {MAX_DRAWN:,} entries",
        )  # fmt: skip
    generator = torch.Generator(device="cpu").manual_seed(key)
    bounds = [math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(columns)) for columns in (d_in, rank)]  # PEFT's rounding
    a = torch.empty(rows_of_a * rank, d_in).uniform_(-bounds[0], bounds[0], generator=generator)
    b = torch.empty(d_out, rank).uniform_(-bounds[1], bounds[1], generator=generator)
    return a.numpy(), b.numpy()


def _written(adapter: Adapter) -> Written:
    """VeRA. The projections must be one pair, of which every module has the first columns and rows.

    They are stored, unless the settings say `save_projection: false` and their key does give these very numbers.
    """
    updates = list(adapter.updates.values())
    widest = max(updates, key=lambda update: update.roles["A"].shape[1])
    tallest = max(updates, key=lambda update: update.roles["B"].shape[0])
    refuse(widest, any(update.scale != 1 for update in updates), "PEFT's VeRA has no scale")
    a, b = widest.roles["A"].read(), tallest.roles["B"].read()
    key = adapter.settings.get("projection_prng_key")
    redrawn = adapter.settings.get("save_projection") is False and _is_draw(key, a, b)
    tensors: dict[str, Stored] = {}
    if not redrawn:
        tensors = {"base_model.vera_A": widest.roles["A"], "base_model.vera_B": tallest.roles["B"]}
    for update in updates:
        arrays = update.read()
        same = arrays["A"].shape[0] == a.shape[0] and np.array_equal(arrays["A"], a[:, : arrays["A"].shape[1]])
        same = same and np.array_equal(arrays["B"], b[: arrays["B"].shape[0]])
        refuse(update, not same, "PEFT's VeRA shares one pair of projections; write it as LoRA instead")
        tensors[f"{PREFIX}{update.name}.vera_lambda_b"] = update.roles["b"]
        tensors[f"{PREFIX}{update.name}.vera_lambda_d"] = update.roles["d"]
    widths = {update.name: update.roles["A"].shape[1] for update in updates}
    config = {
        "peft_type": "VERA",
        "r": a.shape[0],
        "save_projection": not redrawn,
        "fan_in_fan_out": any(update.transposed for update in updates),
    }
    return Written(tensors, config, {WIDTHS: json.dumps(widths)})


def _is_draw(key: Any, a: np.ndarray, b: np.ndarray) -> bool:
    """Whether PEFT draws this pair from this key."""
    if type(key) is not int or not 0 <= key < 1 << 63:
        return False
    drawn = draw_projections(key, a.shape[0], a.shape[1], b.shape[0])
    return np.array_equal(drawn[0], a) and np.array_equal(drawn[1], b)


SUPPORT = (
    Support("VeRA", "PEFT's merge in float64", base="for shapes, where the projections are not stored", peft="VERA"),
)
