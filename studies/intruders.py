"""Intruder dimensions: does LoRA add singular directions that full fine-tuning does not, and do they make it forget?

python studies/intruders.py --scale small --jobs 2
"""

from contextlib import suppress

import numpy as np

from lorascope.blocks import Column, Lines, Marker, Series, Table
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE, by_method, loss, share
from lorascope.study.grid import DECODER, ENCODER
from lorascope.study.measures import intruder_statistics as of
from lorascope.study.measures.intruder_statistics import USUAL, after_scaling, average, of_runs, slots, to_same_size
from lorascope.study.measures.intruding import EPSILONS, K, critical, leading, retained, scaled
from lorascope.study.statistics import once
from lorascope.study.tasks import (
    FULL,
    FULL_LM_RATES,
    LORA_LM_RATES,
    PAIRS_OUT_OF_REACH,
    full_arm,
    lora,
    rates_of_full,
    rates_of_lora,
    reference_arm,
    scales,
)

# Rates of LoRA, beyond which it learns nothing, and of full fine-tuning.
RATES = {ENCODER: (1e-3, 3e-3, 6e-3, 1e-2), DECODER: LORA_LM_RATES}
FULL_RATES = {ENCODER: (1e-4, 3e-4, 1e-3), DECODER: FULL_LM_RATES}
TEXTS = {"smoke": 60, "small": 500, "small-lm": 32, "full": 1000}
LORA_1, LORA_8, LORA_64, STEADY = "LoRA, r = 1", "LoRA, r = 8", "LoRA, r = 64", "rsLoRA, r = 64"
HIGHEST = f"{RATES[ENCODER][-1]:g}"
STEADY_HIGH, FROZEN_HIGH = (f"{name}, rate {HIGHEST}" for name in (STEADY, "LoRA-FA, r = 8"))  # of an encoder


def sweep(results):
    return swept(results.scale)


def swept(scale):
    """LoRA's arms at one rate each, r = 8, by name."""
    return {f"{LORA_8}, rate {rate:g}": rate for rate in RATES[scale.testbed]}


def fulls(scale):
    """Full fine-tuning, tuned and at one rate each, with rising rates."""
    return [FULL_TUNING, *(f"{FULL_TUNING}, rate {rate:g}" for rate in FULL_RATES[scale.testbed])]


def highest(results):
    """LoRA at the highest rate."""
    return list(sweep(results))[-1]


def arms(scale):
    yield reference_arm(scale, {"method": HEAD_ALONE})
    yield full_arm({"method": FULL_TUNING}, rates=rates_of_full(scale))
    for name, rate in zip(fulls(scale)[1:], FULL_RATES[scale.testbed], strict=True):
        yield Arm({"method": name}, FULL, (rate,))
    kinds = [(LORA_1, 1, "lora"), (LORA_8, 8, "lora"), (LORA_64, 64, "lora"), (STEADY, 64, "rslora")]
    for name, rank, kind in sorted(kinds, key=lambda each: -each[1]) if scale.testbed == DECODER else kinds:
        yield Arm({"method": name}, lora(rank, kind), rates_of_lora(scale))
    for name, rate in swept(scale).items():
        yield Arm({"method": name}, lora(8), (rate,))
    if scale.testbed == ENCODER:
        for name, changes in ((STEADY_HIGH, lora(64, "rslora")), (FROZEN_HIGH, lora(8, "lora_fa"))):
            yield Arm({"method": name}, changes, RATES[ENCODER][-1:])


# What is measured on which runs. The method is named: a run of a swept rate may be a tuned one, too.


def runs_of(results, methods=None):
    runs = results.runs[results.runs["method"] != HEAD_ALONE]
    return (runs if methods is None else runs[runs["method"].isin(methods)]).to_dict("records")


def each_tuned(results):
    return [MeasurementSpec((run["key"],), {"method": run["method"]}) for run in runs_of(results)]


def each_retained(results):
    texts = results.scale.params["texts"]
    return [MeasurementSpec((run["key"],), {"method": run["method"], "texts": texts}) for run in runs_of(results)]


