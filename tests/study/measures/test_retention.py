"""What is lost of the base: against the definitions written out, on features that are known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lorascope.study.measures.retention import SCALE, Retention
from lorascope.training import wordnet

TEXTS = 60


class Encoder:
    """Features of a text are drawn from its first token; `turned` draws others."""

    def __init__(self):
        self.drawn, self.turned = torch.randn(100_000, 6, generator=torch.Generator().manual_seed(0)), 0.0
        self.other = torch.randn(100_000, 6, generator=torch.Generator().manual_seed(1))

    def features(self, ids, mask):
        return (1 - self.turned) * self.drawn[ids[:, 0]] + self.turned * self.other[ids[:, 0]]


def tokens(text):
    return [sum(map(ord, text)) * 31 % 99_991, *([1] * (len(text) % 5))]


@pytest.fixture
def run():
    model = Encoder()

    def put(deltas):
        model.turned = 0.0 if not deltas else 1.0

    def tokenizer(texts, **_):
        return {"input_ids": [tokens(text) for text in texts]}

    tokenizer.pad_token_id = 0
    config = SimpleNamespace(
        data=SimpleNamespace(max_length=16), training=SimpleNamespace(per_device_eval_batch_size=7)
    )
    world = SimpleNamespace(device=torch.device("cpu"))
    return SimpleNamespace(
        model=model, put=put, restore=lambda: put({"w": 1}), tokenizer=tokenizer, config=config, world=world
    )


def unit(table, texts):
    rows = np.stack([table[tokens(text)[0]].numpy().astype(float) for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_both_numbers_are_their_definitions(run):
    found = Retention(run, TEXTS)
    nouns = wordnet.read()["test"][:TEXTS]
    lemmas, glosses = ([getattr(noun, name) for noun in nouns] for name in ("lemma", "gloss"))
    before, after = unit(run.model.drawn, glosses), unit(run.model.other, glosses)
    pairs = [(i, j) for i in range(TEXTS) for j in range(i) if nouns[i].label == nouns[j].label]
    orders = [np.argsort(np.argsort([side[i] @ side[j] for i, j in pairs])) for side in (before, after)]
    names, losses = unit(run.model.other, lemmas), []
    for i in range(TEXTS):
        own = [j for j in range(TEXTS) if nouns[j].label == nouns[i].label]
        scores = np.exp([SCALE * names[i] @ after[j] for j in own])
        losses.append(-np.log(scores[own.index(i)] / scores.sum()))
    score = found.score()
    assert score["forgetting"] == pytest.approx(1 - np.corrcoef(orders)[0, 1], abs=1e-9)  # the same ranks
    assert score["pair_loss"] == pytest.approx(np.mean(losses), rel=1e-6)  # features are float32


def test_the_base_has_forgotten_nothing_and_other_features_everything(run):
    found = Retention(run, TEXTS)
    assert found.base["forgetting"] == pytest.approx(0, abs=1e-12)
    assert abs(found.score()["forgetting"] - 1) < 0.5  # ρ of independent orders of about 100 pairs: 5 deviations
