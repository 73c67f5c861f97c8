"""ΔW of the kinds that need the base, written out densely, for `tests/contracts/test_kinds.py`."""

import numpy as np
from scipy.linalg import block_diag


def cut(blocks, size):
    """The block-diagonal matrix of that side."""
    return block_diag(*(blocks if len(blocks) > 1 else np.repeat(blocks, -(-size // blocks.shape[1]), 0)))[:size, :size]


def shuffle(index, blocks, side):
    """The permutation matrix of BOFT's factor: PEFT's `block_butterfly_perm`, half-block by half-block."""
    n, half, group = blocks * side, side // 2, side * 2**index
    order = []
    for start in range(0, n, group):
        pieces = [list(range(at, at + half)) for at in range(start, start + group, half)]
        order += [column for piece in pieces[::2] + pieces[1::2] for column in piece]
    matrix = np.zeros((n, n))
    matrix[np.arange(n), order] = 1
    return matrix


def rotation(x, s, w):
    turned = w
    for index, blocks in enumerate(x["R"]):
        order = shuffle(index, *blocks.shape[:2]) if len(x["R"]) > 1 else np.eye(w.shape[1])
        turned = turned @ order @ cut(blocks, w.shape[1]) @ order.T
    return s * (np.diag(x["s"]) @ turned - w if "s" in x else turned - w)


def reflections(x, s, w):
    turned = w
    for u in x["u"].T:
        turned = turned @ (np.eye(len(u)) - 2 * np.outer(u, u) / (u @ u))
    return s * (turned - w)


def pairs(x, s, w):
    groups, _, half = x["c"].shape
    matrix = np.zeros((len(w), len(w)))
    for g in range(groups):
        for i in range(half):
            first, second = 2 * half * g + i, 2 * half * g + half + i
            matrix[first, first], matrix[first, second] = x["c"][g, 0, i], -x["s"][g, 0, i]
            matrix[second, second], matrix[second, first] = x["c"][g, 1, i], x["s"][g, 1, i]
    return s * (matrix @ w - w)


def principal(power):
    """By eigenvectors of WᵀW, whose signs are made those of torch's SVD in float32."""

    def formula(x, s, w):
        import torch

        r = len(x["R"])
        v = np.linalg.eigh(w.T @ w)[1][:, ::-1][:, :r]
        v *= np.sign(np.sum(torch.linalg.svd(torch.from_numpy(w).float())[2].numpy()[:r].T * v, axis=0))
        left, sigma = w @ v, np.linalg.norm(w @ v, axis=0)
        return s * left / sigma**power @ (x["R"] - np.eye(r)) @ np.diag(sigma**power) @ v.T

    return formula


def glora(x, s, w):
    def path(name):
        if name.lower() in x:
            return x[name.lower()][0] * np.ones_like(w)
        if f"{name}_up" in x:
            return x[name] @ x[f"{name}_up"]
        return x[name] @ np.ones((1, w.shape[1])) if name in x else 0 * w

    return s * (w * path("A") + path("B"))


def tail(x, s, w):
    kept = min(w.shape) - len(x["S"])
    vectors = np.linalg.eigh(w.T @ w)[1][:, ::-1][:, :kept]
    return s * (x["U"] @ np.diag(x["S"]) @ x["V"] - (w - w @ vectors @ vectors.T))


def recomposed(x, s, w):
    coordinates = w @ np.linalg.inv(x["V"]).T
    return s * (coordinates / np.sqrt((coordinates**2).sum(axis=0)) @ x["T"] - w)


def network(f):
    def formula(x, s, w):
        hidden = f(x["down"] @ w)
        if "encoders" in x:
            states = [hidden]
            for layer in x["encoders"]:
                states.append(f(layer @ states[-1]))
            hidden = states.pop()
            for layer in x["decoders"]:
                hidden = f(layer @ hidden) + states.pop()
        return s * x["up"] @ hidden

    return formula


def erf(x):
    from math import erf as one

    return np.vectorize(one)(x)


FORMULAS = {
    "rotation": rotation,
    "rotation_out": lambda x, s, w: s * (cut(x["R"], len(w)) @ w - w),
    "reflections": reflections,
    "pair_rotation": pairs,
    "modulated": lambda x, s, w: s * w * (x["B"] @ x["A"]),
    "principal_core": principal(0),
    "principal_core_halved": principal(0.5),
    "replaced_subspace": lambda x, s, w: x["Q"] @ ((s * x["R"] if "R" in x else 0) - x["P"].T @ w),
    "replaced_tail": tail,
    "recomposed": recomposed,
    "glora": glora,
    "replaced_rows": lambda x, s, w: s * (x["T"] - x["before"]).T @ x["E"],
    "peanut_relu": network(lambda h: np.maximum(h, 0)),
    "peanut_silu": network(lambda h: h / (1 + np.exp(-h))),
    "peanut_gelu": network(lambda h: h * (1 + erf(h / np.sqrt(2))) / 2),
    "peanut_gelu_tanh": network(lambda h: h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))),
    "peanut_tanh": network(np.tanh),
    "peanut_sigmoid": network(lambda h: 1 / (1 + np.exp(-h))),
    "peanut_linear": network(lambda h: h),
}
SIZES = {"factors": 2, "blocks": 2, "side": 6, "row_groups": 2, "2": 2, "half": 2, "tail": 3, "depth": 2}
SIZES |= {"r_A": 2, "r_B": 3, "n_D": 1, "n_E": 8}
CHOICES = {
    "rotation": [("R", "s"), ("R",)],
    "principal_core": [("R",)],
    "principal_core_halved": [("R",)],
    "replaced_subspace": [("Q", "P", "R"), ("Q", "P")],
    "glora": [("A", "A_up", "B", "B_up"), ("a", "b", "C", "D", "E"), ("a", "b")],
    **{
        name: [("down", "up", "encoders", "decoders"), ("down", "up")]
        for name in FORMULAS
        if name.startswith("peanut_")
    },
}
