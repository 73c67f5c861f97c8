from pathlib import Path

import pytest

from lorascope.training import wordnet

ALL = Path(__file__).parents[2] / "studies" / "data" / "wordnet_nouns.tsv.gz"


def test_the_packed_rows_are_split_by_their_text_alone():
    splits = wordnet.read()
    assert {name: len(rows) for name, rows in splits.items()} == wordnet.SIZES
    glosses = [noun.gloss for rows in splits.values() for noun in rows]
    assert len(set(glosses)) == len(glosses)
    assert len({noun.label for noun in splits["train"]}) == 25
    assert {noun.label for noun in splits["test"]} <= {noun.label for noun in splits["train"]}


def test_the_package_carries_the_licence():
    assert "Princeton University" in wordnet.PACKED.with_name("WORDNET-LICENSE.txt").read_text()


@pytest.mark.skipif(not ALL.exists(), reason="studies/ is not installed with the package")
def test_the_packed_rows_are_the_sample_of_all_nouns():
    nouns = [noun for rows in wordnet.read(ALL).values() for noun in rows]
    assert len(nouns) == 81433
    packed = [noun for rows in wordnet.read().values() for noun in rows]
    assert wordnet.sample(nouns) == sorted(packed, key=lambda noun: wordnet.digest(noun.gloss))


def test_parsing_keeps_a_definition_once_and_drops_examples_and_roots():
    lexnames = ["03\tnoun.Tops\t1", "05\tnoun.animal\t1"]
    data = [
        "  1 the licence, which is indented",
        "0001 03 n 01 entity 0 000 | that which is  ",
        '0002 05 n 02 sea_lion 0 eared_seal 0 000 | a large seal; of the Pacific; "the sea lion barked"  ',
        "0003 05 n 01 sealion 0 000 | a large seal; of the Pacific  ",
    ]
    assert list(wordnet.parse(data, lexnames)) == [wordnet.Noun("sea lion", "animal", "a large seal; of the Pacific")]


def test_packing_gives_the_same_bytes_every_time():
    nouns = [wordnet.Noun("a", "animal", "b")]
    assert wordnet.pack(nouns) == wordnet.pack(nouns)
    assert wordnet.pack(nouns)[4:8] == bytes(4)  # gzip's time stamp
