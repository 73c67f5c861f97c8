"""Method-specific metrics, against files that PEFT writes, closed forms and dense float64."""

import json
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from lorascope.analyses.method_specific import kind_metrics, run
from lorascope.analyses.method_specific.vectors import correlation, distribution, gini, spread
from lorascope.blocks import Heatmap, Lines
from lorascope.errors import InputError
from lorascope.updates.base import Update, kinds
from lorascope.weights import io
from lorascope.weights.adapter import Adapter
from lorascope.weights.checkpoint import open_checkpoint
from lorascope.weights.tensors import InMemory
from tests.cli.command import here
from tests.weights import examples_peft


def adapter(*updates: Update, **settings) -> Adapter:
    return Adapter({update.name: update for update in updates}, settings)


def update(name: str, kind: str, **roles: np.ndarray) -> Update:
    return Update(name, kind, {role: InMemory(np.asarray(array, float), "F64") for role, array in roles.items()})


def section(adapter: Adapter, kind: str, **options) -> SimpleNamespace:
    """The section of one kind, with its findings and blocks."""
    one, of = run(adapter, **options).sections[kind], kind_metrics.get(kind)
    return SimpleNamespace(
        rows=one.rows, summary=one.summary, findings=tuple(of.findings(one)), blocks=tuple(of.blocks(one))
    )


def texts(part) -> str:
    return "\n".join(finding.text for finding in part.findings)


# --- the whole --------------------------------------------------------------------------------------------------------


def test_nothing_is_computed_for_a_plain_lora(lora_folder):
    result = run(io.read(lora_folder))
    assert result.sections == {}
    assert "No method-specific metrics" in result.blocks()[0].text
    assert result.to_json()["method_specific"] == {}
    assert result.table().to_dict("records") == [{"kind": "low_rank", "modules": 4}]


def test_a_member_speaks_of_a_kind_or_of_a_setting():
    assert set(kind_metrics.names()) - {"lora_drop"} <= set(kinds.names())


@pytest.mark.parametrize(
    ("builder", "kind"),
    [
        (examples_peft.vera, "vera"),
        (examples_peft.vera_without_projections, "vera"),
        (examples_peft.adalora_pruned, "triplet"),
        (examples_peft.dora, "magnitude"),
        (examples_peft.ia3, "scaling"),
    ],
)
def test_peft_files_through_the_command(builder, kind, tmp_path, page_in_browser):
    """Terminal, JSON and page of files that PEFT itself wrote."""
    example = builder(tmp_path)
    base = ["--base", str(example.base)] if example.base else []
    page = tmp_path / "a.html"
    done = here("analyze", example.path, *base, "--json", tmp_path / "a.json", "--html", page)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert found["schema"] == 2
    assert list(found["method_specific"]) == [kind]
    assert {row["name"] for row in found["method_specific"][kind]["modules"]} == example.deltas.keys()
    assert f"{kind_metrics.get(kind).title} details" in done.stdout
    opened = page_in_browser(page)
    assert opened.page.locator("h2", has_text=" details").count() == 1
    assert opened.troubles == []


def test_scales_can_be_told_without_the_base(tmp_path):
    example = examples_peft.ia3(tmp_path)
    done = here("analyze", example.path, "--json", "-")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["modules"] == []
    assert len(found["method_specific"]["scaling"]["modules"]) == len(example.deltas)
    assert "--base" in found["findings"][0]["action"]
    assert "pass --base to compute ‖ΔW‖" in here("analyze", example.path).stdout


def test_modules_are_selected():
    two = adapter(*(update(f"layers.{i}.q", "scaling", out_scale=[1.0, 2.0]) for i in range(2)))
    assert [row["name"] for row in section(two, "scaling", modules="1").rows] == ["layers.1.q"]
    with pytest.raises(InputError, match="regular expression"):
        run(two, modules="(")


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_spread_at_its_ends_and_for_gaussian_entries():
    assert spread(np.full(10, -3.0)) == pytest.approx(1, rel=1e-12)
    assert spread(np.eye(10)[0] * 1e-200) == pytest.approx(0.1, rel=1e-12)
    assert spread(np.zeros(3)) is None
    # E x⁴ = 3 (E x²)²; over 10⁶ entries the ratio has relative deviation √(8/3 / 10⁶) = 0.0016
    assert spread(np.random.default_rng(1).standard_normal(1_000_000)) == pytest.approx(1 / 3, rel=0.01)


