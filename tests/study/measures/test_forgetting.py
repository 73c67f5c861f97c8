"""What a decoder has lost: against the next-token loss written out, on a tiny model."""

import pytest
import torch

from lorascope.study.measures import forgetting
from lorascope.training import fetched, run, wordnet
from lorascope.training.config import parse
from lorascope.training.reopen import reopen
from tests.training.tiny import lm_values, sentences

BLOCKS, LENGTH = 3, 16


@pytest.fixture(scope="module")
def opened(tiny_llama, plain_text, tmp_path_factory):
    values = lm_values(tiny_llama, plain_text)
    values["data"] |= {"max_length": LENGTH, "packing": True}
    values["optim"] = {"learning_rate": 5e-2}
    values["training"] |= {"max_steps": 5, "measure_cost": False, "device": "cpu"}
    folder = tmp_path_factory.mktemp("runs") / "run"
    run.train(parse(values), folder)
    return reopen(folder, "cpu")


@pytest.fixture
def lost(opened, monkeypatch):
    monkeypatch.setattr(fetched, "news", lambda: sentences(40, seed=9))
    return forgetting.lost_of(opened, BLOCKS)


def loss(opened, texts):
    """Of the first blocks, in one pass and by the definition: −log p of each token but a block's first."""
    ids = [i for text in texts for i in opened.tokenizer(text, add_special_tokens=False)["input_ids"]]
    blocks = torch.tensor(ids[: BLOCKS * LENGTH]).reshape(BLOCKS, LENGTH)
    with torch.no_grad():
        logits = opened.model(input_ids=blocks).logits.double()
    log_p = logits.log_softmax(-1)[:, :-1].gather(-1, blocks[:, 1:, None])
    return float(-log_p.mean())


def test_the_numbers_are_their_definitions(opened, lost):
    texts = {"news": sentences(40, seed=9), "glosses": [f"{noun.gloss}\n" for noun in wordnet.read()["test"]]}
    score = lost.score()
    after = {kind: loss(opened, of_kind) for kind, of_kind in texts.items()}
    opened.put({})
    before = {kind: loss(opened, of_kind) for kind, of_kind in texts.items()}
    opened.restore()
    assert score["news_loss"] == score["pair_loss"] == pytest.approx(after["news"], rel=1e-5)  # float32 logits
    assert score["glosses_loss"] == pytest.approx(after["glosses"], rel=1e-5)
    rise = (after["news"] - before["news"] + after["glosses"] - before["glosses"]) / 2
    assert abs(rise) > 1e-3  # the run has moved
    assert score["forgetting"] == pytest.approx(rise, abs=1e-4)
    assert lost.base["pair_loss"] == pytest.approx(before["news"], rel=1e-5)


def test_the_base_has_lost_nothing(opened, lost):
    opened.put({})
    assert lost.score()["forgetting"] == pytest.approx(0.0, abs=1e-9)
    opened.restore()