def each_scaled(results):
    settings = {"texts": results.scale.params["texts"], "split": results.scale.test_split}
    return [MeasurementSpec((run["key"],), {"method": run["method"], **settings}) for run in runs_of(results, [LORA_1])]


def each_critical(results):
    return [MeasurementSpec((run["key"],), {"method": run["method"]}) for run in runs_of(results, (LORA_1, LORA_8))]


@once
def matched(results, method):
    """The full fine-tuning whose mean test loss is the nearest."""
    return min(fulls(results.scale), key=lambda other: abs(loss(results, other) - loss(results, method)))


def apart(method):
    return lambda results: abs(share(results, method) - share(results, matched(results, method)))


def excess(method, column="found"):
    """Intruders of a run beyond three times those of full fine-tuning of the same loss."""
    return lambda results: average(results, method, column) - 3 * average(results, matched(results, method))


# Figures.


def behind(results):
    """What a count depends on: how large ΔW is, with what the run learned and lost."""
    table, rows = results.tables["leading"], []
    margins = table.groupby("method")["margin"].median()
    for method in of.by_run(results):
        part = average(results, method, "energy_found") / average(results, method, "energy")
        sizes = (float(margins[method]), average(results, method, "size"))
        scored = (share(results, method), average(results, method, "forgetting"))
        rows.append((method, average(results, method), slots(method)(results), part, *sizes, *scored))
    columns = (
        Column("method", "Method"),
        Column("found", "Intruders in a run", "float"),
        Column("slots", "Share of leading vectors", "percent"),
        Column("energy", "Share of their energy", "percent"),
        Column("margin", "σ₁(ΔW) / σ₁₀(W)", "float"),
        Column("norm", "‖ΔW‖", "float"),
        Column("share", "Share of full fine-tuning's gain", "percent"),
        Column("forgetting", "Forgetting", "float"),
    )
    caption = (
        f"k = {K}, ε = 0.5. Energy: Σσ² of the intruders over that of all leading vectors. σ₁(ΔW) / σ₁₀(W): median "
        "over weights and runs; a direction that W does not have is among the ten leading ones from about 1 on. ‖ΔW‖: "
        "over all weights of a run. Means over replicates. The count reflects the magnitude of ΔW as much as its "
        "direction."
    )
    return Table(columns, tuple(rows), "What the counts depend on", caption)


def frozen(results):
    """LoRA-FA, where it was run."""
    return [FROZEN_HIGH] if results.scale.testbed == ENCODER else []


def by_epsilon(results):
    series = []
    for method in (LORA_1, LORA_8, LORA_64, STEADY, highest(results), *frozen(results), FULL_TUNING):
        series.append(Series(method, EPSILONS, tuple(slots(method, f"found_{e}")(results) for e in EPSILONS)))
    chance = float(results.tables["leading"]["chance"].median())
    caption = (
        f"Of the {K} leading left singular vectors of every W + ΔW, those whose |cos| with each of W's is below ε. "
        "Each method at its tuned rate, unless a rate is named; means over replicates."
    )
    marks = (Marker("x", chance, "random direction"),)
    return Lines("Intruders by ε", tuple(series), "ε", "share of leading vectors", markers=marks, caption=caption)


def forgetting(results, column, title, label, log):
    """The runs' forgetting against their count, or their size."""
    kinds = {"LoRA, r = 8, by rate": list(sweep(results)), "full fine-tuning, by rate": fulls(results.scale)[1:]}
    kinds |= {name: [name] for name in (LORA_1, LORA_64, STEADY, *frozen(results))}
    series = []
    for name, methods in kinds.items():
        x, y = (np.concatenate([of_runs(results, m, c) for m in methods]) for c in (column, "forgetting"))
        points = tuple(m for m in methods for _ in of_runs(results, m))
        series.append(Series(name, tuple(map(float, x)), tuple(map(float, y)), points=points))
    caption = f"A point is a run; hover over it for its label. {FORGETS}."
    return Lines(title, tuple(series), label, "forgetting", log, caption=caption)


