"""A method and its settings as a new user writes them: by name, class or instance, with our names or PEFT's."""

import numpy as np
import pytest
import torch

from lorascope.adapt.inject import inject
from lorascope.adapt.method import methods
from lorascope.errors import InputError
from lorascope.methods.lora import LoRA, LoRAConfig
from tests.methods.models import bert, tokens

TARGETS = ["query", "value"]


def refused(call) -> str:
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: inject(model, "lora", rank=4, alpha=16, targets=TARGETS),
        lambda model: inject(model, "lora", r=4, lora_alpha=16, target_modules=TARGETS),
        lambda model: inject(model, "lora", r=np.int64(4), lora_alpha=16, target_modules=set(TARGETS)),
        lambda model: inject(model, LoRA, r=4, lora_alpha=16, target_modules=tuple(TARGETS)),
        lambda model: inject(model, LoRA(r=4, lora_alpha=16), targets=TARGETS),
        lambda model: inject(model, LoRA(rank=4, alpha=16), target_modules=TARGETS),
        lambda model: inject(model, LoRA(LoRA.Config(rank=4, alpha=16.0)), targets=TARGETS),
    ],
)
def test_every_way_of_writing_it_is_the_same_adapter(call):
    expected = inject(bert(), LoRA(LoRAConfig(rank=4, alpha=16.0)), targets=TARGETS).export()
    adapter = call(bert()).export()
    assert adapter.settings == expected.settings
    assert adapter.updates.keys() == expected.updates.keys()
    for name, update in adapter.updates.items():
        assert update.scale == 4.0
        np.testing.assert_array_equal(update.read()["A"], expected.updates[name].read()["A"])


def test_a_name_or_a_class_alone_takes_the_defaults():
    for method in ("lora", LoRA, LoRA()):
        injected = inject(bert(), method)
        assert injected.method.config == LoRAConfig()
        assert len(injected.layers) > 2  # all-linear
        assert "with lora" in repr(injected)
        assert f"{injected.parameter_count():,} trainable" in repr(injected)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_goes_in_by_its_name(name):
    injected = inject(bert(), name)
    assert injected.method.name == name
    assert injected.parameter_count() > 0
    assert repr(injected.method).startswith(type(injected.method).__name__)


def test_modules_to_save_may_be_one_name():
    assert list(inject(bert(), "lora", targets=TARGETS, modules_to_save="classifier").saved) == ["classifier"]
    assert not inject(bert(), "lora", targets=TARGETS, modules_to_save=None).saved


def test_dropout_by_its_name_in_peft():
    assert LoRA(lora_dropout=0.25).config.dropout == 0.25
    assert methods.get("vera")(r=16).config.rank == 16


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rnk": 4}, "rnk is unknown (did you mean rank?)"),
        ({"lora_alpa": 4}, "lora_alpa is unknown (did you mean lora_alpha?)"),
        ({"r": 4, "rank": 4}, "r and rank are the same setting"),
        ({"lora_alpha": 4, "alpha": 8}, "lora_alpha and alpha are the same setting"),
        ({"lora_dropout": 0.1, "dropout": 0.1}, "lora_dropout and dropout are the same setting"),
        ({"r": "four"}, "r is 'four' and must be a whole number"),
        ({"r": 0}, "rank"),
        ({"rnk": 4, "alpha": "high"}, "rnk is unknown (did you mean rank?); alpha is 'high' and must be a number"),
        ({"use_dora": True}, 'use_dora: name the method "dora"'),
        ({"zzz": 1}, "known: rank, alpha, dropout"),
    ],
)
def test_wrong_settings_are_one_sentence(settings, said):
    assert said in refused(lambda: inject(bert(), "lora", **settings))
    assert said in refused(lambda: LoRA(**settings))


def test_what_cannot_be_a_method_says_what_to_write():
    assert "did you mean 'lora'?" in refused(lambda: inject(bert(), "loar"))
    assert 'write inject(model, "lora"' in refused(lambda: inject(bert(), LoRAConfig()))
    assert "write LoRA(name=value, ...)" in refused(lambda: LoRA(8))
    assert "found both" in refused(lambda: LoRA(LoRAConfig(), r=4))
    assert "write inject(model, 'lora', ...)" in refused(lambda: inject(bert(), LoRA(), r=4))
    assert "the same setting" in refused(lambda: inject(bert(), "lora", targets=TARGETS, target_modules=TARGETS))
    assert "takes no targets" in refused(lambda: inject(bert(), "bitfit", targets=TARGETS))
    assert "found str" in refused(lambda: inject("bert-base-uncased", "lora"))


def test_a_model_that_peft_wrapped_is_named():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=TARGETS)
    said = refused(lambda: inject(bert(), config))
    assert "found LoraConfig" in said
    wrapped = peft.get_peft_model(bert(), config)
    said = refused(lambda: inject(wrapped, "lora", targets=TARGETS))
    assert "this PeftModel carries an adapter of PEFT's already" in said
    assert "model.unload()" in said
    assert "lorascope.read(model)" in said
    inside = peft.inject_adapter_in_model(config, bert())
    said = refused(lambda: inject(inside, "lora", targets=TARGETS))
    assert "carries an adapter of PEFT's already" in said
    assert "query" in said
    assert "a fresh base model" in said
    assert inject(wrapped.unload(), "lora", targets=TARGETS).parameter_count()


def test_an_optimiser_from_the_parameter_groups_trains_without_a_warning(recwarn):
    injected = inject(bert(), "lora_plus", r=4, targets=TARGETS)
    optimizer = torch.optim.AdamW(injected.parameter_groups(lr=1e-3))
    for _ in range(3):
        injected.model(input_ids=tokens()).logits.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert len({group["lr"] for group in optimizer.param_groups}) == 2
    assert not [each for each in recwarn if "of its method" in str(each.message)]
