"""What `delta` says changed: types by more than rounding, the rest, and in one line what is broken."""

import numpy as np

from lorascope.analyses import delta, rules
from lorascope.analyses.delta.findings import what_changed
from lorascope.linalg.rounding import round_to
from tests.analyses.test_delta import checkpoint, low_rank


def models(rng, changed: tuple[str, ...], rounded: tuple[str, ...] = (), dtype: str = "BF16"):
    """Two layers of q, k, v in bf16: planted changes in some types; in others one entry in fifty moved by one step."""
    base, tuned = {}, {}
    for layer in range(2):
        for kind in ("q_proj", "k_proj", "v_proj"):
            key = f"layers__{layer}__{kind}__weight"
            w = round_to(0.02 * rng.standard_normal((64, 48)), dtype)
            after = w + low_rank(rng, 64, 48, [0.5, 0.3]) if kind in changed else w.copy()
            if kind in rounded:
                after = np.where(rng.random(w.shape) < 0.02, w * (1 + 2.0**-8), w)
            base[key], tuned[key] = w, round_to(after, dtype)
    return checkpoint(dtype=dtype, **base), checkpoint("y", dtype=dtype, **tuned)


def test_types_that_changed_and_the_rest_is_rounding(rng):
    result = delta.run(*models(rng, ("q_proj", "v_proj"), ("k_proj",)))
    assert what_changed(result) == "Only q_proj and v_proj changed; the rest is bf16 rounding (2 matrices)"
    finding = next(f for f in result.findings if f.rule == rules.DELTA_CHANGED.code)
    assert len(finding.modules) == 4
    assert result.page().summary.startswith("Only q_proj and v_proj changed; the rest is bf16 rounding (2 matrices). ")


def test_types_that_changed_and_the_rest_is_equal(rng):
    assert what_changed(delta.run(*models(rng, ("q_proj",)))) == "Only q_proj changed; the rest is equal (4 matrices)"
    assert what_changed(delta.run(*models(rng, ("q_proj", "k_proj", "v_proj")))) == "All 3 module types changed"


def test_nothing_but_rounding(rng):
    result = delta.run(*models(rng, (), ("q_proj", "k_proj", "v_proj")))
    assert what_changed(result) == "No matrix changed by more than rounding; the rest is bf16 rounding (6 matrices)"


def test_nan_in_several_parameters_is_one_line(rng):
    base, tuned = (checkpoint(a__weight=np.ones((4, 4)), b__weight=np.ones((4, 4))) for _ in range(2))
    bad = np.ones((4, 4))
    bad[0, 0] = np.nan
    tuned = checkpoint(a__weight=bad, b__weight=bad)
    errors = [f for f in delta.run(base, tuned).findings if f.severity == "error"]
    assert [f.rule for f in errors] == ["LS401"]
    assert "2 entries are NaN or infinite in 2 parameters" in errors[0].text
