"""The butterfly by its definition: factor i mixes outputs that are 2^i·b/2 apart, in an order written out here."""

import numpy as np

from tests.updates.formula_diag_oft import block_diagonal, rotation

CHOICES = [("blocks",), ("blocks", "g")]


def order(d_out, stride):
    """Where each output goes: pairs of stretches of `stride`, the two of a pair interleaved."""
    return [
        start + half * stride + k for start in range(0, d_out, 2 * stride) for k in range(stride) for half in range(2)
    ]


def FORMULA(x, s, w):
    turned = w
    for i, blocks in enumerate(x["blocks"]):
        place = order(len(w), 2**i * blocks.shape[1] // 2)
        permutation = np.eye(len(w))[place]
        turned = permutation.T @ block_diagonal([rotation(block) for block in blocks]) @ permutation @ turned
    return s * ((np.diag(x["g"]) @ turned if "g" in x else turned) - w)
