"""What cannot be merged is refused in a sentence, and what a merge does besides adding products is PEFT's own."""

import json

import pytest
import torch
from peft import LoraConfig, PeanutConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lorascope.adapt import merge
from lorascope.errors import InputError, LorascopeError
from lorascope.models import adapter_base
from lorascope.weights import io

IDS = torch.tensor([[5, 9, 11, 3, 4, 7]])


def llama(folder, tied=False, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.3, tie_word_embeddings=tied,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def adapter(base, folder, config):
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if parameter.requires_grad and "lora_" in name:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
            elif parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    peft.save_pretrained(folder)
    return folder


def merged(base, folder):
    read = io.read(folder, adapter_base.checkpoint_of(str(base)))
    merge.refuse(read)
    model, tokenizer = adapter_base.load_base(read, folder, str(base))
    return model, tokenizer, merge.merge(model, read)


def lora(**options):
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM", **options})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"alora_invocation_tokens": [1, 2]}, "only to tokens after its invocation tokens"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "replicas of the base's"),
    ],
)
def test_what_no_merged_weight_can_hold(options, sentence, tmp_path):
    folder = adapter(llama(tmp_path / "base"), tmp_path / "a", lora(**options))
    with pytest.raises(InputError, match=sentence):
        merged(tmp_path / "base", folder)


@pytest.mark.parametrize("start", ["corda", "loftq", "lora_ga", "pissa_niter_4"])
def test_a_start_that_cannot_be_computed_again(start, tmp_path):
    folder = adapter(llama(tmp_path / "base"), tmp_path / "a", lora())
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "init_lora_weights": start}))
    with pytest.raises(InputError, match="belong to a base from which their beginning was taken away"):
        merged(tmp_path / "base", folder)


def test_a_method_that_is_not_computed(tmp_path):
    config = PeanutConfig(r=2, act_fn="mish", target_modules=["q_proj"], modules_to_save=["lm_head"])
    folder = adapter(llama(tmp_path / "base"), tmp_path / "a", config)
    with pytest.raises(InputError, match=r"would lose .*PEANuT: its nonlinearity is 'mish'"):
        merged(tmp_path / "base", folder)


@pytest.mark.parametrize("where", ["update", "base", "saved"])
def test_numbers_that_are_none(where, tmp_path):
    from safetensors.torch import load_file, save_file

    base = llama(tmp_path / "base")
    folder = adapter(base, tmp_path / "a", lora(modules_to_save=["lm_head"]))
    path = base / "model.safetensors" if where == "base" else folder / "adapter_model.safetensors"
    word = {"base": "q_proj.weight", "update": "lora_B", "saved": "lm_head"}[where]
    tensors = load_file(path)
    tensors[next(name for name in tensors if word in name)][0, 0] = float("nan")
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"merging would write NaN or infinity into .*(q_proj|lm_head)"):
        merged(base, folder)


def test_a_sum_beyond_the_range_of_the_dtype(tmp_path):
    base = llama(tmp_path / "base")
    folder = adapter(base, tmp_path / "a", lora(lora_alpha=1e6))
    read = io.read(folder)
    model, _ = adapter_base.load_base(read, folder, str(base), torch.float16)
    with pytest.raises(InputError, match="beyond the range of float16"):
        merge.merge(model, read)


def test_a_quantised_base_is_named(tmp_path):
    base = llama(tmp_path / "base")
    folder = adapter(base, tmp_path / "a", lora())
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    (base / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="quantised with bitsandbytes nf4; merge into the same model"):
        merged(base, folder)


