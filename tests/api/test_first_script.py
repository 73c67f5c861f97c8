"""The README's first script, as it stands there, on a small model."""

import re
import runpy
import warnings
from pathlib import Path

import matplotlib
import pytest

from lorascope.analyses.base import Result
from tests.api.test_read import llama

README = (Path(__file__).parents[2] / "README.md").read_text()
SCRIPT = re.search(r"```python\n(import torch\nfrom peft.*?)```", README, re.S)[1]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # transformers', of its own code
def test_the_first_script(tmp_path, monkeypatch):
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    llama().save_pretrained("model")
    path = Path("first.py")
    path.write_text(re.sub(r'MODEL = "[^"]+"', 'MODEL = "model"', SCRIPT))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*trained by a loop")
        made = runpy.run_path(str(path))
    assert isinstance(made["result"], Result)
    assert Path("report.html").stat().st_size
    assert "<table" in made["result"]._repr_html_()
    groups = made["optimizer"].param_groups
    assert len({group["lr"] for group in groups}) > 1  # LoRA+: B learns faster
    assert (Path("adapter") / "adapter_model.safetensors").is_file()
