"""One module of each tuner, and the same with other settings: refused, but for `SETTINGS`."""

import numpy as np
import pytest

from lorascope.errors import InputError
from tests.weights.example import base_of, read_arrays

D_OUT, D_IN = 24, 12
GLORA = {
    "A.Xd": (24, 3),
    "A.Xu": (3, 12),
    "B.Xd": (24, 3),
    "B.Xu": (3, 12),
    "C.Xd": (12, 3),
    "C.Xu": (3, 1),
    "D.X": (24,),
    "E.X": (1,),
}
SUPRA = {"values": (5,), "indices": (5,), "lora_A.weight": (3, D_IN), "lora_B.weight": (D_OUT, 3)}
# Config, the module's tensors, and those that modules share.
TUNERS = {
    "OFT": (
        {"use_cayley_neumann": True, "num_cayley_neumann_terms": 5, "coft": True, "eps": 0.1},
        {"oft_R.weight": (3, 6)},
        {},
    ),
    "OFT of PEFT 0.15": ({"coft": True, "eps": 0.1}, {"oft_r": (3, 4, 4), "oft_s": (D_OUT, 1)}, {}),
    "BOFT": ({}, {"boft_R": (1, 3, 4, 4), "boft_s": (D_OUT, 1)}, {}),
    "HRA": ({"r": 4}, {"hra_u": (D_IN, 4)}, {}),
    "ROAD road_1": ({"group_size": 4, "variant": "road_1"}, {"road_alpha": (12,), "road_theta": (12,)}, {}),
    "ROAD road_4": ({"group_size": 4, "variant": "road_4"}, {"road_alpha": (48,), "road_theta": (48,)}, {}),
    "HIRA": ({"r": 3}, {"hira_A": (3, D_IN), "hira_B": (D_OUT, 3)}, {}),
    "GLORA": ({}, {f"glora_{key}": shape for key, shape in GLORA.items()}, {}),
    "PEANUT": (
        {"act_fn": "relu", "scaling": 1.5},
        {"peanut_A.weight": (3, D_OUT), "peanut_B.weight": (D_OUT, 3), "peanut_decoders.0.weight": (3, 3),
         "peanut_encoders.0.weight": (3, 3)},
        {},
    ),
    "FROD": (
        {},
        {"frod_lambda_l": (12,), "frod_lambda_s_values": (5,)},
        {"frod_s_indices.up": (2, 5), "frod_s_size.up": (2,), "frod_V.up": (12, 12)},
    ),
    "OSF": (
        {},
        {"osf_svd_params.S_low": (7,), "osf_svd_params.U_low": (D_OUT, 7), "osf_svd_params.V_low": (7, D_IN)},
        {},
    ),
    "DEFT": ({"r": 3, "decomposition_method": "qr", "alpha": 5}, {"deft_P": (D_OUT, 3), "deft_R": (3, D_IN)}, {}),
    "PSOFT": (
        {"r": 4, "ab_svd_init": "psoft_init", "num_cayley_neumann_terms": 5, "psoft_svd": "lowrank",
         "psoft_svd_lowrank_niter": 10, "random_seed": 3},
        {"psoft_R.vector_a": (4,), "psoft_R.vector_b": (4,), "psoft_R.weight": (6,)},
        {},
    ),
    "DELORA": (
        {"r": 3},
        {"delora_A": (3, D_IN), "delora_B": (D_OUT, 3), "delora_lambda": (1,), "delora_w_norm": (D_IN,)},
        {},
    ),
    "GRALORA": (
        {"r": 6, "hybrid_r": 2, "alpha": 3},
        {"gralora_A": (3, 4, 6), "gralora_B": (3, 6, 8), "gralora_A_general.weight": (2, D_IN),
         "gralora_B_general.weight": (D_OUT, 2)},
        {},
    ),
    "C3A": ({}, {"c3a_kernel": (6, 3, 4)}, {}),
    "VBLORA": (
        {"topk": 2},
        {"vblora_logits_A": (2, 2, 9), "vblora_logits_B": (4, 2, 9)},
        {"vblora_vector_bank": (9, 6)},
    ),
    "VBLORA topk": (
        {},
        {"vblora_logits_A_topk_weights": (2, 2, 2), "vblora_logits_B_topk_weights": (4, 2, 2),
         "vblora_logits_A_topk_indices": (2, 2, 3), "vblora_logits_B_topk_indices": (4, 2, 3)},
        {"vblora_vector_bank": (9, 6)},
    ),
    "MISS": ({"r": 4}, {"miss_block": (4, D_OUT)}, {}),
    "MISS bat": ({"r": 4, "init_weights": "bat"}, {"miss_block": (6, 4, 4)}, {}),
    "MISS mini": ({"r": 4, "init_weights": "mini"}, {"miss_block": (4, 6)}, {}),
    "PVERA": (
        {"r": 4},
        {"pvera_lambda_b": (D_OUT,), "pvera_lambda_d": (8,)},
        {"pvera_A": (8, D_IN), "pvera_B": (D_OUT, 4)},
    ),
    "VERA": (
        {"r": 4},
        {"vera_lambda_b": (D_OUT,), "vera_lambda_d": (4,)},
        {"vera_A": (4, D_IN), "vera_B": (D_OUT, 4)},
    ),
    "RANDLORA": (
        {"r": 4, "randlora_alpha": 5},
        {"randlora_gamma": (3, 12), "randlora_lambda": (4, 3)},
        {"randlora_A": (4, 1, 12), "randlora_B": (24, 3, 4)},
    ),
    "SHIRA": ({}, {"shira_weight": (7,), "shira_indices": (2, 7)}, {}),
    "SUPERTUNING": ({}, {"supertuning_values": (5,), "supertuning_indices": (5,)}, {}),
    "SUPERTUNING supra": ({"r": 3, "lora_alpha": 4}, {f"supertuning_{key}": shape for key, shape in SUPRA.items()}, {}),
    "BEFT": ({}, {"beft_bias": (1, D_OUT)}, {}),
    "FOURIERFT": ({"scaling": 9.0, "random_loc_seed": 3}, {"fourierft_spectrum": (D_OUT * D_IN,)}, {}),
    "WAVEFT": ({"scaling": 9.0, "wavelet_family": "sym2"}, {"waveft_spectrum": (9,)}, {}),
    "LORA dora": (
        {"r": 3, "lora_alpha": 5, "use_dora": True},
        {"lora_A.weight": (3, D_IN), "lora_B.weight": (D_OUT, 3), "lora_magnitude_vector": (D_OUT,)},
        {},
    ),
    "LORA qalora": (
        {"r": 2, "use_qalora": True, "qalora_group_size": 4},
        {"lora_A.weight": (2, 3), "lora_B.weight": (D_OUT, 2)},
        {},
    ),
    "LORA bd-lora": (
        {"r": 4, "use_bdlora": {"target_modules_bd_a": ["up"], "nblocks": 2}},
        {"lora_A.weight": (4, 6), "lora_B.weight": (D_OUT, 4)},
        {},
    ),
    "LORA kasa": (
        {"r": 3, "lora_alpha": 5, "kasa_config": {}},
        {"lora_A.weight": (3, D_IN), "lora_B.weight": (D_OUT, 3), "lora_diag": (3,)},
        {},
    ),
    "UNILORA": (
        {"r": 3},
        {"unilora_indices_A": (3, D_IN), "unilora_indices_B": (D_OUT, 3), "unilora_scales_A": (3, D_IN),
         "unilora_scales_B": (D_OUT, 3)},
        {"unilora_theta_d": (50,)},
    ),
    "TINYLORA": (
        {},
        {"tinylora_A": (2, D_IN), "tinylora_B": (D_OUT, 2), "tinylora_P": (8, 2, 2)},
        {"tinylora_v.0": (8,)},
    ),
    "IA3": ({"feedforward_modules": []}, {"ia3_l": (D_OUT, 1)}, {}),
    "ADALORA": (
        {"init_r": 3, "lora_alpha": 4},
        {"lora_A": (3, D_IN), "lora_B": (D_OUT, 3), "lora_E": (3, 1)},
        {},
    ),
    "LOHA": (
        {"r": 3, "alpha": 3},
        {"hada_w1_a": (D_OUT, 3), "hada_w1_b": (3, D_IN), "hada_w2_a": (D_OUT, 3), "hada_w2_b": (3, D_IN)},
        {},
    ),
    "LOKR": ({"r": 3, "alpha": 3}, {"lokr_w1": (4, 3), "lokr_w2_a": (6, 3), "lokr_w2_b": (3, 4)}, {}),
    "LORA": ({"r": 3, "lora_alpha": 5}, {"lora_A.weight": (3, D_IN), "lora_B.weight": (D_OUT, 3)}, {}),
    "LORA of a convolution": (
        {"r": 3, "lora_alpha": 5},
        {"lora_A.weight": (3, 5, 2, 2), "lora_B.weight": (D_OUT, 3, 1, 1)},
        {},
    ),
    "LORA of an embedding": (
        {"r": 3, "lora_alpha": 5},
        {"lora_embedding_A": (3, D_IN), "lora_embedding_B": (D_OUT, 3)},
        {},
    ),
    "LORA of parameters": (
        {"r": 3, "lora_alpha": 5, "target_parameters": ["up.weight"]},
        {"lora_A.weight": (6, D_IN), "lora_B.weight": (D_OUT, 6)},
        {},
    ),
    "LILY": (
        {"r": 3, "scaling": 2.0},
        {"lily_A.weight": (3, D_IN), "lily_B.weight": (6, D_OUT), "lily_router.weight": (2, 3)},
        {},
    ),
    "POLY": (
        {"r": 3},
        {"poly_lora_A": (2, 4, 6, 3), "poly_lora_B": (2, 4, 3, 12), "poly_router.module_logits": (1, 8)},
        {},
    ),
    "LN_TUNING": ({}, {"ln_tuning_layers.weight": (D_OUT, D_IN), "ln_tuning_layers.bias": (D_OUT,)}, {}),
    "ADAMSS": (
        {"r": 4, "num_subspaces": 1, "random_seed": 3},
        {"adamss_newB": (4, D_IN), "adamss_A.0": (2, 4), "adamss_B.0": (D_OUT, 2)},
        {},
    ),
}  # fmt: skip


