"""Where a module's place in the model decides what its numbers are: TinyLoRA's groups, UniLoRA's shares, and the order
that a base tells."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from lorascope.errors import InputError
from lorascope.weights import io
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.formats.peft import tinylora
from lorascope.weights.formats.peft.config import Config, Pattern
from lorascope.weights.formats.peft.draws import seed_of
from lorascope.weights.formats.peft.order import in_order, modules_of, targeted
from lorascope.weights.formats.peft.places import whole_numbers
from lorascope.weights.formats.peft.unilora import shuffled

D_OUT, D_IN, R = 5, 4, 2
ORDER = ["l.1.up", "l.0.up", "l.2.up", "l.0.down", "l.1.down"]  # of the model; files have them by name


def base(folder, names=ORDER):
    """A pickled state dict, which has the model's order; with a bias and a vector, which are no modules of it."""
    folder.mkdir(exist_ok=True)
    weights = {f"{name}.weight": torch.ones(D_OUT, D_IN) for name in names}
    torch.save({"a.bias": torch.ones(2), **weights}, folder / "pytorch_model.bin")
    return open_checkpoint(folder)


# --- the order --------------------------------------------------------------------------------------------------------


def test_a_pickled_base_has_its_model_s_order(tmp_path):
    known = base(tmp_path)
    assert modules_of(known) == ORDER
    assert in_order(sorted(ORDER), known) == ORDER
    rooted = base(tmp_path / "rooted", [f"model.{name}" for name in ORDER])
    assert in_order(sorted(ORDER), rooted) == ORDER
    assert in_order([f"base_model.{name}" for name in ORDER], known) == [f"base_model.{name}" for name in ORDER]
    with pytest.raises(InputError, match=r"no module l\.7\.up"):
        in_order(["l.0.up", "l.7.up"], known)


def test_other_bases_do_not_tell_it_without_their_class(tmp_path):
    with pytest.raises(InputError, match="not in the file"):
        modules_of(None)
    save_file({f"{name}.weight": np.ones((D_OUT, D_IN), "f4") for name in ORDER}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="names no class"):
        modules_of(open_checkpoint(tmp_path))


def config(**raw):
    return Config(True, "UNILORA", raw, 4, 4.0, Pattern("rank_pattern", {}), Pattern("alpha_pattern", {}), False)


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        ({"target_modules": ["up"]}, ["l.1.up", "l.0.up", "l.2.up"]),
        ({"target_modules": ["0.up", "l.1.down"]}, ["l.0.up", "l.1.down"]),
        ({"target_modules": ["p"]}, []),  # the end of a name is none
        ({"target_modules": r".*\.0\..*"}, ["l.0.up", "l.0.down"]),
        ({"target_modules": r"l\.0"}, []),  # the whole path is to match
        ({"target_modules": ["up"], "exclude_modules": ["l.1.up"]}, ["l.0.up", "l.2.up"]),
        ({"target_modules": ["up"], "exclude_modules": r"l\.[02].*"}, ["l.1.up"]),
        ({"target_modules": ["up"], "exclude_modules": [], "layers_to_transform": None}, ORDER[:3]),
    ],
)
def test_which_modules_a_config_targets(raw, names):
    assert targeted(config(**raw), ORDER) == names


@pytest.mark.parametrize(
    "raw",
    [
        {}, {"target_modules": []}, {"target_modules": ["up", 1]}, {"target_modules": 3},
        {"target_modules": ["up"], "exclude_modules": {"a": 1}}, {"target_modules": ["up"], "layers_to_transform": [0]},
        {"target_modules": ["up"], "layers_pattern": "l"},
    ],
)  # fmt: skip
def test_a_config_that_does_not_say_which_is_refused(raw):
    with pytest.raises(InputError, match="which modules are adapted"):
        targeted(config(**raw), ORDER)


def test_seeds_and_indices():
    assert seed_of(config(), "seed", 42) == 42
    assert [seed_of(config(seed=seed), "seed") for seed in (0, (1 << 63) - 1)] == [0, (1 << 63) - 1]
    for wrong in (-1, 1 << 63, 1.0, True, "1", None):
        with pytest.raises(InputError, match="seed is not a seed"):
            seed_of(config(seed=wrong), "seed")
    assert whole_numbers(np.array([0.0, 4.0]), 5, "x").tolist() == [0, 4]
    assert whole_numbers(np.array([0, 4]), 5, "x").dtype == np.int64
    for wrong in (-1.0, 5.0, 0.5, np.nan, np.inf):
        with pytest.raises(InputError, match="which is not an index"):
            whole_numbers(np.array([0.0, wrong]), 5, "x")


# --- TinyLoRA ---------------------------------------------------------------------------------------------------------

SEED = 7


def drawn(place, u):
    """PEFT's P of the module at this place."""
    generator = torch.Generator().manual_seed(SEED + place)
    return torch.normal(0.0, R**-0.5, size=(u, R, R), generator=generator).numpy()


