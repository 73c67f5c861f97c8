"""What a tuned decoder has lost of the base: next-token loss on text of other kinds than it was tuned on.

Two kinds: glosses, WordNet's noun definitions of the test split in plain form, one after another; and news
(`training.fetched`). Each is cut into blocks as long as those that were trained on, without special tokens, and the
first ones are scored.

    forgetting    by how much the loss of a token has risen over the base's, in nats, the mean of the two kinds
    pair_loss     the loss on news: of plain prose, which the base was trained for (an encoder has another one here)
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from lorascope.study.measures.retention import Retention

if TYPE_CHECKING:
    from lorascope.training.batches import Encoded
    from lorascope.training.reopen import Reopened

KINDS = ("news", "glosses")


class Lost(Protocol):
    """What a run has lost, for any weights in it.

    Attributes:
        base: `score` of the base's own weights.
    """

    base: dict[str, float]

    def score(self) -> dict[str, float]: ...


class Forgetting:
    """Losses of any weights in an opened run on text of other kinds, against its base.

    Args:
        run: of a decoder. The trained weights are in it afterwards.
        blocks: how many of each kind.
    """

    def __init__(self, run: "Reopened", blocks: int):
        self.run = run
        self.texts = dict(_texts(run, blocks))
        self.base: dict[str, float] = {}
        run.put({})
        self.base = self.score()
        run.restore()

    def score(self) -> dict[str, float]:
        """`forgetting`, `pair_loss` and the loss of each kind, of the weights that the run's model has now."""
        losses = {f"{kind}_loss": self.run.score(texts).loss for kind, texts in self.texts.items()}
        before = self.base or losses
        rise = sum(loss - before[name] for name, loss in losses.items()) / len(losses)
        return {"forgetting": rise, "pair_loss": losses["news_loss"], **losses}


def _texts(run: "Reopened", blocks: int) -> Iterator[tuple[str, "Encoded"]]:
    from lorascope.training import fetched, wordnet
    from lorascope.training.data import encode_lm

    config = replace(run.config.data, packing=True, add_bos_token=False, add_eos_token=False)
    texts = {"news": fetched.news(), "glosses": [f"{noun.gloss}\n" for noun in wordnet.read()["test"]]}
    for kind in KINDS:
        encoded = encode_lm(texts[kind], run.tokenizer, config)
        yield kind, replace(encoded, tokens=encoded.tokens[:blocks])


def lost_of(run: "Reopened", texts: int) -> Lost:
    """What the run has lost: of a decoder the losses on text of other kinds, else the order of similarities.

    Args:
        texts: how many are scored, of a decoder blocks of each kind.
    """
    decoder = run.config.model.task_type == "CAUSAL_LM"
    return Forgetting(run, texts) if decoder else Retention(run, texts)
