"""Texts that are fetched: how their lines are read and split, without the network."""

import hashlib

import pytest

from lorascope.training import fetched, rows

DICTIONARY = "\n".join(
    [
        "'em AH0 M",
        "abacus AE1 B AH0 K AH0 S # a comment",
        "ahmed AA1 M AH0 D",
        "ahmed(2) AA1 M EH0 D",
        "empty",
        *(f"w{i} AH0 K{i}" for i in range(20_000)),
    ]
)


def part(word):
    return int(hashlib.md5(word.encode()).hexdigest(), 16) % 100


@pytest.fixture(scope="module")
def splits():
    return fetched.split_words(DICTIONARY)


def test_a_line_is_a_word_and_its_first_pronunciation():
    splits = fetched.split_words("\n".join(DICTIONARY.splitlines()[:5]))
    lines = {line for split in splits.values() for line in split}
    assert lines == {"'em: AH0 M", "abacus: AE1 B AH0 K AH0 S", "ahmed: AA1 M AH0 D"}


def test_the_hash_of_the_word_alone_splits(splits):
    words = {split: [line.partition(":")[0] for line in lines] for split, lines in splits.items()}
    assert all(part(word) >= 10 for word in words["train"])
    assert all(5 <= part(word) < 10 for word in words["validation"])
    assert all(part(word) < 5 for word in words["test"])
    everything = {entry.partition(" ")[0] for entry in DICTIONARY.splitlines()}
    assert set(words["train"]) == {w for w in everything if part(w) >= 10 and w not in ("empty", "ahmed(2)")}


def test_held_out_words_are_the_first_in_md5_order(splits):
    assert len(splits["validation"]) == len(splits["test"]) == fetched.HELD_OUT
    keys = [hashlib.md5(line.partition(":")[0].encode()).hexdigest() for line in splits["test"]]
    assert keys == sorted(keys)
    left_out = [f"w{i}" for i in range(20_000) if part(f"w{i}") < 5 and f"w{i}" not in
                {line.partition(":")[0] for line in splits["test"]}]  # fmt: skip
    assert min(hashlib.md5(word.encode()).hexdigest() for word in left_out) > keys[-1]


def test_it_is_a_packaged_set_of_lines(monkeypatch, tmp_path):
    (tmp_path / "cmudict.dict").write_text(DICTIONARY)
    monkeypatch.setattr(fetched, "published_folder", lambda asset: tmp_path)
    found = rows.packaged("cmudict", "test")
    assert len(found) == fetched.HELD_OUT
    assert all(row["text"].endswith("\n") and row["text"].count("\n") == 1 for row in found)


def test_every_pin_is_a_sha256():
    for asset in (fetched.CMUDICT, fetched.NEWS):
        assert all(len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in asset.files.values())
    assert len(fetched.NEWS.files) == 20
