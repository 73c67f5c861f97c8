"""PVeRA in PEFT's files: as VeRA's, with a mean and a variance: the halves of pvera_lambda_d (2r,), and of A's rows.

"PVeRA: Probabilistic Vector-Based Random Matrix Adaptation", 2025, arXiv 2512.07703. PEFT merges the mean
(tuners/pvera/layer.py, `get_delta_weight`), which is VeRA's update of the first halves, and so is what is read here.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter
from lorascope.weights.formats.peft.config import Config
from lorascope.weights.formats.peft.family import Context, Group, families
from lorascope.weights.formats.peft.vera import VeRA
from lorascope.weights.support import Support
from lorascope.weights.tensors import first_rows


class PVeRA(VeRA):
    peft_types = {"PVERA": frozenset({"vera"})}
    methods = {"vera": "PVeRA"}
    roles = ("pvera_lambda_b", "pvera_lambda_d", "pvera_A", "pvera_B")
    marks = frozenset(roles)
    fields = f"{VeRA.fields} pvera_dropout sample_at_inference generator_seed"
    kinds_written = frozenset()
    rows_of_a = 2

    def read_together(self, groups: Sequence[Group], context: Context) -> Iterator[tuple[Group, list[Update] | str]]:
        yield from super().read_together([_mean(group) for group in groups], context)

    def notes(self, config: Config) -> list[str]:
        if not config.flag("sample_at_inference"):
            return []
        return ["PVeRA: ΔW is the mean; with sample_at_inference the layer adds noise around it to every output"]

    def can_write(self, adapter: Adapter) -> bool:
        return False


families.register("pvera")(PVeRA())


def _mean(group: Group) -> Group:
    """The mean's part under VeRA's roles: A keeps its rows, of which VeRA takes as many as λ_d has entries."""
    stored = dict(group.stored)
    if (lambdas := stored.get("pvera_lambda_d")) is not None:
        half, rest = divmod(math.prod(lambdas.shape), 2)
        if len(lambdas.shape) != 1 or rest:
            raise InputError(f"{group.keys['pvera_lambda_d'].text} has no two halves", found=lambdas.shape)
        stored["pvera_lambda_d"] = first_rows(lambdas, half)
    keys = {role.removeprefix("p"): key for role, key in group.keys.items()}
    return replace(group, keys=keys, stored={role.removeprefix("p"): each for role, each in stored.items()})


SUPPORT = (
    Support(
        "PVeRA",
        "PEFT's merge in float64",
        base="for shapes, where the projections are not stored or of another width",
        peft="PVERA",
    ),
)
