"""The words that are printed: a short list of house words, and of turns of phrase, that no text for a reader has."""

import ast
import re
from pathlib import Path

import pytest

import lorascope

ROOT = Path(lorascope.__file__).parent
BANNED = {
    r"\bstructureless\b": "random baseline",
    r"\bset aside\b": "skipped",
    r"\bleft out\b": "skipped, excluded",
    r"\bbeside\b": "compared with, next to",
    r"\bthrice\b": "×3",
    r"\bflatters?\b": "is overstated",
    r"\bknows? (nothing|lorascope)\b": "a thing knows nothing",
    r"\bby turns\b": "random rotation",
    r"\bas by chance\b": "at the chance level",
    r"\bhouse\b": "",
    r"\bstrangers?\b": "of unknown origin",
    r"\bnothing was dropped in silence\b": "please report",
    r"\bas do 1 others\b|\b1 (entries|others|modules|tensors|parameters)\b": "a plural of one",
    r"\bnumbers trained\b|\btrained numbers\b": "trainable parameters",
    r"\bis not held\b|\bholds no run\b": "is not a run directory",
    r"\bto be said\b|\bcan be said\b": "is known",
    r"\bof itself\b": "relative",
    r"\brehears": "calibrate",
    r"\bfor want of\b": "too narrow",
    r"(?<!Gavish–Donoho )(?i:\bthresholds?\b)": "bound",
    r"(?i:\blayer types?\b)": "module type",
    r"(?i:\brounding loss(es)?\b)": "merge rounding error",
}  # fmt: skip
PRINTED = ("analyses", "cli", "report", "study", "errors.py", "training", "weights", "destinations.py", "inputs.py")


def docstrings(tree: ast.AST) -> set[int]:
    nodes = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    first = [n.body[0] for n in nodes if n.body and isinstance(n.body[0], ast.Expr)]
    return {id(n.value) for n in first if isinstance(n.value, ast.Constant)}


def texts(path: Path) -> list[tuple[int, str]]:
    """Strings that may be printed: every one but docstrings, and the docstrings of commands, which are their help."""
    tree = ast.parse(path.read_text())
    skip = docstrings(tree)
    found = [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skip
    ]
    if path.parent.name == "cli":
        commands = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == path.stem]
        found += [(n.lineno, ast.get_docstring(n) or "") for n in commands]
    return [(line, text) for line, text in found if " " in text]


FILES = [
    path for top in PRINTED for path in sorted((ROOT / top).rglob("*.py") if (ROOT / top).is_dir() else [ROOT / top])
]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_house_words_are_printed(path):
    wrong = [
        f"line {line}: {text!r} ({word}: say {better})"
        for line, text in texts(path)
        for word, better in BANNED.items()
        if re.search(word, text)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_house_words_in_what_methods_say_of_themselves():
    from lorascope.adapt.method import methods

    said = {name: type(methods.get(name)).__doc__ or "" for name in methods.names()}
    assert all(said.values())
    banned = {**BANNED, r"\bnumbers\b": "parameters"}
    assert not [(name, word) for name, text in said.items() for word in banned if re.search(word, text)]


@pytest.mark.parametrize("path", sorted((ROOT / "report" / "templates").iterdir()), ids=lambda p: p.name)
def test_no_house_words_in_templates(path):
    if path.suffix == ".html":
        text = re.sub(r"{[{%#].*?[#%}]}", "", path.read_text(), flags=re.S)
        assert not [word for word in BANNED if re.search(word, text)]
