"""Families whose keys stand under no fixed role, each by a file of one or two modules and the formula written out."""

import warnings

import numpy as np
import pytest
import torch

from lorascope.errors import InputError
from lorascope.updates.base import dense
from lorascope.weights.formats.base import Bundle, Ledger, formats
from lorascope.weights.formats.peft import adamss
from lorascope.weights.tensors import InMemory

MODEL = "base_model.model."


def arrays(**shapes):
    rng = np.random.default_rng(0)
    return {key: rng.standard_normal(shape).astype("f4") for key, shape in shapes.items()}


def of_model(**shapes):
    return {MODEL + key: value for key, value in arrays(**shapes).items()}


def parsed(tensors, base=None, **config):
    """What PEFT's reader makes of these arrays, and the ledger after it."""
    tensors = {key: InMemory(value, "I64" if value.dtype == np.int64 else "F32") for key, value in tensors.items()}
    ledger = Ledger(tensors)
    return formats.get("peft").read(Bundle("a", tensors, {}, config or None), ledger, base), ledger


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)  # sums of a few products in float64


def double(tensors, prefix=MODEL):
    return {key.removeprefix(prefix): value.astype(float) for key, value in tensors.items()}


def frod():
    """Two modules of one type, and a third without a basis."""
    tensors = {f"{MODEL}l.{n}.a.q.{key}": value for n in "01" for key, value in arrays(frod_lambda_l=(3,)).items()}
    tensors |= {f"{MODEL}l.{n}.a.q.frod_lambda_s_values": np.float32([int(n) + 1, 5]) for n in "01"}
    tensors["base_model.frod_V.a_q"] = arrays(V=(3, 3))["V"]
    tensors["base_model.frod_s_indices.a_q"] = np.array([[0, 2], [1, 1]])
    tensors["base_model.frod_s_size.a_q"] = np.array([3, 3])
    return tensors


def test_frod():
    tensors = frod()
    found, ledger = parsed(tensors, peft_type="FROD")
    assert (found.method, list(found.updates), ledger.left(), ledger.skipped) == (
        "FRoD",
        ["l.0.a.q", "l.1.a.q"],
        [],
        [],
    )
    v = tensors["base_model.frod_V.a_q"].astype(float)
    for n in "01":
        inner = np.diag(tensors[f"{MODEL}l.{n}.a.q.frod_lambda_l"].astype(float))
        inner[0, 1] += int(n) + 1
        inner[2, 1] += 5
        close(found.updates[f"l.{n}.a.q"].roles["T"].read(), inner @ v.T)
        close(found.updates[f"l.{n}.a.q"].roles["V"].read(), v)


@pytest.mark.parametrize("lost", ["frod_V", "frod_s_indices"])
def test_frod_without_its_basis_is_skipped(lost):
    tensors = {key: value for key, value in frod().items() if lost not in key}
    found, ledger = parsed(tensors, peft_type="FROD")
    assert (found.method, dict(found.updates), ledger.left()) == ("FRoD", {}, [])
    reasons = {item.name.rpartition("frod_")[2]: item.reason for item in ledger.skipped}
    assert reasons["lambda_l"].startswith("FRoD: its basis is not in the file")
    assert reasons["s_size.a_q"].startswith("FRoD's basis, which no module")


@pytest.mark.parametrize(("act", "function"), [("relu", lambda x: np.maximum(x, 0)), ("tanh", np.tanh)])
@pytest.mark.parametrize("depth", [0, 2])
def test_peanut(act, function, depth):
    """The chain of PEFT's layer on W: A's product, encoders with the nonlinearity behind each, decoders, B."""
    shapes = {"A": (2, 4), "B": (4, 2)} | {
        f"{part}.{n}": (2, 2) for part in ("encoders", "decoders") for n in range(depth)
    }
    tensors = {f"{MODEL}q.peanut_{key}.weight": value for key, value in arrays(**shapes).items()}
    found, ledger = parsed(tensors, peft_type="PEANUT", act_fn=act, scaling=1.5)
    (update,) = found.updates.values()
    assert (found.method, update.kind, update.scale, ledger.left()) == ("PEANuT", f"peanut_{act}", 1.5, [])
    roles = update.read()
    assert set(roles) == ({"down", "up", "encoders", "decoders"} if depth else {"down", "up"})
    for part in ("encoders", "decoders") if depth else ():
        stacked = np.stack([tensors[f"{MODEL}q.peanut_{part}.{n}.weight"] for n in range(depth)])
        np.testing.assert_array_equal(roles[part], stacked)
    np.testing.assert_array_equal(roles["down"], tensors[f"{MODEL}q.peanut_A.weight"])
    np.testing.assert_array_equal(roles["up"], tensors[f"{MODEL}q.peanut_B.weight"])


