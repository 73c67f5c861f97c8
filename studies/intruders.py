"""Intruder dimensions: does LoRA add singular directions that full fine-tuning does not, and do they make it forget?

python studies/intruders.py --scale small --jobs 2
"""

from contextlib import suppress

import numpy as np

from lorascope.blocks import Column, Lines, Marker, Series, Table
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE, by_method, gain, loss, share
from lorascope.study.measures.intruding import EPSILONS, K, critical, leading, retained, scaled
from lorascope.study.tasks import FULL, LORA_RATES, PAIRS_CANNOT_TELL, full_arm, head_arm, lora, scales

RATES = (1e-3, 3e-3, 6e-3, 1e-2)  # of LoRA; beyond them it learns nothing
FULL_RATES = (1e-4, 3e-4, 1e-3)
LORA_1, LORA_8, LORA_64, STEADY = "LoRA, r = 1", "LoRA, r = 8", "LoRA, r = 64", "rsLoRA, r = 64"
SWEEP = tuple(f"{LORA_8}, rate {rate:g}" for rate in RATES)
FULLS = (FULL_TUNING, *(f"{FULL_TUNING}, rate {rate:g}" for rate in FULL_RATES))
HIGH = SWEEP[-1]
STEADY_HIGH, FROZEN_HIGH = (f"{name}, rate {RATES[-1]:g}" for name in (STEADY, "LoRA-FA, r = 8"))
SCALED = (LORA_1, HIGH)
USUAL = 0.7  # the λ that the paper reports
SHUFFLES = 20  # of the runs, over which a control takes the mean: one alone may be far from 0 by chance


def arms(scale):
    yield head_arm({"method": HEAD_ALONE})
    yield full_arm({"method": FULL_TUNING})
    for name, rate in zip(FULLS[1:], FULL_RATES, strict=True):
        yield Arm({"method": name}, FULL, (rate,))
    for name, rank, kind in ((LORA_1, 1, "lora"), (LORA_8, 8, "lora"), (LORA_64, 64, "lora"), (STEADY, 64, "rslora")):
        yield Arm({"method": name}, lora(rank, kind), LORA_RATES)
    for name, rate in zip(SWEEP, RATES, strict=True):
        yield Arm({"method": name}, lora(8), (rate,))
    for name, changes in ((STEADY_HIGH, lora(64, "rslora")), (FROZEN_HIGH, lora(8, "lora_fa"))):
        yield Arm({"method": name}, changes, RATES[-1:])


# What is measured on which runs. The method is said, for a run of a swept rate may be a tuned one, too.


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
    return [MeasurementSpec((run["key"],), {"method": run["method"], **settings}) for run in runs_of(results, SCALED)]


def each_critical(results):
    return [MeasurementSpec((run["key"],), {"method": run["method"]}) for run in runs_of(results, (LORA_1, LORA_8))]


# Statistics.


def rows_of(results, table, method):
    table = results.tables[table]
    chosen = table["method"].to_numpy() == method
    if not chosen.any():
        raise ValueError(f"nothing measured of {method}")
    return table, chosen


def count(results, method, column="found"):
    """Intruders of one run, over all its weights: the mean over runs."""
    table, chosen = rows_of(results, "leading", method)
    return table[column].to_numpy()[chosen].sum() / len(np.unique(table["replicate"].to_numpy()[chosen]))


def slots(method, column="found"):
    return lambda results: count(results, method, column) / count(results, method, "slots")


def matched(results, method):
    """The full fine-tuning whose mean test loss is the nearest."""
    return min(FULLS, key=lambda other: abs(loss(results, other) - loss(results, method)))


def apart(method):
    return lambda results: abs(share(results, method) - share(results, matched(results, method)))


def excess(method, column="found"):
    """Intruders of a run beyond three times those of full fine-tuning of the same loss."""
    return lambda results: count(results, method, column) - 3 * count(results, matched(results, method))


def ratio(first, second):
    def statistic(results):
        if not (below := count(results, second)):
            raise ValueError(f"{second} has no intruders")
        return count(results, first) / below

    return statistic


def points(results, methods=SWEEP):
    """A row for each run of the sweep: method, replicate, intruders, ‖ΔW‖, forgetting, pair_loss."""
    table = results.tables["leading"]
    table = table[table["method"].isin(methods)]
    if table.empty:
        raise ValueError("no run of the sweep")
    sums = table.groupby(["method", "replicate"])[["found", "squares"]].sum()
    return sums.join(results.tables["retained"].set_index(["method", "replicate"])[["forgetting", "pair_loss"]])