def test_gini_by_its_definition():
    x = np.array([3.0, 0, 1, 5, 5])
    pairs = np.abs(x[:, None] - x[None, :]).sum()
    assert gini(x) == pytest.approx(pairs / (2 * len(x) ** 2 * x.mean()), rel=1e-12)
    assert gini(np.zeros(3)) is None


def test_correlation_and_its_null():
    x, y = np.array([1.0, 2, 3, 5, 8]), np.array([2.0, 1, 4, 4, 9])
    r, p = correlation(x, y)
    assert r == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-12)
    every = [abs(np.corrcoef(x, list(order))[0, 1]) for order in permutations(y)]
    # 2000 draws of a share: standard deviation below 0.005 where the share is near 0.05
    assert p == pytest.approx(np.mean(np.array(every) >= r - 1e-12), abs=0.02)
    assert correlation(x[:3], y[:3]) is None
    assert correlation(x, np.ones(5)) is None


def test_a_distribution_that_is_not_finite_is_absent():
    assert distribution(np.array([1.0, np.nan])) is None
    assert distribution(np.array([])) is None


# --- AdaLoRA ----------------------------------------------------------------------------------------------------------


def test_ranks_kept_in_a_pruned_file_of_peft(tmp_path):
    part = section(io.read(examples_peft.adalora_pruned(tmp_path).path), "triplet")
    kept = {row["name"]: (row["kept_rank"], row["initial_rank"]) for row in part.rows}
    assert kept == {"layers.0.q_proj": (2, 4), "layers.1.q_proj": (0, 4)}
    assert (part.summary["total_kept"], part.summary["budget"]) == (2, 4)
    assert part.findings[0].severity == "warning"
    assert "2 under the budget of 4" in part.findings[0].text
    assert "1 of 2 modules have no rank left" in texts(part)


def triplet(rng: np.random.Generator, name: str, e, d_in: int = 6, d_out: int = 8) -> Update:
    e = np.asarray(e, float)
    a, b = rng.standard_normal((len(e), d_in)), rng.standard_normal((d_out, len(e)))
    return update(name, "triplet", A=a, B=b, E=e[:, None])


def test_the_budget_met_exactly_is_a_note(rng):
    part = section(
        adapter(triplet(rng, "0.q", [1, 0, 2]), triplet(rng, "1.q", [0, 0, 3]), init_r=3, target_r=1), "triplet"
    )
    assert "1 over the budget of 2: training stopped before" in texts(part)
    assert (part.findings[0].severity, part.findings[0].rule) == ("warning", "LS903")
    met = adapter(triplet(rng, "0.q", [1, 0, 2]), triplet(rng, "1.q", [0, 0, 0]), init_r=3, target_r=1)
    part = section(met, "triplet")
    assert part.findings[0].severity == "note"
    assert "the budget of target_r = 1 a module, exactly" in part.findings[0].text


def test_the_null_of_uneven_ranks(rng):
    """Two modules of two triplets, two kept: of six ways two are (2, 0) or (0, 2), Gini ½; four are (1, 1), Gini 0."""
    part = section(adapter(triplet(rng, "0.q", [1, 2]), triplet(rng, "1.q", [0, 0]), init_r=2, target_r=1), "triplet")
    assert part.summary["gini"] == pytest.approx(0.5)
    # 1000 draws: the mean's standard deviation is √(1/3 · 2/3) / 2 / √1000 = 0.0075, the share's 0.015
    assert part.summary["null"]["gini"] == pytest.approx(1 / 6, abs=0.03)
    assert part.summary["null"]["p"] == pytest.approx(1 / 3, abs=0.06)