@pytest.mark.parametrize(
    ("config", "said"), [({"act_fn": "mish"}, "its nonlinearity is 'mish'"), (None, "without adapter_config")]
)
def test_peanut_of_an_unknown_nonlinearity_is_skipped(config, said):
    tensors = {f"{MODEL}q.peanut_{key}.weight": value for key, value in arrays(A=(2, 4), B=(4, 2)).items()}
    found, ledger = parsed(tensors, **({"peft_type": "PEANUT", **config} if config else {}))
    assert (found.method, dict(found.updates), ledger.left()) == ("PEANuT", {}, [])
    assert all(item.reason.startswith(f"PEANuT: {said}") for item in ledger.skipped)


def test_peanut_s_layers_are_alike_and_none_is_left_out():
    whole = {f"{MODEL}q.peanut_{key}.weight": value for key, value in arrays(A=(2, 4), B=(4, 2)).items()}
    for shapes, said in (({"0": (2, 2), "1": (3, 3)}, "differ in shape"), ({"1": (2, 2)}, r"not encoders\.0")):
        more = {f"{MODEL}q.peanut_encoders.{n}.weight": value for n, value in arrays(**shapes).items()}
        with pytest.raises(InputError, match=said):
            parsed(whole | more, peft_type="PEANUT")
    with pytest.raises(InputError, match="scaling is not a number"):
        parsed(whole, peft_type="PEANUT", scaling="1")
    with pytest.raises(InputError, match="without its partner"):
        parsed({key: value for key, value in whole.items() if "_B" not in key}, peft_type="PEANUT")


@pytest.mark.parametrize("name", ["q", "embed_tokens"])
def test_tinylora_with_one_vector(name):
    tensors = {f"{MODEL}{name}.tinylora_{key}": value for key, value in arrays(A=(2, 5), B=(6, 2), P=(3, 2, 2)).items()}
    tensors["base_model.tinylora_v.0"] = np.float32([1, 2, 3])
    found, ledger = parsed(tensors, peft_type="TINYLORA")
    (update,) = found.updates.values()
    assert (found.method, ledger.left(), found.notes) == ("TinyLoRA", [], ())
    a, b, p = (tensors[f"{MODEL}{name}.tinylora_{key}"].astype(float) for key in "ABP")
    expected = b @ (p[0] + 2 * p[1] + 3 * p[2]) @ a
    close(dense(update.delta()), expected.T if name == "embed_tokens" else expected)
    assert (update.embedding, update.transposed) == ((True, True) if name == "embed_tokens" else (False, False))


@pytest.mark.parametrize("shapes", [
    {"B": (6, 3)}, {"A": (2, 5, 1)}, {"B": (6,)}, {"P": (3, 2, 3)}, {"P": (4, 2, 2)}, {"P": (3, 2)},
])  # fmt: skip
def test_tinylora_s_tensors_fit_together(shapes):
    own = {"A": (2, 5), "B": (6, 2), "P": (3, 2, 2)} | shapes
    tensors = {f"{MODEL}q.tinylora_{key}": value for key, value in arrays(**own).items()}
    with pytest.raises(InputError, match="do not fit together"):
        parsed(tensors | {"base_model.tinylora_v.0": np.ones(3, "f4")}, peft_type="TINYLORA")


def test_tinylora_s_vectors_are_of_one_length():
    tensors = {
        f"{MODEL}{m}.tinylora_{key}": v for m in "qk" for key, v in arrays(A=(2, 5), B=(6, 2), P=(3, 2, 2)).items()
    }
    vectors = {f"base_model.tinylora_v.{n}": np.ones(3 + n, "f4") for n in (0, 1)}
    with pytest.raises(InputError, match="differ in length"):
        parsed(tensors | vectors, peft_type="TINYLORA")


