"""Cross-entropy by blocks of rows against torch's own in float64."""

import pytest
import torch
from torch.nn import functional as F

from lorascope.training import cross_entropy
from lorascope.training.batches import IGNORE
from lorascope.training.scores import cross_entropy as of_batch
from lorascope.training.scores import cross_entropy_of_texts

CLASSES = 37


@pytest.fixture(params=[1, CLASSES * 4, 1 << 18], ids=["a row at a time", "four rows", "all at once"])
def blocks(request, monkeypatch):
    """Blocks that divide the rows evenly, that do not, and one that holds them all."""
    monkeypatch.setattr(cross_entropy, "BLOCK", request.param)


def drawn(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 6 * torch.randn(10, CLASSES, generator=generator, dtype=torch.float64)
    logits[3, 5] = 90.0  # e⁹⁰ is more than float32 holds: the row's largest has to be taken away first
    labels = torch.randint(CLASSES, (10,), generator=generator)
    labels[[2, 9]] = IGNORE
    return logits.to(dtype).requires_grad_(), labels


# A sum over 37 terms in float32 errs by some 1e-6 of it; a gradient in bfloat16 by half its last of 8 bits.
@pytest.mark.parametrize(
    ("dtype", "loss_error", "error"),
    [(torch.float64, 1e-13, 1e-13), (torch.float32, 1e-5, 1e-6), (torch.bfloat16, 1e-5, 2**-8)],
)
def test_losses_and_gradients_are_those_of_float64(blocks, dtype, loss_error, error):
    logits, labels = drawn(dtype)
    weights = torch.linspace(0.1, 2.0, 10, dtype=torch.float64)  # each row has a gradient of its own size

    losses = cross_entropy.losses_of_rows(logits, labels)
    (losses * weights.to(losses.dtype)).sum().backward()

    exact = logits.detach().double().requires_grad_()
    expected = F.cross_entropy(exact, labels, ignore_index=IGNORE, reduction="none")
    (expected * weights).sum().backward()
    assert losses.dtype == torch.promote_types(dtype, torch.float32)
    assert (losses.double() - expected).abs().max() <= loss_error
    assert logits.grad.dtype == dtype
    assert ((logits.grad.double() - exact.grad).abs() <= error * exact.grad.abs() + 1e-9 * (error > 1e-12)).all()
    assert not logits.grad[[2, 9]].any()


def test_of_a_batch_each_position_is_scored_on_the_next_token(blocks):
    """The third position of four is padding; of the second text only two tokens count."""
    logits = torch.randn(2, 4, CLASSES, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([[4, 9, 30, 1], [7, 2, IGNORE, IGNORE]])

    rows = -logits.double().log_softmax(-1)
    expected = [rows[0, 0, 9] + rows[0, 1, 30], rows[1, 0, 2]]
    summed, hits = cross_entropy_of_texts(logits, labels, 3)
    assert summed.tolist() == pytest.approx([each.item() for each in expected], abs=1e-5)
    assert of_batch(logits, labels, 3).item() == pytest.approx(sum(expected).item(), abs=1e-5)
    top = logits.argmax(-1)
    assert hits.tolist() == [int(top[0, 0] == 9) + int(top[0, 1] == 30), int(top[1, 0] == 2)]


def test_a_second_derivative_is_refused():
    logits, labels = drawn(torch.float64)
    (gradient,) = torch.autograd.grad(cross_entropy.losses_of_rows(logits, labels).sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()