def ranked(values):
    """Ranks with ties averaged, standardised."""
    values = np.asarray(values, dtype=float)
    ranks = (values[:, None] > values).sum(1) + (values[:, None] == values).sum(1) / 2
    spread = ranks.std()
    if spread == 0:
        raise ValueError("all runs are equal in it")
    return (ranks - ranks.mean()) / spread


def correlation(first, second, *, partial_on=None, shuffled=False):
    """Spearman's ρ over the runs of the sweep, or the partial one; of the first one `shuffled` among the runs the mean
    over shuffles."""

    def statistic(results):
        table = points(results)
        rates = dict(zip(SWEEP, RATES, strict=True))
        table = table.assign(rate=[rates[method] for method, _ in table.index])
        x, y = ranked(table[first]), ranked(table[second])
        z = None if partial_on is None else ranked(table[partial_on])
        rng = np.random.default_rng(0)
        orders = [rng.permutation(x) for _ in range(SHUFFLES)] if shuffled else [x]
        return float(np.mean([rho(order, y, z) for order in orders]))

    return statistic


def rho(x, y, z=None):
    """Of standardised ranks; partial, given z."""
    if z is None:
        return float(np.mean(x * y))
    xy, xz, yz = (float(np.mean(p * q)) for p, q in ((x, y), (x, z), (y, z)))
    return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))


def scores(results, method, arm, factor, column):
    table, chosen = rows_of(results, "scaled", method)
    chosen = chosen & (table["arm"].to_numpy() == arm) & (table["factor"].to_numpy() == factor)
    chosen = chosen & (table["weights"].to_numpy() > 0)  # a run without any has no other factors
    if not chosen.any():
        raise ValueError("no weight of any run has an intruder")
    return float(table[column].to_numpy()[chosen].mean())


def spared(method, arm):
    """The share of the forgetting that is gone at λ."""

    def statistic(results):
        now, before = (scores(results, method, arm, factor, "forgetting") for factor in (USUAL, 1.0))
        return 1 - now / before

    return statistic


def cost(method, arm):
    """The rise of the task's loss at λ, over the run's gain."""

    def statistic(results):
        now, before = (scores(results, method, arm, factor, "loss") for factor in (USUAL, 1.0))
        if (gained := gain(results, method)) <= 0:
            raise ValueError("the run gained nothing that could be lost")
        return (now - before) / gained

    return statistic


def beyond(method, arm, other):
    """The spared share of one arm less that of another."""
    return lambda results: spared(method, arm)(results) - spared(method, other)(results)


def within_two(column):
    def statistic(results):
        table = results.tables["critical"]
        off = np.abs(np.log2(table[column].to_numpy() / table["measured"].to_numpy()))
        return float(np.mean(off <= 1))

    return statistic


def auc(shuffled=False, column="strength"):
    """Of the predicted factor, for whether a weight has an intruder: all weights of the sweep's runs. `column` may put
    the size of ΔW in its place, of which more says yes."""

    def statistic(results):
        table = results.tables["leading"]
        table = table[table["method"].isin(SWEEP) & table["strength"].notna()]
        has_intruder, strength = table["found"].to_numpy() > 0, table[column].to_numpy(float)
        strength = -strength if column == "strength" else strength
        strength = np.random.default_rng(0).permutation(strength) if shuffled else strength
        if has_intruder.all() or not has_intruder.any():
            raise ValueError("all weights, or none, have intruders")
        ranks = strength.argsort().argsort() + 1.0
        positives = has_intruder.sum()
        return float(
            (ranks[has_intruder].sum() - positives * (positives + 1) / 2) / (positives * (~has_intruder).sum())
        )

    return statistic


# Figures.


