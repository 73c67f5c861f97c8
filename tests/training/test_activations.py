"""What the hooks see, against the layers' own inputs multiplied out in float64; chosen tokens are never padding."""

import numpy as np
import pytest
import torch
from transformers import AlbertConfig, AlbertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from lorascope.training import run
from lorascope.training.activations import choose, hidden_states, responses
from lorascope.training.batches import Encoded
from lorascope.training.config import parse, resolved
from lorascope.training.reopen import reopen
from lorascope.updates.base import dense
from tests.training.tiny import SPECIAL, WORDS, save_tokenizer


def encoded(*lengths: int) -> Encoded:
    return Encoded([list(range(4, 4 + n)) for n in lengths], None, 0)


@pytest.mark.parametrize(("most", "each"), [(100, [5, 1, 3, 9]), (10, [3, 1, 3, 3]), (4, [1, 1, 1, 1])])
def test_tokens_are_spread_evenly_and_are_no_padding(most, each):
    texts = encoded(5, 1, 3, 9)
    tokens = choose(texts, most, size=3)
    assert len(tokens) == sum(each) <= most
    assert np.bincount(tokens.texts, minlength=4).tolist() == each
    for batch, rows, places in zip(tokens.batches, tokens.rows, tokens.places, strict=True):
        assert all(place < len(texts.tokens[batch[row]]) for row, place in zip(rows, places, strict=True))
        assert len(set(zip(rows, places, strict=True))) == len(rows)  # none twice


def test_fewer_tokens_than_texts_leave_texts_out():
    tokens = choose(encoded(5, 4, 3, 9), 2, size=3)
    assert len(tokens) == len(set(tokens.texts)) == 2
    again = choose(encoded(5, 4, 3, 9), 2, size=3)
    assert tokens.texts.tolist() == again.texts.tolist()


@pytest.fixture
def opened(tmp_path):
    """Trains for a few steps, with steps large enough that ΔW is no rounding, and opens the run again."""

    def train(make, *overrides, method):
        values = resolved(make("training.max_steps=4", "optim.learning_rate=5e-2", *overrides))
        run.train(parse({**values, "method": method}), tmp_path / "run")
        return reopen(tmp_path / "run", "cpu", max_samples=6)

    return train


def inputs_of(again, path: str, texts: Encoded, tokens) -> np.ndarray:
    """What enters a module at the chosen tokens, use after use, in float64."""
    seen = []
    module = again.model.get_submodule(path)
    for batch, rows, places in zip(tokens.batches, tokens.rows, tokens.places, strict=True):
        given = texts.batch(batch)
        hook = module.register_forward_hook(
            lambda _, inputs, output, rows=rows, places=places: seen.append(inputs[0].double()[rows, places].numpy())
        )
        with torch.no_grad():
            again.model(input_ids=given.input_ids, attention_mask=given.attention_mask)
        hook.remove()
    return np.concatenate(seen)


def check(again, found, tokens, uses=1):
    """float32 products of at most 64 terms, squared: 1e-4 relative, and of the largest for what nearly cancels."""
    assert found.by_module
    for name, values in found.by_module.items():
        x = inputs_of(again, name, again.held_out, tokens)
        assert len(values) == len(x) == uses * len(tokens)
        assert found.uses[name] == uses
        update, base = x @ dense(again.delta(name)).T, x @ again.base_weight(name).T
        pairs = ((update, update), (base, base), (update + base, update + base), (update, base), (x, x))
        for column, (a, b) in zip(values.T, pairs, strict=True):
            expected = np.sum(a * b, axis=1)
            np.testing.assert_allclose(column, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        assert np.all(update != 0)


def test_linear_layers_of_an_encoder(opened, classifier):
    again = opened(classifier, method={"name": "lora", "targets": "all-linear", "rank": 2, "alpha": 4})
    tokens = choose(again.held_out, 20, size=4)
    found = responses(again, again.held_out, tokens)
    assert set(found.by_module) | set(found.skipped) == set(again.updates)
    assert all("does not call" in why or "one row" in why for why in found.skipped.values())
    pooled = [name for name in found.by_module if "pooler" in name]  # one row for each text, not for each token
    found = type(found)({n: v for n, v in found.by_module.items() if n not in pooled}, found.uses, found.skipped)
    check(again, found, tokens)


def test_full_fine_tuning_leaves_out_vectors_and_embeddings(opened, classifier):
    again = opened(classifier, method={"name": "full"})
    tokens = choose(again.held_out, 20, size=4)
    found = responses(again, again.held_out, tokens)
    assert set(found.by_module) | set(found.skipped) == set(again.updates)
    for name, why in found.skipped.items():
        assert ("embedding:" in why) == ("embeddings" in name and "LayerNorm" not in name)
        assert ("vector" in why) == (again.updates[name].shape[1] == 1)


def saved(model, folder):
    torch.manual_seed(0)
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return f"model.name={folder}"


def test_a_layer_that_is_used_several_times(opened, classifier, tmp_path):
    size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "embedding_size": 8}
    config = AlbertConfig(
        vocab_size=len(SPECIAL + WORDS), num_hidden_layers=3, max_position_embeddings=64, num_labels=2, **size
    )
    name = saved(AlbertForSequenceClassification(config), tmp_path / "albert")
    again = opened(classifier, name, method={"name": "lora", "targets": ["query", "ffn"], "rank": 2})
    tokens = choose(again.held_out, 20, size=8)
    found = responses(again, again.held_out, tokens)
    check(again, found, tokens, uses=3)
    assert len(hidden_states(again, again.held_out, tokens)) == 4  # the embeddings, and each use of the one layer


def test_conv1d_stores_the_transpose(opened, language_model, tmp_path):
    config = GPT2Config(vocab_size=len(SPECIAL + WORDS), n_positions=64, n_embd=16, n_layer=2, n_head=2)
    name = saved(GPT2LMHeadModel(config), tmp_path / "gpt2")
    again = opened(language_model, name, method={"name": "lora", "targets": ["c_attn", "c_proj"], "rank": 2})
    tokens = choose(again.held_out, 20, size=4)
    check(again, responses(again, again.held_out, tokens), tokens)


def test_hidden_states_are_those_of_each_text_alone(opened, classifier):
    """Padding and batches change nothing: each text passed alone, in float32, to 1e-5 of the largest."""
    again = opened(classifier, method={"name": "lora", "targets": ["query"], "rank": 2})
    texts, tokens = again.held_out, choose(again.held_out, 13, size=4)
    places = np.concatenate(tokens.places)
    found, pooled = (hidden_states(again, texts, tokens, pooled=p) for p in (False, True))
    order = [text for batch in tokens.batches for text in batch]
    for sample, (text, place) in enumerate(zip(tokens.texts, places, strict=True)):
        ids = torch.tensor([texts.tokens[text]])
        with torch.no_grad():
            alone = again.model.bert(input_ids=ids, output_hidden_states=True).hidden_states
        assert len(alone) == len(found) == 3
        for layer, states in enumerate(alone):
            np.testing.assert_allclose(found[layer][sample], states[0, place], rtol=0, atol=1e-5)
            np.testing.assert_allclose(pooled[layer][order.index(text)], states[0].mean(0), rtol=0, atol=1e-5)
