"""Do the differences between variants of LoRA survive tuning? Each at its own learning rate, and all at LoRA's.

python studies/variants.py --scale small --jobs 2
"""

import json

from lorascope.blocks import Lines, Series
from lorascope.study import Arm, Call, Claim, Control, Criterion, Measure, Study
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE, by_method, lead, share
from lorascope.study.tasks import VARIANTS, full_arm, head_arm, scales, variant_arm

LORA = "LoRA"
FAMILY = ("LoRA", "rsLoRA", "LoRA+", "DoRA", "PiSSA", "OLoRA")  # all of rank r, both factors trained
OTHERS = tuple(name for name in FAMILY if name != LORA)


def untuned(name):
    return name if name == LORA else f"{name}, LoRA's rate"


def arms(scale):
    yield head_arm({"method": HEAD_ALONE})
    yield full_arm({"method": FULL_TUNING})
    for name in VARIANTS:
        yield variant_arm(name)
    for name in OTHERS:
        yield Arm({"method": untuned(name)}, VARIANTS[name][0], rate_of={"method": LORA})


def losses(folders, method):
    """The training loss as the run has logged it."""
    lines = [json.loads(line) for line in (folders[0] / "metrics.jsonl").read_text().splitlines()]
    return [{"step": line["step"], "train_loss": line["train_loss"]} for line in lines if "train_loss" in line]


def each_tuned(results):
    runs = results.runs[results.runs["method"].isin((HEAD_ALONE, *FAMILY))]
    # the method is said, for a run whose own rate is LoRA's belongs to two arms
    return [Call((row["key"],), {"method": row["method"]}) for row in runs.to_dict("records")]


def spread(named=lambda name: name):
    """The best gain less the worst one, over full fine-tuning's."""

    def statistic(results):
        found = [share(results, named(name)) for name in FAMILY]
        return max(found) - min(found)

    return statistic


def best_over_lora(results):
    return max(share(results, name) for name in OTHERS) - share(results, LORA)


def rates(named=lambda name: name):
    """The highest learning rate of the family over the lowest; LoRA+, which has two, is left out."""

    def statistic(results):
        runs = results.runs.groupby("method")["learning_rate"].first()
        found = [runs[named(name)] for name in FAMILY if name != "LoRA+"]
        return max(found) / min(found)

    return statistic


def early(results, name):
    """The mean training loss at the first logged step."""
    table = results.tables["losses"]
    part = table[(table["method"] == name) & (table["step"] == table["step"].min())]
    if part.empty:
        raise ValueError(f"no run of {name}")
    return float(part["train_loss"].mean())


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
    return [by_method(results), _sweeps(results), *([curves] if table["step"].nunique() > 1 else [])]


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


def paper(name, text, source):
    """A variant's own claim over LoRA, both tuned."""
    return Claim(
        f"{name}-over-lora",
        text,
        source,
        (Criterion(f"gain of {name} less that of LoRA, over full fine-tuning's", lead(name, LORA), at_least=0.0,
                   unit="percent"),),
        (Control("the head alone in its place", lead(HEAD_ALONE, LORA), at_least=0.0, unit="percent"),),
        "Both at their own best learning rates.",
    )  # fmt: skip


study = Study(
    name="variants",
    title="Do the differences between variants survive tuning?",
    question="How far apart are LoRA, rsLoRA, LoRA+, DoRA, PiSSA and OLoRA if the learning rate is tuned for each, and "
    "if all take LoRA's?",
    varied="the variant; whether its learning rate is its own or LoRA's",
    tuned="the learning rate, for every variant",
    fixed="r = 8, α = 16 on all linear layers; the head's rate; AdamW without weight decay, linear decay",
    scales=scales({"smoke": {}, "small": {}, "full": {}}),
    arms=arms,
    measures=(Measure("losses", losses, each_tuned),),
    claims=(
        Claim(
            "tie",
            "With learning rates of their own the variants tie",
            TUNED,
            (Criterion("best gain less worst, over full fine-tuning's", spread(), at_most=0.05, unit="percent"),),
            (Control("all at LoRA's learning rate", spread(untuned), at_most=0.05, unit="percent"),),
            "The spread of six means is above 0 by chance alone.",
        ),
        Claim(
            "none-better",
            "No variant gains 2 % more than LoRA",
            TUNED,
            (Criterion("best variant's gain less LoRA's, over full fine-tuning's", best_over_lora, at_most=0.02,
                       unit="percent"),),
            (Control("the head alone in LoRA's place",
                     lambda results: max(share(results, name) for name in OTHERS) - share(results, HEAD_ALONE),
                     at_most=0.02, unit="percent"),),
        ),
        Claim(
            "rates",
            "Their best learning rates differ",
            "arXiv 2602.04998 (the best rate follows the largest eigenvalue of the Hessian)",
            (Criterion("highest of the tuned rates over the lowest", rates(), at_least=3.0),),
            (Control("all at LoRA's learning rate", rates(untuned), at_least=3.0),),
            "Sweeps have two points a decade; one run each. LoRA+, which has two rates, is left out.",
        ),
        paper("rsLoRA", "rsLoRA gains more than LoRA", "Kalajdzievski 2023, arXiv 2312.03732"),
        paper("LoRA+", "LoRA+ gains more than LoRA", "Hayou, Ghosh and Yu 2024, arXiv 2402.12354, abstract"),
        paper("DoRA", "DoRA gains more than LoRA", "Liu et al. 2024, arXiv 2402.09353, Table 1"),
        paper("PiSSA", "PiSSA gains more than LoRA", "Meng et al. 2024, arXiv 2404.02948"),
        paper("OLoRA", "OLoRA gains more than LoRA", "Büyükakyüz 2024, arXiv 2406.01775"),
        Claim(
            "pissa-early",
            "PiSSA's loss falls faster in the first tenth of training",
            "Meng et al. 2024, arXiv 2404.02948",
            (Criterion("LoRA's training loss at the first logged step less PiSSA's (nats)",
                       lambda results: early(results, LORA) - early(results, "PiSSA"), at_least=0.0),),
            (Control("the head alone in PiSSA's place",
                     lambda results: early(results, LORA) - early(results, HEAD_ALONE), at_least=0.0),),
            "Each at its own best learning rate. Logged every ten steps, on that step's texts.",
        ),
    ),
    figures=figures,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