def behind(results):
    """What a count rests on: how strong ΔW is, beside what the run learned and lost."""
    table, rows = results.tables["leading"], []
    norms = table["squares"].groupby([table["method"], table["replicate"]]).sum() ** 0.5
    energy = table.groupby("method")[["energy_found", "energy"]].sum()
    margins, lost = (t.groupby("method")[c] for t, c in ((table, "margin"), (results.tables["retained"], "forgetting")))
    for method in table["method"].unique():
        intruders, part = count(results, method), energy["energy_found"][method] / energy["energy"][method]
        sizes = (float(margins.median()[method]), float(norms[method].mean()))
        scored = (share(results, method), float(lost.mean()[method]))
        rows.append((method, intruders, slots(method)(results), float(part), *sizes, *scored))
    columns = (
        Column("method", "Method"),
        Column("found", "Intruders in a run", "float"),
        Column("slots", "Of leading vectors", "percent"),
        Column("energy", "Of their energy", "percent"),
        Column("margin", "σ₁(ΔW) / σ₁₀(W)", "float"),
        Column("norm", "‖ΔW‖", "float"),
        Column("share", "Gain of full fine-tuning's", "percent"),
        Column("forgetting", "Forgetting", "float"),
    )
    caption = (
        f"k = {K}, ε = 0.5. Energy: Σσ² of the intruders over that of all leading vectors. σ₁(ΔW) / σ₁₀(W): median "
        "over weights and runs; a direction that W does not have is among the ten leading ones from about 1 on. ‖ΔW‖: "
        "over all weights of a run. Means over replicates. A count says how strong ΔW is as much as where it points."
    )
    return Table(columns, tuple(rows), "What the counts rest on", caption)


def by_epsilon(results):
    series = []
    for method in (LORA_1, LORA_8, LORA_64, STEADY, HIGH, STEADY_HIGH, FROZEN_HIGH, FULL_TUNING):
        y = tuple(count(results, method, f"found_{e}") / count(results, method, "slots") for e in EPSILONS)
        series.append(Series(method, EPSILONS, y))
    chance = float(results.tables["leading"]["chance"].median())
    caption = (
        f"Of the {K} leading left singular vectors of every W + ΔW, those whose |cos| with each of W's is below ε. "
        "Each method at its tuned rate, unless one is said; means over replicates."
    )
    marks = (Marker("x", chance, "random direction"),)
    return Lines("Intruders by ε", tuple(series), "ε", "share of leading vectors", markers=marks, caption=caption)


def by_run(results, column, title, label, caption, marks=()):
    others = (LORA_1, LORA_64, STEADY, STEADY_HIGH, FROZEN_HIGH)
    kinds = {"LoRA, r = 8, by rate": SWEEP, "full fine-tuning, by rate": FULLS[1:], "others": others}
    series = []
    for name, methods in kinds.items():
        table = points(results, methods)
        x, y = tuple(map(float, table["found"])), tuple(table[column])
        series.append(Series(name, x, y, points=tuple(method for method, _ in table.index)))
    caption = f"A point is a run; its name shows under the pointer. {caption}"
    return Lines(title, tuple(series), "intruders in a run", label, markers=marks, caption=caption)


def forgetting(results):
    base = float(results.tables["retained"]["pair_loss_of_base"].iloc[0])
    return [
        by_run(results, "forgetting", "Forgetting by intruders", "forgetting", f"{FORGETS}."),
        by_run(results, "pair_loss", "The pre-training's loss by intruders", "loss (nats)",
               "Which gloss belongs to a noun, among those of its class?", (Marker("y", base, "base"),)),
    ]  # fmt: skip


def weights_scaled(results):
    """How many weights of a run have an intruder, by method."""
    table = results.tables["scaled"]
    first = table[(table["arm"] == "intruder") & (table["factor"] == 1)]
    return first.groupby("method", sort=False)["weights"].mean()


def by_lambda(results, column, title, label):
    table, series = results.tables["scaled"], []
    if table.empty:
        return []
    table = table[table["weights"] > 0]
    for method in SCALED:
        part = table[table["method"] == method]
        for arm, arm_rows in part.groupby("arm", sort=False):
            lines = arm_rows.groupby("factor")[column]
            x = tuple(map(float, lines.mean().index))
            if len(x) > 1:
                series.append(
                    Series(arm, x, tuple(lines.mean()), method, low=tuple(lines.min()), high=tuple(lines.max()))
                )
    weight_counts = "; ".join(f"{method} {weights:.1f}" for method, weights in weights_scaled(results).items())
    caption = (
        "λ multiplies the singular value of the top intruder of each weight; 1 is the run as trained. Neighbour: the "
        "nearest direction that is no intruder. Shrink: ΔW as a whole, to the same norm. Step: ΔW as a whole, by as "
        "much. Random: a random direction in the intruder's place. Means over the runs that have an intruder, "
        f"the band from the lowest to the highest. Weights with an intruder, means over runs: {weight_counts}."
    )
    return [Lines(title, tuple(series), "λ", label, caption=caption)] if series else []


