"""FRoD in PEFT's files: frod_lambda_l (d_in,) and frod_lambda_s_values (n,) of each module, and what modules share.

    base_model.frod_V.TYPE (d_in, d_in)      the basis of all modules of one type, such as self_attn_q_proj
    base_model.frod_s_indices.TYPE (2, n)    where the n values of the sparse S stand

PEFT 0.21.2, tuners/frod/model.py and layer.py. The basis comes from the base's weights of that type. Without
`save_projection` PEFT makes it again from them, up to signs that its LAPACK chooses, and S belongs to those signs: such
a file is not read.
"""

import math
import re

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.base import Ledger
from lorascope.weights.formats.peft.family import Context, Family, Rest, families
from lorascope.weights.formats.peft.keys import body
from lorascope.weights.formats.peft.layout import is_transposed_by
from lorascope.weights.formats.peft.rest import keys_by_module, need
from lorascope.weights.support import Support
from lorascope.weights.tensors import Combined

_MODULE = re.compile(r"(?P<module>.+)\.(?P<role>frod_lambda_l|frod_lambda_s_values)")
_SHARED = re.compile(r"(?P<role>frod_V|frod_s_indices|frod_s_size)\.(?P<type>[^.]+)")
NO_BASIS = (
    "FRoD: its basis is not in the file (save_projection false), and making it again leaves signs open that it "
    "depends on: save it with save_projection=True"
)


class Frod(Family):
    peft_types = {"FROD": frozenset({"recomposed"})}
    methods = {"recomposed": "FRoD"}
    rest_keys = frozenset({"frod_"})
    fields = """
        projection_prng_key save_projection frod_dropout init_weights sparse_rate regularization_alpha progressbar
        runtime_offload_base_weight
    """

    def read_rest(self, ledger: Ledger, context: Context) -> Rest:
        modules, shared = keys_by_module(ledger, _MODULE), _shared(ledger)
        updates: dict[str, Update] = {}
        for module, keys in modules.items():
            need(module, keys, "frod_lambda_l", "frod_lambda_s_values")
            of_type = shared.get(type_of(module), {})
            if "frod_V" not in of_type or "frod_s_indices" not in of_type:
                for key in keys.values():
                    ledger.skip(key, NO_BASIS)
                continue
            lengths, values = (ledger.take(keys[role]) for role in ("frod_lambda_l", "frod_lambda_s_values"))
            updates[module] = _update(module, lengths, values, of_type, context)
        for key in [key for key in ledger.left() if _SHARED.fullmatch(body(key))]:
            if updates:
                ledger.take(key)
            else:
                ledger.skip(key, "FRoD's basis, which no module of the file has")
        return Rest(updates, methods=("FRoD",) if modules else ())


families.register("frod")(Frod())


def type_of(module: str) -> str:
    """What FRoD calls the type of a module: its last two names, the second alone below a number."""
    parts = module.split(".")
    if len(parts) == 1 or parts[-2].isdigit():
        return parts[-1]
    kind = f"{parts[-2]}_{parts[-1]}"
    return "attention_output" if kind == "output_dense" and parts[-3:-2] == ["attention"] else kind


def _shared(ledger: Ledger) -> dict[str, dict[str, Stored]]:
    """What modules share, by their type; the keys stay open."""
    by_type: dict[str, dict[str, Stored]] = {}
    for key in ledger.left():
        if match := _SHARED.fullmatch(body(key)):
            by_type.setdefault(match["type"], {})[match["role"]] = ledger.peek(key)
    return by_type


def _update(module: str, lengths: Stored, values: Stored, shared: dict[str, Stored], context: Context) -> Update:
    basis, indices = shared["frod_V"], shared["frod_s_indices"]
    size = math.prod(basis.shape[:1])
    expected = {"V": (size, size), "indices": (2, *values.shape), "lambda": (size,)}
    shapes = {"V": tuple(basis.shape), "indices": tuple(indices.shape), "lambda": tuple(lengths.shape)}
    if shapes != expected or len(values.shape) != 1:
        raise InputError(f"the FRoD tensors of {module} do not fit together", found=shapes, expected=expected)

    def inner(basis: np.ndarray, lengths: np.ndarray, values: np.ndarray, indices: np.ndarray) -> np.ndarray:
        if indices.size and not (indices.min() >= 0 and indices.max() < size):
            raise InputError(f"{module}: S has an entry outside of ({size}, {size})", found=indices.max())
        matrix = np.diag(lengths)
        np.add.at(matrix, tuple(indices.astype(np.int64)), values)
        return matrix @ basis.T

    roles = {"V": basis, "T": Combined((basis, lengths, values, indices), (size, size), inner)}
    transposed = is_transposed_by(module, size, 1, context.config, context.base)
    return Update(module, "recomposed", roles, transposed=transposed)


SUPPORT = (
    Support("FRoD", "PEFT's formula in float64, with its merge to float32's rounding", base="for ΔW", peft="FROD"),
)
