"""AdaMSS in PEFT's files: adamss_newB (r, d_in), adamss_A.N (r_N, r) and adamss_B.N (rows, r_N), for clusters of rows.

ΔW = scatter(B_N·A_N·newB): the rows of cluster N, all of which are trained. Which rows they are is not in the file:
PEFT clusters W's left singular directions anew when it loads it (a randomised SVD from `random_seed`, scikit-learn's
KMeans), and so it is done here, where the base is given. Where the layer has a bias, it is W's last column in all of
this, and newB has one more. PEFT 0.21.2, tuners/adamss/layer.py and utils.py.
"""

import math
import re
from functools import cached_property
from typing import Any

import numpy as np

from lorascope.errors import InputError
from lorascope.updates.base import Stored, Update
from lorascope.weights.formats.base import Ledger
from lorascope.weights.formats.peft.config import Config, ScaleFields
from lorascope.weights.formats.peft.family import Context, Family, Rest, families
from lorascope.weights.formats.peft.rest import keys_by_module, need, numbered
from lorascope.weights.support import Support
from lorascope.weights.tensors import Combined

_KEY = re.compile(r"(?P<module>.+)\.adamss_(?P<role>newB|A\.\d+|B\.\d+)")
NO_BASE = "AdaMSS: which rows belong to its clusters is not in the file, and W tells: pass --base"
NO_SKLEARN = "AdaMSS: scikit-learn is needed to find its clusters of rows again: pip install scikit-learn"
FOUND_AGAIN = (
    "AdaMSS: the clusters of rows are not in the file; they were found again from the base with torch and "
    "scikit-learn, as PEFT does, which is not guaranteed to give the same across systems"
)


class Adamss(Family):
    peft_types = {"ADAMSS": frozenset({"low_rank"})}
    rest_keys = frozenset({"adamss_"})
    fields = """
        num_subspaces subspace_rank init_weights use_asa asa_target_subspaces init_warmup final_warmup mask_interval
        asa_importance_beta asa_uncertainty_beta asa_schedule_exponent use_dynamic_rank svd_threshold random_seed
    """
    scales = ScaleFields(default_rank=100, patterns=False)

    def read_rest(self, ledger: Ledger, context: Context) -> Rest:
        modules = keys_by_module(ledger, _KEY)
        if not modules:
            return Rest()
        if reason := _unreadable(context):
            for key in (key for keys in modules.values() for key in keys.values()):
                ledger.skip(key, reason)
            return Rest(methods=("AdaMSS",))
        updates = {}
        for module, keys in modules.items():
            need(module, keys, "newB", "A.0", "B.0")
            downs = [ledger.take(key) for key in numbered(keys, "A")]
            ups = [ledger.take(key) for key in numbered(keys, "B")]
            updates[module] = _update(module, ledger.take(keys["newB"]), downs, ups, context)
        context.notes.append(FOUND_AGAIN)
        return Rest(updates, methods=("AdaMSS",))


families.register("adamss")(Adamss())


def _unreadable(context: Context) -> str | None:
    from importlib.util import find_spec

    if context.base is None:
        return NO_BASE
    return None if find_spec("sklearn") is not None else NO_SKLEARN


class Clusters:
    """The rows of each cluster, found when they are first asked for."""

    def __init__(self, weight: Stored, bias: Stored | None, rank: int, config: Config):
        self.weight, self.bias, self.rank = weight, bias, rank
        self.count = config.raw.get("num_subspaces", 5)
        self.seed = config.raw.get("random_seed", 0)
        if not all(type(number) is int and number >= 0 for number in (self.count, self.seed)):
            raise InputError("adapter_config.json: num_subspaces or random_seed is not a number")

    @cached_property
    def rows(self) -> np.ndarray:
        """The indices of all rows, cluster by cluster."""
        labels = self._labels()
        return np.concatenate([np.flatnonzero(labels == label) for label in range(labels.max() + 1)])

    def _labels(self) -> Any:
        import torch
        from sklearn.cluster import KMeans

        values = torch.from_numpy(self.weight.read()).float()
        if self.bias is not None:
            values = torch.cat((values, torch.from_numpy(self.bias.read()).float().unsqueeze(1)), dim=1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            left = torch.svd_lowrank(values, q=min(self.rank, *values.shape), niter=2)[0].numpy()
        found = KMeans(min(self.count, len(left)), init="random", n_init=1, max_iter=10, random_state=123456789)
        return found.fit_predict(left.astype(np.float32))


def _update(module: str, basis: Stored, downs: list[Stored], ups: list[Stored], context: Context) -> Update:
    assert context.base is not None
    weight = context.base.weight(module)
    rank, sizes = math.prod(basis.shape[:1]), [math.prod(up.shape[:1]) for up in ups]
    fits = len(downs) == len(ups) and all(
        len(a.shape) == len(b.shape) == 2 and a.shape[1] == rank and a.shape[0] == b.shape[1]
        for a, b in zip(downs, ups, strict=False)
    )
    matrices = len(weight.shape) == len(basis.shape) == 2
    if not matrices or not fits or basis.shape[1] - weight.shape[1] not in (0, 1) or sum(sizes) != weight.shape[0]:
        raise InputError(
            f"the AdaMSS tensors of {module} do not fit together, or not the base's weight",
            found=f"newB {tuple(basis.shape)}, {sum(sizes)} rows in {len(ups)} clusters, W {tuple(weight.shape)}",
        )
    d_out, d_in = weight.shape
    with_bias = basis.shape[1] != d_in
    bias = context.base.find(f"{module}.bias") if with_bias else None
    if with_bias and bias is None:
        raise InputError(f"the AdaMSS tensors of {module} are of a layer with a bias, and the base has none there")
    clusters = Clusters(weight, bias, context.config.rank, context.config)

    def scattered(*arrays: np.ndarray) -> np.ndarray:
        rows = clusters.rows
        parts = [b @ a for a, b in zip(arrays[: len(downs)], arrays[len(downs) :], strict=True)]
        bounds = np.cumsum(sizes)[:-1]
        if any(np.any(np.diff(part) <= 0) for part in np.split(rows, bounds)):  # rows of a cluster ascend
            raise InputError(
                f"{module}: the clusters of rows that W gives here are not those of the file", found=f"{sizes} rows",
                hint="another version of scikit-learn, or another base, was used in training",
            )  # fmt: skip
        full = np.zeros((d_out, rank))
        full[rows] = np.concatenate(parts)
        return full

    up = Combined((*downs, *ups), (d_out, rank), scattered)
    down = Combined((basis,), (rank, d_in), lambda values: values[:, :d_in])
    of_bias = Combined((basis, up), (d_out,), lambda v, u: u @ v[:, -1]) if with_bias else None  # type: ignore[arg-type]
    return Update(module, "low_rank", {"A": down, "B": up}, bias=of_bias)


SUPPORT = (
    Support("AdaMSS", "PEFT's merge in float64", base="for the rows of its clusters, and so for ΔW", peft="ADAMSS"),
)