def thresholds(results):
    table = results.tables["critical"]
    series = []
    for method, part in table.groupby("method"):
        for column, panel in (("predicted", "from W's spectrum"), ("of_noise", "from noise of W's norm")):
            x, y = tuple(part["measured"]), tuple(part[column])
            series.append(Series(method, x, y, panel, points=tuple(part["module"])))
    ends = (float(table["measured"].min()), float(table["measured"].max()))
    panels = ("from W's spectrum", "from noise of W's norm")
    series += [Series("equal", ends, ends, panel, weight="reference") for panel in panels]
    caption = "A point is a weight of a run: by how much its ΔW has to be multiplied for a first intruder."
    with suppress(ValueError):  # all weights have intruders, or none
        areas = auc()(results), auc(column="squares")(results)
        caption += " Area under the ROC curve for whether a weight of LoRA, r = 8, at any of the rates has one: "
        caption += f"{areas[0]:.2f} of the factor, {areas[1]:.2f} of ‖ΔW‖ alone."
    return Lines(
        "Where intruders begin", tuple(series), "factor, measured", "factor, predicted", log_x=True, log_y=True,
        caption=caption,
    )  # fmt: skip


def figures(results):
    return [
        by_method(results), behind(results), by_epsilon(results), *forgetting(results),
        *by_lambda(results, "forgetting", "Forgetting with the intruders scaled", "forgetting"),
        *by_lambda(results, "loss", "Task loss with the intruders scaled", "loss (nats)"),
        thresholds(results),
    ]  # fmt: skip


PAPER = "Shuttleworth et al. 2024, arXiv 2410.21228v3"
COUNTS = "with the counts shuffled among the runs, mean over shuffles"
FORGETS = "Forgetting: 1 − Spearman's ρ of the similarities of glosses of one class, after tuning against before"


FEW_STEPS = (
    "How many there are follows ‖ΔW‖, which is small after 100 steps. The published runs have some 10⁵ steps: finding "
    "none here is no evidence about them."
)
UNEQUAL = (
    "It compares forgetting where the two cost the task unlike amounts. At equal task loss, interpolated in each run "
    "(LoRA, r = 1), scaling the intruders leaves more forgetting than shrinking ΔW as a whole: 0.012 ± 0.005 at λ = "
    "0.7, 0.015 ± 0.007 at 0.5, 0.017 ± 0.005 at 0.3 (mean and standard error of 5 runs)."
)


def exists(name, method, text, source, cannot_tell=None):
    return Claim(
        name,
        text,
        source,
        (
            Criterion("intruders of a run less three times full fine-tuning's, means over runs", excess(method),
                      at_least=1.0),
            Criterion("difference of the two in gain, over tuned full fine-tuning's", apart(method), at_most=0.1,
                      unit="percent"),
        ),
        (Control("with ΔW's singular values on W's own directions", excess(method, "aligned"), at_least=1.0),),
        "Against the full fine-tuning, of several rates, whose test loss is the nearest. The control: a ΔW of "
        "the same strength that points where W does has none. The table says how strong ΔW is.",
        cannot_tell=cannot_tell,
    )  # fmt: skip


def causes(name, method):
    return Claim(
        name,
        f"Scaling the top intruders by 0.7 spares 10 % of the forgetting and costs 1 % of the gain at most ({method})",
        f"{PAPER}, §5 (QQP, r = 8, λ = 0.7: forgetting −33.2 %, accuracy −0.0 %)",
        (
            Criterion("share of the forgetting that is gone at λ = 0.7", spared(method, "intruder"), at_least=0.1,
                      unit="percent"),
            Criterion("rise of the task's test loss over the run's gain", cost(method, "intruder"), at_most=0.01,
                      unit="percent"),
        ),
        (
            Control("the same of the nearest direction that is no intruder", spared(method, "neighbour"),
                    at_least=0.1, unit="percent"),
            Control("the same of a random direction", spared(method, "random"), at_least=0.1, unit="percent"),
        ),
        f"Of the runs that have an intruder. {FORGETS}",
    )  # fmt: skip


