"""Adapters of PEFT and Trainer, evaluated from their folders: the numbers are PEFT's own model's."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import lorascope as ls
from lorascope.errors import InputError
from lorascope.models import dequantised
from lorascope.training import run
from lorascope.training.foreign import checkpoint_scorer, open_evaluated
from lorascope.training.given import Given
from lorascope.weights.checkpoint import open_checkpoint
from tests.adapt.test_merge_quantised import quantise
from tests.cli.command import here, refused
from tests.training.tiny import sentences

TWO_CLASSES = {"num_labels": 2, "ignore_mismatched_sizes": True}
CHAT = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"


def peft_folder(auto, base, folder, targets, steps=1, **config):
    """A PEFT adapter with drawn factors, saved as a Trainer's checkpoint is: with its tokenizer beside it."""
    model = auto.from_pretrained(base, **(TWO_CLASSES if "Sequence" in auto.__name__ else {}))
    peft = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules=targets, **config))
    torch.manual_seed(1)
    for step in range(1, steps + 1):
        with torch.no_grad():
            for name, parameter in peft.named_parameters():
                if "lora_B" in name or "modules_to_save" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.5)
        at = folder / f"checkpoint-{step}" if steps > 1 else folder
        peft.save_pretrained(at)
        AutoTokenizer.from_pretrained(base).save_pretrained(at)
    return folder


@pytest.fixture
def lm(tiny_llama, tmp_path):
    return peft_folder(AutoModelForCausalLM, tiny_llama, tmp_path / "lm", ["q_proj", "v_proj"], task_type="CAUSAL_LM")


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(12, seed=3)))
    return path


def loss_of(model, encoded) -> float:
    """Mean cross-entropy over all tokens after the first, text by text and in float64 sums."""
    total, count = 0.0, 0
    with torch.no_grad():
        for ids in encoded:
            logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
            total -= logits[torch.arange(len(ids) - 1), torch.tensor(ids[1:])].sum().item()
            count += len(ids) - 1
    return total / count


def test_a_language_models_loss_is_that_of_pefts_model(lm, texts, tiny_llama):
    opened = open_evaluated(lm, Given(data=str(texts)), "cpu")
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), lm).eval()
    tokenizer = AutoTokenizer.from_pretrained(lm)
    encoded = [tokenizer(text)["input_ids"] for text in sentences(12, seed=3)]  # [CLS] ... [SEP], the end token
    assert opened.held_out.tokens[0][0] == encoded[0][0]
    # float32: W + ΔW in one sum here, in two products there
    assert opened.score().loss == pytest.approx(loss_of(model, opened.held_out.tokens), rel=1e-5)
    assert [list(each) for each in opened.held_out.tokens] == [ids if ids[-1] == 3 else [*ids, 3] for ids in encoded]
    opened.put({})
    base = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    assert opened.score().loss == pytest.approx(loss_of(base, opened.held_out.tokens), rel=1e-5)


def test_templates_conversations_and_pairs(lm, tmp_path):
    rows = [{"q": "red stone", "a": "the bird", "text": "a leaf"}]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    tokenizer = AutoTokenizer.from_pretrained(lm)

    def words(**given) -> str:
        opened = open_evaluated(lm, Given(data=str(path), **given), "cpu")
        return tokenizer.decode(opened.held_out.tokens[0])

    assert words() == "[CLS] a leaf [SEP]"
    assert words(text_column="q") == "[CLS] red stone [SEP]"
    assert words(template="{q} of {a}") == "[CLS] red stone of the bird [SEP]"
    path.write_text(json.dumps([{"prompt": "red ", "completion": "stone"}]))
    assert words() == "[CLS] red stone [SEP]"
    path.write_text(json.dumps([{"messages": [{"role": "red", "content": "stone"}]}]))
    with pytest.raises(InputError, match="no chat template"):
        words()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(lm)
    assert words() == "red stone"
    path.write_text(json.dumps([{"conversations": [{"from": "human", "value": "stone"}]}]))
    assert words() == "[UNK] stone"  # "user" is no word of the tokenizer's
    path.write_text(json.dumps([{"q": "red"}]))
    for given, match in (
        ({}, "--template"),
        ({"template": "{q} {b}"}, "no 'b'"),
        ({"template": "x"}, "names no column"),
    ):
        with pytest.raises(InputError, match=match):
            words(**given)


