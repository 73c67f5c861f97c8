"""RandLoRA in PEFT's files: λ (r, n) and γ (n, shorter side) of each module, and one pair of projections for all."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lorascope.errors import InputError
from lorascope.updates.base import MAX_DRAWN, Stored, Update
from lorascope.weights.formats.peft.config import ScaleFields
from lorascope.weights.formats.peft.draws import drawn_again, seed_of
from lorascope.weights.formats.peft.family import Context, Family, Group, check_rank, families
from lorascope.weights.formats.peft.places import place_of
from lorascope.weights.support import Support
from lorascope.weights.tensors import InMemory, Recent, Slice

COPY = "RandLoRA's projection, of which one copy is enough"


class RandLoRA(Family):
    """PEFT writes the projections once above all modules, and again below each."""

    peft_types = {"RANDLORA": frozenset({"randlora"})}
    methods = {"randlora": "RandLoRA"}
    roles = ("randlora_lambda", "randlora_gamma", "randlora_A", "randlora_B")
    marks = frozenset(roles)
    fields = "projection_prng_key save_projection sparse very_sparse randlora_dropout randlora_alpha init_weights"
    scales = ScaleFields(default_rank=32, alpha="randlora_alpha", patterns=False, default_alpha=640)

    def waits(self, group: Group, context: Context) -> bool:
        return True

    def read_together(self, groups: Sequence[Group], context: Context) -> Iterator[tuple[Group, list[Update] | str]]:
        modules = [group for group in groups if "randlora_lambda" in group or "randlora_gamma" in group]
        holders = sorted((group for group in groups if "randlora_A" in group), key=lambda group: group.module)
        sides = {group.module: _sides(group, holders, context) for group in modules}
        if holders:
            holders[0].need("randlora_A", "randlora_B")
            stored = holders[0].stored["randlora_A"], holders[0].stored["randlora_B"]
        else:
            stored = _drawn(list(sides.values()), context)
        projections = _Projections(*stored, Recent())
        for group in modules:
            yield group, [projections.update(group, sides[group.module], context)]
        for group in groups:
            if group not in modules:
                yield group, [] if modules and holders and group is holders[0] else COPY


families.register("randlora")(RandLoRA())


@dataclass(frozen=True)
class _Sides:
    """A module's shape, as the base or the file tells it."""

    d_out: int
    d_in: int
    transposed: bool

    @property
    def narrow(self) -> int:
        return min(self.d_out, self.d_in)

    @property
    def wide(self) -> int:
        return max(self.d_out, self.d_in)


def _sides(group: Group, holders: Sequence[Group], context: Context) -> _Sides:
    """From the base; from the file where the projections leave no choice, as the longest side there is not longer."""
    group.need("randlora_lambda", "randlora_gamma")
    if any(len(group.shape(role)) != 2 for role in ("randlora_lambda", "randlora_gamma")):
        raise InputError(
            f"the RandLoRA tensors of {group.module} are not matrices", found=group.shape("randlora_gamma")
        )
    narrow = group.shape("randlora_gamma")[1]
    if context.base is None and holders and "randlora_B" in holders[0] and narrow == holders[0].size("randlora_B", 0):
        return _Sides(narrow, narrow, context.config.flag("fan_in_fan_out"))
    place = place_of(group.module, context)
    sides = _Sides(*place.shape, place.transposed)
    if sides.narrow != narrow:
        raise InputError(f"the base weight of {group.module} does not fit its γ", found=place.shape, expected=narrow)
    return sides


@dataclass(frozen=True)
class _Projections:
    """The shared A (r, 1, shortest side) and B (longest side, bases, r), each decoded once for all modules."""

    A: Stored
    B: Stored
    recent: Recent

    def update(self, group: Group, sides: _Sides, context: Context) -> Update:
        (rank, bases), narrow, wide = group.shape("randlora_lambda"), sides.narrow, sides.wide
        check_rank(group, context.config, rank, "randlora_lambda")
        a, b = tuple(self.A.shape), tuple(self.B.shape)
        fits = len(a) == len(b) == 3 and a[:2] == (rank, 1) and b[2] == rank
        if not fits or a[2] < narrow or b[0] < wide or b[1] < bases or group.shape("randlora_gamma")[0] != bases:
            raise InputError(
                f"RandLoRA's projections do not fit {group.module}",
                found=f"A {a} and B {b}",
                expected=f"at least ({rank}, 1, {narrow}) and ({wide}, {bases}, {rank})",
            )
        side, other = ("in", "out") if sides.d_in <= sides.d_out else ("out", "in")
        roles = {
            "lambda": group.stored["randlora_lambda"],
            f"gamma_{side}": group.stored["randlora_gamma"],
            f"A_{side}": Slice(self.A, (rank, narrow), lambda values: values[:, 0, :narrow], self.recent),
            f"B_{other}": Slice(self.B, (wide, bases, rank), lambda values: values[:wide, :bases], self.recent),
        }
        scale = context.config.scale_of(group.module, rank)
        return Update(group.module, "randlora", roles, scale, sides.transposed)


def _drawn(modules: Sequence[_Sides], context: Context) -> tuple[Stored, Stored]:
    """A and B as PEFT draws them again, by the config's key (tuners/randlora/model.py)."""
    import torch

    config = context.config
    key, rank = seed_of(config, "projection_prng_key"), config.rank
    out, into = max(each.d_out for each in modules), max(each.d_in for each in modules)
    wide, narrow = max(out, into), min(out, into)
    bases = -(-narrow // rank)
    if wide * bases * rank > MAX_DRAWN:  # of B, which is not smaller than A
        raise InputError(
            "RandLoRA's projections are too large to draw",
            found=f"({wide}, {bases}, {rank})", expected=f"at most {MAX_DRAWN:,} entries",
        )  # fmt: skip
    generator = torch.Generator("cpu").manual_seed(key)
    context.notes.append(drawn_again("RandLoRA: the projections", "projection_prng_key", key))
    if config.flag("sparse") or config.flag("very_sparse"):
        sparsity = math.sqrt(narrow) if config.flag("very_sparse") else 3
        dense = [torch.rand(shape, generator=generator) for shape in ((rank, 1, narrow), (wide, bases, rank))]
        edge = 1 / (2 * sparsity)
        drawn = [(each > 1 - edge).float() - (each < edge).float() for each in dense]
    else:
        first = _kaiming((rank, 1, narrow), generator)
        drawn = [first, torch.cat([_kaiming((wide, 1, rank), generator) for _ in range(bases)], dim=1)]
    a, b = (each / each.std() for each in drawn)
    return InMemory(a.float().numpy()), InMemory(b.float().numpy())


def _kaiming(shape: tuple[int, ...], generator):
    """Uniform in ±1/√(last axis), in bfloat16, as PEFT draws on every machine that knows this type."""
    import torch

    return torch.nn.init.kaiming_uniform_(torch.empty(shape, dtype=torch.bfloat16), a=math.sqrt(5), generator=generator)


SUPPORT = (
    Support("RandLoRA", "PEFT's merge in float64", base="for shapes that are not square", peft="RANDLORA"),
)  # fmt: skip