def specific(name, method, cannot_tell):
    return Claim(
        name,
        f"Scaling the top intruders spares more forgetting than shrinking ΔW as a whole ({method})",
        f"{PAPER}, §5, has no such control; an unreviewed test on Llama-2-7B found no benefit beyond shrinking",
        (
            Criterion("spared share at λ = 0.7 less that of ΔW shrunk to the same norm",
                      beyond(method, "intruder", "shrink"), at_least=0.0, unit="percent"),
            Criterion("the same, less that of ΔW shrunk by as much", beyond(method, "intruder", "step"), at_least=0.0,
                      unit="percent"),
        ),
        (
            Control("a random direction in the intruder's place, less ΔW shrunk to the same norm",
                    beyond(method, "random", "shrink"), at_least=0.0, unit="percent"),
            Control("a random direction in the intruder's place, less ΔW shrunk by as much",
                    beyond(method, "random", "step"), at_least=0.0, unit="percent"),
        ),
        "Of the runs that have an intruder. Where scaling it makes ‖ΔW‖ larger, as it does where it holds more of W "
        "than of ΔW, shrinking to the same norm is no shrinking. What each costs the task is in a figure; this "
        f"compares forgetting alone. {FORGETS}",
        cannot_tell=cannot_tell,
    )  # fmt: skip


def fewer(name, text, source, first, second, note, cannot_tell):
    return Claim(
        name,
        text,
        source,
        (Criterion(f"intruders of {first} over those of {second}", ratio(first, second), at_most=0.5),),
        (Control(f"the same of {second} over {SWEEP[-2]}", ratio(second, SWEEP[-2]), at_most=0.5),),
        note,
        cannot_tell=cannot_tell,
    )