def test_orthogonality_and_what_the_initialisation_gives(rng):
    p, _ = np.linalg.qr(rng.standard_normal((50, 4)))
    q, _ = np.linalg.qr(rng.standard_normal((30, 4)))
    e = np.array([[1.0], [0.5], [0.0], [2.0]])
    part = section(adapter(update("q", "triplet", A=q.T, B=p, E=e)), "triplet")
    (row,) = part.rows
    assert row["kept_rank"] == 3
    assert row["off_orthogonal"]["P"] < 1e-14  # of an orthonormal basis: rounding alone
    assert "close to the singular values" in texts(part)
    (far,) = (f for f in section(adapter(triplet(rng, "0.q", [1, 2])), "triplet").findings if f.severity == "warning")
    assert (far.rule, far.action) == ("LS904", "Read the singular values from the spectrum")
    drawn = [0.02 * rng.standard_normal((50, 3)) for _ in range(2000)]
    mean_square = np.mean([np.linalg.norm(t.T @ t - np.eye(3)) ** 2 / 3 for t in drawn])
    # ‖TᵀT − I‖² is near 0.96 and varies by 0.006 between draws: the mean is good to 1e-4 and better
    assert row["null"]["off_orthogonal"]["P"] == pytest.approx(mean_square**0.5, rel=1e-3)


def test_an_adalora_that_was_never_trained(rng):
    part = section(adapter(triplet(rng, "0.q", [0, 0]), triplet(rng, "1.q", [0, 0])), "triplet")
    assert part.findings[0].text == "Every E is zero: this adapter changes nothing"
    assert (part.findings[0].severity, part.findings[0].rule) == ("error", "LS102")
    assert part.summary["gini"] is None


# --- DoRA -------------------------------------------------------------------------------------------------------------


def test_dora_of_peft_by_the_papers_formulas(tmp_path):
    example = examples_peft.dora(tmp_path)
    base = open_checkpoint(example.base)
    read = io.read(example.path, base)
    part = section(read, "magnitude", base=base)
    for row in part.rows:
        update, weight = read.updates[row["name"]], base.of(read.updates[row["name"]]).read()
        roles = update.read()
        turned = weight + update.scale * roles["B"] @ roles["A"]
        lengths, own = np.linalg.norm(weight, axis=1), np.linalg.norm(turned, axis=1)
        cosines = [w @ v / (np.linalg.norm(w) * np.linalg.norm(v)) for w, v in zip(weight, turned, strict=True)]
        assert row["magnitude_change"] == pytest.approx(np.mean(np.abs(roles["m"] - lengths)), rel=1e-12)
        assert row["direction_change"] == pytest.approx(np.mean(1 - np.array(cosines)), rel=1e-9)
        assert row["undecomposed"] == pytest.approx(np.mean(np.abs(own - lengths)), rel=1e-12)
        # and the direction is that of PEFT's own merged weight
        merged = weight + example.deltas[row["name"]]
        merged_cosines = np.sum(merged * weight, axis=1) / np.linalg.norm(merged, axis=1) / lengths
        signs = np.sign(roles["m"])  # a negative magnitude turns the row over; V is the direction before that
        assert row["direction_change"] == pytest.approx(np.mean(1 - signs * merged_cosines), rel=1e-6)


def dora_with_base(rng: np.random.Generator, tmp_path, changes):
    """A base of 6 modules and a DoRA of it whose module i has magnitudes longer by changes[i] and turned by i/10."""
    from safetensors.numpy import save_file

    weights = {f"layers.{i}.q.weight": rng.standard_normal((6, 9)) for i in range(len(changes))}
    save_file(weights, tmp_path / "model.safetensors")
    updates = []
    for i, change in enumerate(changes):
        weight = weights[f"layers.{i}.q.weight"]
        m = np.linalg.norm(weight, axis=1) + change
        turn = 0.1 * (i + 1) * rng.standard_normal((2, 9))
        updates.append(update(f"layers.{i}.q", "magnitude", A=turn, B=np.ones((6, 2)), m=m))
    return adapter(*updates), open_checkpoint(tmp_path)