def test_norms_and_matrices_tuned_whole():
    shapes = {
        "n.ln_tuning_layers.weight": (4,),
        "n.ln_tuning_layers.bias": (4,),
        "q.ln_tuning_layers.x.weight": (3, 2, 5),
    }
    tensors = of_model(**shapes)
    found, ledger = parsed(tensors, peft_type="LN_TUNING")
    assert (found.method, ledger.left()) == ("LayerNorm tuning", [])
    assert {n: (u.roles["tuned"].shape, u.kernel, u.base_weight) for n, u in found.updates.items()} == {
        "n.weight": ((4, 1), (), "n.weight"), "n.bias": ((4, 1), (), "n.bias"), "q": ((3, 10), (5,), "q.weight")
    }  # fmt: skip
    for shape in ((), (0,), (3, 0)):
        with pytest.raises(InputError, match="has no entries"):
            parsed({f"{MODEL}n.ln_tuning_layers.weight": np.ones(shape, "f4")}, peft_type="LN_TUNING")
    twice = {f"{MODEL}n.ln_tuning_layers.{name}.weight": np.ones(3, "f4") for name in "ab"}
    with pytest.raises(InputError, match=r"holds n\.weight twice"):
        parsed(twice, peft_type="LN_TUNING")


def test_trained_tokens():
    key = f"{MODEL}e.token_adapter.trainable_tokens_delta"
    found, ledger = parsed(arrays(**{key: (2, 4)}), peft_type="TRAINABLE_TOKENS", token_indices=[3, 1])
    assert (found.method, dict(found.updates), ledger.left()) == ("trainable tokens", {}, [])
    assert {name: rows.indices for name, rows in found.rows.items()} == {"e.weight": (3, 1)}


@pytest.mark.parametrize(
    ("config", "key", "method", "reason"),
    [
        ({"peft_type": "ADAPTION_PROMPT"}, "q.adaption_prompt", "LLaMA-Adapter", "LLaMA-Adapter: learned tokens"),
        ({"peft_type": "SHADOW"}, "q.shadow_x.weight", "Shadow", "Shadow: a second network"),
        ({"peft_type": "XLORA", "adapters": {"a": "one/two"}}, "internal_xlora_classifier.w", "X-LoRA",
         "X-LoRA: mixes several adapters for each token, each scaled by a classifier; analyse these"),
        ({"peft_type": "XLORA"}, "internal_xlora_classifier.w", "X-LoRA", "X-LoRA: mixes several adapters"),
        ({"peft_type": "LORA", "r": 1}, "q.bone_x", "Bone", "Bone: recognised but not supported"),
    ],
)  # fmt: skip
def test_what_is_recognised_by_name(config, key, method, reason):
    found, ledger = parsed(arrays(**{MODEL + key: (2, 2)}), **config)
    assert (found.method, dict(found.updates), ledger.left()) == (method, {}, [])
    assert ledger.skipped[0].reason.startswith(reason)
    assert ("analyse these" in ledger.skipped[0].reason) == ("adapters" in config)


@pytest.mark.parametrize("mixture", [False, True])
def test_a_and_b_next_to_another_method_s_tensors_are_not_read(mixture):
    shapes = {
        "q.lora_A.weight": (2, 4),
        "q.lora_B.weight": (3, 2),
        "k.lora_A.weight": (2, 4),
        "k.lora_B.weight": (3, 2),
    }
    shapes |= {"internal_xlora_classifier.w" if mixture else "q.bone_x": (1,)}
    tensors = of_model(**shapes)
    found, ledger = parsed(tensors, peft_type="LORA", r=2)
    assert list(found.updates) == ([] if mixture else ["k"])
    reasons = {item.name.removeprefix(MODEL): item.reason for item in ledger.skipped}
    assert reasons["q.lora_A.weight"].startswith("X-LoRA: each token" if mixture else "Bone: its tensors stand next to")
    assert ledger.left() == []


def test_adamss_of_one_cluster(monkeypatch):
    monkeypatch.setattr(adamss, "_unreadable", lambda context: None)
    monkeypatch.setattr(adamss.Clusters, "_labels", lambda self: np.zeros(3, int))
    tensors = {
        MODEL + key: v
        for key, v in arrays(**{"q.adamss_newB": (2, 5), "q.adamss_A.0": (1, 2), "q.adamss_B.0": (3, 1)}).items()
    }
    bias = InMemory(np.ones(3, "f4"), "F32")

    class Base:
        def weight(self, module):
            return InMemory(np.ones((3, 4), "f4"), "F32")

        def find(self, name):
            return bias if name == "q.bias" else None

    found, ledger = parsed(tensors, Base(), peft_type="ADAMSS", r=2)
    basis, a, b = double(tensors).values()
    assert (found.method, ledger.left(), found.notes) == ("AdaMSS", [], (adamss.FOUND_AGAIN,))
    close(dense(found.updates["q"].delta()), (b @ a @ basis)[:, :4])
    close(found.updates["q"].bias.read(), (b @ a @ basis)[:, 4])


