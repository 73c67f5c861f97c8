"""Intruder dimensions: does LoRA add singular directions that full fine-tuning does not, and do they make it forget?

python studies/intruders.py --scale small --jobs 2
"""

import numpy as np

from lorascope.blocks import Lines, Marker, Series
from lorascope.study import Arm, Call, Claim, Control, Criterion, Measure, Study
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE, by_method, gain, loss, share
from lorascope.study.measures.intruding import EPSILONS, K, critical, leading, retained, scaled
from lorascope.study.tasks import FULL, LORA_RATES, full_arm, head_arm, lora, scales

RATES = (1e-3, 3e-3, 6e-3, 1e-2)  # of LoRA; beyond them it learns nothing
FULL_RATES = (1e-4, 3e-4, 1e-3)
LORA_1, LORA_8, LORA_64, STEADY = "LoRA, r = 1", "LoRA, r = 8", "LoRA, r = 64", "rsLoRA, r = 64"
SWEEP = tuple(f"{LORA_8}, rate {rate:g}" for rate in RATES)
FULLS = (FULL_TUNING, *(f"{FULL_TUNING}, rate {rate:g}" for rate in FULL_RATES))
HIGH = SWEEP[-1]
STEADY_HIGH, FROZEN_HIGH = (f"{name}, rate {RATES[-1]:g}" for name in (STEADY, "LoRA-FA, r = 8"))
SCALED = (LORA_1, HIGH)
USUAL = 0.7  # the λ that the paper reports


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
    return [Call((run["key"],), {"method": run["method"]}) for run in runs_of(results)]


def each_retained(results):
    texts = results.scale.params["texts"]
    return [Call((run["key"],), {"method": run["method"], "texts": texts}) for run in runs_of(results)]


def each_scaled(results):
    given = {"texts": results.scale.params["texts"], "split": results.scale.test_split}
    return [Call((run["key"],), {"method": run["method"], **given}) for run in runs_of(results, SCALED)]


def each_critical(results):
    return [Call((run["key"],), {"method": run["method"]}) for run in runs_of(results, (LORA_1, LORA_8))]


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


def ratio(first, second, column="found"):
    def statistic(results):
        if not (below := count(results, second, column)):
            raise ValueError(f"{second} has no intruders")
        return count(results, first, column) / below

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


def correlation(first, second, *, given=None, shuffled=False):
    """Spearman's ρ over the runs of the sweep, or the partial one; `shuffled` the first one among the runs."""

    def statistic(results):
        table = points(results)
        rates = dict(zip(SWEEP, RATES, strict=True))
        table = table.assign(rate=[rates[method] for method, _ in table.index])
        x = ranked(table[first])
        x = np.random.default_rng(0).permutation(x) if shuffled else x
        y = ranked(table[second])
        if given is None:
            return float(np.mean(x * y))
        z = ranked(table[given])
        xy, xz, yz = (float(np.mean(p * q)) for p, q in ((x, y), (x, z), (y, z)))
        return (xy - xz * yz) / np.sqrt((1 - xz**2) * (1 - yz**2))

    return statistic


def scores(results, method, arm, factor, column):
    table, chosen = rows_of(results, "scaled", method)
    chosen = chosen & (table["arm"].to_numpy() == arm) & (table["factor"].to_numpy() == factor)
    if not chosen.any():
        raise ValueError("no weight has an intruder")
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
        return (now - before) / gain(results, method)

    return statistic


def beyond_shrinking(method, arm):
    """The spared share less that of ΔW shrunk as a whole, the better of the two ways."""

    def statistic(results):
        return spared(method, arm)(results) - max(spared(method, other)(results) for other in ("shrink", "step"))

    return statistic


def within_two(column):
    def statistic(results):
        table = results.tables["critical"]
        off = np.abs(np.log2(table[column].to_numpy() / table["measured"].to_numpy()))
        return float(np.mean(off <= 1))

    return statistic


