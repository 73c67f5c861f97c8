import pytest

from lorascope.errors import InputError
from lorascope.training.config import load, override, parse, resolved

GOOD = {"model": {"name": "minilm"}, "data": {"path": "wordnet-classes"}, "method": {"name": "lora", "rank": 4}}


def test_the_resolved_config_parses_back_to_itself():
    config = parse(GOOD)
    assert parse(resolved(config)) == config
    assert resolved(config)["method"]["rank"] == 4  # the method's own keys stand beside its name
    assert resolved(config)["optim"]["weight_decay"] == 0.0  # defaults are written out


def test_every_wrong_key_is_reported_at_once_with_near_names():
    wrong = {
        "modle": {},
        "model": {"nme": "x", "task_type": "SEQ_CLASS"},
        "data": {"path": 3, "packing": 1, "max_length": True},
        "method": {"name": "lora", "rnk": 3, "alpha": "high", "targets": [1]},
        "optim": {"learning_rate": "fast", "lr_scheduler_type": "cosin"},
        "training": {"seed": 1.5},
    }
    with pytest.raises(InputError) as error:
        parse(wrong)
    message = str(error.value)
    for part in (
        "modle is unknown (did you mean model?)",
        "model.nme is unknown (did you mean name?)",
        "model.name is missing",
        "model.task_type is 'SEQ_CLASS' and must be one of SEQ_CLS, CAUSAL_LM",
        "data.path is 3 and must be a string",
        "data.packing is 1 and must be true or false",
        "data.max_length is True",
        "method.rnk is unknown (did you mean rank?)",
        "method.alpha is 'high' and must be a number",
        "method.targets is [1]",
        "optim.learning_rate is 'fast' and must be a number",
        "optim.lr_scheduler_type is 'cosin' and must be one of linear, cosine, constant",
        "training.seed is 1.5 and must be a whole number",
    ):
        assert part in message
    assert "13 wrong or missing keys" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("section", "keys", "said"),
    [
        ("method", {"name": "loar"}, "did you mean 'lora'"),
        ("method", {"name": "lora", "dropout": 1.0}, "dropout"),
        ("method", {"name": "lora", "rank": 0}, "rank"),
        ("optim", {"learning_rate": -1}, "learning_rate must be positive"),
        ("training", {"max_steps": -1}, "max_steps must not be negative"),
        ("training", 3, "not a section"),
    ],
)
def test_values_out_of_range_are_refused(section, keys, said):
    with pytest.raises(InputError, match=said):
        parse({**GOOD, section: keys})


def test_overrides_reach_any_field_and_are_yaml():
    values = override(GOOD, ["optim.learning_rate=1e-3", "method.targets=[q_proj, v_proj]", "training.max_steps=null"])
    config = parse(values)
    assert config.optim.learning_rate == 1e-3  # YAML reads 1e-3 as a string
    assert config.method.targets == ("q_proj", "v_proj")
    assert config.training.max_steps is None
    assert "optim" not in GOOD  # the original is left alone


@pytest.mark.parametrize("text", ["learning_rate=1", "optim.learning_rate", "=3", "optim.=3", "optim.x=[1"])
def test_an_override_of_another_form_is_refused(text):
    with pytest.raises(InputError, match="--set"):
        override(GOOD, [text])


@pytest.mark.parametrize(("content", "said"), [("a: [", "is not YAML"), ("- 1", "holds no config"), ("", "no config")])
def test_a_file_that_is_no_config_is_refused_in_one_line(tmp_path, content, said):
    path = tmp_path / "run.yaml"
    path.write_text(content)
    with pytest.raises(InputError, match=said) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"run\.yaml"):
        load(tmp_path / "run.yaml")


@pytest.mark.parametrize(
    ("task", "key", "value"),
    [
        ("CAUSAL_LM", "data.label_column", "completion"),
        ("CAUSAL_LM", "data.text_pair_column", "completion"),
        ("CAUSAL_LM", "data.random_labels", True),
        ("CAUSAL_LM", "model.head", "mean-pool"),
        ("SEQ_CLS", "data.add_bos_token", True),
        ("SEQ_CLS", "data.add_eos_token", False),
    ],
)
def test_what_the_task_would_not_look_at_is_refused(task, key, value):
    section, _, name = key.partition(".")
    values = {"model": {"name": "x", "task_type": task}, "data": {"path": "y"}, "method": "lora"}
    assert parse(values)
    values[section][name] = value
    with pytest.raises(InputError, match=f"{key} has no meaning under {task}"):
        parse(values)


def test_the_method_section_takes_names_of_peft_and_the_resolved_config_keeps_ours():
    ours = {"name": "lora", "rank": 4, "alpha": 16, "dropout": 0.1, "targets": ["query"]}
    peft = {"name": "lora", "r": 4, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["query"]}
    assert parse({**GOOD, "method": peft}) == parse({**GOOD, "method": ours})
    method = resolved(parse({**GOOD, "method": peft}))["method"]
    assert method["rank"] == 4
    assert method["targets"] == ["query"]
    assert not {"r", "lora_alpha", "lora_dropout", "target_modules"} & method.keys()


def test_both_names_of_one_setting_are_refused_and_an_override_takes_its_place():
    both = {**GOOD, "method": {"name": "lora", "rank": 4, "r": 4}}
    with pytest.raises(InputError, match=r"method\.rank and method\.r are the same setting"):
        parse(both)
    with pytest.raises(InputError, match=r"method\.lora_alpha is 'high' and must be a number"):
        parse({**GOOD, "method": {"name": "lora", "lora_alpha": "high"}})
    assert parse(override(GOOD, ["method.r=2"])).method.settings.rank == 2
    assert parse(override({**GOOD, "method": {"name": "lora", "r": 4}}, ["method.rank=2"])).method.settings.rank == 2


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("optim.learning_rate", "1e999", "a finite number"),
        ("optim.learning_rate", 10**400, "a number"),
        ("optim.learning_rate", True, "a number"),
        ("optim.head_learning_rate", "fast", "a number or null"),
        ("training.max_steps", 10**12, "a whole number of at most 2,147,483,647"),
        ("training.max_steps", "3", "a whole number or null"),
        ("data.classes", "noun.act", "a list of strings or null"),
        ("method.targets", [1], "a string or a list of strings"),
    ],
)
def test_a_value_of_another_type_is_refused_in_words(key, value, said):
    section, _, name = key.partition(".")
    with pytest.raises(InputError) as error:
        parse({**GOOD, section: {**GOOD.get(section, {}), name: value}})
    assert f"{key} is" in str(error.value)
    assert f"must be {said}" in str(error.value)