def test_adamss_without_a_base_is_skipped():
    tensors = {MODEL + key: v for key, v in arrays(**{"q.adamss_newB": (2, 5), "q.adamss_A.0": (1, 2)}).items()}
    found, ledger = parsed(tensors, peft_type="ADAMSS")
    assert (found.method, dict(found.updates), ledger.left()) == ("AdaMSS", {}, [])
    assert {item.reason for item in ledger.skipped} == {adamss.NO_BASE}


def test_lily_s_experts_and_their_mixture():
    shapes = {"q.lily_A.weight": (2, 4), "q.lily_B.weight": (6, 5), "q.lily_router.weight": (3, 2)}
    tensors = of_model(**shapes)
    found, ledger = parsed(tensors, peft_type="LILY", scaling=3)
    assert (found.method, list(found.updates), ledger.left()) == ("Lily", ["q", "q[0]", "q[1]", "q[2]"], [])
    a, b, router = double(tensors).values()
    chances = torch.softmax(torch.from_numpy(router @ a), dim=0).mean(dim=1).numpy()
    for e in range(3):
        close(dense(found.updates[f"q[{e}]"].delta()), 3 * b[2 * e : 2 * e + 2].T @ a)
    close(dense(found.updates["q"].delta()), 3 * sum(c * b[2 * e : 2 * e + 2].T @ a for e, c in enumerate(chances)))
    with pytest.raises(InputError, match="scaling is not a number"):
        parsed(tensors, peft_type="LILY", scaling="x")


def test_poly_s_skills():
    shapes = {"q.poly_lora_A": (2, 3, 4, 2), "q.poly_lora_B": (2, 3, 2, 5)}
    tensors = of_model(**shapes)
    found, ledger = parsed(tensors, peft_type="POLY")
    assert (found.method, list(found.updates), ledger.left()) == ("Poly", ["q[0]", "q[1]", "q[2]"], [])
    a, b = double(tensors).values()
    for e in range(3):
        down, up = np.concatenate([a[0, e], a[1, e]]), np.concatenate([b[0, e], b[1, e]], axis=1)
        close(dense(found.updates[f"q[{e}]"].delta()), (down @ up).T / 2)


# What a search with changed adapters found (tests/fuzz).


def test_a_factor_of_delora_without_axes_is_refused():
    roles = {"A": (), "B": (6, 2), "lambda": (1,), "w_norm": (5,)}
    tensors = {f"{MODEL}q.delora_{role}": np.ones(shape, "f4") for role, shape in roles.items()}
    with pytest.raises(InputError, match=r"delora_A has too few axes; found \(\); expected 1 at least"):
        parsed(tensors, peft_type="DELORA")


def test_oft_without_a_rotation_is_refused():
    with pytest.raises(InputError, match="without its partner"):
        parsed({f"{MODEL}q.oft_R.bias": np.ones((2, 3), "f4")}, peft_type="OFT")


@pytest.mark.parametrize("count", [1 << 30, 0])
@pytest.mark.parametrize(
    ("peft_type", "shapes"),
    [
        ("LORA", {"experts.lora_A.weight": ("n", 0), "experts.lora_B.weight": (0, "n")}),
        ("LILY", {"q.lily_A.weight": (0, 5), "q.lily_B.weight": (0, 6), "q.lily_router.weight": ("n", 0)}),
        ("POLY", {"q.poly_lora_A": (1, "n", 0, 2), "q.poly_lora_B": (1, "n", 2, 0)}),
    ],
)
def test_experts_without_entries_are_refused_at_once(peft_type, shapes, count):
    """Of a billion rows of no entries, which take no bytes, a billion experts would be made."""
    tensors = {
        MODEL + key: np.zeros(tuple(count if axis == "n" else axis for axis in shape), "f4")
        for key, shape in shapes.items()
    }
    config = {"r": 1, "target_parameters": ["experts.gate_up_proj"]} if peft_type == "LORA" else {}
    with pytest.raises(InputError, match="fit together"):
        parsed(tensors, peft_type=peft_type, **config)


def test_what_overflows_in_a_tensor_that_is_computed_is_no_warning():
    """The analyses say what is not finite."""
    tensors = {f"{MODEL}q.oft_R.weight": np.full((2, 3), 3e38, "f4")}
    found, _ = parsed(tensors, peft_type="OFT", oft_block_size=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (values,) = (stored.read() for update in found.updates.values() for stored in update.roles.values())
    assert values.shape == (1, 2, 3, 3)
