"""The worked examples of CONTRIBUTING are complete files that do what the text says."""

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from lorascope.adapt.inject import inject
from lorascope.adapt.method import methods
from lorascope.analyses.base import analyses
from lorascope.study import work
from lorascope.study.runner import Runner
from lorascope.study.store import Store
from lorascope.weights import io
from lorascope.weights.formats.base import formats
from tests.methods.models import llama

ROOT = Path(__file__).parents[2]
EXAMPLE = re.compile(r"```python\n# (\S+\.py)\n(.*?)```", re.S)
EXAMPLES = dict(EXAMPLE.findall((ROOT / ".github/CONTRIBUTING.md").read_text()))


@pytest.fixture
def imported(tmp_path):
    """Writes an example out, imports it, and takes what it registered out of the registries afterwards."""
    for registry in (methods, analyses, formats):
        registry.names()  # all of the folder's own first
    before = {id(registry): dict(registry._members) for registry in (methods, analyses, formats)}
    loaded = []

    def load(path: str):
        file = tmp_path / Path(path).name
        file.write_text(EXAMPLES[path])
        name = f"example_{file.stem}"
        spec = importlib.util.spec_from_file_location(name, file)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        loaded.append(name)
        spec.loader.exec_module(module)
        return module

    yield load
    for registry in (methods, analyses, formats):
        registry._members.clear()
        registry._members.update(before[id(registry)])
    for name in loaded:
        del sys.modules[name]


def test_there_is_one_of_each_sort():
    folders = [str(Path(path).parent) for path in EXAMPLES]
    assert folders == ["lorascope/methods", "lorascope/weights/formats", "lorascope/analyses", "studies"]


def test_the_method_trains_b_alone(imported, tmp_path):
    imported("lorascope/methods/orthonormal_a.py")
    model = llama()
    ids = torch.arange(12).view(2, 6)
    before = model(ids).logits
    injected = inject(model, methods.get("orthonormal_a")(), targets=["q_proj"])
    assert torch.equal(model(ids).logits, before)
    a = next(iter(injected.layers.values())).delta.A
    torch.testing.assert_close(a @ a.t(), torch.eye(len(a)))
    assert {name.rpartition(".")[2] for name in injected.trainable()} == {"B"}
    model(ids, labels=ids).loss.backward()
    torch.optim.SGD(injected.trainable().values(), 0.1).step()
    io.write(injected.export(), tmp_path / "adapter")
    assert list(io.read(tmp_path / "adapter").updates) == list(injected.layers)


def test_the_format_is_read(imported, tmp_path):
    imported("lorascope/weights/formats/factors.py")
    a, b = np.eye(2, 5, dtype=np.float32), np.ones((3, 2), dtype=np.float32)
    save_file({"layers.0.q.factor_in": a, "layers.0.q.factor_out": b}, tmp_path / "x.safetensors")
    adapter = io.read(tmp_path / "x.safetensors")
    assert adapter.source.format == "factors"
    assert np.array_equal(adapter.updates["layers.0.q"].delta().dense(), b @ a)


def test_the_analysis_has_numbers_json_and_a_page(imported, lora_folder, tmp_path):
    imported("lorascope/analyses/anisotropy.py")
    adapter = io.read(lora_folder)
    result = analyses.get("anisotropy").run(adapter)
    for row in result.rows:
        s = np.linalg.svd(adapter.updates[row.name].delta().dense(), compute_uv=False)
        assert row.condition == pytest.approx(s[0] / s[adapter.updates[row.name].rank - 1], rel=1e-5)
    assert result.to_json()["analysis"] == "anisotropy"
    assert len(result.table()) == len(result.rows)
    assert "σ₁" in result.to_html(tmp_path / "page.html").read_text()


def test_the_study_states_itself(tmp_path):
    path = tmp_path / "two_ranks.py"
    path.write_text(EXAMPLES["studies/two_ranks.py"])
    study = work.script(path).study
    runner = Runner(study, path, "small", Store(tmp_path / "store"), None, device="cpu")
    assert len(runner.arms) == 4
    assert all(runner._train_job(arm, rate, 0).key for arm in runner.arms for rate in arm.learning_rates[:1])
