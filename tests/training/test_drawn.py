"""What a checkpoint does not hold is trained whole and stored, or refused by name: never left to a file's reader."""

import json
from dataclasses import replace

import pytest
import torch
import transformers as T
from peft import PeftModel

from lorascope.errors import InputError
from lorascope.models import loading as models
from lorascope.models.card import CARD
from lorascope.models.config import ModelConfig
from lorascope.training import run
from lorascope.training.config import MethodConfig, override, parse
from lorascope.training.parallel import World
from lorascope.training.scores import evaluate
from tests.training.tiny import SPECIAL, WORDS, classifier_values, lm_values, save_tokenizer

HERE = World(torch.device("cpu"))
COMMON = {"vocab_size": len(SPECIAL + WORDS), "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
BART = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
BART |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64}
BASES = {
    "bart": (T.BartModel, T.BartConfig, BART, {"classification_head"}),
    "t5": (
        T.T5Model,
        T.T5Config,
        {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
        {"classification_head"},
    ),
    "xlnet": (
        T.XLNetModel,
        T.XLNetConfig,
        {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 24},
        {"sequence_summary", "logits_proj"},
    ),
    "deberta": (T.DebertaV2Model, T.DebertaV2Config, BERT, {"pooler", "classifier"}),
    "bert without pooler": (T.BertForMaskedLM, T.BertConfig, BERT, {"bert.pooler", "classifier"}),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A function: the folder of a base model that lacks a classifier's head."""

    def make(name):
        cls, config, sizes, _ = BASES[name]
        folder = tmp_path_factory.mktemp("base")
        torch.manual_seed(0)
        cls(config(**COMMON, **sizes, initializer_range=0.2)).save_pretrained(folder)
        save_tokenizer(folder)
        return folder

    return make


def values_of(folder, rows, *overrides):
    values = classifier_values(folder, rows)
    values["method"] |= {"targets": "all-linear", "dropout": 0.0}
    values["training"] |= {"max_steps": 2, "measure_cost": False}
    return parse(override(values, overrides))


@pytest.mark.parametrize("name", BASES)
def test_three_loadings_give_the_loss_of_the_run(name, base, labelled, tmp_path):
    """The reader is PEFT, on a base loaded anew with another seed each time."""
    folder = base(name)
    config = values_of(folder, labelled)
    finished = run.train(config, tmp_path / "run")
    held_out = run.prepare(config, HERE.device).held_out
    losses = []
    for seed in (1, 2, 3):
        torch.manual_seed(seed)
        fresh = T.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
        losses.append(evaluate(PeftModel.from_pretrained(fresh, tmp_path / "run/adapter").eval(), held_out, 64, HERE))
    # float32 sums in another order: the adapter's product is added apart in PEFT
    assert [score.loss for score in losses] == pytest.approx([finished.score.loss] * 3, rel=1e-5)


@pytest.mark.parametrize("name", BASES)
def test_every_module_that_was_drawn_is_trained_whole(name, base):
    model = models.load_model(ModelConfig(str(base(name))), 2)
    assert set(models.head_modules(model)) == BASES[name][3]
    assert models.untrained(model, models.head_modules(model)) == ()
    assert {name.rsplit(".", 2)[0] for name in models.drawn(model)}  # the premise: something was drawn


def test_nothing_is_drawn_of_a_whole_checkpoint(tiny_bert, tiny_llama):
    assert models.drawn(models.load_model(ModelConfig(str(tiny_bert)), 3)) == ()
    assert models.drawn(models.load_model(ModelConfig(str(tiny_llama), "CAUSAL_LM"))) == ()  # its head is tied
    assert models.drawn(models.load_model(ModelConfig(str(tiny_bert), random_init=True), 2)) == ()


def test_a_head_of_other_classes_is_drawn(tiny_bert):
    model = models.load_model(ModelConfig(str(tiny_bert)), 2)  # the checkpoint has three
    assert set(models.drawn(model)) == {"classifier.weight", "classifier.bias"}


def test_the_mean_pool_head_is_drawn_and_the_pooler_it_leaves_out_is_not(base):
    model = models.load_model(ModelConfig(str(base("bert without pooler")), head="mean-pool"), 2)
    assert set(models.drawn(model)) == {"mean_pool_head.weight", "mean_pool_head.bias"}


def test_modules_to_save_that_leave_a_new_module_out_are_refused(base, labelled):
    config = values_of(base("deberta"), labelled, "method.modules_to_save=[classifier]")
    with pytest.raises(InputError, match=r"does not hold 'pooler.dense.*add pooler.dense to method.modules_to_save"):
        run.prepare(config, HERE.device)


def test_a_target_inside_a_new_module_is_refused_by_name(base, labelled):
    config = values_of(base("deberta"), labelled, "method.targets=[dense]")
    with pytest.raises(InputError, match=r"'pooler.dense' cannot be both adapted and trained as a whole"):
        run.prepare(config, HERE.device)


def test_blocks_that_the_checkpoint_lacks_are_refused(tiny_bert, tiny_llama, labelled, plain_text, tmp_path):
    """More layers than there are: their values would be random. And a language model without its output head."""
    config = values_of(tiny_bert, labelled, "model.num_hidden_layers=3")
    with pytest.raises(InputError, match=r"num_hidden_layers is more than .* found 3; expected at most 2"):
        run.prepare(config, HERE.device)
    llama = T.AutoModelForCausalLM.from_pretrained(tiny_llama, tie_word_embeddings=False)
    llama.model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    values = lm_values(tmp_path, plain_text)
    with pytest.raises(InputError, match=r"does not hold 'lm_head.weight'.*modules_to_save: \[lm_head\]"):
        run.prepare(parse(values), HERE.device)
    saved = run.prepare(parse(override(values, ["method.modules_to_save=[lm_head]"])), HERE.device)
    assert list(saved.injected.saved) == ["lm_head"]


def test_what_a_file_holds_only_the_change_of_is_named_beside_it(base, labelled, tmp_path):
    """`modules_to_save: []` leaves a new head to the method. Full fine-tuning of a float32 base stores its values; in a
    random subspace it is a change of values that only the run's seed gives again.
    """
    config = values_of(base("deberta"), labelled)
    full = replace(config, method=MethodConfig("full", (), (), None))
    injected = run.prepare(full, HERE.device).injected
    assert "pooler.dense.weight" in {update.base_weight for update in injected.export().updates.values()}
    assert run.not_stored(injected) == []
    subspace = replace(config, method=MethodConfig("random_subspace", (), (), None))
    injected = run.prepare(subspace, HERE.device).injected
    assert set(run.not_stored(injected)) == {
        f"{m}.{t}" for m in ("pooler.dense", "classifier") for t in ("weight", "bias")
    }
    run.write_adapter(injected, subspace, ["no", "yes"], tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / CARD).read_text())["drawn"]["seed"] == 0


def test_a_checkpoint_of_more_than_the_model_has_is_remarked_on(tiny_llama, tmp_path):
    from safetensors.torch import load_file, save_file

    T.AutoModelForCausalLM.from_pretrained(tiny_llama).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(16)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (note,) = models.notes(models.load_model(ModelConfig(str(tmp_path), "CAUSAL_LM")))
    assert "q_proj.bias" in note
    assert models.notes(models.load_model(ModelConfig(str(tiny_llama), "CAUSAL_LM", num_hidden_layers=1))) == ()


def test_an_adapter_in_the_base_models_place_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base"}')
    save_tokenizer(tmp_path)
    with pytest.raises(InputError, match=r"is an adapter and no base model.*set model.name to some/base"):
        models.load_tokenizer(ModelConfig(str(tmp_path)))