# The values with which a field is read all the same.
SETTINGS = {
    **{
        f"LORA{what}": {"lora_alpha": [0, 1, -1, 1.5, "ABSENT"]}
        for what in ("", " of a convolution", " of an embedding")
    },
    "LORA of parameters": {"r": [1], "lora_alpha": [0, 1, -1, 1.5, "ABSENT"], "target_parameters": ["x"]},
    "LILY": {
        "r": [None, 0, 1, 5, -1, 1.5, "x", True, [], "ABSENT"],  # which the tensors say
        "scaling": [0, 1, 5, -1, 1.5, "ABSENT"],
    },
    "POLY": {"r": [None, 0, 1, 5, -1, 1.5, "x", True, [], "ABSENT"]},
    "LORA dora": {"lora_alpha": [0, 1, -1, 1.5, "ABSENT"], "use_dora": [None, 0, 5, -1, 1.5, "x", [], "ABSENT"]},
    "LORA qalora": {"use_qalora": [None, 0, 5, -1, 1.5, "x", [], "ABSENT"], "qalora_group_size": [1, 5, "ABSENT"]},
    "LORA bd-lora": {"use_bdlora": [None, 0, [], "ABSENT"]},
    "OFT": {
        "use_cayley_neumann": [None, 0, 5, -1, 1.5, "x", [], "ABSENT"],
        "num_cayley_neumann_terms": [1, "ABSENT"],
        "coft": [None, 0, 5, -1, 1.5, "x", [], "ABSENT"],
        "eps": [1, 5, 1.5, "ABSENT"],
    },
    "OFT of PEFT 0.15": {"coft": [None, 0, 5, -1, 1.5, "x", [], "ABSENT"], "eps": [1, 5, 1.5, "ABSENT"]},
    "ROAD road_1": {"variant": ["ABSENT"]},
    "ROAD road_4": {"variant": ["ABSENT"]},
    "PEANUT": {"act_fn": ["ABSENT"], "scaling": [0, 1, 5, -1, "ABSENT"]},
    "DEFT": {"decomposition_method": ["ABSENT"], "alpha": [None, 0, 1, -1, 1.5, "ABSENT"]},
    "PSOFT": {
        "ab_svd_init": ["ABSENT"],
        "num_cayley_neumann_terms": [1, "ABSENT"],
        "psoft_svd": [None, 0, 1, 5, -1, 1.5, "x", True, [], "ABSENT"],
        "psoft_svd_lowrank_niter": [0, 1, 5, "ABSENT"],
        "random_seed": [0, 1, 5, "ABSENT"],
    },
    "GRALORA": {"alpha": [0, 1, 5, -1, 1.5, "ABSENT"]},
    "VBLORA": {"topk": [1, 5, "ABSENT"]},
    "RANDLORA": {"randlora_alpha": [0, 1, -1, 1.5, "ABSENT"]},
    "SUPERTUNING supra": {"lora_alpha": [None, 0, 1, 5, -1, 1.5, "ABSENT"]},
    "FOURIERFT": {"scaling": [0, 1, 5, -1, 1.5, "ABSENT"], "random_loc_seed": [0, 1, 5, "ABSENT"]},
    "WAVEFT": {"scaling": [0, 1, 5, -1, 1.5, "ABSENT"], "wavelet_family": ["ABSENT"]},
    "LORA kasa": {
        "lora_alpha": [0, 1, -1, 1.5, "ABSENT"],
        "kasa_config": [None, 0, 1, 5, -1, 1.5, "x", True, [], "ABSENT"],
    },
    "IA3": {"feedforward_modules": [None, 0, "x", "ABSENT"]},
    "ADALORA": {"init_r": [5, "ABSENT"], "lora_alpha": [0, 1, 5, -1, 1.5, "ABSENT"]},
    "LOHA": {"alpha": [0, 1, 5, -1, 1.5, "ABSENT"]},
    "LOKR": {"alpha": [0, 1, 5, -1, 1.5, "ABSENT"]},
    "ADAMSS": {"r": [1, 5, "ABSENT"], "num_subspaces": [0, 5, "ABSENT"], "random_seed": [0, 1, 5, "ABSENT"]},
}


