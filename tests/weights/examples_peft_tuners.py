"""One adapter of each of PEFT's tuners that `peft_tuners/` has cases of, and mixtures of experts, by hand."""

from functools import partial

import numpy as np
import peft

from tests.weights.example import double, normal
from tests.weights.examples import Example
from tests.weights.examples_peft_experts import written
from tests.weights.peft_tuners.common import Case, saved, truth
from tests.weights.peft_tuners.test_base import CASES, on
from tests.weights.peft_tuners.test_file import CASES as CASES_OF_FILES

IN_FLOAT32 = [
    Case("psoft", on(peft.PsoftConfig, r=4), base=True),
    Case("deft", on(peft.DeftConfig, r=3), base=True),
]


def built(case, folder):
    """What PEFT writes for a case, and what it merges."""
    files = saved(case, folder)
    deltas = {}
    for name, change in truth(files.base, files.adapter_folder, case.widened).items():
        if change.ndim == 1 and case.config().peft_type == "BEFT":  # which trains biases alone
            deltas[name] = change[:, None]
        elif change.ndim > 1:
            flat = change.reshape(len(change), -1)
            deltas[name.removesuffix(".weight")] = flat.T if "embed" in name else flat
    # of float32's directions of W, whose entries are some tenths; else of sums in float64
    rounding = 1e-5 if case.tolerance > 1e-9 or case in IN_FLOAT32 else 1e-12
    return Example(files.adapter_folder, deltas, files.base_folder, rounding)


def one_of_each():
    """The first case of each type, as builders."""
    found = {}
    for case in [*CASES, *IN_FLOAT32, *CASES_OF_FILES]:
        found.setdefault(case.config().peft_type.value, case)
    found.pop("LORA", None)  # whose examples are elsewhere
    for type, case in found.items():
        build = partial(built, case)
        build.__name__ = f"tuner_{type.lower()}"
        yield build


def lily(folder):
    rng = np.random.default_rng(1)
    a, b, router = normal(rng, 3, 7), normal(rng, 6, 5), normal(rng, 2, 3)
    chances = np.exp(double(router) @ double(a))
    mean = (chances / chances.sum(axis=0)).mean(axis=1)
    experts = [2.5 * double(b).reshape(2, 3, 5)[e].T @ double(a) for e in range(2)]
    deltas = {"l.0.q": sum(m * e for m, e in zip(mean, experts, strict=True))}
    deltas |= {f"l.0.q[{e}]": delta for e, delta in enumerate(experts)}
    tensors = {"l.0.q.lily_A.weight": a, "l.0.q.lily_B.weight": b, "l.0.q.lily_router.weight": router}
    config = {"peft_type": "LILY", "r": 3, "num_B": 2, "scaling": 2.5}
    return Example(written(folder, tensors, config), deltas)


def poly(folder):
    rng = np.random.default_rng(2)
    a, b = normal(rng, 2, 3, 4, 2), normal(rng, 2, 3, 2, 5)  # two splits, three skills, r = 2
    deltas = {}
    for skill in range(3):
        down = np.concatenate([double(a)[split, skill] for split in range(2)])  # (d_in, r)
        up = np.concatenate([double(b)[split, skill] for split in range(2)], axis=1)  # (r, d_out)
        deltas[f"l.0.q[{skill}]"] = (down @ up).T / 2
    tensors = {"l.0.q.poly_lora_A": a, "l.0.q.poly_lora_B": b, "l.0.q.poly_router.module_logits": normal(rng, 4, 6)}
    return Example(written(folder, tensors, {"peft_type": "POLY", "r": 2, "n_skills": 3, "n_splits": 2}), deltas)


def adamss(folder):
    """One cluster alone, so that its rows are all rows in their order whatever finds it."""
    rng = np.random.default_rng(3)
    basis, a, b, weight = normal(rng, 4, 7), normal(rng, 2, 4), normal(rng, 6, 2), normal(rng, 6, 7)
    tensors = {"l.0.q.adamss_newB": basis, "l.0.q.adamss_A.0": a, "l.0.q.adamss_B.0": b}
    folder = written(folder, tensors, {"peft_type": "ADAMSS", "r": 4, "num_subspaces": 1}, {"l.0.q.weight": weight})
    return Example(folder, {"l.0.q": double(b) @ double(a) @ double(basis)}, folder / "base")


EXAMPLES = [*one_of_each(), lily, poly, adamss]
