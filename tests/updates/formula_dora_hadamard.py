from tests.updates.formula_dora_low_rank import decomposed

CHOICES = [("w1_a", "w1_b", "w2_a", "w2_b", "m"), ("w1_a", "w1_b", "w2_a", "w2_b", "m_in")]


def FORMULA(x, s, w):
    return decomposed(x, w, s * (x["w1_a"] @ x["w1_b"]) * (x["w2_a"] @ x["w2_b"]))
