"""Which modules are embeddings, by their names: against every class of the installed transformers."""

import re
from pathlib import Path

import pytest

from lorascope.architectures import is_embedding

_ATTRIBUTE = r"self\.(\w+)(?:: [\w.]+)? = \(?\s*(?:nn\.ModuleList\(\s*\[\s*)?(?:torch\.)?"
BOTH = {"query", "embed", "reference_points"}  # a Linear in some models and an embedding in others
BY_THEIR_PATHS = {"w": "transformer.w", "input_embedding": "cpmant.input_embedding"}


def attributes(source: str, classes: str) -> set[str]:
    """Names that get a module of these classes, or a list of them."""
    return {match[1] for match in re.finditer(rf"{_ATTRIBUTE}(?:{classes})\(", source)}


def test_every_embedding_of_transformers_has_such_a_name_and_no_linear_map_has():
    models = Path(pytest.importorskip("transformers").__file__).parent / "models"
    sources = [path.read_text(encoding="utf-8") for path in models.glob("*/modeling_*.py")]
    own = {name for source in sources for name in re.findall(r"class (\w+)\(nn\.Embedding\)", source)}
    embeddings, maps = set[str](), set[str]()
    for source in sources:
        embeddings |= attributes(source, "|".join(["nn.Embedding", *own]))
        maps |= attributes(source, r"nn\.Linear|Conv1D")
    assert len(embeddings) > 100
    paths = {BY_THEIR_PATHS.get(name, f"model.{name}") for name in embeddings - BOTH}
    assert sorted(path for path in paths if not is_embedding(path)) == []
    assert sorted(name for name in maps if is_embedding(f"model.{name}")) == []


@pytest.mark.parametrize("name", ["embed_tokens.0", "block.0.layer.0.SelfAttention.relative_attention_bias", "wpe"])
def test_embeddings_in_lists_and_in_layers(name):
    assert is_embedding(name)


@pytest.mark.parametrize("name", ["word_embeddings_layernorm", "embed_out", "embed_tokens.q_proj", "h.0.mlp.w"])
def test_other_modules_are_none(name):
    assert not is_embedding(name)
