"""Fixtures that several rooms share."""

import json
import os
import sys
import zlib
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # each process its core: their threads would wait for each other
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from tests.browser import chromium, page_in_browser  # noqa: F401  one browser for the whole session

if "PYTEST_XDIST_WORKER" in os.environ:
    threadpool_limits(1)  # numpy's, which a plugin of pytest has imported before


def seed_of(name: str) -> int:
    return zlib.crc32(name.encode())


@pytest.fixture
def rng(request) -> np.random.Generator:
    """A generator of the test's own, seeded by its id: its numbers do not depend on which tests ran before."""
    return np.random.default_rng(seed_of(request.node.nodeid))


@pytest.fixture(autouse=True)
def seeded_torch(request):
    """torch's own generator starts every test from the test's id, where torch is imported: it is not imported here."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed_of(request.node.nodeid))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef):
    """What several tests share draws from its own name, and takes no draw from the test that happens to ask first."""
    torch = sys.modules.get("torch")
    if fixturedef.scope == "function" or torch is None:
        return (yield)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(f"{fixturedef.baseid}::{fixturedef.argname}"))
        return (yield)


@pytest.fixture(scope="session")
def lora_folder(tmp_path_factory):
    """A small PEFT LoRA folder with known numbers: alpha/r = 2, two layers, query and value; no model behind it."""
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("lora")
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(2):
        for name in ("q_proj", "v_proj"):
            key = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{key}.lora_A.weight"] = rng.standard_normal((4, 24)).astype(np.float32)
            tensors[f"{key}.lora_B.weight"] = rng.standard_normal((16, 4)).astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    from tests.training.tiny import make_bert

    return make_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> Path:
    from tests.training.tiny import make_llama

    return make_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def labelled(tmp_path_factory) -> Path:
    from tests.training.tiny import write_labelled

    return write_labelled(tmp_path_factory.mktemp("data") / "labelled.jsonl")


@pytest.fixture(scope="session")
def plain_text(tmp_path_factory) -> Path:
    from tests.training.tiny import sentences

    path = tmp_path_factory.mktemp("data") / "plain.txt"
    path.write_text("\n".join(sentences(60)))
    return path


@pytest.fixture
def classifier(tiny_bert, labelled):
    """A function: the config of a small classification run, with overrides."""
    from lorascope.training.config import override, parse
    from tests.training.tiny import classifier_values

    return lambda *overrides: parse(override(classifier_values(tiny_bert, labelled), overrides))


@pytest.fixture
def language_model(tiny_llama, plain_text):
    """A function: the config of a small language-modelling run, with overrides."""
    from lorascope.training.config import override, parse
    from tests.training.tiny import lm_values

    return lambda *overrides: parse(override(lm_values(tiny_llama, plain_text), overrides))


@pytest.fixture
def one_thread():
    """Tiny models gain nothing from threads, and the machine is shared."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
