import numpy as np

from tests.updates.formula_diag_oft import block_diagonal

CHOICES = [("entries",), ("entries", "m"), ("entries", "m", "n")]
SIZES = {"groups": 3, "triangle": 6}


def series(entries):
    side = round((1 + (1 + 8 * len(entries)) ** 0.5) / 2)
    q = np.zeros((side, side))
    q[np.triu_indices(side, 1)] = entries
    q -= q.T
    power = np.linalg.matrix_power
    return np.eye(side) + 2 * q + 2 * power(q, 2) + 2 * power(q, 3) + power(q, 4)


def FORMULA(x, s, w):
    blocks = [series(entries) for entries in x["entries"]]
    if len(blocks) == 1:
        blocks *= w.shape[1] // len(blocks[0])
    turned = w @ block_diagonal(blocks).T
    if "m" in x:
        lengths = x["n"] if "n" in x else np.linalg.norm(w, axis=1)
        turned = np.diag(x["m"] / lengths) @ turned
    return s * (turned - w)
