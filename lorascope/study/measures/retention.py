"""What a tuned sentence encoder has lost of the base: how it orders texts that its task does not involve.

Two numbers, both of WordNet nouns of the test split, and both among nouns of one class, so that neither tests
what the task of `tasks.wordnet` teaches, to tell classes apart:

    forgetting    1 − Spearman's ρ of the cosine similarities of glosses, after tuning against before: 0 where the order
                  is the base's, 1 where it has nothing to do with it
    pair_loss     the loss of sentence-transformers' pre-training, in nats: to which of the glosses does a noun belong?
                  Softmax over 20 · cosine (the "multiple negatives ranking" loss, with the scale of all-MiniLM)

The second has a right answer and can fall as well as rise. An encoder cut to its first layers was never trained for it
at that depth.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from lorascope.training.batches import Encoded
    from lorascope.training.reopen import Reopened

SCALE = 20.0  # of the cosines


class Retention:
    """The two numbers for any weights in an opened run, against its base.

    Args:
        run: its model has `features`: an encoder with the head "mean-pool". The trained weights are in it afterwards.
        texts: how many nouns; the first ones of the test split.
    """

    def __init__(self, run: "Reopened", texts: int):
        from lorascope.training import wordnet

        nouns = wordnet.read()["test"][:texts]
        classes = np.array([noun.label for noun in nouns])
        self.run = run
        self.same = classes[:, None] == classes[None, :]
        self.pairs = np.nonzero(np.triu(self.same, 1))
        self.lemmas, self.glosses = self._encoded([n.lemma for n in nouns]), self._encoded([n.gloss for n in nouns])
        run.put({})
        self.before = self._order(self._features(self.glosses))
        self.base = self.score()
        run.restore()

    def score(self) -> dict[str, float]:
        """`forgetting` and `pair_loss` of the weights that the run's model has now."""
        lemmas, glosses = self._features(self.lemmas), self._features(self.glosses)
        logits = np.where(self.same, SCALE * lemmas @ glosses.T, -np.inf)
        top = logits.max(axis=1, keepdims=True)
        losses = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0] - np.diag(logits)
        rho = np.corrcoef(self.before, self._order(glosses))[0, 1]
        return {"forgetting": float(1 - rho), "pair_loss": float(losses.mean())}

    def _order(self, glosses: np.ndarray) -> np.ndarray:
        """The rank of every pair's similarity."""
        return (glosses @ glosses.T)[self.pairs].argsort().argsort()

    def _encoded(self, texts: list[str]) -> "Encoded":
        from lorascope.training.batches import Encoded

        limit = self.run.config.data.max_length
        tokens = self.run.tokenizer(texts, truncation=True, max_length=limit)["input_ids"]
        return Encoded(tokens, [0] * len(tokens), self.run.tokenizer.pad_token_id)

    def _features(self, texts: "Encoded") -> np.ndarray:
        """Features (texts, hidden size) of length 1, in float64."""
        import torch

        model: Any = self.run.model
        by_place: dict[int, np.ndarray] = {}
        with torch.no_grad():
            for places in texts.by_length(self.run.config.training.per_device_eval_batch_size):
                batch = texts.batch(places).to(self.run.world.device)
                rows = model.features(batch.input_ids, batch.attention_mask).double().cpu().numpy()
                by_place |= dict(zip(places, rows, strict=True))
        features = np.stack([by_place[i] for i in range(len(texts))])
        return features / np.linalg.norm(features, axis=1, keepdims=True)