def equal_loss(results):
    try:
        points = after_scaling(results, LORA_1)
    except ValueError:  # no run has an intruder, as after a few steps
        return []
    drawn = {"ΔW shrunk as a whole": ("step", "shrink"), "top intruders scaled": ("intruder",)}
    series = []
    for label, names in (drawn | {"random directions scaled": ("random",)}).items():
        means = sorted((p["loss"].mean(), p["forgetting"].mean(), f) for (n, f), p in points.items() if n in names)
        x, y, at = zip(*means, strict=True)
        series.append(Series(label, tuple(map(float, x)), tuple(map(float, y)), points=tuple(f"{f:g}" for f in at)))
    weights = results.tables["scaled"]
    weights = weights.loc[weights["method"] == LORA_1, "weights"].mean()
    caption = (
        f"{LORA_1}, tuned; means over the runs that have an intruder, in {weights:.0f} weights of a run on average. "
        "Points are factors from 0.3 to 1, the run as trained, where the paths meet. Lower is better at the same loss."
    )
    labels = ("task loss (nats)", "forgetting")
    return [Lines("Forgetting at the same task loss", tuple(series), *labels, caption=caption)]


def thresholds(results):
    found, table, series = of.factors(results), results.tables["critical"], []
    panels = {"spectrum": "predicted from W's spectrum", "plain": "plain rule: σ₁(ΔW) = σ₁₀(W)"}
    for rule, panel in panels.items():
        for method in (LORA_1, LORA_8):
            rows = table["method"].to_numpy() == method
            x, y = tuple(map(float, found["measured"][rows])), tuple(map(float, found[rule][rows]))
            series.append(Series(method, x, y, panel, points=tuple(table["module"][rows])))
        ends = (float(found["measured"].min()), float(found["measured"].max()))
        series.append(Series("equal", ends, ends, panel, weight="reference"))
    caption = "A point is a weight of a run: the factor by which its ΔW has to be multiplied for a first intruder."
    with suppress(ValueError):  # all weights have intruders, or none
        scores = (("strength", -1), ("margin", 1), ("squares", 1))
        areas = [of.auc(sweep, *score)(results) for score in scores]
        caption += " Area under the ROC curve for whether a weight of LoRA, r = 8, at any of the rates has one: "
        caption += f"{areas[0]:.3f} of the predicted factor, {areas[1]:.3f} of the plain rule, {areas[2]:.2f} of ‖ΔW‖."
    return Lines(
        "Where intruders begin", tuple(series), "factor, measured", "factor, predicted", log_x=True, log_y=True,
        caption=caption,
    )  # fmt: skip


def figures(results):
    return [
        *equal_loss(results), by_method(results), behind(results), by_epsilon(results),
        forgetting(results, "size", "Forgetting by the size of ΔW", "‖ΔW‖", True),
        forgetting(results, "found", "Forgetting by intruders", "intruders in a run", False),
        thresholds(results),
    ]  # fmt: skip


PAPER = "Shuttleworth et al. 2024, arXiv 2410.21228v3"
ROBERTA = "RoBERTa-base on six tasks (MNLI and others), 5 epochs, some 10⁵ steps on MNLI; LLaMA-7B and Llama-2-7B"
SWEPT = "RoBERTa-base on MNLI, LoRA r = 8, learning rates; forgetting: loss on a sample of the pre-training texts"
SCALED = "RoBERTa-base on QQP, LoRA r = 8, λ = 0.7; forgetting: loss on a sample of the pre-training texts"
XIE = "The Intruder Threshold, Xie 2026, arXiv 2607.23711, abstract"
EIGHTEEN = "18 adapters, 9,840 layers"
FORGETS = (
    "Forgetting, of an encoder: drift, no lost ability; 1 − Spearman's ρ of similarities within classes, after against "
    "before. Of a decoder: the rise of the next-token loss on news and glosses, in nats"
)
DRIFT = "drift of the similarity order"
HALF, OF_HALF = {"at_least": 0.485, "no_effect": 0.0}, "half of the published 0.97"
SPARED = {"at_least": 0.166, "no_effect": 0.0, "unit": "percent"}
FEW_STEPS = (
    "The number of intruders follows ‖ΔW‖, which is small after 100 steps; the published runs have some 10⁵. Finding "
    "none here is no evidence about them."
)
UNMATCHED = "Compared at one learning rate before, where the two differ in ‖ΔW‖, which the count follows."


