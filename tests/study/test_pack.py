"""Work that travels: what a pack brings is not done again, weights that are needed are trained again, and a stranger's
pack writes nothing but numbers."""

import hashlib
import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from lorascope.errors import InputError
from lorascope.study import pack as packs
from lorascope.study import together
from lorascope.study.runner import Runner
from lorascope.study.store import LIGHT, Store
from tests.study.conftest import TOY
from tests.study.test_runner import Counting


@pytest.fixture(scope="module")
def packed(toy_in, finished, tmp_path_factory):
    """The pack of the finished toy study."""
    runner = toy_in(finished.folder, engine=packs.Absent())
    path = tmp_path_factory.mktemp("packed") / "work.zip"
    path.write_bytes(packs.pack(runner.store, packs.finished([runner]), ["toy-smoke-encoder.json"]))
    return path


def of_kind(runner, kind):
    return [job for job in runner.used.values() if job.spec["kind"] == kind]


def test_what_was_unpacked_is_not_done_again(toy, finished, packed):
    engine = Counting()
    runner = toy(engine=engine)
    done = packs.unpack(packed, runner.store)
    results, _ = runner.run()
    assert engine.titles == []
    assert (done.added, done.kept, done.foreign) == (len(runner.used), 0, 0)
    assert results.runs.equals(finished.runs)
    for job in of_kind(runner, "train"):
        assert runner.store.scored(job)
        assert not runner.store.intact(job)  # its weights stayed behind
    again = packs.unpack(packed, runner.store)
    assert (again.added, again.kept) == (0, len(runner.used))


def test_a_pack_names_no_folder_of_the_machine_that_wrote_it(packed):
    with zipfile.ZipFile(packed) as archive:
        specs = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith("spec.json")]
    assert {spec["script"] for spec in specs if spec["kind"] == "measure"} == {"toy.py"}


def test_the_same_work_gives_the_same_bytes(toy_in, finished, packed):
    runner = toy_in(finished.folder, engine=packs.Absent())
    assert packs.pack(runner.store, packs.finished([runner]), ["toy-smoke-encoder.json"]) == packed.read_bytes()


def test_a_measure_that_needs_weights_has_its_run_trained_again_and_says_so(toy, packed):
    engine, stages = Counting(), []
    runner = toy(engine=engine)
    runner.progress = lambda stage, *_: stages.append(stage)
    packs.unpack(packed, runner.store)
    runner.run()
    lost = next(job for job in of_kind(runner, "measure") if job.inputs)
    (runner.store.folder(lost.key) / "rows.json").unlink()
    run = runner.used[lost.inputs[0]]
    runner.run()
    assert engine.titles == [run.title, lost.title]
    assert any("training again" in stage for stage in stages)
    assert runner.store.intact(run)
    assert not runner.failures


def test_one_that_reads_numbers_alone_does_not(toy, packed):
    engine = Counting()
    runner = toy(engine=engine)
    sizes, waves = runner.study.measures
    runner.study = replace(runner.study, measures=(replace(sizes, needs_weights=False), waves))
    packs.unpack(packed, runner.store)
    runner.run()
    lost = next(job for job in of_kind(runner, "measure") if job.inputs)
    (runner.store.folder(lost.key) / "rows.json").unlink()
    runner.run()
    assert engine.titles == [lost.title]


