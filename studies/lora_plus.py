"""Should B learn faster than A? LoRA+ over ratios of the two learning rates, each with its own sweep.

python studies/lora_plus.py --scale small --jobs 2
"""

from functools import reduce
from itertools import combinations

import numpy as np

from lorascope.blocks import Lines, Marker, Series
from lorascope.study import Arm, Claim, Control, Criterion, Study
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE, by_method, lead, loss
from lorascope.study.tasks import PLUS_RATES, PLUS_WITHDRAWN, VARIANTS, full_arm, head_arm, lora, scales, variant_arm

SLOWER, EQUAL, FEW, PLUS, MANY = "LoRA+, λ = 1/16", "LoRA", "LoRA+, λ = 4", "LoRA+", "LoRA+, λ = 64"
RATIOS = {SLOWER: 1 / 16, EQUAL: 1.0, FEW: 4.0, PLUS: 16.0, MANY: 64.0}
RATES = {SLOWER: (3e-3, 1e-2, 3e-2, 1e-1, 3e-1), FEW: (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), MANY: PLUS_RATES}
HIGHER = (FEW, PLUS, MANY)
SHORT = {method: f"{method}, 90 % of the steps" for method in (PLUS, EQUAL, SLOWER)}


def changes_of(method):
    if method in VARIANTS:
        return VARIANTS[method][0]
    return {**lora(8, "lora_plus"), "method.loraplus_lr_ratio": RATIOS[method]}


def arms(scale):
    yield head_arm({"method": HEAD_ALONE})
    yield full_arm({"method": FULL_TUNING})
    for method in RATIOS:
        if method in VARIANTS:
            yield variant_arm(method)
        else:
            yield Arm({"method": method}, changes_of(method), RATES[method])
    steps = round(0.9 * scale.config["training"]["max_steps"])
    for method, short in SHORT.items():
        yield Arm({"method": short}, {**changes_of(method), "training.max_steps": steps}, rate_of={"method": method})


def losses(results, method):
    runs = results.runs
    method_losses = runs["loss"].to_numpy()[runs["method"].to_numpy() == method]
    if not len(method_losses):
        raise ValueError(f"no run of {method}")
    return method_losses


def one_of_each(results, methods):
    """The lowest loss of one run of each method, of all ways to draw them: their replicates have nothing in common."""
    return reduce(np.minimum, np.ix_(*(losses(results, method) for method in methods))).ravel()


def as_many(results, method):
    """The lowest loss of as many runs of one method as there are higher ratios, of all ways to draw them."""
    run_losses = losses(results, method)
    return np.array([min(subset) for subset in combinations(run_losses, min(len(HIGHER), len(run_losses)))])


def below(first, second):
    """The share of pairs of which the first is lower."""
    return 1 - float(np.searchsorted(np.sort(second), first, side="right").mean()) / len(second)


def lowest_is_higher(results):
    return below(one_of_each(results, HIGHER), one_of_each(results, (SLOWER, EQUAL)))


def higher_against_equal(results):
    return below(one_of_each(results, HIGHER), as_many(results, EQUAL))


def slower_against_equal(results):
    return below(as_many(results, SLOWER), as_many(results, EQUAL))


def figures(results):
    return [by_method(results), by_ratio(results), sweeps(results)]


def by_ratio(results):
    losses_by_ratio = [losses(results, method) for method in RATIOS]
    low, mean, high = (
        tuple(float(statistic(run_losses)) for run_losses in losses_by_ratio) for statistic in (np.min, np.mean, np.max)
    )
    levels = (HEAD_ALONE, FULL_TUNING)
    return Lines(
        "Loss by ratio",
        (Series("LoRA+", tuple(RATIOS.values()), mean, low=low, high=high),),
        "λ, B's learning rate over A's",
        "test loss (nats)",
        log_x=True,
        markers=tuple(Marker("y", loss(results, method), method) for method in levels),
        caption="Means over replicates, the band from the best to the worst one; every λ with its own best rate of A.",
    )


