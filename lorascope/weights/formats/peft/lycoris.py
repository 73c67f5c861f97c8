"""LoHa and LoKr as PEFT writes them: no `.alpha` tensors, the scale is α/r of the config for both, always."""

import math

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.peft.config import Config, ScaleFields
from lorascope.weights.formats.peft.family import Context, Family, Group, Written, check_rank, families, refuse
from lorascope.weights.formats.peft.keys import PREFIX
from lorascope.weights.formats.peft.rank_patterns import scale_fields
from lorascope.weights.support import Support
from lorascope.weights.tensors import Combined, flattened, transposed

_SCALES = ScaleFields(alpha="alpha")
_FIELDS = """
    alpha rank_dropout module_dropout use_effective_conv2d decompose_both decompose_factor rank_dropout_scale
    init_weights
"""


class LoHa(Family):
    peft_types = {"LOHA": frozenset({"hadamard"})}
    methods = {"hadamard": "LoHa"}
    roles = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")
    marks = frozenset(roles)
    fields = _FIELDS
    scales = _SCALES
    kinds_written = frozenset({"hadamard"})

    def read(self, group: Group, context: Context) -> Update:
        return loha(group, context.config)

    def write(self, adapter: Adapter) -> Written:
        return _written_loha(adapter)


class LoKr(Family):
    peft_types = {"LOKR": frozenset({"kronecker", "dense"})}
    methods = {"kronecker": "LoKr", "dense": "LoKr"}
    roles = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    marks = frozenset(roles)
    fields = _FIELDS
    scales = _SCALES

    def read(self, group: Group, context: Context) -> Update:
        return lokr(group, context.config)


families.register("loha")(LoHa())
families.register("lokr")(LoKr())


