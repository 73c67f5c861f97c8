import numpy as np


def FORMULA(x, s, w):
    """The trailing directions are those of the smallest eigenvalues of W Wᵀ that are not left out by W's shape."""
    rank = x["A"].shape[0]
    _, vectors = np.linalg.eigh(w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w)
    least = vectors[:, :rank] @ vectors[:, :rank].T
    taken = least @ w if w.shape[0] <= w.shape[1] else w @ least
    return s * x["B"] @ np.diag(x["E"][:, 0]) @ x["A"] - taken
