import json

import numpy as np
import pytest
import torch

from lorascope.adapt import merge as merging
from lorascope.errors import InputError
from lorascope.models import adapter_base
from lorascope.models import loading as models
from lorascope.models.config import ModelConfig
from lorascope.models.loading import MeanPoolClassifier
from lorascope.training import run
from lorascope.weights import io

IDS = torch.tensor([[2, 5, 6, 7, 3], [2, 9, 8, 3, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])


def logits(model):
    model.eval()
    with torch.no_grad():
        return model(input_ids=IDS, attention_mask=MASK).logits


def trained(config, folder):
    """The adapter's folder, and the logits of the model it was trained in."""
    prepared = run.prepare(config, torch.device("cpu"))
    record = run.Record(folder, config)
    finished = run.fit(prepared, config, run.World(torch.device("cpu")), record, folder)
    return finished.adapter, logits(prepared.model)


MODES = ["method.targets=all-linear", "method.targets=[query]", "model.head=mean-pool"]


@pytest.mark.parametrize("mode", MODES)
def test_merged_logits_equal_unmerged_ones(classifier, tiny_bert, tmp_path, mode):
    adapter, expected = trained(classifier(mode), tmp_path / "run")
    read = io.read(adapter)
    model, tokenizer = adapter_base.load_base(read, adapter, str(tiny_bert))
    reports = merging.merge(model, read)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-6)  # float32, one more rounding of W
    assert max(one.rounding_loss for one in reports.weights) < 1e-4
    merging.save(model, tokenizer, tmp_path / "merged", reports, {"base": "tiny"})
    head = "mean-pool" if mode == "model.head=mean-pool" else "native"
    again = models.load_model(ModelConfig(str(tmp_path / "merged"), head=head), num_labels=2)
    assert torch.equal(logits(again), logits(model))
    models.load_tokenizer(ModelConfig(str(tmp_path / "merged")))


def test_a_tied_embedding_is_untied_and_stays_so(language_model, tiny_llama, tmp_path):
    config = language_model("method.targets=[embed_tokens, q_proj]")
    adapter, expected = trained(config, tmp_path / "run")
    read = io.read(adapter)
    model, tokenizer = adapter_base.load_base(read, adapter, str(tiny_llama))
    reports = merging.merge(model, read)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-6)
    merging.save(model, tokenizer, tmp_path / "merged", reports, {})
    again = models.load_model(ModelConfig(str(tmp_path / "merged"), "CAUSAL_LM"))
    assert torch.equal(logits(again), logits(model))


def test_rounding_to_bfloat16_is_measured(language_model, tiny_llama, tmp_path):
    """Against the definition, in float64, from the two weights themselves."""
    adapter, _ = trained(language_model("training.max_steps=1"), tmp_path / "run")
    read = io.read(adapter)
    model, _ = adapter_base.load_base(read, adapter, str(tiny_llama), torch.bfloat16)
    before = {name: p.detach().double().numpy().copy() for name, p in model.named_parameters()}
    reports = {one.name: one for one in merging.merge(model, read).weights}
    after = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    for name, update in read.updates.items():
        w, stored = before[f"{name}.weight"], after[f"{name}.weight"]
        delta = update.delta().dense()
        report = reports[f"{name}.weight"]
        lost = np.linalg.norm(stored - w - delta) / np.linalg.norm(delta)
        assert report.rounding_loss == pytest.approx(lost, rel=1e-4)  # the report is computed in float32
        assert report.relative_size == pytest.approx(np.linalg.norm(delta) / np.linalg.norm(w), rel=1e-4)
        assert report.unchanged == pytest.approx(np.mean((stored == w)[delta != 0]), abs=1e-2)
    assert max(one.rounding_loss for one in reports.values()) > 1e-3  # in float32 it is under 1e-4


def test_an_adapter_of_another_model_is_refused(classifier, tiny_llama, tmp_path):
    adapter, _ = trained(classifier(), tmp_path / "run")
    read = io.read(adapter)
    model = models.load_model(ModelConfig(str(tiny_llama), "CAUSAL_LM"))
    with pytest.raises(InputError, match="not of this model"):
        merging.merge(model, read)


def test_peft_loads_the_adapter_with_the_same_logits(classifier, language_model, tiny_bert, tiny_llama, tmp_path):
    peft = pytest.importorskip("peft")
    adapter, expected = trained(classifier(), tmp_path / "native")
    base = models.load_model(ModelConfig(str(tiny_bert)), num_labels=2)
    torch.testing.assert_close(logits(peft.PeftModel.from_pretrained(base, adapter)), expected, rtol=1e-5, atol=1e-6)
    adapter, expected = trained(classifier("model.head=mean-pool"), tmp_path / "mean-pool")
    base = models.load_model(ModelConfig(str(tiny_bert), head="mean-pool"), num_labels=2)
    torch.testing.assert_close(logits(peft.PeftModel.from_pretrained(base, adapter)), expected, rtol=1e-5, atol=1e-6)
    adapter, expected = trained(language_model(), tmp_path / "lm")
    base = models.load_model(ModelConfig(str(tiny_llama), "CAUSAL_LM"))
    torch.testing.assert_close(logits(peft.PeftModel.from_pretrained(base, adapter)), expected, rtol=1e-5, atol=1e-6)


def test_the_mean_pool_head_ignores_padding(tiny_bert):
    model = models.load_model(ModelConfig(str(tiny_bert), head="mean-pool"), num_labels=4)
    assert isinstance(model, MeanPoolClassifier)
    alone = model.eval()(input_ids=IDS[1:, :4], attention_mask=MASK[1:, :4]).logits
    torch.testing.assert_close(logits(model)[1:], alone, rtol=1e-5, atol=1e-6)
    hidden = model.encoder(input_ids=IDS[1:, :4]).last_hidden_state
    torch.testing.assert_close(model.features(IDS, MASK)[1:], hidden.mean(1), rtol=1e-5, atol=1e-6)


def test_the_record_says_what_was_done(classifier, tmp_path):
    folder = tmp_path / "run"
    config = classifier("training.eval_steps=3")
    run.train(config, folder, command=["lorascope", "train", "x.yaml"])
    facts = json.loads((folder / "run.json").read_text())
    assert facts["command"] == ["lorascope", "train", "x.yaml"]
    assert (facts["seed"], facts["device"]) == (0, "cpu")
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_loss" in line] == [3, 6]
    assert [line["step"] for line in lines if "train_loss" in line] == [1, 2, 3, 4, 5, 6]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["held_out"]["loss"] == lines[-1]["eval_loss"]
    names = {"config.yaml", "run.json", "metrics.jsonl", "summary.json", "adapter"}
    assert {path.name for path in folder.iterdir()} == names