def exists(name, method, text, source, out_of_reach=None):
    return Claim(
        name,
        text,
        source,
        (
            Criterion("intruders of a run less three times full fine-tuning's, means over runs", excess(method),
                      at_least=1.0, no_effect=0.0, expected=18.0,
                      origin="ours: one more than three times as many; expected: one in every weight"),
            Criterion("difference of the two in gain, over tuned full fine-tuning's", apart(method), at_most=0.1,
                      unit="percent", origin="ours: the two have learned about as much"),
        ),
        (Control("with ΔW's singular values on W's own directions", excess(method, "aligned"), at_least=1.0,
                 no_effect=0.0),),
        "Compared with the full fine-tuning run (over several learning rates) whose test loss is closest. Control: a "
        "ΔW with the same singular values along W's own directions has no intruders. Their ‖ΔW‖ differ: see the table.",
        ROBERTA,
        out_of_reach={"encoder": out_of_reach} if out_of_reach else None,
    )  # fmt: skip


CLAIMS = (
    exists("exist", LORA_8, "LoRA of r = 8 has intruders where full fine-tuning of the same loss has few",
           f"{PAPER}, intruders by method and rank", FEW_STEPS),
    exists("exist-r1", LORA_1, "LoRA of r = 1 has intruders where full fine-tuning of the same loss has few",
           f"{PAPER}, intruders by method and rank"),
    exists("exist-r64", LORA_64,
           "With a fixed α LoRA of r = 64 has intruders, too, where full fine-tuning of the same loss has few",
           f"{PAPER}, the runs with α = 8 (all ranks have them)", FEW_STEPS),
    Claim(
        "full",
        "Full fine-tuning has next to no intruders: 5 % of its leading vectors at most",
        f"{PAPER}, intruders by method and rank",
        (Criterion("share of leading vectors that are intruders", slots(FULL_TUNING), at_most=0.05, unit="percent",
                   published=0.0, origin="ours: one in twenty"),),
        (Control("with ten random directions planted, twice as strong as W's first",
                 slots(FULL_TUNING, "planted"), at_most=0.05, unit="percent"),),
        setting=ROBERTA,
        out_of_reach={"encoder": FEW_STEPS},
    ),
    Claim(
        "rank",
        "Of equal ‖ΔW‖, LoRA of r = 8 has at most half of the intruders of r = 1",
        f"{PAPER}, intruders by method and rank (fewer at a higher rank; none at r = 64 with α = 2r)",
        (Criterion("intruders of LoRA, r = 8, at the ‖ΔW‖ of r = 1, over those of r = 1",
                   lambda results: 1 / to_same_size(LORA_1, sweep)(results), at_most=0.5, no_effect=1.0,
                   origin="ours: half; the paper has no ratio at equal ‖ΔW‖"),),
        (Control("without that size: of r = 8 at its highest rate, whose ‖ΔW‖ is twice as large",
                 lambda results: average(results, highest(results)) / average(results, LORA_1), at_most=0.5,
                 no_effect=1.0),),
        "r = 8 has the ‖ΔW‖ of r = 1 between two of its rates, where its count is taken on a straight line. r = 64 "
        "has no ΔW of this size.",
        ROBERTA,
        amended="It compared r = 64 with r = 8 at one learning rate, at which r = 64 had collapsed (loss 2.88).",
    ),
    Claim(
        "frozen",
        "Of equal ‖ΔW‖, LoRA whose A is frozen (LoRA-FA) has at most half of the intruders of LoRA",
        f"{PAPER} (A random with singular values 1, B trained: sharply fewer)",
        (Criterion("intruders of LoRA-FA, r = 8, over those of LoRA, r = 8, at the same ‖ΔW‖",
                   to_same_size(FROZEN_HIGH, sweep), at_most=0.5, no_effect=1.0,
                   origin="ours: half; the paper says that they are sharply reduced"),),
        (Control("r = 1 in LoRA-FA's place", to_same_size(LORA_1, sweep), at_most=0.5, no_effect=1.0),),
        "A is Kaiming-uniform here.",
        ROBERTA,
        amended=UNMATCHED,
    ),
    Claim(
        "rate",
        "A higher learning rate makes more intruders",
        f"{PAPER}, intruders by learning rate",
        (Criterion("Spearman's ρ of learning rate and intruders over runs", of.correlation(sweep, "rate", "found"),
                   at_least=0.7, no_effect=0.0, expected=0.9, origin="ours: a strong order"),),
        (Control("with the rates shuffled among the runs, mean over shuffles", of.shuffled(sweep, "rate", "found"),
                 at_least=0.7, no_effect=0.0),),
        "LoRA, r = 8, at every rate.",
        SWEPT,
    ),
    Claim(
        "forgetting",
        "Runs with more intruders have forgotten more",
        f"{PAPER} (ρ = 0.97 over learning rates)",
        (Criterion("Spearman's ρ of intruders and forgetting over runs",
                   of.correlation(sweep, "found", "forgetting"), **HALF, published=0.97, origin=OF_HALF),),
        (
            Control("‖ΔW‖ alone, in the intruders' place", of.correlation(sweep, "size", "forgetting"), **HALF),
            Control("with the counts shuffled among the runs, mean over shuffles",
                    of.shuffled(sweep, "found", "forgetting"), **HALF),
        ),
        f"LoRA, r = 8, at every rate; many runs have no intruder. {FORGETS}.",
        SWEPT,
        amended="The bound was 0.7, of our choice; that ‖ΔW‖ alone ranks the runs as well is now a control.",
    ),
    Claim(
        "objective",
        "Runs with more intruders are worse at what the base was pre-trained for",
        f"{PAPER} (ρ = 0.97 over learning rates)",
        (Criterion("Spearman's ρ of intruders and the pre-training's loss over runs",
                   of.correlation(sweep, "found", "pair_loss"), **HALF, published=0.97, origin=OF_HALF),),
        (Control("‖ΔW‖ alone, in the intruders' place", of.correlation(sweep, "size", "pair_loss"), **HALF),),
        "LoRA, r = 8, at every rate. Encoder: which gloss belongs to a noun, among those of its class; decoder: news.",
        SWEPT,
        out_of_reach={"encoder": PAIRS_OUT_OF_REACH},
        amended="The bound was 0.7, of our choice, and the control a shuffle.",
    ),
    Claim(
        "beyond-size",
        "Of runs whose ΔW are equally large, those with more intruders have forgotten more",
        "Not in the paper; an unreviewed test on Llama-2-7B finds that the size drives forgetting",
        (Criterion("Spearman's partial ρ of intruders and forgetting, given ‖ΔW‖",
                   of.correlation(sweep, "found", "forgetting", "size"), at_least=0.3, no_effect=0.0,
                   origin="ours: a moderate correlation"),),
        (Control("with the counts shuffled among the runs, mean over shuffles",
                 of.shuffled(sweep, "found", "forgetting", "size"), at_least=0.3, no_effect=0.0),),
        f"LoRA, r = 8, at every rate. The rate drives all three, which leaves little to tell them apart. {FORGETS}.",
        SWEPT,
    ),
    Claim(
        "equal-size",
        "Of equal ‖ΔW‖, LoRA of r = 1, which has more intruders than r = 8, has forgotten more",
        "Our question, after Shuttleworth et al. 2024",
        (Criterion("(forgetting of r = 1 − forgetting of r = 8 at its ‖ΔW‖) / that of r = 8",
                   lambda results: to_same_size(LORA_1, sweep, "forgetting")(results) - 1, at_least=0.1,
                   no_effect=0.0, unit="percent", origin="ours: a tenth of the forgetting"),),
        (Control("a full fine-tuning without any intruder in the place of r = 1",
                 lambda results: to_same_size(fulls(results.scale)[-1], sweep, "forgetting")(results) - 1,
                 at_least=0.1, no_effect=0.0, unit="percent"),),
        f"The two differ in r, too, and r = 1 has learned less. {FORGETS}.",
        "not a published claim",
        amended="New: the partial correlation cannot tell the size of ΔW from its directions.",
    ),
    Claim(
        "causal-r1",
        "Scaling the top intruders by 0.7 removes forgetting (LoRA, r = 1)",
        f"{PAPER}, scaled intruders (QQP, r = 8, λ = 0.7: forgetting −33.2 %)",
        (Criterion("share of the forgetting that is gone at λ = 0.7", of.spared(LORA_1, "intruder"), **SPARED,
                   published=0.332, origin="half of the published 33.2 %"),),
        (
            Control("ΔW shrunk as a whole by as much, in their place", of.spared(LORA_1, "step"), **SPARED),
            Control("the nearest directions that are no intruders", of.spared(LORA_1, "neighbour"), **SPARED),
            Control("random directions", of.spared(LORA_1, "random"), **SPARED),
        ),
        f"Of the runs that have an intruder. {FORGETS}.",
        SCALED,
        amended="What scaling costs the task is now a claim of its own, and shrinking ΔW as a whole a control.",
    ),
    Claim(
        "free-r1",
        "Scaling the top intruders by 0.7 costs the task next to nothing: 1 % of the gain at most (LoRA, r = 1)",
        f"{PAPER}, scaled intruders (QQP, r = 8, λ = 0.7: accuracy −0.0 %)",
        (Criterion("rise of the task's test loss over the run's gain", of.cost(LORA_1, "intruder"), at_most=0.01,
                   published=0.0, unit="percent", origin="ours: a hundredth of the gain"),),
        (Control("scaling the nearest directions that are no intruders", of.cost(LORA_1, "neighbour"), at_most=0.01,
                 unit="percent"),),
        "Of the runs that have an intruder.",
        SCALED,
        amended="New: it was part of the claim that scaling removes forgetting.",
    ),
    Claim(
        "equal-loss",
        "At equal task loss, scaling the top intruders leaves less forgetting than shrinking ΔW as a whole "
        "(LoRA, r = 1)",
        f"{PAPER}, without this control; an unreviewed test on Llama-2-7B finds no benefit over shrinking",
        tuple(
            Criterion(f"λ = {factor:g}: (forgetting − forgetting of ΔW shrunk to the same task loss) / forgetting "
                      "as trained", of.at_equal_loss(LORA_1, "intruder", factor), at_most=-0.1, no_effect=0.0,
                      expected=-0.332, unit="percent", origin="ours: a tenth; −33.2 % if scaling were free")
            for factor in (USUAL, 0.5, 0.3)
        ),
        (Control("λ = 0.7: random directions in the intruders' place", of.at_equal_loss(LORA_1, "random", USUAL),
                 at_most=-0.1, no_effect=0.0, unit="percent"),),
        "Shrunk ΔW are interpolated in each run. At λ = 0.3 most runs lose more than with ΔW × 0.3, the strongest "
        f"shrinking measured, which then stands for it: that favours scaling the intruders. {FORGETS}.",
        SCALED,
        amended="New: forgetting was compared where the two cost the task unequal amounts.",
    ),
    Claim(
        "threshold",
        "For 70 % of weights W's spectrum alone gives, within a factor of 2, how strong ΔW must be for an intruder",
        f"{XIE} (82 % of layers)",
        (Criterion("share of weights within a factor of 2", of.within_two("spectrum"), at_least=0.7,
                   published=0.82, unit="percent", origin="ours: 70 %, somewhat below the published 82 %"),),
        (Control("the plain rule that σ₁(ΔW) reaches σ₁₀(W)", of.within_two("plain"), at_least=0.7, unit="percent"),),
        "Tuned LoRA of r = 1 and 8. Measured: the factor on ΔW at which the first intruder appears. Predicted: the "
        "factor at which ΔW's first singular direction enters the ten leading ones. Weights of one run are not "
        "independent; replicates are resampled.",
        EIGHTEEN,
        amended="The control was the spectrum of noise, which fails under any rule.",
    ),
    Claim(
        "detects",
        "The factor that W's spectrum predicts for a first intruder identifies the weights that have one",
        f"{XIE} (AUC 0.89)",
        (Criterion("area under the ROC curve", of.auc(sweep, "strength", -1), at_least=0.8,
                   no_effect=0.5, published=0.89, origin="ours: 0.8, somewhat below the published 0.89"),),
        (Control("the plain margin σ₁(ΔW) / σ₁₀(W)", of.auc(sweep, "margin"), at_least=0.8, no_effect=0.5),),
        "All weights of LoRA, r = 8, at every rate, which changes the size of ΔW.",
        EIGHTEEN,
        amended="The control shuffled the factors, which fails under any rule.",
    ),
)  # fmt: skip