def test_whole_work_of_the_store_is_kept(toy, finished, packed, tmp_path):
    finished.into(tmp_path)
    runner = toy(engine=packs.Absent())
    before = {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert packs.unpack(packed, runner.store).added == 0
    assert before == {path: path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file()}


def test_what_an_earlier_try_left_makes_room(toy, packed):
    runner = toy(engine=Counting())
    runner.run()
    job = of_kind(runner, "train")[0]
    (runner.store.folder(job.key) / "done.json").unlink()
    (runner.store.run_folder(job.key) / "checkpoint.pt").write_bytes(b"x")
    assert packs.unpack(packed, runner.store).added == 1
    assert not (runner.store.run_folder(job.key) / "checkpoint.pt").exists()


# --- weights that make room ---


def test_weights_of_measured_runs_make_room(toy, finished, tmp_path):
    finished.into(tmp_path)
    runner = toy(engine=packs.Absent())
    runner.run()
    lost = next(job for job in of_kind(runner, "measure") if job.inputs)
    (runner.store.folder(lost.key) / "rows.json").unlink()
    assert together.discard_weights([runner], runner.store) > 0
    for job in of_kind(runner, "train"):
        assert runner.store.scored(job)
        assert runner.store.intact(job) == (job.key in lost.inputs)  # one is still waited for
        left = {p.relative_to(runner.store.folder(job.key)).as_posix() for p in runner.store.folder(job.key).rglob("*")}
        assert job.key in lost.inputs or left <= {*LIGHT, "spec.json", "done.json", "run"}
    engine = Counting()
    again = toy(engine=engine)
    assert again.run()[0].runs.equals(finished.runs)
    assert engine.titles == [lost.title]


def test_nothing_is_removed_of_unfinished_runs(toy, finished, tmp_path):
    finished.into(tmp_path)
    store = toy().store
    key = finished.runs["key"][0]
    (store.folder(key) / "done.json").unlink()
    assert store.discard_weights(key) == 0
    assert (store.run_folder(key) / "adapter").is_dir()


def test_arm_by_arm_each_is_measured_before_the_next_is_trained(toy, finished):
    engine = Counting()
    whole = toy(engine=engine)
    config = [f"model.name={whole.scale.config['model']['name']}", f"data.path={whole.scale.config['data']['path']}"]

    def runner_of(study):
        return Runner(study, TOY, "smoke", whole.store, engine, overrides=config)

    together.run_by_arm([whole.study], "smoke", runner_of)
    titles = list(engine.titles)
    results, _ = whole.run()
    assert engine.titles == titles  # nothing was left to do
    assert list(results.runs["key"]) == list(finished.runs["key"])
    # other runs share a pass, which changes the order of float32 sums
    assert list(results.runs["loss"]) == pytest.approx(list(finished.runs["loss"]), rel=1e-5)
    trained = [i for i, title in enumerate(titles) if "rank 2, rate" in title and "sizes" not in title]
    measured = [i for i, title in enumerate(titles) if title.startswith("sizes") and "rank 1" in title]
    assert max(measured) < min(trained)


@pytest.mark.parametrize("weights", [True, False])
@pytest.mark.parametrize("large", [True, False])
def test_arm_by_arm_is_for_measures_of_large_weights(toy, weights, large):
    """Where only numbers of a run are measured, the sweeps of all arms are better trained together."""
    runner = toy()
    runner.scale = replace(runner.scale, by_arm=large)
    measures = tuple(replace(measure, needs_weights=weights) for measure in runner.study.measures)
    assert measures
    runner.study = replace(runner.study, measures=measures)
    assert together.is_by_arm(runner) == (weights and large)
    runner.study = replace(runner.study, measures=())
    assert not together.is_by_arm(runner)


# --- packs of strangers ---


def altered(path, change):
    """The pack with another index and other files: `change` is given both and changes them."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    index = json.loads(files.pop("pack.json"))
    change(index, files)
    path = path.with_name("altered.zip")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pack.json", json.dumps(index))
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def fact(content):
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def first_run(index):
    return next(key for key, files in index["jobs"].items() if "run/texts.npz" in files)


def escaping_key(index, files):
    key = first_run(index)
    index["jobs"]["../../../../evil"] = index["jobs"].pop(key)
    files |= {f"../../../../evil/{name}": files[f"{key}/{name}"] for name in index["jobs"]["../../../../evil"]}


def escaping_file(index, files):
    key, content = first_run(index), b"evil"
    index["jobs"][key]["../../../evil"], files[f"{key}/../../../evil"] = fact(content), content


def an_adapter(index, files):
    key, content = first_run(index), b"evil"
    index["jobs"][key]["run/adapter/adapter_model.bin"] = fact(content)
    files[f"{key}/run/adapter/adapter_model.bin"] = content


def claims_elsewhere(index, files):
    index["claims"]["claims/../../evil.json"], files["claims/../../evil.json"] = fact(b"{}"), b"{}"


def other_content(index, files):
    name = f"{first_run(index)}/run/summary.json"
    files[name] = files[name].swapcase()  # of the same size, and never the same


def longer_than_said(index, files):
    files[f"{first_run(index)}/run/summary.json"] += b" " * 1000


def a_pickle(index, files):
    """An array of objects, which NumPy would unpickle."""
    buffer, key = io.BytesIO(), first_run(index)
    np.savez(buffer, allow_pickle=True, **{"test.loss": np.array([{"a": 1}], dtype=object)})
    replace_file(index, files, key, "run/texts.npz", buffer.getvalue())


def replace_file(index, files, key, name, content):
    files[f"{key}/{name}"], index["jobs"][key][name] = content, fact(content)
    done = json.loads(files[f"{key}/done.json"])
    done["files"][name] = len(content)
    files[f"{key}/done.json"] = json.dumps(done).encode()
    index["jobs"][key]["done.json"] = fact(files[f"{key}/done.json"])


def without_numbers(index, files):
    del index["jobs"][first_run(index)]["run/summary.json"]


def a_huge_size(index, files):
    index["jobs"][first_run(index)]["run/summary.json"]["size"] = 1 << 40


def another_kind(index, files):
    index["kind"] = "a cake"


HOSTILE = (
    escaping_key, escaping_file, an_adapter, claims_elsewhere, other_content, longer_than_said, a_pickle,
    without_numbers, a_huge_size, another_kind,
)  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE, ids=lambda change: change.__name__)
def test_a_strangers_pack_is_refused_in_one_sentence(packed, tmp_path, change):
    target = tmp_path / "a" / "b" / "store"
    with pytest.raises(InputError) as error:
        packs.unpack(altered(packed, change), Store(target))
    assert "\n" not in str(error.value)
    assert not [path for path in tmp_path.rglob("*") if "evil" in path.name or "adapter" in path.name]
    key = first_run(json.loads(zipfile.ZipFile(packed).read("pack.json")))
    assert not (target / key[:2] / key / "done.json").exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip at all" * 100])
def test_what_is_no_pack_is_refused(tmp_path, content):
    (tmp_path / "file.zip").write_bytes(content)
    with pytest.raises(InputError):
        packs.unpack(tmp_path / "file.zip", Store(tmp_path / "store"))


def test_a_job_that_is_not_what_its_key_says_is_left_out(packed, tmp_path):
    def other_rate(index, files):
        key = first_run(index)
        spec = json.loads(files[f"{key}/spec.json"])
        spec["config"]["optim"]["learning_rate"] *= 2
        content = json.dumps(spec).encode()
        files[f"{key}/spec.json"], index["jobs"][key]["spec.json"] = content, fact(content)

    done = packs.unpack(altered(packed, other_rate), Store(tmp_path / "store"))
    assert done.foreign == 1


def test_frozen_claims_travel_and_those_of_the_store_stay(tmp_path):
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    entry = {"hash": "0", "date": "2026-01-01", "before_runs": True, "text": "a", "bounds": "b"}
    claims = {"study": "toy", "scale": "smoke", "testbed": "encoder", "claims": {"nine": [entry]}}
    (here.root / "claims").mkdir()
    (here.root / "claims" / "toy-smoke-encoder.json").write_text(json.dumps(claims))
    path = tmp_path / "work.zip"
    path.write_bytes(packs.pack(here, [], ["toy-smoke-encoder.json", "other-smoke-encoder.json"]))
    assert packs.unpack(path, there).claims == 1
    written = there.root / "claims" / "toy-smoke-encoder.json"
    assert json.loads(written.read_text()) == claims
    written.write_text("{}")
    assert packs.unpack(path, there).claims == 0
    assert written.read_text() == "{}"
