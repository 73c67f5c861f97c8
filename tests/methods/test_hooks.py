"""A loop that does not know a method's hooks is told so, once; one that calls them, and our own, are not."""

import gc
import warnings

import pytest
import torch

from lorascope.adapt import hooks
from lorascope.adapt.inject import inject
from lorascope.adapt.method import methods
from tests.methods.models import bert, tokens

SILENT = {  # methods whose hooks change nothing as they are set by default: any loop trains them
    *("lora", "rslora", "lora_fa", "dora", "lora_xs", "vera", "vera_unshared", "vera_only_b", "vera_only_d", "ia3"),
    *("magnitude", "bitfit", "layernorm", "full", "random_subspace", "houlsby", "prefix", "p_tuning_v2", "prompt"),
}


def injected(name, **options):
    method = methods.get(name)
    targets = {"targets": ["query", "value"]} if method.uses_targets else {}
    targets = {"targets": ["key", "value", "output.dense"]} if name == "ia3" else targets
    return inject(bert(), method(method.Config(**options)), **targets)


def foreign_steps(adapted, groups=None, number=3, around=None):
    """What a trainer does that knows nothing of methods; the warnings that came."""
    optimizer = torch.optim.AdamW(groups or list(adapted.trainable().values()), lr=1e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(number):
            loss = adapted.model(input_ids=tokens()).logits.square().sum()
            penalty = adapted.method.penalty() if around else None
            (loss if penalty is None else loss + penalty).backward()
            if around:
                adapted.method.before_step(step, 1000)
            optimizer.step()
            if around:
                adapted.method.after_step(step, 1000)
            optimizer.zero_grad()
    return [str(each.message) for each in caught if "of its method" in str(each.message)]


@pytest.mark.parametrize("name", methods.names())
def test_a_foreign_loop_is_warned_where_the_method_needs_more(name):
    options = {"init_r": 4, "target_r": 2} if name == "adalora" else {"rank": 4} if name == "lora_xs" else {}
    found = foreign_steps(injected(name, **options))
    assert len(found) == (name not in SILENT)  # once, not at each step
    assert all(message.startswith(name + " ") for message in found)


@pytest.mark.parametrize(
    ("name", "options", "hook"),
    [
        ("lora_plus", {}, "parameter_groups"),
        ("dora", {"loraplus_lr_ratio": 4.0}, "parameter_groups"),
        ("lora_fa", {"gradient_correction": True}, "before_step"),
        ("lora_drop", {}, "apply_calibration"),
        ("adalora", {"init_r": 4, "target_r": 2}, "penalty, before_step, after_step"),
        ("prefix", {"prefix_projection": True, "encoder_lr_ratio": 0.1}, "parameter_groups"),
    ],
)
def test_the_warning_names_the_hook_and_what_to_call(name, options, hook):
    (message,) = foreign_steps(injected(name, **options))
    assert f"does not call {hook} of its method" in message
    assert all(hooks.HOOKS[each] in message for each in hook.split(", "))


def test_a_loop_that_calls_the_hooks_is_not_warned():
    adapted = injected("adalora", init_r=4, target_r=2, tinit=1, tfinal=1)
    assert foreign_steps(adapted, around=True) == []
    plus = injected("lora_plus")
    assert foreign_steps(plus, groups=plus.method.parameter_groups(plus, 1e-3, 0.0)) == []


def test_a_cut_that_alone_is_left_out_is_seen_at_the_second_step(monkeypatch):
    adapted = injected("adalora", init_r=4, target_r=2)
    monkeypatch.setattr(adapted.method, "after_step", lambda *_: None)  # nobody notes that it was called
    (message,) = foreign_steps(adapted, around=True)
    assert "does not call after_step of its method" in message


def test_each_of_several_models_is_watched_by_itself():
    plain, plus = injected("lora"), injected("lora_plus")
    assert foreign_steps(plain) == []
    assert len(foreign_steps(plus)) == 1


def test_a_model_that_is_gone_is_watched_no_more():
    gc.collect()
    before = len(hooks._watched)
    adapted = injected("lora_plus")
    assert len(hooks._watched) == before + 1
    del adapted
    gc.collect()
    assert len(hooks._watched) <= before


def test_our_own_loop_is_not_watched():
    adapted = injected("lora_plus")
    hooks.unwatch(adapted)
    assert foreign_steps(adapted) == []


@pytest.mark.parametrize(
    ("name", "options", "hooks_named"),
    [
        ("lora", {}, ()),
        ("lora_plus", {}, ("parameter_groups",)),
        ("adalora", {"init_r": 4, "target_r": 2}, ("penalty", "before_step", "after_step")),
    ],
)
def test_trainer_of_transformers_is_warned_once_where_the_method_needs_more(name, options, hooks_named, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    adapted = injected(name, **options)
    texts = [{"input_ids": row, "labels": torch.tensor(0)} for row in tokens()]
    settings = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=2,
        learning_rate=1e-3,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    before = {key: value.clone() for key, value in adapted.trainable().items()}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Trainer(model=adapted.model, args=settings, train_dataset=texts).train()
    said = [str(each.message) for each in caught if "of its method" in str(each.message)]
    assert len(said) == bool(hooks_named)
    assert all(hook in said[0] for hook in hooks_named)
    assert any(not torch.equal(value, before[key]) for key, value in adapted.trainable().items())  # it trained
