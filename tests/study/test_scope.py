"""The line of scope: what a study's numbers are of, computed from its record."""

import pytest

from lorascope.study import scope


def record(arms=(), *, curves=(), replicates=5, test_split="test", conclusive=True, beside=None, **config):
    """The parts of a record that scope reads; `config` by section, over 3 layers, 100 steps of 32, 3,200 examples."""
    whole = {
        "model": {"name": "minilm", "num_hidden_layers": 3},
        "data": {"path": "wordnet-classes", "max_train_samples": 3200},
        "training": {"max_steps": 100, "per_device_train_batch_size": 32},
    }
    for section, values in config.items():
        whole[section] |= values
    found = {
        "scale": {"config": whole, "replicates": replicates, "test_split": test_split, "test_samples": 1000,
                  "conclusive": conclusive},
        "arms": [{"labels": {"arm": i}, "changes": changes} for i, changes in enumerate(arms)],
        "tuning": [{"curve": [[rate, 0.5] for rate in rates]} for rates in curves],
    }  # fmt: skip
    return found | ({"beside": beside} if beside else {})


PLAIN = (
    "Scope: first 3 of 6 layers of all-MiniLM-L6-v2 (22.7M parameters when whole), WordNet glosses in 25 classes, "
    "3,200 training examples, 100 steps of 32 examples, 5 seeds, no learning rate tuned, scored on 1,000 test texts."
)


def test_the_whole_line():
    assert scope.line(record()) == PLAIN
    assert scope.line(record(beside="One claim: a toy.")) == PLAIN + " One claim: a toy."


def test_what_other_arms_have_is_counted():
    said = scope.line(record([{}, {"training.max_steps": 25}, {"training.max_steps": 50}, {"model.random_init": True}]))
    assert "100 steps of 32 examples (25 steps in 1 of 4 arms; 50 steps in 1 of 4 arms)" in said
    assert ", random initial weights in 1 of 4 arms," in said
    every = scope.line(record([{"data.classes": ["a", "b"]}] * 2))
    assert "WordNet glosses in 25 classes, 2 of these classes, 3,200" in every
    some = scope.line(record([{"data.classes": ["a", "b"]}] * 2 + [{}]))
    assert "2 of these classes (all classes in 1 of 3 arms)" in some


def test_of_as_many_arms_the_common_config_is_the_rule():
    arms = [{"training.max_steps": 25}, {"training.max_steps": 50}, {}]
    assert "100 steps of 32 examples (25 steps in 1 of 3 arms; 50 steps" in scope.line(record(arms))


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        ([(1e-3, 3e-3, 1e-2)], "grid of factor 3.3"),
        ([(1e-2, 1e-3)], "grid of factor 10,"),  # in any order
        ([(1e-3, 1.8e-3), (1e-3, 2e-3)], "grid of factor 2,"),  # the widest step of all
        ([(1e-3,)], "no learning rate tuned"),
    ],
)
def test_the_grid_of_learning_rates(curves, said):
    assert said in scope.line(record(curves=curves))


def test_other_models_sizes_and_texts():
    assert "all layers of all-MiniLM-L6-v2 (22.7M parameters)," in scope.line(record(model={"num_hidden_layers": None}))
    assert "the first of 6 layers" not in scope.line(record(model={"num_hidden_layers": 1}))
    assert "first of 6 layers of all-Mini" in scope.line(record(model={"num_hidden_layers": 1}))
    other = scope.line(record(model={"name": "roberta"}, data={"path": "mine.csv", "max_train_samples": None}))
    assert "first 3 layers of roberta, mine.csv, all training examples," in other
    assert "scored on the held-out texts that tuned" in scope.line(record(test_split=None))


def test_passes_in_place_of_steps():
    training = {"max_steps": None, "per_device_train_batch_size": None}
    assert "3,200 training examples, steps by passes over them, 5 seeds" in scope.line(record(training=training))


def test_what_studies_have_in_common():
    three, four = record(), record([{}, {"training.max_steps": 25}], replicates=4)
    said = scope.common([three, four, record(conclusive=False, training={"max_steps": 4})])
    assert "100 steps of 32 examples" in said  # an exception of one arm, and a smoke run, are none of the rule
    assert "seeds" not in said
    assert "25 steps" not in said
    assert scope.common([record(conclusive=False)]) == ""


def test_layers_are_those_of_the_models():
    from lorascope.models.shapes import _KNOWN

    assert {name: values["num_hidden_layers"] for name, (_, values) in _KNOWN.items()} == scope.LAYERS
