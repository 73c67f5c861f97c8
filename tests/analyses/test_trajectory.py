"""Trajectories against dense decompositions by numpy and principal angles by scipy."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.linalg import subspace_angles

from lorascope.analyses import trajectory
from lorascope.analyses.trajectory.average import average
from lorascope.errors import InputError
from lorascope.updates.base import Update
from lorascope.weights import io
from lorascope.weights.adapter import Adapter
from lorascope.weights.series import find
from lorascope.weights.tensors import InMemory

SHAPES = {"model.layers.0.self_attn.q_proj": (20, 14), "model.layers.1.self_attn.q_proj": (20, 14)}
RANK, SCALE = 4, 0.5


def factors(rng, count: int, drift: float = 0.3) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """B (m, r) and A (r, n) of each module at each checkpoint, each a step from the one before."""
    made = {}
    for name, (m, n) in SHAPES.items():
        b, a = rng.standard_normal((m, RANK)) * 0.8 ** np.arange(RANK), rng.standard_normal((RANK, n))
        made[name] = []
        for _ in range(count):
            made[name].append((b, a))
            b, a = b + drift * rng.standard_normal(b.shape), a + drift * rng.standard_normal(a.shape)
    return made


def adapters(series: dict) -> list[Adapter]:
    count = len(next(iter(series.values())))
    return [
        Adapter({
            name: Update(name, "low_rank", {"A": InMemory(at[i][1], "F64"), "B": InMemory(at[i][0], "F64")}, SCALE)
            for name, at in series.items()
        })
        for i in range(count)
    ]  # fmt: skip


def dense(series: dict, name: str) -> list[np.ndarray]:
    return [SCALE * b @ a for b, a in series[name]]


def test_singular_values_and_ranks_are_those_of_the_dense_update(rng):
    series = factors(rng, 3)
    for row in trajectory.run(adapters(series)).rows:
        for point, delta in zip(row.points, dense(series, row.name), strict=True):
            sigma = np.linalg.svd(delta, compute_uv=False)
            # Both in float64; the Gram matrices cost 2e-13 of σ₁ at most.
            np.testing.assert_allclose(point.singular_values, sigma[:RANK], rtol=0, atol=1e-11 * sigma[0])
            assert point.frobenius_norm == pytest.approx(np.linalg.norm(delta), rel=1e-12)
            assert point.stable_rank == pytest.approx(np.sum(sigma**2) / sigma[0] ** 2, rel=1e-11)
            shares = np.cumsum(sigma**2) / np.sum(sigma**2)
            assert point.energy_rank == int(np.argmax(shares >= 0.95)) + 1


@pytest.mark.parametrize("which", ["last", "previous"])
def test_rotation_is_that_of_principal_angles(rng, which):
    series = factors(rng, 4)
    for row in trajectory.run(adapters(series)).rows:
        svds = [np.linalg.svd(delta) for delta in dense(series, row.name)]
        for t in range(1, 4):
            other = svds[-1] if which == "last" else svds[t - 1]
            k = row.directions
            for side, one, two in (
                ("left", svds[t][0][:, :k], other[0][:, :k]),
                ("right", svds[t][2][:k].T, other[2][:k].T),
            ):
                angles = subspace_angles(one, two)
                measured = getattr(row.points[t], f"{side}_to_{which}")
                assert measured == pytest.approx(np.mean(np.cos(angles) ** 2), abs=1e-10)
        assert row.points[0].left_to_previous is None


def test_cosine_to_the_last_is_that_of_the_dense_updates(rng):
    series = factors(rng, 3)
    for row in trajectory.run(adapters(series)).rows:
        deltas = dense(series, row.name)
        for point, delta in zip(row.points, deltas, strict=True):
            cosine = np.sum(delta * deltas[-1]) / np.linalg.norm(delta) / np.linalg.norm(deltas[-1])
            assert point.cosine_to_last == pytest.approx(cosine, abs=1e-11)


def test_how_the_product_is_written_changes_nothing(rng):
    """Another gauge at each checkpoint, so ill-conditioned in the first that Cholesky is refused."""
    series = factors(rng, 3)
    other = {}
    for name, at in series.items():
        gauges = [np.diag([1e6, 1, 1, 1e-6]), rng.standard_normal((RANK, RANK)), np.eye(RANK)]
        other[name] = [(b @ g, np.linalg.solve(g, a)) for (b, a), g in zip(at, gauges, strict=True)]
    for one, two in zip(trajectory.run(adapters(series)).rows, trajectory.run(adapters(other)).rows, strict=True):
        for p, q in zip(one.points, two.points, strict=True):
            assert p.left_to_last == pytest.approx(q.left_to_last, abs=1e-8)
            np.testing.assert_allclose(p.singular_values, q.singular_values, rtol=1e-8)


def test_a_module_settles_at_the_first_step_from_which_on_it_stays(rng):
    series = factors(rng, 5, drift=0.0)
    still, turned = SHAPES
    flat = rng.standard_normal((20, RANK))
    for i in (0, 2):  # at 2 it is away once more: only from 3 on does it stay
        series[turned][i] = (flat, series[turned][i][1])
    rows = {row.name: row for row in trajectory.run(adapters(series)).rows}
    assert rows[still].settled_step == 1
    assert rows[turned].settled_step == 4
    series[turned][3] = (flat, series[turned][3][1])
    rows = {row.name: row for row in trajectory.run(adapters(series)).rows}
    assert rows[turned].settled_step is None, "the last checkpoint alone settles nothing"


def test_a_zero_start_has_no_direction(rng):
    series = factors(rng, 3)
    for at in series.values():
        at[0] = (np.zeros_like(at[0][0]), at[0][1])
    result = trajectory.run(adapters(series))
    first = result.rows[0].points[0]
    assert (first.frobenius_norm, first.stable_rank, first.left_to_last, first.cosine_to_last) == (
        0.0,
        None,
        None,
        None,
    )
    assert result.rows[0].points[1].left_to_previous is None


def test_ranks_may_differ_between_checkpoints(rng):
    series = factors(rng, 2)
    for at in series.values():
        at[1] = (at[1][0][:, :2], at[1][1][:2])
    rows = trajectory.run(adapters(series)).rows
    assert [len(point.singular_values) for point in rows[0].points] == [4, 2]


def test_with_the_base_the_norm_is_relative_and_dora_is_whole(rng):
    from pathlib import Path

    from lorascope.weights.checkpoint import Checkpoint
    from lorascope.weights.files import Tensors

    series = factors(rng, 2)
    weights = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    base = Checkpoint(
        Path("base"), Tensors({f"{n}.weight": InMemory(w, "F64") for n, w in weights.items()}, {}, ()), {}
    )
    row = trajectory.run(adapters(series), base=base).rows[0]
    delta = dense(series, row.name)[-1]
    expected = np.linalg.norm(delta) / np.linalg.norm(weights[row.name])
    assert row.last.relative_norm == pytest.approx(expected, rel=1e-12)

    magnitudes = {name: np.linalg.norm(w, axis=1) * 1.5 for name, w in weights.items()}
    of_dora = [
        Adapter({
            name: Update(name, "magnitude", {**u.roles, "m": InMemory(magnitudes[name], "F64")}, SCALE)
            for name, u in one.updates.items()
        })
        for one in adapters(series)
    ]  # fmt: skip
    row = trajectory.run(of_dora, base=base).rows[0]
    w = weights[row.name] + delta
    whole = magnitudes[row.name][:, None] * w / np.linalg.norm(w, axis=1, keepdims=True) - weights[row.name]
    np.testing.assert_allclose(row.last.singular_values, np.linalg.svd(whole, compute_uv=False), rtol=1e-9)
    assert any("s·B·A alone" in finding.text for finding in trajectory.run(of_dora).findings)


def test_what_is_not_in_all_checkpoints_or_not_finite_is_skipped_by_name(rng):
    series = factors(rng, 3)
    read = adapters(series)
    first, second = SHAPES
    read[0] = Adapter({first: read[0].updates[first]})
    (skipped,) = trajectory.run(read).skipped
    assert (skipped.name, skipped.reason) == (second, "in 2 of 3 checkpoints only")
    series[second][1][0][0, 0] = np.nan
    (skipped,) = trajectory.run(adapters(series)).skipped
    assert (skipped.name, skipped.reason) == (second, "NaN or infinite entries at 2")


def test_findings_say_what_the_numbers_do(rng):
    read = adapters(factors(rng, 3))
    scores = [{"loss": loss} for loss in (2.0, 1.0, 1.5)]
    result = trajectory.run(read, evaluate=scores.__getitem__, scored_on="40 texts of held-out.jsonl")
    assert result.best.step == 2
    texts = " | ".join(finding.text for finding in result.findings)
    assert "The checkpoint of order 2 evaluates best on 40 texts of held-out.jsonl: loss 1.0000" in texts
    other = adapters(factors(rng, 1))
    wide = dict.fromkeys(SHAPES, (400, 300))
    assert "hold the same bytes" not in texts
    unrelated = [
        Adapter({
            name: Update(name, "low_rank", {
                "A": InMemory(rng.standard_normal((2, n)), "F64"), "B": InMemory(rng.standard_normal((m, 2)), "F64"),
            })
            for name, (m, n) in wide.items()
        })
        for _ in range(2)
    ]  # fmt: skip
    texts = [finding.text for finding in trajectory.run(unrelated).findings]
    assert any("may not be checkpoints of one run" in text for text in texts)
    with pytest.raises(InputError, match="two checkpoints or more"):
        trajectory.run(other)


def test_the_average_is_the_best_low_rank_approximation_of_the_mean_update(rng, tmp_path):
    series = factors(rng, 3)
    made = average(adapters(series))
    io.write(made.adapter, tmp_path / "average")
    written = io.read(tmp_path / "average")
    for name in SHAPES:
        mean = np.mean(dense(series, name), axis=0)
        u, s, vh = np.linalg.svd(mean)
        best = (u[:, :RANK] * s[:RANK]) @ vh[:RANK]
        np.testing.assert_allclose(written.updates[name].delta().dense(), best, rtol=0, atol=1e-12)
        assert made.lost[name] == pytest.approx(np.sum(s[RANK:] ** 2) / np.sum(s**2), rel=1e-9)


def test_heads_are_averaged_and_other_modules_refused(rng):
    read = adapters(factors(rng, 2))
    heads = [rng.standard_normal((3, 5)) for _ in read]
    with_heads = [
        Adapter(one.updates, saved={"classifier.weight": InMemory(head, "F64")})
        for one, head in zip(read, heads, strict=True)
    ]
    averaged = average(with_heads).adapter.saved["classifier.weight"].read()
    np.testing.assert_allclose(averaged, np.mean(heads, axis=0))
    with pytest.raises(InputError, match="do not hold the same modules"):
        average([read[0], with_heads[1]])


def test_a_trainers_folder_from_disk_with_its_losses(rng, tmp_path):
    write_trainer_run(tmp_path, factors(rng, 3))
    series = find([tmp_path])
    result = trajectory.run([io.read(each.path) for each in series.snapshots], series=series)
    assert result.steps == (10, 20, 30)
    assert [c.training_loss for c in result.checkpoints] == [3.0, 2.0, 1.0]
    assert [c.evaluation_loss for c in result.checkpoints] == [1.0, 0.8, 0.9]
    assert any("lowest at step 20" in f.text and f.action == "Use the checkpoint of step 20" for f in result.findings)
    record = result.to_json()
    assert record["checkpoints"][0]["path"].endswith("checkpoint-10")
    assert len(result.table()) == 3 * len(SHAPES)
    json.dumps(record, allow_nan=False)


def write_trainer_run(folder, series: dict) -> None:
    """Trainer's folder: checkpoint-10, -20, ..., the last with the log of the whole run."""
    count = len(next(iter(series.values())))
    losses = [3.0, 2.0, 1.0]
    history = []
    for i in range(count):
        at = folder / f"checkpoint-{10 * (i + 1)}"
        at.mkdir(parents=True)
        tensors = {}
        for name, pairs in series.items():
            b, a = pairs[i]
            tensors[f"base_model.model.{name}.lora_A.weight"] = np.ascontiguousarray(a, np.float32)
            tensors[f"base_model.model.{name}.lora_B.weight"] = np.ascontiguousarray(b, np.float32)
        save_file(tensors, at / "adapter_model.safetensors", metadata={"format": "pt"})
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2, "target_modules": ["q_proj"]}
        (at / "adapter_config.json").write_text(json.dumps(config))
        history.append({"step": 10 * (i + 1), "loss": losses[i], "learning_rate": 1e-3})
        history.append({"step": 10 * (i + 1), "eval_loss": [1.0, 0.8, 0.9][i]})
        if i == count - 1:
            history.append({"step": 10 * (i + 1), "train_runtime": 1.0, "train_loss": 2.0})
        state = {"global_step": 10 * (i + 1), "max_steps": 10 * count, "log_history": list(history)}
        (at / "trainer_state.json").write_text(json.dumps(state))