def test_a_classifier_by_its_own_head_and_the_bases_names(tiny_bert, labelled, tmp_path):
    folder = peft_folder(
        AutoModelForSequenceClassification, tiny_bert, tmp_path / "cls", ["query", "value"], task_type="SEQ_CLS"
    )
    with pytest.raises(InputError, match=r"not the model's classes.*--labels"):
        open_evaluated(folder, Given(data=str(labelled)), "cpu")
    opened = open_evaluated(folder, Given(data=str(labelled), labels=("no", "yes")), "cpu")
    base = AutoModelForSequenceClassification.from_pretrained(tiny_bert, **TWO_CLASSES)
    model = PeftModel.from_pretrained(base, folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_bert)
    rows = [json.loads(line) for line in labelled.read_text().splitlines()]
    hits, loss = 0, 0.0
    with torch.no_grad():
        for row in rows:
            logits = model(**tokenizer(row["text"], return_tensors="pt")).logits[0].double()
            label = int(row["label"] == "yes")
            hits += int(logits.argmax() == label)
            loss -= logits.log_softmax(-1)[label].item()
    assert opened.score().loss == pytest.approx(loss / len(rows), rel=1e-5)
    assert opened.score().accuracy == pytest.approx(hits / len(rows))
    numbered = tmp_path / "numbered.csv"
    numbered.write_text("text,label\n" + "".join(f"{r['text']},{int(r['label'] == 'yes')}\n" for r in rows))
    assert open_evaluated(folder, Given(data=str(numbered)), "cpu").score().loss == pytest.approx(
        loss / len(rows), rel=1e-5
    )


def test_every_checkpoint_of_a_run_is_scored_as_by_itself(tiny_llama, texts, tmp_path):
    folder = peft_folder(
        AutoModelForCausalLM, tiny_llama, tmp_path / "out", ["q_proj"], steps=3, task_type="CAUSAL_LM",
        modules_to_save=["norm"],
    )  # fmt: skip
    paths = sorted(folder.iterdir())
    score, on = checkpoint_scorer(paths, Given(data=str(texts)), "cpu")
    assert on == f"12 texts of {texts}"
    alone = [open_evaluated(path, Given(data=str(texts)), "cpu").score().loss for path in paths]
    assert [score(i)["loss"] for i in (2, 0, 1)] == pytest.approx([alone[i] for i in (2, 0, 1)], rel=1e-6)
    assert len({round(loss, 6) for loss in alone}) == 3
    done = here("trajectory", folder, "--data", texts, "--json", "-", "--device", "cpu")
    record = json.loads(done.stdout)
    assert [c["score"]["loss"] for c in record["checkpoints"]] == pytest.approx(alone, rel=1e-6)
    assert record["summary"]["best_step"] == 1 + int(np.argmin(alone))
    assert "all tokens" in done.stderr
    assert ls.trajectory(folder, data=str(texts)).best.step == record["summary"]["best_step"]


def test_the_evaluating_commands_take_a_peft_folder(lm, texts, tmp_path):
    where = ("--data", texts, "--device", "cpu", "--json", "-")
    found = json.loads(here("activations", lm, *where, "--max-samples", 8).stdout)
    assert {module["name"].rpartition(".")[2] for module in found["modules"]} == {"q_proj", "v_proj"}
    loss = open_evaluated(lm, Given(data=str(texts)), "cpu").score().loss
    found = json.loads(here("resize", lm, "--rank", 1, "--rank", 2, *where).stdout)
    assert found["summary"]["scored_on"] == f"12 texts of {texts}"
    scored = [plan["score"]["loss"] for plan in found["summary"]["plans"]]
    assert scored[1] == pytest.approx(loss, rel=1e-5), "rank 2 is all of it"
    assert scored[0] != pytest.approx(loss, rel=1e-5)
    done = here("intruders", lm, "--intervene", "--lambdas", "0,1", "-k", 2, "--epsilon", 0.99, "--no-cache", *where)
    found = json.loads(done.stdout)
    scores = numbers(found["intervention"])
    assert any(math.isclose(each, loss, rel_tol=1e-5) for each in scores), "as trained, at λ = 1"
    result = ls.activations(lm, data=str(texts), max_samples=8, device="cpu")
    assert result.rows


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for each in value for number in numbers(each)]
    return [value] if isinstance(value, float) else []