@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_a_saved_half_of_tied_weights_unties_them(saved, tmp_path):
    base = llama(tmp_path / "base", tied=True)
    folder = adapter(base, tmp_path / "a", lora(modules_to_save=saved))
    reloaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    model, tokenizer, done = merged(base, folder)
    merge.save(model, tokenizer, tmp_path / "m", done, {})
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()
    with torch.no_grad():
        expected, found = reloaded(input_ids=IDS).logits, again(input_ids=IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert done.untied
    assert not again.config.tie_word_embeddings


def test_rows_that_only_the_user_s_base_had(tmp_path):
    """LoRA on an embedding that was grown before training: the file of an older PEFT does not hold its new rows."""
    base = llama(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(35)
    peft = get_peft_model(model, lora(target_modules=["embed_tokens"]))
    peft.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    with pytest.raises(InputError, match="another shape"):
        merged(base, tmp_path / "a")


@pytest.mark.parametrize("bare", [False, True])
def test_a_head_of_another_number_of_classes(bare, tmp_path):
    """RoBERTa's head is two layers under names of their own; its config says two classes, the adapter has five."""
    import transformers

    torch.manual_seed(0)
    config = transformers.RobertaConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=20, initializer_range=0.3,
    )  # fmt: skip
    base = transformers.RobertaForSequenceClassification(config)
    (base.roberta if bare else base).save_pretrained(tmp_path / "base")
    auto = transformers.AutoModelForSequenceClassification
    live = auto.from_pretrained(tmp_path / "base", num_labels=5, ignore_mismatched_sizes=True)
    peft = get_peft_model(live, LoraConfig(task_type="SEQ_CLS", target_modules=["query"], init_lora_weights=False))
    peft.save_pretrained(tmp_path / "a")
    model, tokenizer, done = merged(tmp_path / "base", tmp_path / "a")
    merge.save(model, tokenizer, tmp_path / "m", done, {})
    with torch.no_grad():
        found = auto.from_pretrained(tmp_path / "m").eval()(IDS).logits
        expected = peft.eval()(IDS).logits
    assert found.shape == (1, 5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_base_of_other_sizes_than_the_card_says(classifier, tmp_path):
    import transformers

    from lorascope.training import run

    finished = run.train(classifier(), tmp_path / "run", say=lambda note: None)
    assert "yes" in (finished.adapter / "README.md").read_text(encoding="utf-8")
    other = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertForSequenceClassification(other).save_pretrained(tmp_path / "other")
    with pytest.raises(InputError, match="was trained on; found num_hidden_layers 3"):
        adapter_base.load_base(io.read(finished.adapter), finished.adapter, str(tmp_path / "other"))


def test_the_merged_config_names_the_classes(classifier, tiny_bert, tmp_path):
    from lorascope.training import run

    finished = run.train(classifier(), tmp_path / "run", say=lambda note: None)
    model, _ = adapter_base.load_base(io.read(finished.adapter), finished.adapter, str(tiny_bert))
    assert model.config.id2label == {0: "no", 1: "yes"}


def test_one_of_three_tied_tables_trained_apart(tmp_path):
    """T5's `shared` is trained apart from what both stacks look up: every table has to be stored, and none is tied."""
    import transformers

    torch.manual_seed(0)
    size = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    config = transformers.T5Config(**size, decoder_start_token_id=0, pad_token_id=0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
    live = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "base")
    options = {"task_type": "SEQ_2_SEQ_LM", "target_modules": ["q"], "modules_to_save": ["shared"]}
    peft = get_peft_model(live, LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if parameter.requires_grad and "modules_to_save" in name:
                parameter.add_(1.0)
    peft.save_pretrained(tmp_path / "a")
    model, tokenizer, done = merged(tmp_path / "base", tmp_path / "a")
    merge.save(model, tokenizer, tmp_path / "m", done, {})
    again = transformers.T5ForConditionalGeneration.from_pretrained(tmp_path / "m").eval()
    with torch.no_grad():
        found, expected = again(IDS, labels=IDS).logits, peft.eval()(input_ids=IDS, labels=IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_folder_that_loads_as_another_model_is_not_written(tmp_path, monkeypatch):
    """The last look before the folder appears, with a transformers that forgets what was untied."""
    base = llama(tmp_path / "base", tied=True)
    folder = adapter(base, tmp_path / "a", lora(modules_to_save=["lm_head"]))
    model, tokenizer, done = merged(base, folder)
    monkeypatch.setattr(merge.models, "load_class", lambda *_: AutoModelForCausalLM.from_pretrained(base))
    with pytest.raises(InputError, match=r"loaded again, it has other weights; found .*lm_head"):
        merge.save(model, tokenizer, tmp_path / "m", done, {})
    assert not (tmp_path / "m").exists()


def test_a_full_disk_is_a_sentence(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    base = llama(tmp_path / "base")
    model, tokenizer, done = merged(base, adapter(base, tmp_path / "a", lora()))
    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(LorascopeError, match=r"cannot write .*m: .*No space left"):
        merge.save(model, tokenizer, tmp_path / "m", done, {})
    assert not (tmp_path / "m").exists()


def test_a_base_that_only_the_file_names_is_not_fetched(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "no-such/base"}))
    with pytest.raises(InputError, match=r"is not on this machine; found no-such/base.*pass --base no-such/base"):
        adapter_base.base_named(tmp_path)


ROWS = [{"lm_head": [5, 7]}, {"embed_tokens": [5, 7], "lm_head": [4, 9]}, [5, 7]]


@pytest.mark.parametrize("rows", ROWS)
def test_trained_rows_of_tied_tables(rows, tmp_path):
    """Rows of the input embedding are the tied layer's too; rows of another layer, or beside others there, are not."""
    base = llama(tmp_path / "base", tied=True)
    peft = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora(trainable_token_indices=rows))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if parameter.requires_grad and "token" in name:
                parameter.add_(0.5)
    peft.save_pretrained(tmp_path / "a")
    model, tokenizer, done = merged(base, tmp_path / "a")
    merge.save(model, tokenizer, tmp_path / "m", done, {})
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval()(IDS).logits
        expected = peft.eval()(IDS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
