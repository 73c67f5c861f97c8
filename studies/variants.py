"""Do the differences between variants of LoRA survive tuning? Each at its own learning rate, and all at LoRA's.

python studies/variants.py --scale small --jobs 2
"""

from lorascope.blocks import Column, Lines, Series, Table
from lorascope.inputs import read_json_lines
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE, by_method, lead, share
from lorascope.study.tasks import (
    LORA_RATES,
    PLUS_WITHDRAWN,
    VARIANTS,
    full_arm,
    head_arm,
    lora,
    scales,
    variant_arm,
)

LORA = "LoRA"
FAMILY = ("LoRA", "rsLoRA", "LoRA+", "DoRA", "PiSSA", "OLoRA")  # all of rank r, both factors trained
OTHERS = tuple(name for name in FAMILY if name != LORA)
ONE_RATE = tuple(name for name in FAMILY if name != "LoRA+")  # which has two
HALF = "LoRA, 1/2 of the steps"


def untuned(name):
    return name if name == LORA else f"{name}, LoRA's rate"


def of_rank(rank):
    return LORA if rank == 8 else f"LoRA, r = {rank}"


def arms(scale):
    yield head_arm({"method": HEAD_ALONE})
    yield full_arm({"method": FULL_TUNING})
    for name in VARIANTS:
        yield variant_arm(name)
    for name in OTHERS:
        yield Arm({"method": untuned(name)}, VARIANTS[name][0], rate_of={"method": LORA})
    steps = max(1, scale.config["training"]["max_steps"] // 2)
    yield Arm({"method": HALF}, {**VARIANTS[LORA][0], "training.max_steps": steps}, rate_of={"method": LORA})
    for rank in scale.params["ranks"]:
        if rank != 8:
            yield Arm({"method": of_rank(rank)}, lora(rank), LORA_RATES)


def losses(folders, method):
    """The training loss as the run has logged it."""
    lines = [line for line in read_json_lines(folders[0] / "metrics.jsonl") if line]
    return [{"step": line["step"], "train_loss": line["train_loss"]} for line in lines if "train_loss" in line]


def each_tuned(results):
    runs = results.runs[results.runs["method"].isin((HEAD_ALONE, *FAMILY, untuned("PiSSA")))]
    # the method is said, for a run whose own rate is LoRA's belongs to two arms
    return [MeasurementSpec((row["key"],), {"method": row["method"]}) for row in runs.to_dict("records")]


def spread(named=lambda name: name):
    """The best gain less the worst one, over full fine-tuning's."""

    def statistic(results):
        shares = [share(results, named(name)) for name in FAMILY]
        return max(shares) - min(shares)

    return statistic


def best_over(method):
    """The best variant's gain less this method's, over full fine-tuning's."""
    return lambda results: max(share(results, name) for name in OTHERS) - share(results, method)


def tuned_rates(results):
    return results.runs.groupby("method")["learning_rate"].first()


def apart(names):
    """The highest learning rate of these over the lowest."""

    def statistic(results):
        rates = tuned_rates(results)
        rates_of_variants = [rates[name] for name in names(results)]
        return round(max(rates_of_variants) / min(rates_of_variants), 6)

    return statistic


def own_over_loras(results):
    """Of the variants whose rate is not LoRA's: the mean gain at it less that at LoRA's, over full fine-tuning's."""
    rates = tuned_rates(results)
    differ = [name for name in ONE_RATE if rates[name] != rates[LORA]]
    if not differ:
        raise ValueError("no variant's best rate differs from LoRA's")
    return sum(share(results, name) - share(results, untuned(name)) for name in differ) / len(differ)


def early(results, name):
    """The mean training loss that was logged in the first tenth of training."""
    table = results.tables["losses"]
    steps = table["step"].to_numpy()
    chosen = (table["method"].to_numpy() == name) & (steps <= max(steps.min(), steps.max() / 10))
    if not chosen.any():
        raise ValueError(f"no run of {name}")
    return float(table["train_loss"].to_numpy()[chosen].mean())


def faster(first, second):
    return lambda results: early(results, second) - early(results, first)


def figures(results):
    table = results.tables["losses"]
    series = []
    for name in FAMILY:
        means = table[table["method"] == name].groupby("step")["train_loss"].mean()
        series.append(Series(name, tuple(map(float, means.index)), tuple(means)))
    curves = Lines(
        "Training loss",
        tuple(series),
        "step",
        "loss of the step's texts (nats)",
        caption="Means over replicates, each method at its own best learning rate.",
    )
    curves = [curves] if table["step"].nunique() > 1 else []
    return [by_method(results), _by_rate(results), _sweeps(results), *curves]


def _by_rate(results):
    """Every variant at its own rate and at LoRA's."""
    rates, runs, rows = tuned_rates(results), results.runs, []
    head, full = (runs.loc[runs["method"] == name, "loss"].mean() for name in (HEAD_ALONE, FULL_TUNING))
    for name in FAMILY:
        gains = (head - runs.loc[runs["method"] == name, "loss"]) / (head - full)
        rows.append((name, rates[name], gains.mean(), gains.min(), gains.max(), share(results, untuned(name))))
    columns = (
        Column("method", "Method"),
        Column("rate", "Own rate", "float"),
        Column("own", "Gain at it", "percent"),
        Column("least", "Least", "percent"),
        Column("most", "Most", "percent"),
        Column("untuned", "Gain at LoRA's rate", "percent"),
    )
    caption = "Of full fine-tuning's gain; means over replicates, and the least and the most of them. LoRA+: A's rate."
    return Table(columns, tuple(rows), "At its own rate and at LoRA's", caption)


def _sweeps(results):
    series = []
    for name in FAMILY:
        curve = results.curves[results.curves["method"] == name].dropna(subset=["held_out_loss"])
        curve = curve.sort_values("learning_rate")
        series.append(Series(name, tuple(curve["learning_rate"]), tuple(curve["held_out_loss"])))
    caption = "One run each: the sweeps by which the rates were chosen. LoRA+: A's rate."
    return Lines("Sweeps of the learning rate", tuple(series), "learning rate", "held-out loss (nats)", log_x=True,
                 caption=caption)  # fmt: skip


TUNED = "Learning Rate Matters 2026, arXiv 2602.04998 (nine variants within 1 to 2 %)"


def paper(name, source, note="", withdrawn=None):
    """A variant's own claim over LoRA, both tuned."""
    return Claim(
        f"{name}-over-lora",
        f"{name} gains more than LoRA",
        source,
        (Criterion(f"gain of {name} less that of LoRA, over full fine-tuning's", lead(name, LORA), at_least=0.0,
                   unit="percent"),),
        (Control("LoRA in half of the steps in its place", lead(HALF, LORA), at_least=0.0, unit="percent"),),
        f"Both at their own best learning rates. {note}".strip(),
        withdrawn,
    )  # fmt: skip


study = Study(
    name="variants",
    title="Do the differences between variants survive tuning?",
    question="How far apart are LoRA, rsLoRA, LoRA+, DoRA, PiSSA and OLoRA if the learning rate is tuned for each, and "
    "if all take LoRA's?",
    varied="the variant; whether its learning rate is its own or LoRA's; for the controls LoRA's rank and steps",
    tuned="the learning rate, for every variant and rank; LoRA in half of the steps takes that of LoRA",
    fixed="r = 8, α = 16 on all linear layers; the head's rate; AdamW without weight decay, linear decay",
    scales=scales(
        {
            "smoke": {"ranks": [4, 8]},
            "small": {"ranks": [4, 8, 16, 32, 64]},
            "full": {"ranks": [4, 8, 16, 32, 64]},
        }
    ),
    arms=arms,
    measures=(Measure("losses", losses, each_tuned),),
    claims=(
        Claim(
            "tie",
            "With learning rates of their own the variants tie: 5 % of full fine-tuning's gain apart at most",
            TUNED,
            (Criterion("best gain less worst, over full fine-tuning's", spread(), at_most=0.05, unit="percent"),),
            (Control("all at LoRA's learning rate", spread(untuned), at_most=0.05, unit="percent"),),
            "The spread of six means is above 0 by chance alone. LoRA+ at LoRA's rate has that for A and 16 times that "
            "for B: the table shows what each variant adds to the control's spread.",
            cannot_tell="Six methods that are truly equal, with the spread between seeds seen here, are 6.3 % apart on "
            "average: in simulations the claim is never held, not held in 10 % and undecided in 90 % of the cases.",
        ),
        Claim(
            "none-better",
            "No variant gains more than LoRA by 2 % of full fine-tuning's gain",
            TUNED,
            (Criterion("best variant's gain less LoRA's, over full fine-tuning's", best_over(LORA), at_most=0.02,
                       unit="percent"),),
            (Control("LoRA in half of the steps in LoRA's place", best_over(HALF), at_most=0.02, unit="percent"),),
            "The best of five means is above their mean by chance alone.",
        ),
        Claim(
            "rates",
            "Their best learning rates differ, and a variant's own gains more than LoRA's does",
            "arXiv 2602.04998 (the best rate follows the largest eigenvalue of the Hessian)",
            (
                Criterion("highest of the tuned rates over the lowest", apart(lambda results: ONE_RATE), at_least=3.0),
                Criterion("variants with another rate than LoRA's: mean gain at it less that at LoRA's, over full "
                          "fine-tuning's", own_over_loras, at_least=0.0, unit="percent"),
            ),
            (
                Control("the first number of LoRA with r = 4, 8, 16, 32 and 64",
                        apart(lambda results: [of_rank(rank) for rank in results.scale.params["ranks"]]), at_least=3.0),
            ),
            "Sweeps have two points a decade, one run each, and no interval knows of their noise: a step of the grid "
            "is a factor of 3. With the scale α/r the best rate is said not to depend on r (Schulman 2025), so that as "
            "many sweeps over r show the noise. LoRA+, which has two rates, is left out.",
            cannot_tell="A factor of 3 is one step of the learning-rate grid, and each rate was chosen by one run, so "
            "that the noise of tuning is enough to hold the claim: the interval is [3.0, 3.0].",
        ),
        paper("rsLoRA", "Kalajdzievski 2023, arXiv 2312.03732, at ranks up to 2048",
              "At one r the scale and the learning rate stand in for each other.",
              "Tuning grid too coarse. Re-trained at other learning rates, 5 seeds: at 1.7e-3, half a step of the grid "
              "beyond the rate of this page, rsLoRA gains 8.1 % of full fine-tuning's gain less than LoRA, 95 % "
              "interval −17.1 % to +1.3 %, which is undecided. The sweep had chosen 1e-3 over 3e-3 by a held-out loss "
              "of 0.756 against 0.757, of one run each."),
        paper("LoRA+", "Hayou, Ghosh and Yu 2024, arXiv 2402.12354, abstract", withdrawn=PLUS_WITHDRAWN),
        paper("DoRA", "Liu et al. 2024, arXiv 2402.09353, Table 1", "DoRA trains a length for each row, too."),
        paper("PiSSA", "Meng et al. 2024, arXiv 2404.02948"),
        paper("OLoRA", "Büyükakyüz 2024, arXiv 2406.01775"),
        Claim(
            "pissa-early",
            "PiSSA's loss falls faster in the first tenth of training",
            "Meng et al. 2024, arXiv 2404.02948",
            (
                Criterion("at LoRA's learning rate: LoRA's training loss in the first tenth less PiSSA's (nats)",
                          faster(untuned("PiSSA"), LORA), at_least=0.0),
                Criterion("each at its own: LoRA's training loss in the first tenth less PiSSA's (nats)",
                          faster("PiSSA", LORA), at_least=0.0),
            ),
            (Control("the head alone in PiSSA's place", faster(HEAD_ALONE, LORA), at_least=0.0),),
            "Logged every ten steps, on that step's texts: at scale small one step of 32 texts for each replicate.",
        ),
    ),
    figures=figures,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
