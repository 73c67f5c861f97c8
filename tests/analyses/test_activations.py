"""Shares and similarities on planted layers, where every number is known before the code runs."""

import json

import numpy as np
import pytest

from lorascope.analyses.activations import run
from lorascope.analyses.activations.measure import response
from lorascope.errors import InputError
from lorascope.report import html, terminal
from lorascope.run_data import LayerActivations, Recorded, RunActivations
from lorascope.weights.adapter import Skipped

M, N, K = 24, 32, 500
_DRAWN = np.random.default_rng(0)
W = _DRAWN.standard_normal((M, N))
X = _DRAWN.standard_normal((K, N)) @ np.diag(np.geomspace(3, 0.1, N))  # inputs with large and small directions


def seen(delta: np.ndarray, x: np.ndarray = X, name: str = "layers.0.q", uses: int = 1) -> LayerActivations:
    """What the hooks would have handed over: squares and products by token, computed densely."""
    update, base = x @ delta.T, x @ W.T
    squares = [np.sum(a * b, axis=1) for a, b in ((update, update), (base, base), (update + base, update + base),
                                                  (update, base), (x, x))]  # fmt: skip
    return LayerActivations(
        name, np.stack(squares, axis=1), uses, delta.shape, np.linalg.norm(delta), np.linalg.norm(W)
    )


@pytest.mark.parametrize("c", [0.25, -0.5])
def test_a_multiple_of_w_has_that_share_and_cosine_one(c):
    found = response("r", seen(c * W), "q")
    for key in ("mean", "q05", "q95"):
        assert found.share[key] == pytest.approx(abs(c), rel=1e-12)
        assert found.share_of_output[key] == pytest.approx(abs(c) / (1 + c), rel=1e-12)
        assert found.cosine[key] == pytest.approx(np.sign(c), abs=1e-9)
    assert found.weight_ratio == pytest.approx(abs(c))
    assert found.update_gain == pytest.approx(found.base_gain, rel=1e-12)


def test_an_update_that_the_inputs_do_not_meet_adds_nothing(rng):
    """Inputs in a subspace, ΔW's rows orthogonal to it."""
    basis = np.linalg.qr(rng.standard_normal((N, N)))[0]
    x = rng.standard_normal((K, 8)) @ basis[:, :8].T
    found = response("r", seen(rng.standard_normal((M, N - 8)) @ basis[:, 8:].T, x), "q")
    assert found.share["q95"] < 1e-12
    assert found.update_gain < 1e-12
    assert found.chance_share > 0.1  # a random one of its norm would add something


@pytest.mark.parametrize("rank", [1, 24])
def test_random_updates_have_the_closed_forms_share_and_cosine(rng, rank):
    """400 draws: mean square of ‖ΔW x‖ over ‖ΔW‖²‖x‖²/n within 4 standard errors; cosines spread by 1/√d_out."""
    gains, cosines = [], []
    for _ in range(400):
        delta = rng.standard_normal((M, rank)) @ rng.standard_normal((rank, N))
        found = response("r", seen(delta, X[:1]), "q")
        gains.append(found.update_gain**2)
        cosines.append(found.cosine["mean"])
        assert found.chance_share == pytest.approx(found.share["mean"] / found.update_gain, rel=1e-9)  # one token
    assert abs(np.mean(gains) - 1) < 4 * np.std(gains) / 20
    assert np.std(cosines) == pytest.approx(found.chance_cosine, rel=0.15)  # 4 standard errors of a spread of 400


def test_an_update_along_the_largest_inputs_gains(rng):
    leading = np.outer(rng.standard_normal(M), np.eye(N)[0])
    found = response("r", seen(leading), "q")
    expected = np.sqrt(np.sum(X[:, 0] ** 2) / (np.sum(X**2) / N))
    assert found.update_gain == pytest.approx(expected, rel=1e-12)
    assert found.update_gain > 1.5


def test_zero_updates_and_zero_inputs_have_no_share_that_could_be_wrong():
    zero = response("r", seen(np.zeros((M, N))), "q")
    assert zero.share["mean"] == 0
    assert zero.cosine is None
    assert zero.update_gain is None
    nothing = response("r", seen(W, np.zeros((3, N))), "q")
    assert (nothing.share, nothing.cosine, nothing.chance_share, nothing.base_gain) == (None,) * 4