study = Study(
    name="intruders",
    title="Intruder dimensions",
    question="Does LoRA give a weight leading singular directions that the base did not have, where full fine-tuning "
    "of the same loss does not, and are they what makes a model forget?",
    varied="the method and r; the learning rate of LoRA, r = 8, and of full fine-tuning; in trained runs, the singular "
    "value of each weight's top intruder, with controls",
    tuned="the learning rate, but in the arms that name one",
    fixed="α = 16; all linear layers adapted; the head's rate; k = 10, ε = 0.5",
    scales=scales({"smoke": {"texts": 60}, "small": {"texts": 500}, "full": {"texts": 1000}}),
    arms=arms,
    measures=(
        Measure("leading", leading, each_tuned),
        Measure("retained", retained, each_retained),
        Measure("scaled", scaled, each_scaled),
        Measure("critical", critical, each_critical),
    ),
    claims=(
        exists("exist", LORA_8, "LoRA of r = 8 has intruders where full fine-tuning of the same loss has few",
               f"{PAPER}, §3, Figure 4", FEW_STEPS),
        exists("exist-r1", LORA_1, "LoRA of r = 1 has intruders where full fine-tuning of the same loss has few",
               f"{PAPER}, §3, Figure 4"),
        exists("exist-r64", LORA_64,
               "With a fixed α LoRA of r = 64 has intruders, too, where full fine-tuning of the same loss has few",
               f"{PAPER}, §4 (α = 8: all ranks have them)", FEW_STEPS),
        Claim(
            "full",
            "Full fine-tuning has next to no intruders: 5 % of its leading vectors at most",
            f"{PAPER}, §3, Figure 4",
            (
                Criterion("share of leading vectors that are intruders", slots(FULL_TUNING), at_most=0.05,
                          unit="percent"),
            ),
            (
                Control("with ten random directions planted, twice as strong as W's first",
                        slots(FULL_TUNING, "planted"), at_most=0.05, unit="percent"),
            ),
        ),
        fewer("rank", "At one scale of B·A and one rate, LoRA of r = 64 has half of the intruders of r = 8 at most",
              f"{PAPER}, §3, Figure 4 (with α = 2r they vanish at r = 64)", STEADY_HIGH, HIGH,
              "B·A is multiplied by 2 in both: α/r at r = 8, α/√r at r = 64. The two need not learn as much, nor have "
              "a ΔW of one size: see the table.",
              "The intruders of r = 64 are of a network that collapsed at this rate (loss 2.88, accuracy 14.6 %, ‖ΔW‖ "
              "366 against 43 at r = 8), so that their number says nothing of the rank."),
        fewer("frozen", "At one rate LoRA whose A is frozen (LoRA-FA) has half of the intruders of LoRA at most",
              f"{PAPER}, appendix A.5 (A random, of singular values 1; B trained)", FROZEN_HIGH, HIGH,
              "A is Kaiming-uniform here. The two need not learn as much, nor have a ΔW of one size: see the table.",
              "How many there are follows ‖ΔW‖, which at one rate is half as large in LoRA-FA: where it is equal (22.2 "
              "and 22.4) LoRA-FA has 10.2 intruders and LoRA 9.4."),
        Claim(
            "rate",
            "A higher learning rate makes more intruders",
            f"{PAPER}, §4, Figure 7",
            (Criterion("Spearman's ρ of learning rate and intruders over runs", correlation("rate", "found"),
                       at_least=0.7),),
            (Control("with the rates shuffled among the runs, mean over shuffles",
                     correlation("rate", "found", shuffled=True), at_least=0.7),),
            "LoRA, r = 8, four rates.",
        ),
        Claim(
            "forgetting",
            "Runs with more intruders have forgotten more",
            f"{PAPER}, §4, Figure 7 (ρ = 0.97 over learning rates)",
            (Criterion("Spearman's ρ of intruders and forgetting over runs", correlation("found", "forgetting"),
                       at_least=0.7),),
            (Control(COUNTS, correlation("found", "forgetting", shuffled=True),
                     at_least=0.7),),
            f"LoRA, r = 8, four rates. {FORGETS}",
        ),
        Claim(
            "objective",
            "Runs with more intruders are worse at what the base was pre-trained for",
            f"{PAPER}, §4, Figure 7",
            (Criterion("Spearman's ρ of intruders and the pre-training's loss over runs",
                       correlation("found", "pair_loss"), at_least=0.7),),
            (Control(COUNTS, correlation("found", "pair_loss", shuffled=True),
                     at_least=0.7),),
            "LoRA, r = 8, four rates. Which gloss belongs to a noun, among those of its class.",
            cannot_tell=PAIRS_CANNOT_TELL,
        ),
        Claim(
            "beyond-size",
            "Of runs whose ΔW are equally large, those with more intruders have forgotten more",
            "Not in the paper; an unreviewed test on Llama-2-7B holds that the size drives forgetting",
            (Criterion("Spearman's partial ρ of intruders and forgetting, given ‖ΔW‖",
                       correlation("found", "forgetting", partial_on="squares"), at_least=0.3),),
            (Control(COUNTS,
                     correlation("found", "forgetting", partial_on="squares", shuffled=True), at_least=0.3),),
            f"LoRA, r = 8, four rates. The rate drives all three, so that little is left to tell them apart. {FORGETS}",
        ),
        causes("causal", HIGH),
        causes("causal-r1", LORA_1),
        specific("specific", HIGH, "At this rate, three times the tuned one, shrinking ΔW in any way makes the task "
                 "itself better, and forgetting is compared where the two cost it unlike amounts."),
        specific("specific-r1", LORA_1, UNEQUAL),
        Claim(
            "threshold",
            "For 70 % of weights W's spectrum alone says, within a factor of 2, how strong ΔW must be for an intruder",
            "The Intruder Threshold, Xie 2026, arXiv 2607.23711, abstract (82 % of layers)",
            (Criterion("share of weights within a factor of 2", within_two("predicted"), at_least=0.7,
                       unit="percent"),),
            (Control("from the spectrum of noise of W's shape and norm", within_two("of_noise"), at_least=0.7,
                     unit="percent"),),
            "Tuned LoRA of r = 1 and 8. ΔW is multiplied until its first intruder: from W's spectrum, until its first "
            "singular direction is among the ten leading ones. Weights of one run are not independent; replicates are "
            "resampled.",
            cannot_tell="The control, a spectrum of noise, fails beside any rule. The plain rule that σ₁(ΔW) reaches "
            "σ₁₀(W) does better on the same 180 weights: 96 % against 94 % within a factor of 2, 91 % against 43 % "
            "within 1.5.",
        ),
        Claim(
            "detects",
            "The factor that W's spectrum predicts for a first intruder tells the weights that have one",
            "The Intruder Threshold, Xie 2026, arXiv 2607.23711, abstract (AUC 0.89)",
            (Criterion("area under the ROC curve", auc(), at_least=0.8),),
            (Control("with the factors shuffled among the weights", auc(shuffled=True), at_least=0.8),),
            "All weights of LoRA, r = 8, at four rates, which change the size of ΔW: the figure says what the size "
            "alone tells.",
            cannot_tell="The control, shuffled factors, fails beside any rule. The margin σ₁(ΔW)/σ₁₀(W) alone has the "
            "same area, 0.988.",
        ),
    ),
    figures=figures,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
