"""A run opened again scores what it scored, and any other weights as a model that holds them would."""

import json

import numpy as np
import pytest
import torch

from lorascope.errors import InputError
from lorascope.training import run
from lorascope.training.config import parse, resolved
from lorascope.training.reopen import reopen
from lorascope.updates.base import dense

METHODS = {
    "lora": {"targets": "all-linear", "rank": 4},
    "dora": {"targets": "all-linear", "rank": 4},  # ΔW depends on W
    "full": {},  # vectors and embeddings, too
    "random_subspace": {"d": 40},
    "prompt": {"num_virtual_tokens": 2},
    "ia3": {},
}


@pytest.fixture
def finished(classifier, tmp_path):
    """Trains a method for a few steps and gives the run's folder."""

    def train(method, make=classifier):
        base = resolved(make("training.max_steps=4", "optim.learning_rate=2e-2"))
        folder = tmp_path / f"run-{method}"
        run.train(parse({**base, "method": {"name": method, **METHODS[method]}}), folder)
        return folder

    return train


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("prompt", "ia3")])
def test_it_scores_as_the_run_did(finished, method):
    folder = finished(method)
    said = json.loads((folder / "summary.json").read_text())["held_out"]
    again = reopen(folder, "cpu")
    trained = again.score()
    assert trained.loss == pytest.approx(said["loss"], rel=1e-5)  # float32, one more rounding of W
    assert trained.accuracy == said["accuracy"]
    again.put({})
    assert again.score().loss != pytest.approx(said["loss"], rel=1e-4)
    again.put({name: again.delta(name) for name in again.updates})
    assert again.score().loss == pytest.approx(trained.loss, rel=1e-6)


def test_what_is_put_is_what_the_model_holds(finished):
    again = reopen(finished("full"), "cpu")
    matrix = next(name for name, update in again.updates.items() if name.endswith("query"))
    vector = next(name for name, update in again.updates.items() if update.shape[1] == 1)
    drawn = np.random.default_rng(0)
    change = {name: drawn.normal(size=again.updates[name].shape) for name in (matrix, vector)}
    again.put(change)
    for name in change:
        update = again.updates[name]
        held = again.model.get_parameter(update.base_weight or f"{name}.weight").double().numpy()
        expected = again.base_weight(name) + change[name]
        expected = expected.T if update.transposed else expected
        np.testing.assert_allclose(held.reshape(expected.shape), expected, rtol=1e-6, atol=1e-7)  # stored in float32
    again.restore()
    np.testing.assert_allclose(
        again.model.get_parameter(f"{matrix}.weight").double().numpy(),
        again.base_weight(matrix) + dense(again.delta(matrix)),
        rtol=1e-6,
        atol=1e-7,
    )


def test_a_decoder_with_tied_embeddings(finished, language_model):
    folder = finished("full", language_model)
    again = reopen(folder, "cpu")
    said = json.loads((folder / "summary.json").read_text())["held_out"]["loss"]
    assert again.score().loss == pytest.approx(said, rel=1e-5)
    again.put({})
    base = again.score().loss
    fresh = run.prepare(again.config, torch.device("cpu"))
    with torch.no_grad():
        batch = again.held_out.batch(range(2))
        expected = fresh.model.eval()(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        found = again.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert base != pytest.approx(said, rel=1e-4)


def test_what_cannot_be_opened_says_so(finished, tmp_path):
    with pytest.raises(InputError, match=r"config\.yaml"):
        reopen(tmp_path)
    folder = finished("lora")
    good = reopen(folder, "cpu")
    (folder / "summary.json").write_text(json.dumps({"diverged": "training diverged at step 3"}))
    with pytest.raises(InputError, match="diverged at step 3"):
        reopen(folder)
    with pytest.raises(InputError, match="no such update"):
        good.put({"nowhere": np.zeros((2, 2))})
    name = next(iter(good.updates))
    with pytest.raises(InputError, match="another shape"):
        good.put({name: np.zeros((2, 2))})


def test_an_adapter_that_is_no_change_of_weights(finished):
    with pytest.raises(InputError, match="cannot be merged"):
        reopen(finished("prompt"), "cpu")


def test_scales_are_a_change_of_weights_where_there_is_no_bias(finished, language_model):
    folder = finished("ia3", language_model)
    said = json.loads((folder / "summary.json").read_text())["held_out"]
    again = reopen(folder, "cpu")
    assert again.score().loss == pytest.approx(said["loss"], rel=1e-5)  # float32, one more rounding of W
    for name, shape in again.shapes.items():
        assert again.delta(name).shape == shape == again.base_weight(name).shape
    again.put({})
    again.restore()
    assert again.score().loss == pytest.approx(said["loss"], rel=1e-5)


def test_scales_that_act_on_biases_too_are_refused(finished, classifier, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    place = classifier().model.name
    model = AutoModel.from_pretrained(place)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 if name.endswith("bias") else 0.0)
    for each in (model, AutoTokenizer.from_pretrained(place)):
        each.save_pretrained(tmp_path / "biased")

    def biased(*overrides):
        return classifier(*overrides, f"model.name={tmp_path / 'biased'}")

    with pytest.raises(InputError, match=r"changed biases together with its weights, as \(IA\)³"):
        reopen(finished("ia3", biased), "cpu")


def test_other_held_out_texts_of_a_file_are_none_that_were_trained_on(finished):
    """Another draw of what is held out would hold some of them."""
    folder = finished("lora")
    own, fewer = reopen(folder, "cpu"), reopen(folder, "cpu", max_samples=3)
    assert len(fewer.held_out) == 3
    assert {tuple(ids) for ids in fewer.held_out.tokens} <= {tuple(ids) for ids in own.held_out.tokens}
    with pytest.raises(InputError, match="has no split 'test'"):
        reopen(folder, "cpu", split="test")
