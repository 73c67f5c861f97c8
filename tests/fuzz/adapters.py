"""Valid adapters of every registered format and every PEFT family that is read, drawn small, and written as files.

A family is a function of one source of chance, a `random.Random`: seeded by the case's number in the long campaign, by
Hypothesis in the quick test, so that both draw from the same files. A registered format without a family is an error.
"""

import copy
import json
import random
import tempfile
from pathlib import Path

from hypothesis import strategies as st

from lorascope.weights.formats.base import formats
from lorascope.weights.formats.peft.prompts import REASONS
from lorascope.weights.formats.peft.recognise import all_families
from tests.fuzz import families_peft, families_rest  # noqa: F401  what registers the families
from tests.fuzz.drawing import FAMILIES, Files, Hand, Tensor
from tests.weights.examples import cases

STORAGE = ("safetensors", "safetensors", "safetensors", "alone", "pickle", "shards")
PEFT_TYPES = {
    peft_type for family in all_families() for peft_type, of_type in family.peft_types.items() if of_type
} | set(REASONS)  # not those that are refused by name
DRAWN = {
    "LORA",
    "ADALORA",
    "VERA",
    "IA3",
    "LOHA",
    "LOKR",
    "LN_TUNING",
    "TRAINABLE_TOKENS",
    *REASONS,
}  # by families here


def draw(chance: random.Random, name: str | None = None) -> Files:
    """A valid adapter of the family, or of any, as one of the sorts of files that hold it."""
    name = name or chance.choice(list(FAMILIES))
    files = FAMILIES[name][1](Hand(chance))
    files.storage = chance.choice(STORAGE)
    if len(files.tensors) < 2 and files.storage == "shards":
        files.storage = "safetensors"
    if files.metadata and files.storage == "pickle":
        files.storage = "safetensors"  # a pickle has no place for it
    return files


# One seed each: if Hypothesis chose every single number, most files would be alike and all would be slow to make.
CHANCE = st.randoms(use_true_random=True)


def adapters(name: str | None = None) -> st.SearchStrategy[Files]:
    """Valid adapters of one family, or of all."""
    return CHANCE.map(lambda chance: draw(chance, name))


def complain_of_gaps() -> None:
    """ValueError where a registered format, or a PEFT type that is read, has no family here."""
    gaps = set(formats.names()) - {format for format, _ in FAMILIES.values()}
    builds = [build for format, build in FAMILIES.values() if format == "peft"]
    gaps |= PEFT_TYPES - {build(Hand(random.Random(n))).peft_type for build in builds for n in range(40)}
    if gaps:
        raise ValueError(f"tests/fuzz draws no adapter of {', '.join(sorted(gaps))}")


# --- formats and PEFT types without a family of their own ------------------------------------------------------------


def _take_examples() -> None:
    """Make the example files of a format, or a PEFT type, that has no family above into one each."""
    formats_without = set(formats.names()) - {format for format, _ in FAMILIES.values()}
    types_without = PEFT_TYPES - DRAWN
    for format, builder in cases() if formats_without or types_without else ():
        if format in formats_without or (format == "peft" and types_without):
            with tempfile.TemporaryDirectory() as folder:
                files = _of_file(format, builder.__name__, builder(Path(folder)).path)
            if format in formats_without or files.peft_type in types_without:
                FAMILIES[files.family] = (format, lambda hand, files=files: copy.deepcopy(files))


def _of_file(format: str, name: str, path: Path) -> Files:
    """A safetensors file, with the config next to it, as what is drawn."""
    weights = next(path.glob("*.safetensors")) if path.is_dir() else path
    content = weights.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    metadata = header.pop("__metadata__", {})
    tensors = []
    for key, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        tensors.append((key, Tensor(entry["dtype"], tuple(entry["shape"]), content[begin:end])))
    config = weights.parent / "adapter_config.json"
    pairs = list(json.loads(config.read_text()).items()) if config.exists() else None
    return Files(format, f"{format}_{name}", tensors, metadata, pairs, peft_type=dict(pairs or []).get("peft_type"))


_take_examples()
