"""A reading's numbers and words come from the verdicts, its scope from the scale."""

from dataclasses import replace

import pandas as pd

from lorascope.study import Claim, Criterion, Results
from lorascope.study.answers import Answers
from lorascope.study.tasks import scales
from lorascope.study.verdict import judge_all

SCALES = scales({"smoke": {}, "small": {}, "full": {}})


def answers(values):
    """Of one claim: the mean of the values of five replicates is at least 10 %, no effect is 0."""
    runs = pd.DataFrame({"replicate": range(5), "loss": values})
    results = Results(runs, {}, SCALES["small"], pd.DataFrame())
    mean = Criterion("mean", lambda r: r.runs["loss"].mean(), at_least=0.1, no_effect=0.0, unit="percent")
    claim = Claim("one", "It is large", "a paper", (mean,), note="No negative control: arithmetic.")
    return Answers(judge_all([claim], results, testbed="encoder"), SCALES["small"])


def test_verdicts_and_numbers_in_words():
    found = answers([0.2, 0.21, 0.22, 0.23, 0.24])
    assert found.verdict("one") == "reproduced here"
    assert found.is_one_of("one", "weaker", "reproduced")
    assert found.found("one").startswith("22.0 % [2")
    assert list(found) == ["one"]
    assert answers([0.02, 0.021, 0.022, 0.023, 0.024]).verdict("one") == "weaker here"
    assert answers([float("nan")] * 5).found("one") == "not computed"


def test_the_scope_is_the_scales():
    assert Answers((), SCALES["small"]).here == "on a 3-layer encoder after 100 steps"
    assert Answers((), SCALES["full"]).opening == "On the encoder minilm after 625 steps"
    decoder = replace(SCALES["small"], testbed="decoder", config={"model": {"name": "smollm2"}})
    assert Answers((), decoder).here == "on the decoder smollm2"
