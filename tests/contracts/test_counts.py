"""Start-up, `analyze`, `delta` and a training step take no tenth more instructions than when they were stored."""

import json

import pytest

from tests.benchmarks import counts


@pytest.mark.slow
def test_no_command_takes_a_tenth_more_instructions():
    if (reason := counts.missing()) is not None:
        pytest.skip(reason)
    stored = json.loads(counts.STORED.read_text())
    if stored["environment"] != counts.environment():
        pytest.skip("the counts were stored with other versions")
    seen = counts.counts(training="training step" in stored["counts"])
    assert seen.keys() == stored["counts"].keys()
    grown = {name: seen[name] / number for name, number in stored["counts"].items() if seen[name] > number}
    at_most = 1 + counts.RISE
    assert all(ratio <= at_most for ratio in grown.values()), (
        f"{grown}: look for what costs more, or store the counts with `python -m tests.benchmarks.counts --write`"
    )
