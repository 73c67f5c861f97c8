"""Which layers are chosen, against lists written by hand and against PEFT's own choice."""

import pytest
from torch import nn

from lorascope.adapt.targets import find_sites
from lorascope.errors import InputError
from tests.methods import models

QKV = ["q_proj", "k_proj", "v_proj"]


def names(model, targets, **options) -> list[str]:
    return [site.name for site in find_sites(model, targets, **options)]


def last(model, targets) -> set[str]:
    return {name.rpartition(".")[2] for name in names(model, targets)}


def test_names_match_exactly_or_as_a_suffix_after_a_dot():
    model = models.llama()
    assert len(names(model, QKV)) == 6
    assert names(model, ["model.layers.1.mlp.up_proj"]) == ["model.layers.1.mlp.up_proj"]
    assert names(model, ["1.self_attn.q_proj"]) == ["model.layers.1.self_attn.q_proj"]
    with pytest.raises(InputError, match="named 'proj'"):  # a suffix of a name is not a name
        names(model, ["proj"])


def test_a_string_is_a_regular_expression_for_the_whole_path():
    model = models.llama()
    assert names(model, r".*\.1\..*(q|v)_proj") == [f"model.layers.1.self_attn.{k}_proj" for k in "qv"]
    with pytest.raises(InputError, match=r"write a list: \[q_proj\]"):
        names(model, "q_proj")
    with pytest.raises(InputError, match="not a regular expression"):
        names(model, "(q_proj")


def test_words():
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert last(models.llama(), "attention") == attention
    assert last(models.llama(), "mlp") == {"gate_proj", "up_proj", "down_proj"}
    gpt2 = models.gpt2()
    assert names(gpt2, "attention") == [f"transformer.h.{i}.attn.{k}" for i in (0, 1) for k in ("c_attn", "c_proj")]
    assert names(gpt2, "mlp") == [f"transformer.h.{i}.mlp.{k}" for i in (0, 1) for k in ("c_fc", "c_proj")]
    bert = models.bert()
    assert len(names(bert, "attention")) == 2 * 4  # query, key, value and attention.output.dense
    assert names(bert, "mlp") == [
        f"bert.encoder.layer.{i}.{k}.dense" for i in (0, 1) for k in ("intermediate", "output")
    ]


@pytest.mark.parametrize("make", [models.llama, models.gpt2, models.bert])
def test_all_linear_is_pefts(make):
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    task = {"task_type": "SEQ_CLS"} if make is models.bert else {}
    theirs = get_peft_model(make(), LoraConfig(target_modules="all-linear", **task)).base_model.model
    wanted = [name for name, module in theirs.named_modules() if isinstance(module, LoraLayer)]
    assert names(make(), "all-linear") == wanted


def test_what_is_trained_whole_is_not_adapted():
    model = models.llama()
    chosen = names(model, "all-linear", excluded=["model.layers.0.mlp"])
    assert len(chosen) == 14 - 3
    with pytest.raises(InputError, match="both adapted and trained"):
        names(model, ["up_proj"], excluded=["model.layers.0.mlp"])


def test_shapes_are_those_of_the_map():
    (head, *_) = find_sites(models.gpt2(), ["lm_head"])
    embedding = find_sites(models.gpt2(), ["wte"])[0]
    conv = find_sites(models.gpt2(), ["c_fc"])[0]
    assert (head.kind, head.d_in, head.d_out, head.transposed) == ("linear", 32, 64, False)
    assert (embedding.kind, embedding.d_in, embedding.d_out, embedding.transposed) == ("embedding", 64, 32, True)
    assert (conv.kind, conv.d_in, conv.d_out, conv.transposed) == ("conv1d", 32, 128, True)


def test_nothing_matched_says_what_there_is():
    with pytest.raises(InputError, match="named 'query'") as raised:
        names(models.llama(), ["query"])
    listed = {"embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"}
    assert all(repr(name) in str(raised.value) for name in listed)
    with pytest.raises(InputError, match="did you mean 'gate_proj'"):
        names(models.llama(), ["gate_poj"])
    with pytest.raises(InputError, match="LlamaRMSNorm"):
        names(models.llama(), ["input_layernorm"])
    with pytest.raises(InputError, match="empty"):
        names(models.llama(), [])


def test_torchs_attention_reads_its_out_proj_and_never_calls_it():
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    assert names(model, "all-linear") == ["1"]
