"""The file with the score of each text: what is read is what was written, of this record, or nothing."""

import hashlib
import io

import numpy as np
import pytest

from lorascope.errors import InputError
from lorascope.study import text_files
from lorascope.study.texts import TextScores


def scores(keys=("a", "b"), texts=5, scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    loss = scale * rng.exponential(size=(len(keys), texts))
    return TextScores(tuple(keys), loss, rng.integers(0, 2, loss.shape), np.ones(texts, dtype=int))


def written(folder, texts):
    content, facts = text_files.packed(texts, "paper")
    (folder / facts["file"]).write_bytes(content)
    return facts


def test_what_is_read_is_what_was_written(tmp_path):
    texts = {"test": scores(), "held_out": scores(("a", "b", "c"), 7, seed=1)}
    facts = written(tmp_path, texts)
    assert facts["file"] == "paper.texts.npz"
    assert facts["splits"] == {"test": 5, "held_out": 7}
    found, stored = text_files.read(facts, tmp_path), text_files.as_stored(texts)
    for split, each in texts.items():
        assert found[split].keys == each.keys
        assert np.array_equal(found[split].hits, each.hits)
        assert np.array_equal(found[split].targets, each.targets)
        assert np.array_equal(found[split].loss, stored[split].loss)  # what was judged
        np.testing.assert_allclose(found[split].loss, each.loss, rtol=2**-11)  # float16 has eleven binary digits


def test_a_loss_beyond_float16_keeps_its_value(tmp_path):
    texts = {"test": scores(scale=1e6)}
    found = text_files.read(written(tmp_path, texts), tmp_path)
    np.testing.assert_allclose(found["test"].loss, texts["test"].loss, rtol=2**-24)


def test_the_same_scores_are_the_same_bytes():
    assert text_files.packed({"test": scores()}, "paper") == text_files.packed({"test": scores()}, "paper")


def refused(facts, folder, said):
    with pytest.raises(InputError, match=said):
        text_files.read(facts, folder)


def test_a_file_that_is_not_the_records_is_refused(tmp_path):
    facts = written(tmp_path, {"test": scores()})
    refused(facts | {"splits": {"test": 4}}, tmp_path, "5 texts, not 4")
    refused(facts | {"splits": {"train": 5}}, tmp_path, "damaged")
    refused(facts | {"file": "../paper.texts.npz"}, tmp_path, "another folder")
    written(tmp_path, {"test": scores(seed=3)})
    refused(facts, tmp_path, "is not the record's")
    (tmp_path / facts["file"]).unlink()
    refused(facts, tmp_path, "cannot read")


def arrays(**changes):
    made = {
        "test.keys": np.array(["a"]), "test.loss": np.ones((1, 2)), "test.hits": np.ones((1, 2), dtype=int),
        "test.targets": np.ones(2, dtype=int),
    }  # fmt: skip
    return made | {f"test.{name}": value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "damaged"),
        (b"PK\x05\x06" + bytes(18), "damaged"),  # an archive of nothing
        (arrays(loss=np.array([[np.nan, 1.0]])), "not finite"),
        (arrays(targets=np.array([0, 1])), "not finite"),
        (arrays(loss=np.ones((2, 2))), "damaged"),
        (arrays(hits=np.ones((1, 3), dtype=int)), "damaged"),
        (arrays(hits=np.array([["1", "1"]])), "not numbers"),
        (arrays(keys=np.array([{"a": 1}], dtype=object)), "damaged"),  # would have to be unpickled
    ],
)
def test_a_damaged_file_is_refused_though_its_hash_is_right(tmp_path, content, said):
    if isinstance(content, dict):
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **content)
        content = buffer.getvalue()
    (tmp_path / "x.npz").write_bytes(content)
    facts = {"file": "x.npz", "sha256": hashlib.sha256(content).hexdigest(), "splits": {"test": 2}}
    refused(facts, tmp_path, said)


def test_a_small_file_of_large_arrays_is_refused_before_they_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_BYTES", 1 << 16)
    facts = written(
        tmp_path, {"test": TextScores(("a",), np.ones((1, 1 << 16)), np.ones((1, 1 << 16)), np.ones(1 << 16))}
    )
    refused(facts, tmp_path, "arrays of ")
