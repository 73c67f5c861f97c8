"""The full gradient against its closed form, and what is compared with it against updates whose overlap is known."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from lorascope.adapt.inject import inject
from lorascope.linalg import subspace
from lorascope.study.measures import gradient
from lorascope.training.batches import Encoded

WORDS, WIDTH, HIDDEN, CLASSES = 12, 7, 6, 3


class Toy(nn.Module):
    """logits = out · proj · (mean of the words' vectors)."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.proj = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, CLASSES, bias=False)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        mean = (self.embed(input_ids) * mask).sum(1) / mask.sum(1)
        return SimpleNamespace(logits=self.out(self.proj(mean)))


@pytest.fixture
def prepared():
    rng = np.random.default_rng(0)
    tokens = [rng.integers(1, WORDS, size=length).tolist() for length in (2, 5, 3, 4) * 10]  # more than a pass
    train = Encoded(tokens, [i % CLASSES for i in range(len(tokens))], 0)
    return SimpleNamespace(train=train, injected=inject(Toy(), "lora", targets=["proj"], rank=2))


def closed_form(prepared, labels) -> np.ndarray:
    """Σ outᵀ(p − y) xᵀ / n of softmax regression behind one matrix."""
    model = prepared.injected.model
    embed, proj, out = (
        weight.detach().double().numpy() for weight in (model.embed.weight, model.proj.base.weight, model.out.weight)
    )
    total = np.zeros((HIDDEN, WIDTH))
    for tokens, label in zip(prepared.train.tokens, labels, strict=True):
        x = embed[tokens].mean(0)
        scores = out @ proj @ x
        p = np.exp(scores - scores.max())
        total += np.outer(out.T @ (p / p.sum() - np.eye(CLASSES)[label]), x)
    return total / len(labels)


def test_it_is_the_gradient_of_the_mean_loss_and_leaves_the_model_as_it_was(prepared):
    found = gradient.full_gradients(prepared, 1000)
    assert list(found) == ["proj"]
    np.testing.assert_allclose(found["proj"], closed_form(prepared, prepared.train.labels), atol=1e-6)  # float32
    layer = prepared.injected.layers["proj"]
    assert not layer.base.weight.requires_grad
    assert layer.base.weight.grad is None


def test_permuted_labels_keep_their_counts_in_every_pass(prepared):
    """Of equal labels a permutation changes nothing; of others the task's part of the gradient is gone."""
    whole, permuted = (gradient.full_gradients(prepared, 1000, permuted=turn)["proj"] for turn in (False, True))
    assert np.linalg.norm(whole - permuted) > 0.1 * np.linalg.norm(whole)
    prepared.train = Encoded(prepared.train.tokens, [1] * len(prepared.train), 0)
    same, turned = (gradient.full_gradients(prepared, 1000, permuted=turn)["proj"] for turn in (False, True))
    np.testing.assert_array_equal(same, turned)


def test_a_step_down_the_gradient_agrees_wholly_and_another_one_not():
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.standard_normal((n, 6)))[0] for n in (30, 40))
    g = subspace.bases(u * [6.0, 5, 4, 3, 2, 1] @ v.T)
    cut = subspace.bases(-u[:, :2] * [6.0, 5] @ v[:, :2].T)
    down = gradient.compared(cut, g, 2)
    assert down["left"] == pytest.approx(1.0)
    assert down["right"] == pytest.approx(1.0)
    assert down["cosine"] == pytest.approx(down["best"]) == pytest.approx((61 / 91) ** 0.5)
    elsewhere = gradient.compared(subspace.bases(u[:, 4:] @ v[:, 4:].T), g, 2)
    chance = 2 / 30  # of φ(2, 2)
    assert elsewhere["left"] == pytest.approx(-chance / (1 - chance))
    assert elsewhere["cosine"] == pytest.approx(-3 / (2**0.5 * 91**0.5))