def states(n: int = 120, width: int = 10, layers: int = 3, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, width)).astype(np.float32) for _ in range(layers)]


def recorded(rng: np.random.Generator, **how) -> Recorded:
    base, other = states(), states(seed=2)
    turn = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    rotated = [state @ turn * 3 for state in base]
    left = (Skipped("embeddings.LayerNorm.weight", "a vector, not a map of inputs", adapter="turned"),)
    modules = (seen(W / 4), seen(W / 8, name="layers.1.q"), seen(W / 2, name="layers.1.v", uses=2))
    runs = [
        RunActivations("turned", "lora", modules, left, tuple(rotated)),
        RunActivations("far", "full", (), (), tuple(other)),
    ]
    return Recorded(tuple(runs), tuple(base), np.arange(120), tokens=K, source="texts", **how)


def made(rng: np.random.Generator, **how):
    return run(recorded(rng, **how))


def test_rotated_states_are_the_same_and_independent_ones_as_by_chance(rng):
    result = made(rng)
    assert result.pairs == (("base", "turned"), ("base", "far"), ("turned", "far"))
    for one in result.similarity("base", "turned"):
        assert one.cka.value == pytest.approx(1, abs=1e-5)  # float32 states
    for one in (*result.similarity("base", "far"), *result.similarity("turned", "far")):
        assert abs(one.cka.value) < 4 * one.cka.chance_sd
        assert one.cka.biased > one.cka.value
        assert one.cka.low < one.cka.value < one.cka.high
    assert any("(chance level)" in finding.text for finding in result.findings)


def test_tokens_of_one_text_count_as_one_unit():
    base, other = states(), states(seed=2)
    runs = (RunActivations("far", "full", (), (), tuple(other)),)
    result = run(Recorded(runs, tuple(base), np.repeat(np.arange(30), 4)))
    assert (result.samples, result.texts) == (120, 30)
    assert result.similarities[0].cka.chance_sd == pytest.approx((2 / (30 * 27)) ** 0.5)
    assert any("tokens of the same text are not independent" in finding.text for finding in result.findings)


def test_few_samples_are_named_with_what_the_biased_estimator_would_say():
    base, other = states(30, 200), states(30, 200, seed=2)
    far = RunActivations("far", "full", (), (), tuple(other))
    result = run(Recorded((far,), tuple(base), np.arange(30)))
    assert result.similarities[0].cka.biased > 0.8  # unrelated states
    assert abs(result.similarities[0].cka.value) < 4 * result.similarities[0].cka.chance_sd
    assert any(f.severity == "warning" and "biased CKA of unrelated states" in f.text for f in result.findings)


@pytest.mark.parametrize("pooled", [False, True])
def test_it_can_be_drawn_and_written(rng, pooled):
    result = made(rng, pooled=pooled)
    found = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert found["schema"] == 2
    assert len(found["modules"]) == 3
    assert len(found["cka"]) == 9
    assert [item["adapter"] for item in found["skipped"]] == ["turned"]
    assert found["skipped"][0]["reason"].startswith("a vector")
    page = result.page()
    text = terminal.render(page, width=120, color=False)
    assert "CKA of hidden states" in text
    assert "<h1" in html.render(page)
    assert len(result.table()) == 12


def test_modules_chooses_the_layers():
    base = states()
    turned = RunActivations("turned", "lora", (seen(W / 4), seen(W / 2, name="layers.1.v")), (), tuple(base))
    recorded = Recorded((turned,), tuple(base), np.arange(120))
    assert [module.name for module in run(recorded, modules="v$").modules] == ["layers.1.v"]
    for pattern in ("(", "nothing"):
        with pytest.raises(InputError, match="--modules"):
            run(recorded, modules=pattern)


def test_what_does_not_belong_together_is_refused():
    def of(hidden: list[np.ndarray], base: list[np.ndarray], times: int = 1) -> Recorded:
        one = RunActivations("a", "lora", (), (), tuple(hidden))
        return Recorded((one,) * times, tuple(base), np.arange(len(base[0])))

    base = states()
    with pytest.raises(InputError, match="do not belong together"):
        run(of(states(60), base))
    with pytest.raises(InputError, match="two runs go by one name"):
        run(of(base, base, 2))
    with pytest.raises(InputError, match=r"cannot be compared.*at least 4"):
        run(of(states(3), states(3)))
