"""Wrapper segments go, and what a model itself calls `module` stays."""

import pytest

from lorascope.weights.names import unwrapped

CASES = {
    "model.layers.0.q_proj.weight": "model.layers.0.q_proj.weight",
    "_orig_mod.model.layers.0.q_proj.weight": "model.layers.0.q_proj.weight",
    "module.model.layers.0.q_proj.weight": "model.layers.0.q_proj.weight",
    "module._orig_mod.model.layers.0.q_proj": "model.layers.0.q_proj",
    "module.base_model.model.h.0.q.lora_A.weight": "base_model.model.h.0.q.lora_A.weight",
    "base_model.model.module.layers.0.q_proj.lora_A.weight": "base_model.model.layers.0.q_proj.lora_A.weight",
    "h.0._fsdp_wrapped_module._checkpoint_wrapped_module.attn.q_proj": "h.0.attn.q_proj",
    "layers.0._orig_mod.module.q": "layers.0.q",
    "fc._orig_mod": "fc",
    "levit.encoder.stages.0.layers.1.module.keys": "levit.encoder.stages.0.layers.1.module.keys",
    "submodule.q": "submodule.q",
    "": "",
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_unwrapped(name):
    assert unwrapped(name) == CASES[name]