def auc(shuffled=False):
    """Of the predicted factor, for whether a weight has an intruder: all weights of the sweep's runs."""

    def statistic(results):
        table = results.tables["leading"]
        table = table[table["method"].isin(SWEEP) & table["strength"].notna()]
        there, strength = table["found"].to_numpy() > 0, -table["strength"].to_numpy()
        strength = np.random.default_rng(0).permutation(strength) if shuffled else strength
        if there.all() or not there.any():
            raise ValueError("all weights, or none, have intruders")
        ranks = strength.argsort().argsort() + 1.0
        yes = there.sum()
        return float((ranks[there].sum() - yes * (yes + 1) / 2) / (yes * (~there).sum()))

    return statistic


# Figures.


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


def by_lambda(results, column, title, label):
    table, series = results.tables["scaled"], []
    if table.empty:
        return []
    for method in SCALED:
        part = table[table["method"] == method]
        for arm, own in part.groupby("arm", sort=False):
            lines = own.groupby("factor")[column]
            x = tuple(map(float, lines.mean().index))
            if len(x) > 1:
                series.append(
                    Series(arm, x, tuple(lines.mean()), method, low=tuple(lines.min()), high=tuple(lines.max()))
                )
    caption = (
        "λ multiplies the singular value of the top intruder of each weight; 1 is the run as trained. Neighbour: the "
        "nearest direction that is no intruder. Shrink: ΔW as a whole, to the same norm. Step: ΔW as a whole, by as "
        "much. Random: a random direction in the intruder's place. Means, the band from the lowest to the highest run."
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
    return Lines(
        "Where intruders begin", tuple(series), "factor, measured", "factor, predicted", log_x=True, log_y=True,
        caption=caption,
    )  # fmt: skip


def figures(results):
    return [
        by_method(results), by_epsilon(results), *forgetting(results),
        *by_lambda(results, "forgetting", "Forgetting with the intruders scaled", "forgetting"),
        *by_lambda(results, "loss", "Task loss with the intruders scaled", "loss (nats)"),
        thresholds(results),
    ]  # fmt: skip


PAPER = "Shuttleworth et al. 2024, arXiv 2410.21228v3"
FORGETS = "Forgetting: 1 − Spearman's ρ of the similarities of glosses of one class, after tuning against before"


def exists(name, method, text, source, note=""):
    return Claim(
        name,
        text,
        source,
        (
            Criterion("intruders of a run beyond three times full fine-tuning's", excess(method), at_least=1.0),
            Criterion("difference of the two in gain, over full fine-tuning's", apart(method), at_most=0.1,
                      unit="percent"),
        ),
        (Control("with ΔW's singular values on W's own directions", excess(method, "aligned"), at_least=1.0),),
        note or "Against the full fine-tuning, of several rates, whose test loss is the nearest.",
    )  # fmt: skip


def causes(name, method):
    return Claim(
        name,
        f"Scaling the top intruders down cuts forgetting and costs the task next to nothing ({method})",
        f"{PAPER}, §5 (QQP, λ = 0.7: forgetting −33 %, accuracy −0.0 %)",
        (
            Criterion("share of the forgetting that is gone at λ = 0.7", spared(method, "intruder"), at_least=0.1,
                      unit="percent"),
            Criterion("rise of the test loss over the gain", cost(method, "intruder"), at_most=0.01, unit="percent"),
        ),
        (
            Control("the same of the nearest direction that is no intruder", spared(method, "neighbour"),
                    at_least=0.1, unit="percent"),
            Control("the same of a random direction", spared(method, "random"), at_least=0.1, unit="percent"),
        ),
        FORGETS,
    )  # fmt: skip


def specific(name, method):
    return Claim(
        name,
        f"It is the intruders and not the size of ΔW: shrinking ΔW as a whole spares less ({method})",
        f"{PAPER}, §5, has no such control; an unreviewed test on Llama-2-7B found no benefit beyond shrinking",
        (
            Criterion("spared share at λ = 0.7 less that of ΔW shrunk to the same norm or by as much, the better one",
                      beyond_shrinking(method, "intruder"), at_least=0.0, unit="percent"),
        ),
        (
            Control("a random direction in the intruder's place", beyond_shrinking(method, "random"), at_least=0.0,
                    unit="percent"),
        ),
        FORGETS,
    )  # fmt: skip


def fewer(name, text, source, first, second, at_most, note=""):
    return Claim(
        name,
        text,
        source,
        (Criterion(f"intruders of {first} over those of {second}", ratio(first, second), at_most=at_most),),
        (Control("of random directions planted in both", ratio(first, second, "planted"), at_most=at_most),),
        note,
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
               f"{PAPER}, §3, Figure 4"),
        exists("exist-r1", LORA_1, "So has LoRA of r = 1", f"{PAPER}, §3, Figure 4"),
        exists("exist-r64", LORA_64, "With α fixed LoRA of r = 64 has them, too", f"{PAPER}, §4 (α = 8)"),
        Claim(
            "full",
            "Full fine-tuning has next to none",
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
        fewer("rank", "At one scale of B·A and one rate more r makes fewer: r = 64 half of those of r = 8 at most",
              f"{PAPER}, §3, Figure 4 (with α = 2r they vanish at r = 64)", STEADY_HIGH, HIGH, 0.5,
              "B·A is multiplied by 2 in both: α/r at r = 8, α/√r at r = 64."),
        fewer("frozen", "Freezing A makes far fewer at one rate: LoRA-FA half of LoRA's at most",
              f"{PAPER}, appendix A.5 (A random, B trained)", FROZEN_HIGH, HIGH, 0.5),
        Claim(
            "rate",
            "A higher learning rate makes more intruders",
            f"{PAPER}, §4, Figure 7",
            (Criterion("Spearman's ρ of learning rate and intruders over runs", correlation("rate", "found"),
                       at_least=0.7),),
            (Control("with the rates shuffled among the runs", correlation("rate", "found", shuffled=True),
                     at_least=0.7),),
            "LoRA, r = 8, four rates.",
        ),
        Claim(
            "forgetting",
            "Runs with more intruders have forgotten more",
            f"{PAPER}, §4, Figure 7 (ρ = 0.97 over learning rates)",
            (Criterion("Spearman's ρ of intruders and forgetting over runs", correlation("found", "forgetting"),
                       at_least=0.7),),
            (Control("with the counts shuffled among the runs", correlation("found", "forgetting", shuffled=True),
                     at_least=0.7),),
            f"LoRA, r = 8, four rates. {FORGETS}",
        ),
        Claim(
            "objective",
            "Runs with more intruders are worse at what the base was pre-trained for",
            f"{PAPER}, §4, Figure 7",
            (Criterion("Spearman's ρ of intruders and the pre-training's loss over runs",
                       correlation("found", "pair_loss"), at_least=0.7),),
            (Control("with the counts shuffled among the runs", correlation("found", "pair_loss", shuffled=True),
                     at_least=0.7),),
            "LoRA, r = 8, four rates. Which gloss belongs to a noun, among those of its class.",
        ),
        Claim(
            "beyond-size",
            "That holds beyond the size of ΔW",
            "Not in the paper; an unreviewed test on Llama-2-7B holds that the size drives forgetting",
            (Criterion("the same ρ, partial, given ‖ΔW‖", correlation("found", "forgetting", given="squares"),
                       at_least=0.3),),
            (Control("with the counts shuffled among the runs",
                     correlation("found", "forgetting", given="squares", shuffled=True), at_least=0.3),),
            "The rate drives all three, so that little is left to tell them apart.",
        ),
        causes("causal", HIGH),
        causes("causal-r1", LORA_1),
        specific("specific", HIGH),
        specific("specific-r1", LORA_1),
        Claim(
            "threshold",
            "W's spectrum alone says how strong ΔW must be for an intruder, within a factor of 2",
            "The Intruder Threshold, Xie 2026, arXiv 2607.23711, abstract (82 % of layers)",
            (Criterion("share of weights within a factor of 2", within_two("predicted"), at_least=0.7,
                       unit="percent"),),
            (Control("from the spectrum of noise of W's shape and norm", within_two("of_noise"), at_least=0.7,
                     unit="percent"),),
            "Tuned LoRA of r = 1 and 8. ΔW is multiplied until its first intruder.",
        ),
        Claim(
            "detects",
            "That factor tells the weights with intruders from those without",
            "The Intruder Threshold, Xie 2026, arXiv 2607.23711, abstract (AUC 0.89)",
            (Criterion("area under the ROC curve", auc(), at_least=0.8),),
            (Control("with the factors shuffled among the weights", auc(shuffled=True), at_least=0.8),),
            "All weights of LoRA, r = 8, at four rates.",
        ),
    ),
    figures=figures,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
