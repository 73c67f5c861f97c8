"""What studies need beyond a plain run: controls of the data and of the base, and a head with a rate of its own."""

import json

import pytest
import torch

from lorascope.errors import InputError
from lorascope.models import adapter_base
from lorascope.models import loading as models
from lorascope.models.config import ModelConfig
from lorascope.training import data, run
from lorascope.training.config import DataConfig, parse, resolved
from lorascope.training.loop import World
from lorascope.training.member import Member
from lorascope.training.rows import read_file
from lorascope.training.wordnet import digest
from lorascope.weights import io

HERE = World(torch.device("cpu"))


def prepared(make, *overrides):
    return run.prepare(make(*overrides), torch.device("cpu"))


def test_a_head_has_a_rate_of_its_own(classifier):
    config = classifier("optim.learning_rate=1e-3", "optim.head_learning_rate=5e-2")
    made = run.prepare(config, torch.device("cpu"))
    member = Member(made.injected, made.train, made.held_out, config, HERE)
    rates = {id(p): group["lr"] for group in member.optimizer.param_groups for p in group["params"]}
    head = {id(p) for module in made.injected.saved.values() for p in module.parameters()}
    assert head
    for parameter in made.injected.trainable().values():
        assert rates[id(parameter)] == (5e-2 if id(parameter) in head else 1e-3)
    assert len(rates) == len(made.injected.trainable())  # each once


def test_the_head_alone_is_full_fine_tuning_of_nothing(classifier, tmp_path):
    values = resolved(classifier("training.max_steps=4", "optim.learning_rate=1e-2"))
    config = parse({**values, "method": {"name": "full", "train": []}})
    finished = run.train(config, tmp_path / "run")
    adapter = io.read(finished.adapter)
    assert not adapter.updates
    assert {name.partition(".")[0] for name in adapter.saved} == {"classifier"}
    assert json.loads((tmp_path / "run" / "run.json").read_text())["trained_parameters"] == 2 * 16 + 2
    with pytest.raises(InputError, match="found in no parameter"):
        prepared(lambda: parse({**values, "method": {"name": "full", "train": ["nowhere"]}}))


def test_a_base_of_its_first_layers(tiny_bert, classifier, tmp_path):
    whole = models.load_model(ModelConfig(str(tiny_bert)), 3)
    cut = models.load_model(ModelConfig(str(tiny_bert), num_hidden_layers=1), 3)
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.no_grad():
        expected = whole.eval().bert(input_ids=ids, output_hidden_states=True).hidden_states[1]
        found = cut.eval().bert(input_ids=ids).last_hidden_state
    torch.testing.assert_close(found, expected)
    finished = run.train(classifier("model.num_hidden_layers=1"), tmp_path / "run")
    again, _ = adapter_base.load_base(io.read(finished.adapter), finished.adapter, str(tiny_bert))
    assert len(again.bert.encoder.layer) == 1


def test_a_base_of_random_weights_depends_on_the_seed_alone(tiny_bert, classifier, tmp_path):
    def weight(*overrides):
        made = prepared(classifier, "model.random_init=true", *overrides)
        return made.model.bert.encoder.layer[0].output.dense.base.weight

    overrides = ["method.targets=all-linear", "training.seed=5"]  # 0 is the one the tiny model itself was drawn by
    first, again, other = weight(*overrides), weight(*overrides), weight(*overrides, "training.seed=1")
    trained = models.load_model(ModelConfig(str(tiny_bert)), 3).bert.encoder.layer[0].output.dense.weight
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, trained)
    finished = run.train(classifier("model.random_init=true"), tmp_path / "run")
    with pytest.raises(InputError, match="random weights"):
        adapter_base.load_base(io.read(finished.adapter), finished.adapter, str(tiny_bert))


def test_random_labels_belong_to_the_text(labelled, tiny_bert):
    tokenizer = models.load_tokenizer(ModelConfig(str(tiny_bert)))
    config = DataConfig(str(labelled), random_labels=True, max_length=16)
    train, held_out = data.load(config, "SEQ_CLS", tokenizer, 0)
    texts = {row["text"]: int(digest(row["text"]), 16) % 2 for row in read_file(labelled)}
    assert sorted([*train.labels, *held_out.labels]) == sorted(texts.values())
    assert train.label_names == ("no", "yes")
    assert data.load(config, "SEQ_CLS", tokenizer, 0)[0].labels == train.labels


def test_some_classes_only(tiny_bert):
    tokenizer = models.load_tokenizer(ModelConfig(str(tiny_bert)))
    config = DataConfig("wordnet-classes", classes=("animal", "plant"), max_train_samples=30, max_eval_samples=10)
    train, held_out = data.load(config, "SEQ_CLS", tokenizer, 0)
    assert train.label_names == held_out.label_names == ("animal", "plant")
    assert (len(train), len(held_out)) == (30, 10)
    with pytest.raises(InputError, match="no class 'animla'"):
        data.load(DataConfig("wordnet-classes", classes=("animla",)), "SEQ_CLS", tokenizer, 0)
