"""One contract for PEFT's tuners: ΔW from the saved file is what PEFT itself merges into the base, in float64.

A case is a tuner with some options on a small model. `check` trains nothing: it draws the tuner's parameters, saves
them as PEFT does, loads the files with PEFT into a fresh base, merges in float64, and compares with what lorascope
reads from the same files, and from the model in memory.
"""

import copy
import json
import shutil
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

import lorascope as ls
from lorascope.updates.base import Update, dense
from lorascope.weights import io
from lorascope.weights.adapter import Adapter
from lorascope.weights.checkpoint import Checkpoint, open_checkpoint
from tests.weights.example import check_roles

# Both sides multiply the same float32 values in float64, in another order: sums of at most a few hundred products.
SUMS = 1e-12


def linear() -> nn.ModuleDict:
    """A square, a tall and a wide map, with biases."""
    return nn.ModuleDict({"q": nn.Linear(12, 12), "up": nn.Linear(12, 24), "down": nn.Linear(24, 12)})


def conv1d() -> nn.ModuleDict:
    """GPT-2's layers, whose weights are (d_in, d_out)."""
    return nn.ModuleDict({"q": Conv1D(12, 12), "up": Conv1D(24, 12), "down": Conv1D(12, 24)})


def embedding() -> nn.ModuleDict:
    return nn.ModuleDict({"embed_tokens": nn.Embedding(18, 12), "q": nn.Linear(12, 12)})


def conv2d() -> nn.ModuleDict:
    return nn.ModuleDict({"q": nn.Conv2d(4, 8, 3, padding=1), "up": nn.Conv2d(8, 16, (1, 1))})


def llama() -> LlamaForCausalLM:
    """A model whose class transformers knows: q_proj (12, 12), v_proj (6, 12), down_proj (12, 24)."""
    torch.manual_seed(0)
    size = {"hidden_size": 12, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**size, num_hidden_layers=2, vocab_size=16, initializer_range=0.3))


class Model(nn.Module):
    """Two blocks of the same layers: `layers.0.q`, `layers.1.q`, ..."""

    def __init__(self, layers: Callable[[], nn.ModuleDict], seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList([layers(), layers()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.layers:
            for layer in block.values():
                x = layer(x)
        return x


@dataclass(frozen=True)
class Case:
    """A tuner with options.

    Attributes:
        config: makes PEFT's config.
        layers: makes a block of the base model.
        model: makes the base model itself, one of transformers with its config.
        base: whether the reader needs the base.
        tolerance: of ‖ΔW − PEFT's‖ / ‖PEFT's‖, beside its reason where it is not that of sums.
        prepare: what is done to the PEFT model after its parameters were drawn.
        says: a part of one of the adapter's notes.
        widened: makes PEFT's merge compute in float64 where it narrows to float32 whatever the model is in.
    """

    name: str
    config: Callable[[], Any]
    layers: Callable[[], nn.ModuleDict] = linear
    base: bool = False
    model: Callable[[], Any] | None = None
    tolerance: float = SUMS
    prepare: Callable[[nn.Module], None] | None = None
    says: str = ""
    widened: Callable[[], AbstractContextManager] = nullcontext

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Saved:
    """What was written for a case: the base, PEFT's model on it, and the folders of both."""

    base: nn.Module
    model: PeftModel
    adapter_folder: Path
    base_folder: Path

    @property
    def checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.base_folder)


def randomise(model: nn.Module, seed: int = 1) -> nn.Module:
    """Every trained parameter moved away from its start, so that no update is zero and nothing is symmetric."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter.dtype) * 0.3)
    return model


def saved(case: Case, folder: Path) -> Saved:
    """The base and an adapter of the case, both saved below `folder`."""
    (folder / "base").mkdir(parents=True)
    if case.model is not None:
        base = case.model()
        base.save_pretrained(folder / "base")
    else:
        base = Model(case.layers)
        save_file(base.state_dict(), folder / "base" / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(copy.deepcopy(base), case.config())
        randomise(model)
        if case.prepare is not None:
            case.prepare(model)
        model.save_pretrained(folder / "adapter")
    return Saved(base, model, folder / "adapter", folder / "base")


def truth(
    base: nn.Module, adapter_folder: Path, widened: Callable[[], AbstractContextManager] = nullcontext
) -> dict[str, np.ndarray]:
    """What PEFT's merge of the files adds, in float64, to each parameter of the base that it changes."""
    with warnings.catch_warnings(), widened():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), adapter_folder)
        merged = loaded.double().merge_and_unload().state_dict()
    before = {name: value.double() for name, value in base.state_dict().items()}
    changes = {name: (merged[name] - value).numpy() for name, value in before.items()}
    return {name: change for name, change in changes.items() if change.any()}


def stored_delta(update: Update, base: Checkpoint | None) -> np.ndarray:
    """ΔW in the orientation of the base's parameter, a convolution's kernel flattened into the inputs."""
    weight = base.of(update).read() if base is not None and update.needs_base else None
    found = dense(update.delta(weight))
    return found.T if update.transposed else found


def without_defaults(folder: Path, config: Any) -> Path:
    """The adapter with a config that leaves out what PEFT's config has by default, which PEFT takes for the same."""
    given = json.loads((folder / "adapter_config.json").read_text())
    usual = {field.name: field.default for field in fields(config) if field.name not in ("peft_type", "peft_version")}
    to = folder.with_name("lean")
    to.mkdir()
    shutil.copy(folder / "adapter_model.safetensors", to)
    lean = {key: value for key, value in given.items() if key not in usual or value != usual[key]}
    (to / "adapter_config.json").write_text(json.dumps(lean))
    return to


def compare(case: Case, adapter: Adapter, base: Checkpoint | None, expected: dict[str, np.ndarray]) -> None:
    """AssertionError where a weight's update is missing, an update is too many, or one differs from the merge."""
    found = {update.base_weight or f"{name}.weight": update for name, update in adapter.updates.items()}
    assert set(found) == {name for name, change in expected.items() if change.ndim > 1 or name in found}
    assert found
    for name, update in found.items():
        check_roles(update)
        change = expected[name].reshape(len(expected[name]), -1)
        error = np.linalg.norm(stored_delta(update, base) - change) / np.linalg.norm(change)
        assert error < case.tolerance, f"{name}: {error:.3g}"


def check(case: Case, folder: Path) -> Adapter:
    """The case's files, read by lorascope, are what PEFT merges; the model in memory gives the same numbers."""
    written = saved(case, folder)
    expected = truth(written.base, written.adapter_folder, case.widened)
    assert expected
    base = written.checkpoint if case.base else None
    adapter = io.read(written.adapter_folder, base)
    compare(case, adapter, base, expected)
    layers = dict(written.base.named_modules())
    for name, update in adapter.updates.items():
        assert update.embedding == isinstance(layers.get(name), nn.Embedding)
    assert any(case.says in note for note in adapter.notes) or not case.says
    lean = io.read(without_defaults(written.adapter_folder, case.config()), base)
    for name, update in adapter.updates.items():
        np.testing.assert_array_equal(stored_delta(lean.updates[name], base), stored_delta(update, base))
    in_memory = ls.read(written.model, base=written.base_folder if case.base else None)
    assert set(in_memory.updates) == set(adapter.updates)
    for name, update in adapter.updates.items():
        np.testing.assert_array_equal(stored_delta(in_memory.updates[name], base), stored_delta(update, base))
    return adapter
