"""lorascope's own layout: it holds whatever any other format holds, and refuses a record that it did not write."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lorascope.analyses.spectrum import run
from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights.adapter import Adapter, Skipped, Source
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.drawn import Drawn
from lorascope.weights.formats.peft.places import Filled
from lorascope.weights.io import read, write
from lorascope.weights.tensors import Combined, InMemory, Mapped
from tests.weights.examples import case_id, cases
from tests.weights.examples_lorascope import every_sort, in_a_subspace, only_parts, put


@pytest.mark.parametrize(("format", "builder"), cases(), ids=case_id)
def test_it_holds_what_every_other_format_holds(format, builder, tmp_path):
    example = builder(tmp_path)
    base = open_checkpoint(example.base) if example.base else None
    adapter = read(example.path, base)
    if any("cop" not in item.reason for item in adapter.skipped):  # copies are no loss
        with pytest.raises(InputError, match="would lose"):
            write(adapter, tmp_path / "own", "lorascope")
        return
    write(adapter, tmp_path / "own", "lorascope")
    again = read(tmp_path / "own")
    assert again.source.format == "lorascope"
    assert (again.settings, again.notes) == (adapter.settings, adapter.notes)
    assert again.non_weight_tensors == adapter.non_weight_tensors
    assert again.source.method == adapter.source.method
    assert list(again.updates) == list(adapter.updates)
    for name, update in adapter.updates.items():
        _same(again.updates[name], update)
    assert again.saved.keys() == adapter.saved.keys()
    for name, stored in adapter.saved.items():
        assert again.saved[name].dtype == stored.dtype
        np.testing.assert_array_equal(again.saved[name].read(), stored.read())


def _same(found: Update, wanted: Update) -> None:
    for field in ("name", "kind", "scale", "transposed", "kernel", "base_weight", "expert", "notes", "embedding"):
        assert getattr(found, field) == getattr(wanted, field), field
    assert list(found.roles) == list(wanted.roles)
    for role, stored in wanted.roles.items():
        assert found.roles[role].dtype == stored.dtype
        # bit for bit, but for what a reader computed in float64 (a Tucker core folded in): once rounded to its dtype
        rounding = 2.0**-24 if isinstance(stored, Combined | Filled | Mapped) else 0
        np.testing.assert_allclose(found.roles[role].read(), stored.read(), rtol=rounding, atol=0)


def test_parts_are_named_with_their_reason(tmp_path):
    result = run(read(every_sort(tmp_path).path))
    assert Skipped("head.weight.prompt", "a soft prompt") in result.skipped


def test_a_file_of_parts_alone_is_read_and_the_analysis_says_so(tmp_path):
    adapter = read(only_parts(tmp_path).path)
    assert dict(adapter.non_weight_tensors) == {"prompt": "a soft prompt"}
    assert adapter.saved["prompt"].shape == (5, 8)
    with pytest.raises(InputError, match=r"no module of .* could be analysed; found 1 skipped.*a soft prompt"):
        run(adapter)


def test_non_weight_tensors_must_be_saved():
    with pytest.raises(ValueError, match="prompt"):
        Adapter({}, non_weight_tensors={"prompt": "a soft prompt"})


def test_what_was_not_understood_is_not_dropped_in_silence(tmp_path):
    with pytest.raises(InputError, match=r"would lose.*'x'"):
        write(Adapter({}, skipped=(Skipped("x", "strange"),)), tmp_path, "lorascope")


@pytest.mark.parametrize("setting", [float("nan"), {1, 2}])
def test_settings_that_are_no_json_leave_no_file(setting, tmp_path):
    update = Update("q", "dense", {"delta": InMemory(np.zeros((2, 2), np.float32))})
    with pytest.raises(InputError, match="JSON"):
        write(Adapter({"q": update}, {"x": setting}), tmp_path / "own", "lorascope")
    assert not (tmp_path / "own").exists()


def test_a_draw_takes_no_room_and_gives_the_same_numbers(tmp_path):
    a, b = Drawn((64, 200), 0.1, 5), Drawn((300, 64), 0.2, 6)
    vectors = {"d": InMemory(np.ones(64, np.float32)), "b": InMemory(np.ones(300, np.float32))}
    adapter = Adapter({"q": Update("q", "vera", {"A": a, "B": b, **vectors})}, source=Source(method="vera_unshared"))
    files = write(adapter, tmp_path, "lorascope")
    assert sum(file.stat().st_size for file in files) < 3000  # 364 numbers and the record; A and B are 32 000
    update = read(tmp_path).updates["q"]
    assert (update.roles["A"], update.roles["B"], update.shape) == (a, b, (300, 200))
    np.testing.assert_array_equal(update.roles["A"].read(), a.tensor().double().numpy())
    assert np.abs(a.read()).max() < 0.1
    # torch's own promise ends with a release: these are its numbers since the generator is Mersenne Twister's
    pinned = torch.empty(3).uniform_(-1, 1, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(Drawn((3,), 1.0, 0).tensor(), pinned, rtol=0, atol=0)
    torch.testing.assert_close(pinned, torch.tensor([-0.0075, 0.5364, -0.8230]), rtol=0, atol=1e-4)


WRONG = {
    "another schema": ({"schema": 2}, "another version"),
    "another format": ({"format": "x"}, "format is wrong"),
    "no modules": ({"modules": []}, "modules is wrong"),
    "no settings": ({"settings": None}, "settings is wrong"),
    "a module that is none": ({"modules": {"q": 3}}, "modules.q is wrong"),
    "a field nobody knows": (
        {"modules": {"q": {"kind": "dense", "scale": 1, "roles": ["delta"], "x": 1}}},
        "modules.q",
    ),
    "a kind nobody knows": ({"modules": {"q": {"kind": "x", "scale": 1, "roles": []}}}, "no kind of update named 'x'"),
    "a role nobody knows": (
        {"modules": {"q": {"kind": "dense", "scale": 1, "roles": ["C"]}}},
        "roles of a dense update",
    ),
    "a role twice": (
        {"modules": {"q": {"kind": "dense", "scale": 1, "roles": ["delta", "delta"]}}},
        "different strings",
    ),
    "no scale": ({"modules": {"q": {"kind": "dense", "roles": ["delta"]}}}, "scale is wrong"),
    "a scale without end": (
        {"modules": {"q": {"kind": "dense", "scale": float("inf"), "roles": []}}},
        "scale is wrong",
    ),
    "an expert that is none": (
        {"modules": {"q": {"kind": "dense", "scale": 1, "roles": ["delta"], "expert": True}}},
        "expert is wrong",
    ),
    "an expert below the first": (
        {"modules": {"q": {"kind": "dense", "scale": 1, "roles": ["delta"], "expert": -1}}},
        "expert is wrong",
    ),
    "a missing tensor": ({"modules": {"p": {"kind": "dense", "scale": 1, "roles": ["delta"]}}}, "promises"),
    "no role at all": ({"modules": {"q": {"kind": "dense", "scale": 1, "roles": []}}, "saved": ["x"]}, "promises"),
    "a saved tensor that is not there": ({"saved": ["x"]}, "promises 'saved.x'"),
    "a part without a reason": ({"parts": {"x": 1}}, "parts.x"),
    "a draw that is none": (
        {"modules": {"q": {"kind": "dense", "scale": 1, "roles": ["delta"], "drawn": {"delta": {"shape": [1 << 40]}}}}},
        "is not a draw",
    ),
    "a draw that fills the memory": (
        {
            "modules": {
                "q": {
                    "kind": "dense",
                    "scale": 1,
                    "roles": ["delta"],
                    "drawn": {"delta": {"shape": [1 << 20, 1 << 20], "bound": 1.0, "seed": 0}},
                }
            }
        },
        "is not a draw",
    ),
}


PLAIN = {"kind": "dense", "scale": 1, "roles": ["delta"]}


@pytest.mark.parametrize(
    ("field", "valid", "wrong"),
    [
        ("transposed", [True, False], [0, 1, None, "x"]),
        ("embedding", [True, False], [0, 1, None, "x"]),
        ("expert", [0, 3], [-1, 1.0, True, "0", None]),
        ("base_weight", ["x.weight", ""], [1, None, ["x"]]),
        ("kernel", [[], [3], [3, 2]], [3, ["3"], [3.0], [True], None]),
        ("notes", [[], ["a", "b"]], ["a", [1], None, [None]]),
        ("scale", [2, 0, -1.5], [None, "1", True, [1]]),
    ],
)
def test_what_a_field_of_a_module_may_be(field, valid, wrong, tmp_path):
    tensors = {"updates.q.delta": np.zeros((2, 2), np.float32)}
    for number, value in enumerate(valid):
        put(tmp_path / f"valid{number}", tensors, modules={"q": {**PLAIN, field: value}})
        found = getattr(read(tmp_path / f"valid{number}").updates["q"], field)
        assert found == (tuple(value) if isinstance(value, list) else value)
    for number, value in enumerate(wrong):
        put(tmp_path / f"wrong{number}", tensors, modules={"q": {**PLAIN, field: value}})
        with pytest.raises(InputError, match=rf"modules\.q\.{field} is wrong"):
            read(tmp_path / f"wrong{number}")


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"saved": ["a", "a"]}, "saved is wrong.*different strings"), ({"saved": [1]}, "saved is wrong"),
        ({"notes": "x"}, "notes is wrong"), ({"method": None}, "method is wrong"), ({"parts": []}, "parts is wrong"),
        ({"saved": ["x"], "parts": {"x": "why"}}, r"parts\.x is wrong.*nothing else has"),
        ({"modules": {"q": {**PLAIN, "drawn": []}}}, r"modules\.q\.drawn is wrong"),
        ({"modules": {"q": {**PLAIN, "projected": {"delta": {}}}}}, r"modules\.q\.projected is wrong"),
        ({"subspace": {}}, "parts is wrong.*theta"), ({"modules": {"q": {**PLAIN, "kind": 1}}}, r"q\.kind is wrong"),
        ({"schema": True}, None), ({"schema": 0}, "another version"), ({"schema": "1"}, "another version"),
    ],
)  # fmt: skip
def test_a_record_of_other_types_is_one_sentence(record, said, tmp_path):
    tensors = {"updates.q.delta": np.zeros((2, 2), np.float32), "saved.x": np.zeros(2, np.float32)}
    put(tmp_path / "own", tensors, **({"modules": {"q": PLAIN}, "saved": ["x"]} | record))
    if said is None:  # which Python takes for 1
        assert list(read(tmp_path / "own").updates) == ["q"]
        return
    with pytest.raises(InputError, match=said):
        read(tmp_path / "own")


def test_what_is_as_usual_is_not_in_the_record(tmp_path):
    roles = {"delta": InMemory(np.zeros((2, 2), np.float32))}
    plain, full = Update("q", "dense", roles), Update("k", "dense", roles, 0.5, True, (3,), "w", 0, ("n",), True)
    files = write(Adapter({"q": plain, "k": full}), tmp_path / "own", "lorascope")
    assert json.loads(files[1].read_text())["modules"] == {
        "q": {"kind": "dense", "scale": 1.0, "roles": ["delta"]},
        "k": {
            "kind": "dense", "scale": 0.5, "roles": ["delta"], "kernel": [3], "base_weight": "w", "expert": 0,
            "notes": ["n"], "transposed": True, "embedding": True,
        },
    }  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_record_that_is_wrong_is_one_sentence(case, tmp_path):
    record, message = WRONG[case]
    put(tmp_path / "own", {"updates.q.delta": np.zeros((2, 2), np.float32)}, **record)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "own")


def test_the_record_is_asked_for(tmp_path):
    path = only_parts(tmp_path).path
    (path / "adapter_config.json").unlink()
    with pytest.raises(InputError, match=r"adapter_config\.json is missing"):
        read(path)


def test_the_record_is_no_config_of_peft(tmp_path):
    assert "peft_type" not in json.loads((every_sort(tmp_path).path / "adapter_config.json").read_text())


def test_an_update_beside_a_subspace_has_its_own_numbers(tmp_path):
    example = in_a_subspace(tmp_path)
    adapter, delta = read(example.path), np.arange(12, dtype=np.float32).reshape(3, 4)
    plain = Update("plain", "dense", {"delta": InMemory(delta, "F32")})
    both = replace(adapter, updates={**adapter.updates, "plain": plain})
    write(both, tmp_path / "both", "lorascope")
    again = read(tmp_path / "both").updates
    np.testing.assert_array_equal(again["plain"].delta().dense(), delta)
    assert again.keys() == both.updates.keys()
    for name, expected in example.deltas.items():
        np.testing.assert_allclose(again[name].delta().dense(), expected, rtol=1e-6, atol=1e-6)  # float32 coordinates