def read(answers):
    removed = f"scaling the top intruders of LoRA, r = 1, by 0.7 removes {answers.found('causal-r1')} of the forgetting"
    shrunk = ", as does shrinking ΔW as a whole" if answers.is_one_of("causal-r1", "not specific") else ""
    equal, size = f"at equal task loss the difference is {answers.found('equal-loss')} of it", ""
    if answers.is_one_of("equal-loss", "absent or opposite"):
        equal = "at equal task loss scaling leaves no less forgetting than shrinking (scaling less shrinking, of the "
        equal += f"forgetting as trained: {answers.found('equal-loss')} at {USUAL}, "
        equal += f"{answers.found('equal-loss', 1)} at 0.5, {answers.found('equal-loss', 2)} at 0.3)"
    if "frozen" in answers and answers.is_one_of("frozen", "absent or opposite"):
        size = " At equal ‖ΔW‖ LoRA-FA has no fewer intruders than LoRA."
    exist, what = ("exist-r1", "exist", "exist-r64"), DRIFT
    if answers.testbed == DECODER and all(answers.is_one_of(name, "reproduced") for name in exist):
        more = [answers.found(name) for name in exist]
        removed = f"LoRA of r = 1 has {more[0]} intruders more than three times full fine-tuning's of the same loss, "
        removed += f"r = 8 has {more[1]} and r = 64 has {more[2]}. Scaling the top intruders of r = 1 by {USUAL} "
        removed += f"removes {answers.found('causal-r1')} of the forgetting"
        what = "the rise of the next-token loss on other text"
    return f"{answers.opening}, {removed}{shrunk}; {equal}.{size} Forgetting is {what} here."


