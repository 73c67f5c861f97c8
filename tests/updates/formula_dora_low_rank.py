import numpy as np

CHOICES = [("A", "B", "m"), ("A", "B", "m_in")]
SIZES = {"rows": 8, "channels": 4}


def decomposed(x, w, d):
    tuned = w + d
    if "m" in x:
        return np.diag(x["m"] / np.sqrt((tuned**2).sum(axis=1))) @ tuned - w
    positions = w.shape[1] // len(x["m_in"])
    lengths = [np.sqrt((tuned[:, k * positions : (k + 1) * positions] ** 2).sum()) for k in range(len(x["m_in"]))]
    return tuned * np.repeat(x["m_in"] / lengths, positions) - w


def FORMULA(x, s, w):
    return decomposed(x, w, s * x["B"] @ x["A"])
