import numpy as np


def FORMULA(x, s, w):
    a, b = x["A_blocks"], x["B_blocks"]
    part = a.shape[2] // len(a)
    parts = [slice(i * part, (i + 1) * part) for i in range(len(a))]
    blocks = [[b_j[parts[n]].T @ a_n[:, parts[j]].T for n, a_n in enumerate(a)] for j, b_j in enumerate(b)]
    hybrid = x["B_general"] @ x["A_general"] if "A_general" in x else 0
    return s * (np.block(blocks) + hybrid)
