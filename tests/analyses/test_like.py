"""An adapter against a population: z by hand, what is not known, and the command."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorascope.analyses import json_schema, like
from tests.analyses.test_checks import result
from tests.cli.command import here, refused


def test_robust_z_by_hand():
    assert like.robust_z(9.0, [1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(6 / 1.4826)  # median 3, MAD 1
    assert like.robust_z(3.0, [1.0, 2.0, 3.0, 4.0, 500.0]) == 0
    assert like.robust_z(2.0, [1.0, 1.0, 1.0, 7.0]) is None  # the MAD is 0
    assert like.robust_z(None, [1.0, 2.0]) is None
    assert like.robust_z(1.0, []) is None


def test_features_of_a_planted_spectrum():
    made = like.measures_of(result(sigma=(2.0, 1.0), types=("q_proj",)))["q_proj"]
    assert made["leading_energy"] == pytest.approx(4 / 5, rel=1e-6)
    p = np.array([2, 1]) / 3
    assert made["spectral_entropy"] == pytest.approx(-np.sum(p * np.log(p)), rel=1e-6)


def test_kurtosis_against_scipy_and_of_a_few_rows(rng, monkeypatch):
    from scipy import stats

    from lorascope.linalg.factored import Factored

    delta = Factored(rng.standard_normal((40, 3)), rng.standard_normal((3, 30)))
    assert like.kurtosis(delta) == pytest.approx(stats.kurtosis(delta.dense(), axis=None), rel=1e-9)
    assert like.kurtosis(delta.scaled(1e200)) == pytest.approx(like.kurtosis(delta), rel=1e-9)
    monkeypatch.setattr(like, "MAX_ENTRIES", 600)  # half of the 1,200
    assert like.kurtosis(delta) == pytest.approx(stats.kurtosis(delta.dense()[::2], axis=None), rel=1e-9)
    assert like.kurtosis(delta.scaled(0.0)) is None


def test_a_larger_adapter_stands_out_in_its_size_and_not_in_its_shape():
    population = [result(sigma=(k, k / 2), types=("q_proj",)) for k in (0.9, 1.0, 1.1, 1.2, 1.3)]
    found = like.compared(result(sigma=(11.0, 5.5), types=("q_proj",)), population)["types"]["q_proj"]
    assert found["frobenius_norm"]["z"] > 20
    assert found["stable_rank"]["value"] == pytest.approx(1.25, rel=1e-6)
    assert found["frobenius_norm"]["n"] == 5


def test_the_sentence_names_the_measures_that_are_far_away_or_the_farthest():
    population = [result(sigma=(k, k / 2), types=("q_proj",)) for k in (0.9, 1.0, 1.1, 1.2, 1.3)]
    unlike = like.finding(like.compared(result(sigma=(11.0, 5.5), types=("q_proj",)), population))
    z = (11.0 - 1.1) / (1.4826 * 0.1)
    start, _, named = unlike.text.partition(": ")
    assert start == "Unlike these 5 adapters, by robust z"
    assert set(named.split(", ")) == {f"‖ΔW‖ {z:+.3g} in q_proj", f"σ₁ {z:+.3g} in q_proj"}  # equal but for rounding
    assert unlike.severity == "note"
    assert unlike.action
    alike = like.finding(like.compared(result(sigma=(1.15, 0.575), types=("q_proj",)), population))
    assert "Like these 5 adapters" in alike.text
    assert f"{(1.15 - 1.1) / (1.4826 * 0.1):+.3g} in q_proj" in alike.text
    nothing = like.finding(like.compared(result(types=("other",)), population))
    assert "no module type in common" in nothing.text


def test_the_page_has_every_measure_and_the_terminal_the_farthest():
    population = [result(sigma=(k, k / 2)) for k in (0.9, 1.0, 1.1)]
    record = like.compared(result(), population)
    whole, short = like.tables(record)
    assert len(whole.rows) == sum(len(keys) for keys in record["types"].values()) > len(short.rows) == like.LISTED
    assert set(like.WORDS) == set(like.MEASURES) | set(like.FEATURES)


def test_the_command_compares_with_a_folder(lora_folder, tmp_path):
    import jsonschema

    for i in range(3):
        folder = shutil.copytree(lora_folder, tmp_path / "others" / f"a{i}")
        tensors = {key: (1 + i) * a for key, a in load_file(folder / "adapter_model.safetensors").items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    done = here("analyze", lora_folder, "--like", tmp_path / "others", "--json", "-")
    found = json.loads(done.stdout)
    jsonschema.validate(found, json_schema.of_command("analyze"))
    assert len(found["like"]["adapters"]) == 3
    assert found["like"]["types"]["q_proj"]["frobenius_norm"]["z"] is not None
    assert found["like"]["types"]["q_proj"]["kurtosis"]["value"] is not None
    assert "Compared with the population" in here("analyze", lora_folder, "--like", tmp_path / "others").stdout
    assert "not a folder" in refused(here("analyze", lora_folder, "--like", tmp_path / "no"))
    (tmp_path / "empty").mkdir()
    assert "no other adapter" in refused(here("analyze", lora_folder, "--like", tmp_path / "empty"))
