"""TinyLoRA in PEFT's files: A and B of each module from W's singular directions, and R between them, a mixture of
random matrices: ΔW = B·(Σ_i v_i·P_i)·A, with the vector v of the module's group.

"Learning to Reason in 13 Parameters", 2026, arXiv 2602.04118, as PEFT computes it (tuners/tinylora). The file has the
vectors by the number of their group, and groups are of modules next to each other in the model's order. P tells a
module's place in it: it is drawn from the seed and that place. Without P the order is that of the base's class.
"""

import re
from collections.abc import Mapping

import numpy as np

from lorascope.architectures import EMBEDDINGS
from lorascope.errors import InputError, preview
from lorascope.updates.base import MAX_DRAWN, Stored, Update
from lorascope.weights.formats.base import Ledger
from lorascope.weights.formats.peft.draws import drawn_again, seed_of
from lorascope.weights.formats.peft.family import Context, Family, Rest, families
from lorascope.weights.formats.peft.keys import body
from lorascope.weights.formats.peft.lora import is_transposed
from lorascope.weights.formats.peft.order import in_order
from lorascope.weights.support import Support
from lorascope.weights.tensors import Combined, transposed
from lorascope.weights.torch_stream import normals

_MODULE = re.compile(r"^(?P<module>.+)\.tinylora_(?P<role>[ABP])(?:\.[^.]+)?$")
_VECTOR = re.compile(r"^tinylora_v\.(?:[^.]+\.)?(?P<group>\d+)$")
SEED = "projection_seed"


