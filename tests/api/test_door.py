"""`import lorascope` is the public API, costs nothing, and names nothing that is not there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import lorascope as ls


def test_every_public_name_is_there():
    for name in ls.__all__:
        assert getattr(ls, name) is not None
    assert set(ls.__all__) <= set(dir(ls))


def test_importing_is_cheap():
    code = (
        "import sys, lorascope; print(sum(m.split('.')[0] == 'lorascope' for m in sys.modules), 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "False"]


def test_reading_a_file_imports_no_torch(lora_folder):
    code = f"import sys, lorascope as ls; ls.read({str(lora_folder)!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="analyse"):
        ls.analyse  # noqa: B018


WITHOUT_TORCH = "import sys; sys.modules |= dict.fromkeys(('torch', 'transformers', 'datasets', 'sklearn', 'gguf'))\n"


def test_files_are_analysed_without_the_extra_train(lora_folder, tmp_path):
    page = tmp_path / "page.html"
    code = (
        f"{WITHOUT_TORCH}from lorascope.cli.app import main\n"
        f"sys.argv = ['lorascope', 'analyze', {str(lora_folder)!r}, '--html', {str(page)!r}]\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert page.stat().st_size


def test_what_opens_a_model_names_the_extra(tmp_path):
    for line in ("sys.argv = ['lorascope', 'quickstart']; from lorascope.cli.app import main; main()",):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_TORCH + line], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 1
        assert "pip install 'lorascope[train]'" in done.stderr
        assert "Traceback" not in done.stderr


def test_the_stub_names_what_is_exported():
    """Type checkers read `__init__.pyi`, since names come lazily."""
    stub = (Path(ls.__file__).with_suffix(".pyi")).read_text()
    named = set(re.findall(r"import \w+ as (\w+)", stub))
    assert named == set(ls.__all__) - {"__version__"}
