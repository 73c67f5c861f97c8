"""The line of scope: what a study's numbers are of, computed from its record."""

import pytest

from lorascope.study import scope


def record(arms=(), *, curves=(), replicates=5, conclusive=True, testbed="encoder", beside=None, **config):
    """The parts of a record that scope reads; `config` by section, over 3 layers, 100 steps of 32, 3,200 examples."""
    whole = {
        "model": {"name": "minilm", "num_hidden_layers": 3},
        "data": {"path": "wordnet-classes", "max_train_samples": 3200},
        "training": {"max_steps": 100, "per_device_train_batch_size": 32},
    }
    for section, values in config.items():
        whole[section] |= values
    found = {
        "scale": {"config": whole, "replicates": replicates, "test_split": "test", "test_samples": 1000,
                  "conclusive": conclusive, "testbed": testbed},
        "made": {"devices": ["cpu"]},
        "arms": [{"labels": {"arm": i}, "changes": changes} for i, changes in enumerate(arms)],
        "tuning": [
            {"learning_rate": best, "curve": [[rate, [0.5] * n] for rate in rates]} for best, n, rates in curves
        ],
    }  # fmt: skip
    return found | ({"beside": beside} if beside else {})


SHORT = (
    "Screening: first 3 of 6 layers of MiniLM (encoder), 25 classes of WordNet glosses, 100 steps, 5 replicates, CPU; "
    "says nothing about large language models"
)
FULL = (
    "first 3 of 6 layers of all-MiniLM-L6-v2 (22.7M parameters when whole), 25 classes of WordNet glosses, "
    "3,200 training examples, 100 steps of 32 examples, 5 replicates, no learning rate tuned, scored on 1,000 test "
    "texts."
)


def test_the_short_line_and_the_whole_scope():
    assert scope.line(record()) == SHORT
    assert scope.line(record(beside="One claim: a toy.")) == SHORT + ". One claim: a toy."
    assert scope.full(record()) == FULL
    assert scope.full(record(beside="One claim: a toy.")) == FULL + " One claim: a toy."


def test_the_short_line_spans_what_arms_have():
    arms = [{}, {"training.max_steps": 25}, {"training.max_steps": 400}, {"model.random_init": True}]
    said = scope.line(record([*arms, {"data.random_labels": True}]))
    assert ", 25 to 400 steps, " in said
    assert ", pre-trained weights or random weights, " in said
    assert ", true labels or random labels, " in said


def test_where_some_arms_have_all_layers_the_model_is_named_once():
    said = scope.line(record([{}, {}, {"model.num_hidden_layers": None}]))
    assert "first 3 of 6 layers of MiniLM (encoder) or all of them, " in said


def test_only_a_packaged_model_is_known_to_be_small():
    other = record(model={"name": "a/model-of-70B", "num_hidden_layers": None}, conclusive=False)
    assert scope.line(other).startswith("Smoke test: a/model-of-70B, 25 classes")
    assert "large language models" not in scope.line(other)


def test_what_other_arms_have_is_counted():
    said = scope.full(record([{}, {"training.max_steps": 25}, {"training.max_steps": 50}, {"model.random_init": True}]))
    assert "100 steps of 32 examples (25 steps in 1 of 4 arms; 50 steps in 1 of 4 arms)" in said
    assert ", random initial weights in 1 of 4 arms," in said
    every = scope.full(record([{"data.classes": ["a", "b"]}] * 2))
    assert "25 classes of WordNet glosses, 2 of these classes, 3,200" in every
    some = scope.full(record([{"data.classes": ["a", "b"]}] * 2 + [{}]))
    assert "2 of these classes (all classes in 1 of 3 arms)" in some


def test_of_as_many_arms_the_common_config_is_the_rule():
    arms = [{"training.max_steps": 25}, {"training.max_steps": 50}, {}]
    assert "100 steps of 32 examples (25 steps in 1 of 3 arms; 50 steps" in scope.full(record(arms))


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        (
            [(3e-3, 1, (1e-3, 3e-3, 1e-2))],
            "one tuning run per learning rate, neighbours of the best a factor of 3.3 apart",
        ),
        ([(1e-2, 1, (1e-2, 1e-3))], "a factor of 10 apart"),  # in any order
        ([(1e-3, 1, (1e-4, 1e-3, 1.8e-3)), (1e-3, 5, (1e-3, 2e-3))], "1 to 5 tuning runs"),
        ([(1.8e-3, 1, (1e-4, 1e-3, 1.8e-3)), (1e-3, 5, (1e-3, 2e-3))], "a factor of 2 apart"),  # near the best
        ([(None, 1, (1e-3, 3e-3))], "a factor of 3 apart"),  # none was chosen
        ([(1e-3, 1, (1e-3,))], "no learning rate tuned"),
    ],
)
def test_the_grid_of_learning_rates(curves, said):
    assert said in scope.full(record(curves=curves))


def test_other_models_sizes_and_texts():
    assert "all layers of all-MiniLM-L6-v2 (22.7M parameters)," in scope.full(record(model={"num_hidden_layers": None}))
    assert "the first of 6 layers" not in scope.full(record(model={"num_hidden_layers": 1}))
    assert "first of 6 layers of all-Mini" in scope.full(record(model={"num_hidden_layers": 1}))
    other = scope.full(record(model={"name": "roberta"}, data={"path": "mine.csv", "max_train_samples": None}))
    assert "first 3 layers of roberta, mine.csv, all training examples," in other
    assert "scored on the held-out texts that tuned" in scope.full(
        record() | {"scale": record()["scale"] | {"test_split": None}}
    )


def test_passes_in_place_of_steps():
    training = {"max_steps": None, "per_device_train_batch_size": None}
    assert "3,200 training examples, steps by passes over them, 5 replicates" in scope.full(record(training=training))


def test_what_studies_have_in_common():
    three, four = record(), record([{}, {"training.max_steps": 25}], replicates=4)
    said = scope.common([three, four, record(conclusive=False, training={"max_steps": 4})])
    assert ", 100 steps, CPU" in said  # an exception of one arm, and a smoke run, are none of the rule
    assert "replicates" not in said
    assert scope.common([record(conclusive=False)]) == ""


def test_each_test_bed_has_a_line():
    decoder = record(testbed="decoder", model={"name": "smollm2", "num_hidden_layers": 30})
    first, second = scope.common([record(), decoder, record()]).split("\n")
    assert first == SHORT + ". Exceptions are in each study's own line."
    assert second.startswith("Screening: SmolLM2-135M (decoder), ")


def test_layers_are_those_of_the_models():
    from lorascope.models.shapes import _KNOWN

    assert {name: values["num_hidden_layers"] for name, (_, values) in _KNOWN.items()} == scope.LAYERS
    assert scope.MODELS.keys() == scope.LAYERS.keys()
