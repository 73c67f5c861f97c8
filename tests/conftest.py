"""Fixtures that several rooms share."""

import json
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # each process its core: their threads would wait for each other
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import numpy as np
import pytest

from tests.browser import chromium, page_in_browser  # noqa: F401  one browser for the whole session


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
