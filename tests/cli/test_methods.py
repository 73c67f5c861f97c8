"""`lorascope methods`: the list, its counts against models that are really adapted, and each method in full."""

import json

import pytest
import yaml
from transformers import AutoModel, AutoModelForCausalLM

from lorascope.adapt.describe import as_yaml, describe, in_words
from lorascope.adapt.inject import inject
from lorascope.adapt.method import methods
from lorascope.errors import InputError
from lorascope.models.shapes import model_shapes
from lorascope.training.config import parse
from tests.cli.command import here, lorascope, refused, valid

every_method = pytest.mark.parametrize("name", methods.names())
QUIET = {"OMP_NUM_THREADS": "1", "COLUMNS": "100"}


@pytest.fixture(scope="module")
def on_bert(tiny_bert):
    """The listing as JSON, on a small BERT in a folder."""
    done = lorascope("methods", "--model", tiny_bert, "--targets", "attention", "--json", env=QUIET)
    assert done.returncode == 0, done.stderr
    return valid("methods", done.stdout)


@pytest.fixture(scope="module")
def on_llama(tiny_llama):
    done = here("methods", "--model", tiny_llama, "--targets", "q_proj,v_proj", "--json", env=QUIET)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout, parse_constant=pytest.fail)


def test_every_method_is_listed(on_bert):
    assert [record["name"] for record in on_bert["methods"]] == methods.names()
    assert on_bert["schema"] == 1
    assert all(record["what"] and record["paper"] for record in on_bert["methods"])


def counted(listing: dict, name: str) -> dict:
    return next(record for record in listing["methods"] if record["name"] == name)


@every_method
def test_counts_on_an_encoder_are_those_of_the_adapted_model(name, on_bert, tiny_bert):
    model = AutoModel.from_pretrained(tiny_bert, add_pooling_layer=False)
    injected = inject(model, methods.get(name)(), targets="attention")
    assert counted(on_bert, name)["trained_parameters"] == injected.parameter_count()


@every_method
def test_counts_on_a_decoder_are_those_of_the_adapted_model(name, on_llama, tiny_llama):
    record, model = counted(on_llama, name), AutoModelForCausalLM.from_pretrained(tiny_llama)
    if record["trained_parameters"] is None:
        with pytest.raises(InputError) as error:
            inject(model, methods.get(name)(), targets=["q_proj", "v_proj"])
        assert error.value.what == record["not_counted"]
        return
    injected = inject(model, methods.get(name)(), targets=["q_proj", "v_proj"])
    assert record["trained_parameters"] == injected.parameter_count()


def test_a_method_that_does_not_fit_says_why(on_llama):
    record = counted(on_llama, "bitfit")
    assert record["trained_parameters"] is None
    assert "this one has none" in record["not_counted"]


def test_the_models_own_size(on_bert, tiny_bert):
    model = AutoModel.from_pretrained(tiny_bert, add_pooling_layer=False)
    assert on_bert["parameters"] == sum(parameter.numel() for parameter in model.parameters())


def test_the_listing_on_the_packaged_model():
    done = here("methods", env=QUIET)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "on minilm (22,565,376 parameters, without a head)" in done.stdout.replace("\n", " ")
    # 6 layers: query, key, value, output (384 × 384) and the two of 384 × 1536; r = 8
    assert f"{6 * 8 * (4 * (384 + 384) + 2 * (384 + 1536)):,}" in done.stdout
    for name, method in methods.items():
        assert f"  {name} " in done.stdout
        assert method.paper.split(",")[0] in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines())


@every_method
def test_a_method_in_full(name):
    about = describe(name)
    assert about.what.endswith((".", ")"))
    assert about.about
    assert [setting.name for setting in about.settings if not setting.doc] == [], "a setting without a word on it"
    config = parse(yaml.safe_load(about.example))
    assert config.method.name == name
    assert config.method.settings == methods.get(name).Config()


def test_a_method_in_full_on_the_terminal():
    done = here("methods", "vera", env=QUIET)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert "ΔW = s·diag(b)·B·diag(d)·A" in shown
    assert "arXiv 2310.11454" in shown
    for setting in describe("vera").settings:
        assert f"{setting.name} {setting.type}, default {setting.default}." in shown
    assert "method: {name: vera, targets: all-linear" in shown


def test_a_method_in_full_as_json():
    (record,) = valid("methods", here("methods", "lora", "--json").stdout)["methods"]
    assert record["formula"] == "ΔW = s·B·A"
    assert {"name": "rank", "type": "int", "default": "8", "doc": "r."} in record["settings"]
    assert "trained_parameters" not in record


def test_what_is_not_there_is_refused(tmp_path):
    assert "did you mean 'lora'" in refused(here("methods", "loro"))
    assert "to count on" in refused(here("methods", "--model", tmp_path))
    assert "did you mean 'query'" in refused(here("methods", "--targets", "qury"))


def test_packaged_shapes_are_those_of_the_published_models():
    """Parameters as published: 22.7M with BERT's pooler, and 134.5M."""
    encoder, pooler = model_shapes("minilm"), 384 * 384 + 384
    assert sum(parameter.numel() for parameter in encoder.parameters()) + pooler == 22_713_216
    decoder = model_shapes("smollm2")
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 134_515_008
    assert all(parameter.is_meta for parameter in (*encoder.parameters(), *decoder.parameters()))


@pytest.mark.parametrize(
    ("hint", "words"),
    [(int, "int"), (float | None, "float or null"), (tuple[str, ...], "list of text"), (bool, "true | false")],
)
def test_types_in_words(hint, words):
    assert in_words(hint) == words


@pytest.mark.parametrize("value", [None, True, 1e-6, "kaiming", ("a", "b"), (), {"a": 1}])
def test_defaults_are_yaml(value):
    read = yaml.safe_load(f"[{as_yaml(value)}]")[0]
    assert (
        read == (list(value) if isinstance(value, tuple) else value) or float(read) == value
    )  # YAML reads 1e-06 as text
