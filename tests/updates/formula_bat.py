import numpy as np


def FORMULA(x, s, w):
    r = x["M"].shape[1]
    columns = range(0, w.shape[1], r)
    rows = [[w[i * r : (i + 1) * r, j : j + r] @ m + m for j in columns] for i, m in enumerate(x["M"])]
    return s * np.block(rows)