def test_a_runs_folder_needs_neither_and_its_adapter_names_it(language_model, tmp_path):
    config = language_model("training.snapshot_steps=2", "training.measure_cost=false")
    run.train(config, tmp_path / "run")
    of_run = open_evaluated(tmp_path / "run", device="cpu").score().loss
    assert open_evaluated(tmp_path / "run" / "adapter", device="cpu").score().loss == of_run
    snapshot = open_evaluated(tmp_path / "run" / "snapshots" / "step-0000002", device="cpu").score().loss
    assert snapshot != pytest.approx(of_run, rel=1e-6)
    with pytest.raises(InputError, match="the base that it was trained on"):
        open_evaluated(tmp_path / "run", Given(base="minilm"), "cpu")
    for command in (("analyze",), ("resize",), ("intruders", "--no-cache")):
        done = here(command[0], tmp_path / "run", *command[1:], "--json", "-")
        assert done.returncode == 0, done.stderr
    assert here("compare", tmp_path / "run", tmp_path / "run" / "snapshots" / "step-0000002").returncode == 0
    done = here("merge", tmp_path / "run", "--output", tmp_path / "merged")
    assert done.returncode == 0, done.stderr


def test_refusals(lm, texts, lora_folder, tmp_path):
    assert "pass --data FILE" in refused(here("activations", lm))
    assert "--task describes the data" in refused(here("activations", lm, "--task", "CAUSAL_LM"))
    assert "pass --base MODEL" in refused(here("activations", lora_folder, "--data", texts))
    assert "not evaluated here" in refused(here("activations", lm, "--data", texts, "--task", "TOKEN_CLS"))
    assert "--data requires --intervene" in refused(here("intruders", lm, "--data", texts))
    assert "is not the folder of a finished run" in refused(here("activations", tmp_path))


def test_dimension_of_a_tuned_model_and_adapters(tiny_llama, lm, texts, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    ids = [torch.tensor([tokenizer(text)["input_ids"]]) for text in sentences(12, seed=3)]
    for _ in range(2):
        for each in ids:
            model(input_ids=each, labels=each).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "tuned")
    tokenizer.save_pretrained(tmp_path / "tuned")
    opened = open_evaluated(tmp_path / "tuned", Given(base=str(tiny_llama), data=str(texts)), "cpu")
    expected = loss_of(model.eval(), opened.held_out.tokens)
    assert opened.score().loss == pytest.approx(expected, rel=1e-5)
    result = ls.dimension(tmp_path / "tuned", lm, base=str(tiny_llama), data=str(texts), device="cpu")
    record = result.to_json()
    assert record["full"][0]["loss"] == pytest.approx(expected, rel=1e-5)
    assert [run["learning_rate"] for run in record["runs"]] == [None]
    with pytest.raises(InputError, match="no run is a full fine-tuning"):
        ls.dimension(lm, base=str(tiny_llama), data=str(texts), device="cpu")


def test_models_in_memory_are_evaluated_as_their_folders_are(tiny_llama, lm, texts, tmp_path):
    tuned = AutoModelForCausalLM.from_pretrained(tiny_llama)
    with torch.no_grad():
        tuned.model.layers[0].self_attn.q_proj.weight.add_(0.1)
    tuned.save_pretrained(tmp_path / "tuned")
    live = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), lm)
    where = {"data": str(texts), "base": str(tiny_llama), "device": "cpu"}
    results = [ls.activations(one, max_samples=8, **where) for one in (lm, live)]
    rows, twins = (numbers(result.records()) for result in results)
    assert len(rows) > 10
    assert twins == rows
    on_disk, in_memory = ls.dimension(tmp_path / "tuned", lm, **where), ls.dimension(tuned, live, **where)
    assert in_memory.summary() == on_disk.summary()
    with pytest.raises(InputError, match=r"does not say what it is to be evaluated on.*pass data="):
        ls.activations(live)
    with pytest.raises(InputError, match="no save_pretrained"):
        ls.dimension(torch.nn.Linear(2, 2), **where)


def test_a_quantised_base_is_evaluated_as_the_numbers_of_its_codes(lm, texts, tiny_llama, tmp_path, monkeypatch):
    """No quantisation library is asked: what is loaded is what `--base` analyses read."""
    coded = quantise(tiny_llama, tmp_path / "coded", "nf4")
    for file in tiny_llama.glob("token*"):
        shutil.copy(file, coded)
    opened = open_evaluated(lm, Given(base=str(coded), data=str(texts)), "cpu")
    assert any("nf4) were turned into numbers" in note and "GB as float32" in note for note in opened.notes)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    for name, stored in open_checkpoint(coded).stored.items():
        model.get_parameter(name).data = torch.from_numpy(stored.read()).float()
    model = PeftModel.from_pretrained(model, lm).eval()
    assert opened.score().loss == pytest.approx(loss_of(model, opened.held_out.tokens), rel=1e-5)
    monkeypatch.setattr(dequantised, "_free_memory", lambda: 10_000)
    with pytest.raises(InputError, match=r"do not fit into memory.*1e-05 GB are free.*more memory"):
        open_evaluated(lm, Given(base=str(coded), data=str(texts)), "cpu")
