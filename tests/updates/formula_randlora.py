import numpy as np


def FORMULA(x, s, w):
    """PEFT's order: the k-th term takes B at (k // r, k % r) and A, λ and γ at (k // n, k % n)."""
    tall = "A_in" in x
    a, gamma, bases = (x["A_in"], x["gamma_in"], x["B_out"]) if tall else (x["A_out"], x["gamma_out"], x["B_in"])
    r, n = x["lambda"].shape
    terms = [
        np.outer(bases[:, k // r, k % r], x["lambda"][k // n, k % n] * a[k // n] * gamma[k % n]) for k in range(n * r)
    ]
    return s * sum(terms) if tall else s * sum(terms).T
