"""Tiny models with random weights, a tokenizer of whole words, and small files: everything by seed, nothing fetched."""

import json
from pathlib import Path

import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

TEXT = "a an the red green blue round small large apple stone river bird leaf sings falls runs sleeps of in on"
WORDS = TEXT.split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", eos_token="[SEP]"
    ).save_pretrained(folder)


def make_bert(folder: Path) -> Path:
    """A 2-layer BERT classifier of width 16, dropout 0.1."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(SPECIAL + WORDS), max_position_embeddings=64, num_labels=3, **size)
    BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def make_llama(folder: Path) -> Path:
    """A 2-layer Llama of width 16 with tied embeddings."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = LlamaConfig(vocab_size=len(SPECIAL + WORDS), max_position_embeddings=64, tie_word_embeddings=True, **size)
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def sentences(number: int, seed: int = 0) -> list[str]:
    """Random sentences of 2 to 9 words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 10, (number,), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=generator)) for n in lengths]


def write_labelled(path: Path) -> Path:
    """48 sentences in JSONL; the label is whether the text has the word "the"."""
    rows = [{"text": text, "label": "yes" if "the" in text.split() else "no"} for text in sentences(48)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def classifier_values(model: Path, rows: Path) -> dict:
    return {
        "model": {"name": str(model)},
        "data": {"path": str(rows), "max_length": 16},
        "method": {"name": "lora", "targets": ["query", "value"], "rank": 2, "alpha": 4, "dropout": 0.1},
        "optim": {"learning_rate": 1e-2},
        "training": {"max_steps": 6, "per_device_train_batch_size": 4, "logging_steps": 1, "device": "cpu"},
    }


def lm_values(model: Path, text: Path) -> dict:
    return {
        "model": {"name": str(model), "task_type": "CAUSAL_LM"},
        "data": {"path": str(text), "max_length": 16, "packing": False},
        "method": {"name": "lora", "targets": ["q_proj", "v_proj"], "rank": 2, "alpha": 4},
        "optim": {"learning_rate": 1e-2},
        "training": {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1, "device": "cpu"},
    }
