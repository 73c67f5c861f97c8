"""What `delta` says changed: types by more than rounding, the rest, and in one line what is broken."""

import numpy as np

from lorascope.analyses import delta, rules
from lorascope.analyses.delta.findings import what_changed
from lorascope.blocks import Findings
from lorascope.linalg.rounding import round_to
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Source
from lorascope.weights.tensors import InMemory
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


def test_rounding_alone_is_a_note_and_the_headline_is_not_said_twice(rng):
    result = delta.run(*models(rng, ("q_proj",), ("k_proj", "v_proj")))
    (found,) = (f for f in result.findings if f.rule == rules.DELTA_ROUNDING.code)
    assert (found.severity, found.module, len(found.modules)) == ("note", None, 4)
    assert found.text == "ΔW is only BF16 rounding in 4 of 6 matrices"
    assert found.action == "Ignore their ranks and singular values"
    assert not result.page().summary.startswith("1 warning")
    shown = next(block.items for block in result.blocks() if isinstance(block, Findings))
    assert rules.DELTA_CHANGED.code not in {f.rule for f in shown}
    assert rules.DELTA_CHANGED.code in {f["rule"] for f in result.to_json()["findings"]}


def test_where_rounding_is_all_that_there_is_it_is_a_warning(rng):
    result = delta.run(*models(rng, (), ("q_proj", "k_proj", "v_proj")))
    (found,) = (f for f in result.findings if f.rule == rules.DELTA_ROUNDING.code)
    assert (found.severity, found.text) == ("warning", "ΔW is only BF16 rounding in all 6 matrices")
    assert result.page().summary.startswith("1 warning. No matrix changed by more than rounding; the rest is")


def test_a_change_that_rounding_partly_hides_is_a_warning(rng):
    w = round_to(0.5 * rng.standard_normal((96, 96)), "BF16")
    after = round_to(w + low_rank(rng, 96, 96, [0.15, 0.1, 0.002, 0.001]), "BF16")
    pair = (checkpoint(name, dtype="BF16", layers__0__q__weight=each) for name, each in (("x", w), ("y", after)))
    found = next(f for f in delta.run(*pair).findings if f.rule == rules.DELTA_ROUNDING.code)
    assert (found.severity, found.module) == ("warning", "layers.0.q")
    assert found.text.endswith("more than 5 % in 1 of 1 matrix")
    assert found.action == "Ignore the small singular values there"


def test_a_head_that_one_model_lacks_is_a_note_and_a_layer_a_warning(rng):
    w = rng.standard_normal((6, 5))
    both = {"layers__0__q__weight": w, "embed__weight": w}
    tuned = {"layers__0__q__weight": w + 1, "embed__weight": w}
    for more, severity in (("classifier__weight", "note"), ("layers__0__k__weight", "warning")):
        result = delta.run(checkpoint(**both, **{more: w}), checkpoint(**tuned))
        (found,) = (f for f in result.findings if f.rule == rules.SKIPPED.code)
        assert (found.severity, bool(found.action)) == (severity, severity == "warning")
        other = delta.run(checkpoint(**both, **{more: w}), checkpoint(**tuned, **{more: w[:4]}))
        assert next(f for f in other.findings if f.rule == rules.SKIPPED.code).severity == severity


def test_a_resized_vocabulary_has_a_rule(rng):
    w = rng.standard_normal((6, 5))
    result = delta.run(checkpoint(embed_tokens__weight=w), checkpoint(embed_tokens__weight=np.vstack([w + 1, w])))
    (found,) = (f for f in result.findings if f.rule == rules.DELTA_RESIZED.code)
    assert found.text == "Resized from 6 to 12 rows: the first 6 are compared"
    assert found.modules == ("embed_tokens",)


def test_an_adapter_that_has_nothing_where_the_models_differ(rng):
    base, tuned = models(rng, ("q_proj",), dtype="F32")
    a = rng.standard_normal((2, 48))
    for b, name, said in (
        (np.ones((64, 2)), "k_proj", "x: targets none of the matrices that changed"),
        (np.zeros((64, 2)), "q_proj", "x: in the 1 matrix it adapts"),
    ):
        roles = {"A": InMemory(a, "F32"), "B": InMemory(b, "F32")}
        update = Update(f"layers.0.{name}", "low_rank", roles)
        found = delta.run(base, tuned, adapters=[Adapter({update.name: update}, {}, Source("x", None, "peft", "LoRA"))])
        (finding,) = (f for f in found.findings if f.rule == rules.DELTA_ADAPTER.code)
        assert finding.severity == "warning"
        assert finding.text.startswith(said)
