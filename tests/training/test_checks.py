"""What is refused, or said, before anything is trained."""

import pytest
import torch
import transformers as T

from lorascope.adapt.inject import inject
from lorascope.adapt.method import methods
from lorascope.adapt.targets import not_adapted
from lorascope.errors import InputError, LorascopeError
from lorascope.methods.full import refuse_codes
from lorascope.models import loading as models
from lorascope.models.config import ModelConfig
from lorascope.training import data, preflight, run
from lorascope.training.batches import Encoded
from lorascope.training.config import override, parse
from lorascope.training.failures import in_words
from lorascope.training.parallel import World
from tests.training.tiny import SPECIAL, WORDS, lm_values, save_tokenizer

HERE = World(torch.device("cpu"))
SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
DECODER = {**SIZES, "num_key_value_heads": 2, "max_position_embeddings": 64}
EXPERTS = {
    "mixtral": T.MixtralConfig(**DECODER, num_local_experts=4),
    "qwen2-moe": T.Qwen2MoeConfig(
        **DECODER, num_experts=4, moe_intermediate_size=8, shared_expert_intermediate_size=16
    ),
}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24}
GPT2 = {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}


def fresh(config, cls=T.AutoModelForCausalLM):
    torch.manual_seed(0)
    return cls.from_config(config)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        T.LlamaConfig(**DECODER),
        T.GPT2Config(**GPT2),
        T.BartConfig(vocab_size=64, **BART),
        T.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1),
        EXPERTS["mixtral"],
    ],
    ids=lambda config: config.model_type,
)
def test_a_decoder_is_causal(config, dtype):
    preflight.refuse_bidirectional(fresh(config).to(dtype), "it")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "config",
    [
        T.BertConfig(**SIZES),
        T.RobertaConfig(**SIZES),
        T.XLNetConfig(vocab_size=64, d_model=16, n_layer=1, n_head=2, d_inner=24),
    ],
    ids=lambda config: config.model_type,
)
def test_an_encoder_that_sees_the_next_token_is_refused(config, dtype):
    model = fresh(config).to(dtype).train()
    with pytest.raises(InputError, match="sees the next token"):
        preflight.refuse_bidirectional(model, "it")
    assert model.training


def test_an_encoder_asked_to_be_a_decoder_is_one():
    preflight.refuse_bidirectional(fresh(T.BertConfig(**SIZES, is_decoder=True)), "it")


def test_a_run_of_an_encoder_as_a_language_model_is_refused_and_leaves_nothing(tiny_bert, plain_text, tmp_path):
    values = override(lm_values(tiny_bert, plain_text), ["method.targets=attention", "model.random_init=true"])
    with pytest.raises(InputError, match="sees the next token"):
        run.train(parse(values), tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "config",
    [
        T.BertConfig(**SIZES, max_position_embeddings=16),
        T.RobertaConfig(**SIZES, max_position_embeddings=16),
        T.GPT2Config(**{**GPT2, "n_positions": 16}, pad_token_id=0),
        T.BartConfig(vocab_size=64, max_position_embeddings=16, **BART),
    ],
    ids=lambda config: config.model_type,
)
def test_the_longest_text_is_the_one_that_the_model_itself_can_take(config):
    """The oracle is the model: it takes a text of the limit, and fails on one token more."""
    model = fresh(config, T.AutoModelForSequenceClassification).eval()

    def forward(length):
        ids = torch.full((1, length), 5)
        ids[0, -1] = 2  # the end token, by which BART classifies
        model(input_ids=ids, attention_mask=torch.ones_like(ids))

    limit = next(n for n in range(16, 0, -1) if not _fails(preflight.fit_model, model, [texts_of(n)]))
    forward(limit)
    assert _fails(forward, limit + 1, errors=(IndexError, RuntimeError))
    with pytest.raises(InputError, match=f"found {limit + 1} tokens; expected at most {limit} .*set data.max_length"):
        preflight.fit_model(model, [texts_of(limit + 1)])


def texts_of(length, token=5, pad=0):
    return Encoded([[token] * length, [token]], None, pad)


def _fails(call, *arguments, errors=InputError):
    try:
        call(*arguments)
    except errors:
        return True
    return False


def test_rotary_positions_beyond_those_that_were_trained_are_said():
    model = fresh(T.LlamaConfig(**DECODER))
    assert preflight.fit_model(model, [texts_of(64)]) == []
    (note,) = preflight.fit_model(model, [texts_of(65)])
    assert "up to 65 tokens are longer than the 64 positions" in note


def test_token_ids_beyond_the_embedding_are_refused(tiny_bert):
    model = models.load_model(ModelConfig(str(tiny_bert), head="mean-pool"), 2)
    rows = len(SPECIAL + WORDS)
    assert preflight.fit_model(model, [texts_of(3, rows - 1)]) == []
    with pytest.raises(InputError, match=f"gives a token .* found the id {rows}; expected ids below {rows}"):
        preflight.fit_model(model, [texts_of(3, rows)])
    with pytest.raises(InputError, match="gives a padding token"):
        preflight.fit_model(model, [texts_of(3, pad=rows)])
    assert preflight.fit_model(model, [Encoded([[5, 5], [6, 6]], None, rows)]) == []  # nothing is ever padded