def loha(group: Group, config: Config) -> Update:
    """LoHa: w1_a (d_out, r), w1_b (r, d_in), w2 alike; of a Tucker convolution (r, d_out), (r, c_in), t (r, r, *k)."""
    group.need("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    _check_axes(group, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    roles: dict[str, Stored] = {}
    kernel: tuple[int, ...] = ()
    rank = check_rank(group, config, group.size("hada_w1_b", 0), "hada_w1_b")
    tucker = "hada_t1" in group or "hada_t2" in group
    if tucker:
        group.need("hada_t1", "hada_t2")
        kernel = _kernel(group, "hada_t1")
    for n in ("1", "2"):
        left, right = group.stored[f"hada_w{n}_a"], group.stored[f"hada_w{n}_b"]
        if tucker:
            right = with_core(group, f"hada_t{n}", f"hada_w{n}_a", f"hada_w{n}_b")
            left = transposed(left)
        roles[f"w{n}_a"], roles[f"w{n}_b"] = left, right
    return Update(
        name=group.module,
        kind="hadamard",
        roles=roles,
        scale=config.scale_of(group.module, rank),
        kernel=kernel,
    )


def lokr(group: Group, config: Config) -> Update:
    """LoKr: w1 (a, b) ⊗ w2 (c, d, *kernel), each whole or factored; of a Tucker convolution w2 is (r, c), (r, d), t."""
    roles: dict[str, Stored] = {}
    kernel: tuple[int, ...] = ()
    for n in ("1", "2"):
        whole, left, right = (f"lokr_w{n}{ending}" for ending in ("", "_a", "_b"))
        if whole in group:
            continue
        group.need(left, right)
        _check_axes(group, left, right)
        check_rank(group, config, group.shape(right)[0], right)
        roles[f"w{n}_a"], roles[f"w{n}_b"] = group.stored[left], group.stored[right]
    if "lokr_t2" in group:
        group.need("lokr_w2_a", "lokr_w2_b")
        kernel = _kernel(group, "lokr_t2")
        roles["w2_a"] = transposed(group.stored["lokr_w2_a"])
        roles["w2_b"] = with_core(group, "lokr_t2", "lokr_w2_a", "lokr_w2_b")
    if "lokr_w1" in group:
        _check_axes(group, "lokr_w1")
        roles["w1"] = group.stored["lokr_w1"]
    scale = config.scale_of(group.module, config.rank_of(group.module))
    if "lokr_w2" in group:
        w2 = group.stored["lokr_w2"]
        if len(w2.shape) == 3:
            return _as_peft_reshapes(group, roles, w2, scale)
        if len(w2.shape) < 2:
            raise InputError(f"{group.keys['lokr_w2'].text} is not a matrix", found=tuple(w2.shape))
        kernel = tuple(w2.shape[2:])
        roles["w2"] = flattened(w2)
    return Update(name=group.module, kind="kronecker", roles=roles, scale=scale, kernel=kernel)


def _as_peft_reshapes(group: Group, roles: dict[str, Stored], w2: Stored, scale: float) -> Update:
    """A 1-d convolution with w2 (c, d, k) whole: PEFT takes the Kronecker product along the wrong axes, then reshapes.

    What its layer computes is that reshaped array, so that is the update: kron(w1 (1, a, b), w2) is (c, a·d, b·k), read
    as (a·c, b·d, k).
    """
    first = (roles["w1"],) if "w1" in roles else (roles["w1_a"], roles["w1_b"])
    a, b = first[0].shape[0], first[-1].shape[1]
    c, d, k = w2.shape
    shape = (a * c, b * d * k)

    def product(*arrays: np.ndarray) -> np.ndarray:
        *w1, last = arrays
        return np.kron((w1[0] if len(w1) == 1 else w1[0] @ w1[1])[None], last).reshape(shape)

    return Update(
        name=group.module,
        kind="dense",
        roles={"delta": Combined((*first, w2), shape, product)},
        scale=scale,
        kernel=(k,),
        notes=("PEFT's LoKr of a 1-d convolution is not a Kronecker product; the update is what its layer computes",),
    )


def with_core(group: Group, core: str, left: str, right: str) -> Stored:
    """A Tucker core t (r, r, k1, k2) and its factor b (r, c_in) as one matrix (r, c_in · k1 · k2)."""
    t, a, b = (group.stored[role] for role in (core, left, right))
    rank, c_in = b.shape
    if len(t.shape) < 3 or tuple(t.shape[:2]) != (a.shape[0], rank):
        raise InputError(
            f"the factors of {group.module} do not fit its core",
            found=f"{tuple(t.shape)}, {tuple(a.shape)} and {tuple(b.shape)}",
            expected="(r, r, k1, k2), (r, d_out) and (r, c_in)",
        )
    width = c_in * math.prod(t.shape[2:])

    def contract(cores: np.ndarray, factor: np.ndarray) -> np.ndarray:
        return np.einsum("ijk,jc->ick", cores.reshape(*cores.shape[:2], -1), factor).reshape(len(cores), width)

    return Combined((t, b), (t.shape[0], width), contract)


def _kernel(group: Group, core: str) -> tuple[int, ...]:
    """The kernel's sides; a 1-d convolution's core has a last axis of one, which cannot be told from a k × 1 kernel."""
    return tuple(group.shape(core)[2:])


def _check_axes(group: Group, *roles: str) -> None:
    for role in roles:
        if len(group.shape(role)) != 2:
            raise InputError(f"{group.keys[role].text} is not a matrix", found=group.shape(role))


def _written_loha(adapter: Adapter) -> Written:
    tensors: dict[str, Stored] = {}
    for update in adapter.updates.values():
        refuse(update, bool(update.kernel), "a Tucker core was multiplied into its factor and cannot be written back")
        tensors |= {f"{PREFIX}{update.name}.hada_{role}": stored for role, stored in update.roles.items()}
    ranked = [(update, update.roles["w1_b"].shape[0]) for update in adapter.updates.values()]
    return Written(tensors, {"peft_type": "LOHA", **scale_fields(adapter, ranked, _SCALES)})


SUPPORT = (
    Support("LoHa", "PEFT's merge in float64", peft="LOHA"),
    Support("LoKr", "PEFT's merge in float64", peft="LOKR"),
)
