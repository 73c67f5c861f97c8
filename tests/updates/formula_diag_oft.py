import numpy as np

CHOICES = [("blocks",), ("blocks", "g")]


def rotation(block):
    """(1 + Q)(1 − Q)⁻¹, written out."""
    q, one = block - block.T, np.eye(len(block))
    return (one + q) @ np.linalg.inv(one - q)


def block_diagonal(blocks):
    side = len(blocks[0])
    full = np.zeros((side * len(blocks),) * 2)
    for k, block in enumerate(blocks):
        full[k * side : (k + 1) * side, k * side : (k + 1) * side] = block
    return full


def FORMULA(x, s, w):
    turned = block_diagonal([rotation(block) for block in x["blocks"]]).T @ w
    return s * ((np.diag(x["g"]) @ turned if "g" in x else turned) - w)
