import numpy as np

from tests.updates.formula_dora_low_rank import decomposed

CHOICES = [("w1", "w2", "m"), ("w1_a", "w1_b", "w2_a", "w2_b", "m_in")]


def operand(x, name):
    return x[name] if name in x else x[f"{name}_a"] @ x[f"{name}_b"]


def FORMULA(x, s, w):
    return decomposed(x, w, s * np.kron(operand(x, "w1"), operand(x, "w2")))
