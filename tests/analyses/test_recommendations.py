"""What resize recommends, and in which units it tells a loss; what intruders says before it counts."""

import numpy as np

from lorascope.analyses import intruders, resize, rules
from lorascope.analyses.truncate import Uniform
from lorascope.weights.adapter import Adapter, Source
from tests.analyses.test_checks import low_rank
from tests.analyses.test_delta import checkpoint


def test_resize_recommends_by_the_worst_module_and_not_by_the_total():
    """At rank 1 the total keeps 99.9 % of its energy, all of it the strong module's, and the weak one loses half."""
    strong, weak = low_rank("layers.0.q", (100.0, 1.0)), low_rank("layers.1.q", (1.0, 1.0))
    both = Adapter({u.name: u for u in (strong, weak)}, {"r": 2}, Source("x/y", "0" * 64, "peft", "LoRA"))
    result = resize.run(both, [Uniform(1), Uniform(2)])
    assert result.plans[0].error ** 2 < 0.001
    assert result.smallest.label == "rank 2"
    finding = next(f for f in result.findings if f.rule == rules.RECOMMENDED.code)
    assert "99 % of every module's energy: rank 2" in finding.text
    assert finding.command == ""  # it saves nothing
    (usual,) = [f for f in resize.run(both).findings if f.rule == rules.RECOMMENDED.code]
    assert usual.command == "lorascope resize x/y --energy 0.9 --output smaller"  # as many parameters as 0.99


def test_a_loss_is_told_in_both_units():
    adapter = Adapter({"q": low_rank("q", (2.0, 1.0))}, {"r": 2}, Source("x", "0" * 64, "peft", "LoRA"))
    text = resize.run(adapter, [Uniform(1)]).findings
    assert any("error 44.7 % of ‖ΔW‖, 20 % of its energy lost" in f.text for f in text)


def test_intruders_open_with_what_the_count_measures(rng):
    weight = rng.standard_normal((40, 30))
    change = np.outer(rng.standard_normal(40), rng.standard_normal(30))
    result = intruders.run(checkpoint(q__weight=weight + change), checkpoint(q__weight=weight), k=5)
    notes = [f for f in result.findings if f.severity == "note"]
    assert notes[0].text.startswith("The count measures strength, not novelty")
    assert notes[0].rule == "LS701"