@pytest.mark.parametrize(("changes", "words"), [([1, 2, 3, 4, 5, 6], "together"), ([6, 5, 4, 3, 2, 1], "against")])
def test_the_sign_of_dora(rng, changes, words, tmp_path):
    made, base = dora_with_base(rng, tmp_path, [0.1 * change for change in changes])
    part = section(made, "magnitude", base=base)
    found = part.summary["correlation"]["all"]
    rows = [(row["direction_change"], row["magnitude_change"]) for row in part.rows]
    assert found["r"] == pytest.approx(np.corrcoef(np.transpose(rows))[0, 1], rel=1e-12)
    assert f"move {words}" in texts(part)
    scatter = next(block for block in part.blocks if isinstance(block, Lines) and block.series[0].points)
    assert scatter.series[0].points == tuple(row["name"] for row in part.rows)
    assert scatter.series[0].x == tuple(row["direction_change"] for row in part.rows)


def test_magnitudes_alone_turn_nothing_and_need_the_base(rng, tmp_path):
    made, base = dora_with_base(rng, tmp_path, [0.5, 0.25])
    alone = adapter(*(Update(u.name, "magnitude", {"m": u.roles["m"]}) for u in made.updates.values()))
    part = section(alone, "magnitude", base=base)
    assert [row["magnitude_change"] for row in part.rows] == pytest.approx([0.5, 0.25], rel=1e-12)
    assert max(row["direction_change"] for row in part.rows) < 1e-15  # 1 − cos of a row with itself: rounding
    blind = section(made, "magnitude")
    assert "pass --base" in texts(blind)
    assert blind.rows[0]["magnitude_change"] is None
    assert blind.rows[0]["m"]["median"] == pytest.approx(np.median(made.updates["layers.0.q"].read()["m"]))


# --- IA³ --------------------------------------------------------------------------------------------------------------


def test_the_scales_of_peft(tmp_path):
    example = examples_peft.ia3(tmp_path)
    part = section(io.read(example.path), "scaling")
    tensors = load_file(example.path / "adapter_model.safetensors")
    for row in part.rows:
        l = tensors[f"base_model.model.{row['name']}.ia3_l"].astype(float).ravel()
        assert row["scales"] == l.size
        assert row["change"] == pytest.approx(np.sqrt(np.mean((l - 1) ** 2)), rel=1e-12)
        assert row["negative"] == np.sum(l < 0)
        assert row["switched_off"] == np.sum(np.abs(l) < 0.1)
        assert row["inhibited"] == pytest.approx(np.mean(np.abs(l) < 1))
        assert (row["l"]["min"], row["l"]["max"]) == (l.min(), l.max())
        assert row["side"] == ("inputs" if row["name"].endswith("down_proj") else "outputs")
    assert part.summary["negative"] == sum(row["negative"] for row in part.rows) > 0


def test_scales_of_one_change_nothing():
    part = section(adapter(update("q", "scaling", out_scale=np.ones(4))), "scaling")
    assert part.findings[0].text == "Every scale is 1: this adapter changes nothing"
    assert (part.findings[0].severity, part.findings[0].rule) == ("error", "LS102")


# --- LoRA-XS ----------------------------------------------------------------------------------------------------------


def core(name: str, matrix, scale: float = 1.0) -> Update:
    r = len(matrix)
    made = update(name, "core", A=np.ones((r, 5)), R=matrix, B=np.ones((6, r)))
    return replace(made, scale=scale)