study = Study(
    name="intruders",
    title="Do intruder dimensions make LoRA forget?",
    question="Does LoRA give a weight leading singular directions that the base did not have, where full fine-tuning "
    "of the same loss does not, and are they what makes a model forget?",
    varied="the method and r; the learning rate of LoRA, r = 8, and of full fine-tuning; in trained runs, the singular "
    "value of each weight's top intruder, with controls",
    tuned="the learning rate, but in the arms that name one",
    fixed="α = 16; all linear layers adapted; the head's rate; k = 10, ε = 0.5",
    scales=scales({name: {"texts": n} for name, n in TEXTS.items()}),
    arms=arms,
    measures=(
        Measure("leading", leading, each_tuned),
        Measure("retained", retained, each_retained),
        Measure("scaled", scaled, each_scaled),
        Measure("critical", critical, each_critical),
    ),
    claims=CLAIMS,
    figures=figures,
    reading=read,
    elsewhere={DECODER: {
        "fixed": "α = 16; all linear layers adapted; k = 10, ε = 0.5",
        "claims": tuple(claim for claim in CLAIMS if claim.name != "frozen"),  # LoRA-FA is not trained there
    }},
    removed={
        "causal": "At this rate, three times the tuned one, shrinking ΔW in any way improves the task itself, so that "
        "nothing is learned about intruders.",
        "specific": "For the same reason; and forgetting was compared where the two cost the task unequal amounts.",
        "specific-r1": "It compared forgetting where the two cost the task unequal amounts; another claim is at equal "
        "task loss.",
    },
)  # fmt: skip

if __name__ == "__main__":
    study.main()