class TinyLoRA(Family):
    peft_types = {"TINYLORA": frozenset({"core"})}
    methods = {"core": "TinyLoRA"}
    rest_keys = frozenset({"tinylora_"})
    fields = "u weight_tying projection_seed save_projection init_v_bound tinylora_dropout init_weights"

    def claims_key(self, key: str) -> bool:
        return _MODULE.match(body(key)) is not None

    def read_rest(self, ledger: Ledger, context: Context) -> Rest:
        keys, vector_keys = _keys(ledger)
        if not keys and not vector_keys:
            return Rest()
        modules = {name: {role: ledger.take(key) for role, key in roles.items()} for name, roles in keys.items()}
        vectors = {group: ledger.take(key) for group, key in vector_keys.items()}
        _check(modules, vectors)
        places = _places(modules, len(vectors), context)
        per_group = max(1, len(modules) // len(vectors))
        updates = {}
        for name, roles in modules.items():
            v = vectors[min(places[name] // per_group, len(vectors) - 1)]
            p = roles.get("P") or _Drawn(
                (v.shape[0], *_square(roles)), seed_of(context.config, SEED, 42) + places[name]
            )
            updates[name] = _update(name, roles, v, p, context)
        return Rest(updates, methods=("TinyLoRA",))


families.register("tinylora")(TinyLoRA())


def _keys(ledger: Ledger) -> tuple[dict[str, dict[str, str]], dict[int, str]]:
    """Keys by module and role, and of the vectors by the number of their group."""
    modules: dict[str, dict[str, str]] = {}
    vectors: dict[int, str] = {}
    for key in ledger.left():
        if match := _MODULE.match(body(key)):
            held = modules.setdefault(match["module"].replace(".base_layer", ""), {})
            if match["role"] in held:
                raise InputError(f"two keys mean the same: {held[match['role']]!r} and {key!r}", expected="one adapter")
            held[match["role"]] = key
        elif match := _VECTOR.match(body(key)):
            vectors[int(match["group"])] = key
    return modules, vectors


def _square(roles: Mapping[str, Stored]) -> tuple[int, int]:
    return roles["A"].shape[0], roles["A"].shape[0]


def _check(modules: Mapping[str, Mapping[str, Stored]], vectors: Mapping[int, Stored]) -> None:
    """InputError where vectors or factors are missing, or do not fit together."""
    if sorted(vectors) != list(range(len(vectors))) or not 0 < len(vectors) <= len(modules):
        raise InputError(
            "TinyLoRA's vectors do not fit its modules",
            found=f"{len(modules)} modules and vectors {preview(sorted(vectors)) or '(none)'}",
            expected="vectors 0, 1, ..., not more than modules",
        )
    u = vectors[0].shape
    for name, roles in modules.items():
        shapes = {role: tuple(stored.shape) for role, stored in roles.items()}
        fits = {"A", "B"} <= set(roles) and len(shapes["A"]) == len(shapes["B"]) == 2
        fits = fits and shapes["B"][1] == shapes["A"][0] and len(u) == 1
        if not fits or shapes.get("P", (*u, *_square(roles))) != (*u, *_square(roles)):
            raise InputError(f"TinyLoRA's tensors of {name} do not fit together", found=shapes, expected="A, B and P")
    if any(tuple(v.shape) != tuple(u) for v in vectors.values()):
        raise InputError("TinyLoRA's vectors differ in length", found=[tuple(v.shape) for v in vectors.values()])


def _places(modules: Mapping[str, Mapping[str, Stored]], groups: int, context: Context) -> dict[str, int]:
    """The place of each module in the model's order: by its P, else by the base; all first where it does not matter."""
    stored = {name: roles["P"] for name, roles in modules.items() if "P" in roles}
    drawn = len(stored) < len(modules)
    if drawn:
        seed = seed_of(context.config, SEED, 42)
        context.notes.append(drawn_again("TinyLoRA: the random matrices P", SEED, seed))
    elif groups == 1:
        return dict.fromkeys(modules, 0)
    if not drawn and context.config.given and (places := _by_draws(stored, seed_of(context.config, SEED, 42))):
        return places
    return {name: place for place, name in enumerate(in_order(modules, context.base))}


def _by_draws(stored: Mapping[str, Stored], seed: int) -> dict[str, int] | None:
    """By which of the seeds seed, seed + 1, ... each P was drawn; None where one is of no such seed."""
    heads: dict[tuple[int, ...], np.ndarray] = {}
    places = {}
    for name, p in stored.items():
        shape = tuple(p.shape)
        if shape not in heads:
            count = int(np.prod(shape))
            draws = [normals(seed + k, count)[:16] for k in range(len(stored))]
            heads[shape] = np.array(draws) / np.sqrt(shape[-1])
        distance = np.abs(heads[shape] - p.read().reshape(-1)[:16]).max(axis=1)
        places[name] = int(distance.argmin())
        if distance.min() > 0.05:  # half types round numbers up to 4 to a hundredth; other draws differ by 1 somewhere
            return None
    return places if len(set(places.values())) == len(places) else None


class _Drawn:
    """P (u, r, r) as PEFT draws it: normal numbers of variance 1/r, from a seed of the module's own."""

    dtype = "F32"

    def __init__(self, shape: tuple[int, ...], seed: int):
        if np.prod(shape, dtype=float) > MAX_DRAWN:
            raise InputError("TinyLoRA's random matrices are too large to draw", found=shape)
        self.shape, self.seed = shape, seed

    def read(self) -> np.ndarray:
        import torch

        generator = torch.Generator("cpu").manual_seed(self.seed)
        return torch.normal(0.0, 1.0 / self.shape[-1] ** 0.5, size=self.shape, generator=generator).double().numpy()


def _update(name: str, roles: Mapping[str, Stored], v: Stored, p: Stored, context: Context) -> Update:
    a, b = roles["A"], roles["B"]
    mixed: Stored = Combined((v, p), _square(roles), lambda vector, matrices: np.tensordot(vector, matrices, 1))
    if name.endswith(EMBEDDINGS):  # of which B·R·A is the table (vocabulary, dimension)
        table = {"A": transposed(b), "B": transposed(a), "R": transposed(mixed)}
        return Update(name, "core", table, transposed=True, embedding=True)
    by_columns = is_transposed(name, (b.shape[0], a.shape[1]), context.config, context.base)
    return Update(name, "core", {"A": a, "B": b, "R": mixed}, transposed=by_columns)


SUPPORT = (
    Support(
        "TinyLoRA", "PEFT's merge in float64", base="for the model's order, where P is not stored", peft="TINYLORA"
    ),
)
