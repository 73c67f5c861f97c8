"""The analyses by their public functions: models in memory and their files give the same record."""

import pytest
import torch
from peft import get_peft_model

import lorascope as ls
from lorascope.errors import FullModelError, InputError
from tests.api.test_read import CONFIGS, llama

NAMED = ("adapters", "base", "source", "sources", "tuned", "pairs", "title")  # what says where it was read from


def tuned():
    model = llama()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "q_proj" in name:
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return model


def unnamed(result) -> dict:
    return {key: value for key, value in result.to_json().items() if key not in NAMED}


def test_two_models(tmp_path):
    for name, model in (("base", llama()), ("tuned", tuned())):
        model.save_pretrained(tmp_path / name)
    live, on_disk = ls.delta(llama(), tuned()), ls.delta(tmp_path / "base", tmp_path / "tuned")
    by_name = [{row["name"]: row for row in result.records()} for result in (live, on_disk)]
    assert by_name[0] == by_name[1]
    assert {name for name, row in by_name[0].items() if row.get("frobenius_norm")} == {
        f"model.layers.{i}.self_attn.q_proj" for i in range(2)
    }
    spectra = [ls.intruders(tuned(), llama()), ls.intruders(tmp_path / "tuned", tmp_path / "base")]
    rows = [{row["name"]: row for row in result.records()} for result in spectra]
    assert rows[0] == rows[1]


def test_adapters(tmp_path):
    models = [get_peft_model(llama(), CONFIGS[name]) for name in ("lora", "dora")]
    paths = [tmp_path / "a", tmp_path / "b"]
    for model, path in zip(models, paths, strict=True):
        model.save_pretrained(path)
    live, on_disk = ls.compare(models, base=llama()), ls.compare(*paths, base=llama())
    assert unnamed(live).keys() == unnamed(on_disk).keys()
    assert unnamed(live)["matrices"] == unnamed(on_disk)["matrices"]
    assert ls.intruders(models[0], llama()).records() == ls.intruders(paths[0], llama()).records()
    assert ls.resize(models[0], rank=2).summary() == ls.resize(paths[0], rank=2).summary()


def test_a_full_model_next_to_adapters(tmp_path):
    """With a base it is compared by what it has more; without one, and where an adapter is wanted, it is refused."""
    adapter = get_peft_model(llama(), CONFIGS["dora"])
    tuned().save_pretrained(tmp_path)
    live, on_disk = ls.compare(tuned(), adapter, base=llama()), ls.compare(tmp_path, adapter, base=llama())
    assert unnamed(live)["matrices"] == unnamed(on_disk)["matrices"]
    for refused in (lambda: ls.compare(tmp_path, adapter), lambda: ls.read(tmp_path)):
        with pytest.raises(FullModelError, match="not an adapter"):
            refused()


def test_an_injected_model_is_an_adapter_wherever_one_is_taken():
    model = llama()
    injected = ls.inject(model, "lora", r=2, target_modules=["q_proj"])
    for layer in injected.layers.values():
        torch.nn.init.normal_(layer.delta.B)
    by_model, by_injected = (ls.intruders(one, llama(), k=2).records() for one in (model, injected))
    assert by_model == by_injected
    assert len(by_model) == 2


def test_what_describes_data_wants_data():
    model = get_peft_model(llama(), CONFIGS["lora"])
    with pytest.raises(InputError, match="--template describes the data"):
        ls.trajectory(model, model, template="{text}")
    with pytest.raises(InputError, match="data is for checkpoints on disk"):
        ls.trajectory(model, model, data="texts.jsonl")
    with pytest.raises(InputError, match="once for all adapters"):
        ls.compare(model, model, adapter_name=["a", "b", "c"])
    with pytest.raises(InputError, match="dtype is of a base that is opened here"):
        ls.merge(llama(), model, dtype="bfloat16")


def test_one_line_in_a_terminal_and_a_screen_in_a_notebook():
    model = get_peft_model(llama(), CONFIGS["lora"])
    results = [ls.analyze(model), ls.compare(model, model), ls.delta(llama(), tuned()), ls.resize(model)]
    for result in [*results, ls.intruders(model, llama())]:
        assert "\n" not in repr(result)
        assert len(repr(result)) < 250
        assert "<table" in result._repr_html_()
        assert len(result.table())
        assert result.to_json()["schema"] == 2