def test_a_core_that_only_rescales_and_one_without_structure(rng):
    rescaling, random = np.diag([0.5, -0.2, 0.1, 0.3]), rng.standard_normal((200, 200))
    part = section(adapter(core("0.q", rescaling, 2.0), core("1.q", random), core("2.q", np.zeros((4, 4)))), "core")
    first, second, zero = part.rows
    assert (first["on_diagonal"], first["dominant_rows"], first["symmetric"]) == (1.0, 1.0, 1.0)
    np.testing.assert_allclose(first["singular_values"], [1.0, 0.6, 0.4, 0.2], rtol=1e-12)
    assert first["rescaling"] == pytest.approx(2 * np.sqrt(np.mean(np.diag(rescaling) ** 2)), rel=1e-12)
    # 200 of 40,000 squares of relative deviation √2 each: 1/200 · (1 ± 0.1); the symmetric share varies by 1/200
    assert second["on_diagonal"] == pytest.approx(second["null"]["on_diagonal"], rel=0.4)
    assert second["symmetric"] == pytest.approx(second["null"]["symmetric"], abs=0.02)
    # one Gaussian core against the mean of ten: σ₁ of this size varies by 1 %
    assert second["stable_rank"] == pytest.approx(second["null"]["stable_rank"], rel=0.05)
    assert (zero["norm"], zero["on_diagonal"]) == (0.0, None)
    assert "R is zero in 1 of 3 modules: it changes nothing" in texts(part)


def test_the_map_of_cores_shows_the_diagonal():
    part = section(adapter(core("0.q", np.diag([3.0, 4.0])), core("1.q", np.array([[0.0, 1.0], [0.0, 0.0]]))), "core")
    shown = next(block for block in part.blocks if isinstance(block, Heatmap) and "R_ij" in block.title)
    assert shown.measures[0].values == ((0.3, 0.5), (0.0, 0.4))


# --- LoRA-drop --------------------------------------------------------------------------------------------------------


def dropped(record) -> Adapter:
    low = [update(f"layers.{i}.q", "low_rank", A=np.ones((1, 3)), B=np.ones((2, 1))) for i in range(4)]
    return adapter(*low, lora_drop=record)


def test_scores_of_lora_drop():
    scores = {f"layers.{i}.q": score for i, score in enumerate([10, 60, 5, 25])}
    record = {"scores": scores, "kept": ["layers.1.q", "layers.3.q"], "threshold": 0.8}
    part = section(dropped(record), "lora_drop")
    assert [(row["name"], row["score"], row["kept"]) for row in part.rows] == [
        ("layers.1.q", 0.6, True), ("layers.3.q", 0.25, True), ("layers.0.q", 0.1, False), ("layers.2.q", 0.05, False)
    ]  # fmt: skip
    assert part.summary["kept_score"] == pytest.approx(0.85)
    assert part.summary["null"]["kept"] == 4  # ⌈0.8 · 4⌉ of equal importances
    assert "2 of 4 modules keep a LoRA of their own; the others share one" in texts(part)
    assert "The kept hold 85 % of the importance" in texts(part)
    curve = next(block for block in part.blocks if isinstance(block, Lines))
    assert curve.series[0].y == pytest.approx((0.6, 0.85, 0.95, 1.0))


def test_layers_that_were_named_have_no_scores():
    part = section(dropped({"kept": ["layers.1.q"], "threshold": 0.9, "rest": "drop"}), "lora_drop")
    assert [(row["score"], row["kept"]) for row in part.rows] == [
        (None, False),
        (None, True),
        (None, False),
        (None, False),
    ]
    assert "the others have none. These layers were given by name, not chosen by score" in texts(part)


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        {},
        {"scores": {"q": "high"}, "kept": []},
        {"scores": {"q": -1}, "kept": []},
        {"scores": {}, "kept": []},
    ],
)
def test_a_setting_that_is_no_record_is_a_warning(record):
    part = section(dropped(record), "lora_drop")
    assert [(finding.severity, finding.rule) for finding in part.findings] == [("warning", "LS901")]
    assert "cannot be read" in texts(part)


def test_scores_of_zero_tell_no_modules_apart():
    names = [f"layers.{i}.{kind}" for i in (0, 1) for kind in ("q", "v")]
    part = section(dropped({"scores": dict.fromkeys(names, 0.0), "kept": names[:1]}), "lora_drop")
    (found,) = part.findings
    assert (found.severity, found.rule) == ("warning", "LS902")
    assert found.text.endswith("Every score is zero: the modules could not be told apart")
