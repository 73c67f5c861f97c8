import numpy as np


def FORMULA(x, s, w):
    parts = [np.outer(b / np.linalg.norm(b), a / np.linalg.norm(a)) for a, b in zip(x["A"], x["B"].T, strict=True)]
    return s * x["lambda"][0] / len(parts) * sum(parts) @ np.diag(x["n"])