def tiny(folder, u, matrices, groups=2, given=True):
    """Reads a file with these P by module, and with A, B and the groups' vectors, which it gives, too."""
    rng, tensors = np.random.default_rng(0), {}
    for name, p in matrices.items():
        key = f"base_model.model.{name}.tinylora"
        tensors[f"{key}_A"] = rng.standard_normal((R, D_IN)).astype("f4")
        tensors[f"{key}_B"] = rng.standard_normal((D_OUT, R)).astype("f4")
        if p is not None:
            tensors[f"{key}_P"] = p
    tensors |= {f"base_model.tinylora_v.{g}": rng.standard_normal(u).astype("f4") for g in range(groups)}
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    if given:
        settings = {"peft_type": "TINYLORA", "r": R, "u": u, "projection_seed": SEED}
        (folder / "adapter_config.json").write_text(json.dumps(settings))

    def read(checkpoint=None):
        adapter = io.read(folder / "adapter_model.safetensors", checkpoint)
        return {name: update.delta().dense() for name, update in adapter.updates.items()}

    return read, tensors


def deltas(tensors, groups, matrices):
    """ΔW = B·(Σ v_i P_i)·A in float64, by the group of each module."""
    found = {}
    for name, p in matrices.items():
        a, b = (tensors[f"base_model.model.{name}.tinylora_{role}"].astype(float) for role in "AB")
        v = tensors[f"base_model.tinylora_v.{groups[name]}"].astype(float)
        found[name] = b @ np.einsum("i,ijk->jk", v, p.astype(float)) @ a
    return found


def compare(found, expected):
    assert set(found) == set(expected)
    for name, delta in expected.items():
        np.testing.assert_allclose(found[name], delta, rtol=0, atol=1e-13)  # sums of a few dozen products


GROUPS = {name: min(place // 2, 1) for place, name in enumerate(ORDER)}  # two by two; the last has what is left


@pytest.mark.parametrize("u", [3, 8])  # with fewer numbers in P than torch draws at a time, and with more
def test_each_module_has_the_vector_of_its_place_which_its_p_tells(u, tmp_path):
    matrices = {name: drawn(place, u) for place, name in enumerate(ORDER)}
    read, tensors = tiny(tmp_path / "a", u, matrices)
    compare(read(), deltas(tensors, GROUPS, matrices))
    rounded = {name: p.astype("f2").astype("f4") for name, p in matrices.items()}
    read, tensors = tiny(tmp_path / "rounded", u, rounded)
    compare(read(), deltas(tensors, GROUPS, rounded))


@pytest.mark.parametrize("which", ["other numbers", "one place twice", "no config"])
def test_where_p_does_not_tell_the_base_does(which, tmp_path):
    matrices = {name: drawn(place, 8) for place, name in enumerate(ORDER)}
    if which == "other numbers":
        matrices["l.2.up"] = matrices["l.2.up"] + 0.1
    if which == "one place twice":
        matrices["l.0.up"] = matrices["l.1.up"]
    read, tensors = tiny(tmp_path / "a", 8, matrices, given=which != "no config")
    with pytest.raises(InputError, match=r"pass --base MODEL"):
        read()
    compare(read(base(tmp_path)), deltas(tensors, GROUPS, matrices))


def test_with_one_vector_no_place_matters(tmp_path):
    matrices = {name: drawn(0, 8) + 1 for name in ORDER}
    read, tensors = tiny(tmp_path / "a", 8, matrices, groups=1, given=False)
    compare(read(), deltas(tensors, dict.fromkeys(ORDER, 0), matrices))


def test_p_is_drawn_again_by_the_place_where_it_is_not_in_the_file(tmp_path):
    matrices = {name: drawn(place, 8) for place, name in enumerate(ORDER)}
    read, tensors = tiny(tmp_path / "a", 8, dict.fromkeys(ORDER))
    compare(read(base(tmp_path)), deltas(tensors, GROUPS, matrices))


def test_as_many_numbers_as_may_be_drawn_are_drawn(tmp_path, monkeypatch):
    read, _ = tiny(tmp_path / "a", 8, dict.fromkeys(ORDER))
    monkeypatch.setattr(tinylora, "MAX_DRAWN", 8 * R * R)
    assert len(read(base(tmp_path))) == len(ORDER)
    monkeypatch.setattr(tinylora, "MAX_DRAWN", 8 * R * R - 1)
    with pytest.raises(InputError, match="too large to draw"):
        read(base(tmp_path))


@pytest.mark.parametrize("numbers", [(), (1, 2), (0, 2), range(6)])
def test_vectors_are_numbered_from_0_and_not_more_than_modules(numbers, tmp_path):
    matrices = {name: drawn(place, 8) for place, name in enumerate(ORDER)}
    read, tensors = tiny(tmp_path / "a", 8, matrices, groups=0)
    tensors |= {f"base_model.tinylora_v.{number}": np.ones(8, "f4") for number in numbers}
    save_file(tensors, tmp_path / "a/adapter_model.safetensors")
    with pytest.raises(InputError, match="vectors do not fit its modules"):
        read()


# --- UniLoRA ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "length"), [(100, 30), (90, 30), (7, 30), (30, 30)])
def test_every_place_of_the_vector_is_used_as_often_as_another_or_once_more(count, length):
    places = shuffled(count, length, 3)
    used = np.bincount(places, minlength=length)
    assert (len(places), len(used)) == (count, length)
    assert set(used.tolist()) == ({count // length, count // length + 1} if count % length else {count // length})
    assert not np.array_equal(places, np.sort(places))
    assert not np.array_equal(places, shuffled(count, length, 4))