def adapted(config, targets, cls=T.AutoModelForCausalLM):
    method = methods.get("lora")
    return inject(fresh(config, cls), method(method.Config(rank=2)), targets=targets)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("mixtral", "all-linear"),
        ("qwen2-moe", "all-linear"),
        ("qwen2-moe", "mlp"),
        ("qwen2-moe", ["gate_proj", "up_proj", "down_proj"]),
        ("qwen2-moe", r".*down_proj"),
    ],
)
def test_fused_experts_that_targets_pass_over_are_counted(name, targets):
    injected = adapted(EXPERTS[name], targets)
    found = {each.sort: each for each in not_adapted(injected.model, targets, list(injected.layers))}
    (experts,) = (each for sort, each in found.items() if sort.endswith("Experts"))
    threes = [p.numel() for p in injected.model.parameters() if p.ndim == 3]
    assert experts.parameters == sum(threes)
    assert experts.paths == tuple(f"model.layers.{i}.mlp.experts" for i in (0, 1))
    assert "experts are fused into parameters" in preflight.not_adapted_in_words(experts)


@pytest.mark.parametrize("targets", ["attention", ["q_proj", "v_proj"]])
def test_what_nobody_asked_for_is_not_passed_over(targets):
    injected = adapted(EXPERTS["mixtral"], targets)
    assert not_adapted(injected.model, targets, list(injected.layers)) == []


@pytest.mark.parametrize("config", [T.LlamaConfig(**DECODER), T.GPT2Config(**GPT2)], ids=lambda c: c.model_type)
def test_a_model_of_plain_layers_leaves_nothing_out(config):
    injected = adapted(config, "all-linear")
    assert not_adapted(injected.model, "all-linear", list(injected.layers)) == []


def test_attention_of_bare_parameters_and_torchs_own_are_passed_over():
    xlnet = adapted(T.XLNetConfig(vocab_size=64, d_model=16, n_layer=1, n_head=2, d_inner=24), "all-linear")
    assert {e.sort for e in not_adapted(xlnet.model, "all-linear", list(xlnet.layers))} == {"XLNetRelativeAttention"}

    class Torch(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.mlp = torch.nn.MultiheadAttention(8, 2), torch.nn.Linear(8, 8)
            self.mix = torch.nn.Conv1d(8, 8, 3)

    method = methods.get("lora")
    injected = inject(Torch(), method(method.Config(rank=2)), targets="all-linear")
    found = {each.sort: each.parameters for each in not_adapted(injected.model, "all-linear", list(injected.layers))}
    assert found == {"MultiheadAttention": 3 * 64, "NonDynamicallyQuantizableLinear": 64, "Conv1d": 8 * 8 * 3}


def test_a_run_records_what_its_targets_pass_over(tmp_path, plain_text):
    import json

    fresh(T.MixtralConfig(**{**DECODER, "vocab_size": len(SPECIAL + WORDS)}, num_local_experts=4)).save_pretrained(
        tmp_path / "base"
    )
    save_tokenizer(tmp_path / "base")
    values = override(lm_values(tmp_path / "base", plain_text), ["method.targets=all-linear", "training.max_steps=1"])
    said = []
    run.train(parse(values), tmp_path / "run", say=said.append)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["notes"] == said
    assert any("MixtralExperts" in note for note in said)
    experts = 2 * 4 * 3 * 16 * 24  # layers, experts, matrices
    assert record["not_adapted"]["sorts"]["MixtralExperts"] == experts
    assert record["not_adapted"]["modules"] >= 2


def test_full_fine_tuning_of_codes_is_refused():
    model = fresh(T.LlamaConfig(**DECODER))
    layer = model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(torch.zeros(24, 16, dtype=torch.uint8), requires_grad=False)
    for name in ("full", "random_subspace"):
        method = methods.get(name)
        with pytest.raises(InputError, match=rf"{name} cannot train a quantised base; .*up_proj.weight.*uint8"):
            inject(model, method(method.Config()))
    refuse_codes(model, "full", ["norm"], ())
    refuse_codes(model, "full", None, ["up_proj"])
    layer.weight = torch.nn.Parameter(torch.zeros(24, 16).to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(InputError, match="float8"):
        refuse_codes(model, "full", None, ())


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_a_sentence_with_a_hint(classifier, error):
    with (
        pytest.raises(LorascopeError, match=r"needs more memory .*per_device_train_batch_size .*gradient_checkpoint"),
        in_words(classifier()),
    ):
        raise error


def test_other_errors_are_left_as_they_are(classifier):
    for error in (RuntimeError("a bug of ours"), IndexError("pop from empty list")):
        with pytest.raises(type(error), match=str(error)), in_words(classifier()):
            raise error


def test_a_missing_package_of_a_quantised_base_is_named(tiny_bert, monkeypatch):
    def missing(*_, **__):
        raise ImportError("Using `bitsandbytes` 4-bit quantization requires bitsandbytes")

    monkeypatch.setattr(T.AutoModelForSequenceClassification, "from_pretrained", missing)
    with pytest.raises(InputError, match=r"needs a package that is not installed; found .*bitsandbytes"):
        models.load_model(ModelConfig(str(tiny_bert)), 2)


def test_a_revision_of_a_folder_is_refused(tiny_bert):
    with pytest.raises(InputError, match=r"model.revision is of a hub name"):
        models.load_tokenizer(ModelConfig(str(tiny_bert), revision="v2"))


def test_transformers_own_warnings_come_through(tiny_bert, caplog):
    """But for what lorascope says itself: here, that the head's classes are others, and which weights are missing."""
    models.load_model(ModelConfig(str(tiny_bert)), 2)
    assert caplog.messages == []
    models.load_model(ModelConfig(str(tiny_bert), "CAUSAL_LM"), 0)
    assert any("is_decoder=True" in message for message in caplog.messages)


def test_the_beginning_of_texts_is_said(language_model):
    assert any("begins with" in note and "[CLS]" in note for note in run.prepare(language_model(), HERE.device).notes)
    assert (
        data.notes(models.load_tokenizer(language_model().model), language_model("data.add_bos_token=false").data) == []
    )