def arrays_of(tensors, shared):
    """By key, random numbers of these shapes; indices are 1, and sizes 12."""
    shapes = {f"base_model.model.l.0.up.{key}": shape for key, shape in tensors.items()}
    shapes |= {f"base_model.{key}": shape for key, shape in shared.items()}
    rng = np.random.default_rng(0)
    arrays = {}
    for key, shape in shapes.items():
        whole = "indices" in key or "size" in key
        arrays[key] = np.full(shape, 12 if "size" in key else 1) if whole else rng.standard_normal(shape).astype("f4")
    return arrays


def read(config, tensors, shared, base=(D_OUT, D_IN)):
    """`base`: the shape of the base's weight, None for no base; `config`: None for none."""
    if base is not None:
        base = base_of({"l.0.up.weight": np.random.default_rng(1).standard_normal(base).astype("f4")})
    return read_arrays(arrays_of(tensors, shared), config, base)


def is_read(config, tensors, shared):
    try:
        read(config, tensors, shared)
    except InputError:
        return False
    return True


def without(part, key):
    return {name: value for name, value in part.items() if name != key}


@pytest.mark.parametrize("tuner", TUNERS)
def test_what_is_read_with_other_settings(tuner):
    config, tensors, shared = TUNERS[tuner]
    config = {"peft_type": tuner.partition(" ")[0], **config}
    found = {}
    for field, value in list(config.items())[1:]:
        others = [other for other in (None, 0, 1, 5, -1, 1.5, "x", True, []) if other != value]
        read_with = [other for other in others if is_read({**config, field: other}, tensors, shared)]
        if is_read(without(config, field), tensors, shared):
            read_with.append("ABSENT")
        if read_with:
            found[field] = read_with
    assert found == SETTINGS.get(tuner, {})