def sweeps(results):
    series = []
    for method, ratio in RATIOS.items():
        curve = results.curves[results.curves["method"] == method].dropna(subset=["held_out_loss"])
        curve = curve.sort_values("learning_rate")
        held_out, rates = tuple(curve["held_out_loss"]), curve["learning_rate"]
        name = f"λ = {ratio:g}" if ratio >= 1 else "λ = 1/16"
        series.append(Series(name, tuple(rates), held_out, "by A's learning rate"))
        series.append(Series(name, tuple(rates * ratio), held_out, "by B's learning rate"))
    return Lines(
        "Sweeps of the learning rate",
        tuple(series),
        "learning rate",
        "held-out loss (nats)",
        log_x=True,
        caption="One run each: the sweeps by which the rates were chosen. λ: B's rate over A's.",
    )


PAPER = "Hayou, Ghosh and Yu 2024, arXiv 2402.12354"

study = Study(
    name="lora_plus",
    title="Should B learn faster than A?",
    question="Does a higher learning rate for B than for A gain more or learn faster, if A's rate is tuned for each "
    "ratio?",
    varied="λ, B's learning rate over A's; and the number of steps",
    tuned="A's learning rate, for every λ",
    fixed="r = 8, α = 16 on all linear layers; A Kaiming-uniform, B = 0; AdamW without weight decay, linear decay; the "
    "head's rate",
    scales=scales({"smoke": {}, "small": {}, "full": {}}),
    arms=arms,
    claims=(
        Claim(
            "ratio",
            "The best ratio of B's rate to A's is 4 or more",
            f"{PAPER} (η_A of order 1/n, η_B of order 1)",
            (
                Criterion("one run of each λ: draws whose lowest loss has λ ≥ 4", lowest_is_higher, at_least=0.8,
                          unit="percent"),
                Criterion("one run of each λ ≥ 4 against three of λ = 1: draws whose lowest loss has λ ≥ 4",
                          higher_against_equal, at_least=0.8, unit="percent"),
            ),
            (
                Control("three runs of λ = 1/16 against three of λ = 1: draws whose lowest loss has λ = 1/16",
                        slower_against_equal, at_least=0.8, unit="percent"),
            ),
            "Of λ = 1/16, 1, 4, 16 and 64. If λ made no difference, the first number would be 60 %, for three of five "
            "runs have λ ≥ 4, and the second 50 %. Intervals are of replicates: the rates come from one sweep each.",
            withdrawn="Tuning grid too coarse. Each ratio has its rate from one run per rate on a grid of factor 3.3; "
            "that λ = 16 gains less than λ = 1 became undecided when it was re-trained at half a step of that grid. "
            "The other ratios have not been re-trained.",
        ),
        Claim(
            "better",
            "LoRA+ with λ = 16 gains more than LoRA, by 1 % of full fine-tuning's gain",
            f"{PAPER}, abstract (1 to 2 % in performance)",
            (Criterion("gain of λ = 16 less that of λ = 1, over full fine-tuning's", lead(PLUS, EQUAL), at_least=0.01,
                       unit="percent"),),
            (Control("λ = 1/16 less λ = 1", lead(SLOWER, EQUAL), at_least=0.01, unit="percent"),),
            "Both with their own best rates of A. Under Adam LoRA+ with λ = 16 is LoRA whose A starts four times as "
            "large, at four times A's rate (by Schulman's invariance, 2025): which λ is best depends on A's start.",
            withdrawn=PLUS_WITHDRAWN,
        ),
        Claim(
            "faster",
            "In nine tenths of the steps LoRA+ gains at least as much as LoRA in all of them",
            f"{PAPER}, abstract (up to twice as fast)",
            (Criterion("gain of λ = 16 in 90 % of the steps, less that of λ = 1 in all, over full fine-tuning's",
                       lead(SHORT[PLUS], EQUAL), at_least=0.0, unit="percent"),),
            (
                Control("λ = 1 in 90 % of the steps, less λ = 1 in all", lead(SHORT[EQUAL], EQUAL), at_least=0.0,
                        unit="percent"),
                Control("λ = 1/16 in 90 % of the steps, less λ = 1 in all", lead(SHORT[SLOWER], EQUAL), at_least=0.0,
                        unit="percent"),
            ),
            "The schedule is the shorter run's own; the learning rate is the longer one's. Where LoRA itself loses "
            "nothing for a tenth of its steps, nothing is shown.",
            withdrawn="Tuning grid too coarse. The rate of LoRA+ is that of the longer runs, at which its gain did not "
            "stand when it was re-trained at half a step of the grid beyond. The shorter runs have not been "
            "re-trained.",
        ),
    ),
    figures=figures,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
