"""Should B learn faster than A? LoRA+ over ratios of the two learning rates, each with its own sweep.

python studies/lora_plus.py --scale small --jobs 2
"""

from lorascope.blocks import Lines, Series
from lorascope.study import Arm, Claim, Control, Criterion, Study
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE, by_method, lead
from lorascope.study.tasks import PLUS_RATES, VARIANTS, full_arm, head_arm, lora, scales, variant_arm

SLOWER, EQUAL, FEW, PLUS, MANY = "LoRA+, λ = 1/16", "LoRA", "LoRA+, λ = 4", "LoRA+", "LoRA+, λ = 64"
RATIOS = {SLOWER: 1 / 16, EQUAL: 1.0, FEW: 4.0, PLUS: 16.0, MANY: 64.0}
RATES = {SLOWER: (3e-3, 1e-2, 3e-2, 1e-1, 3e-1), FEW: (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), MANY: PLUS_RATES}
SHORT = {method: f"{method}, 90 % of the steps" for method in (PLUS, SLOWER)}


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


def best_ratios(results):
    """The ratio of the lowest loss in each replicate."""
    runs = results.runs[results.runs["method"].isin(RATIOS)]
    best = runs.loc[runs.groupby("replicate")["loss"].idxmin(), "method"]
    if best.empty:
        raise ValueError("no runs")
    return best.map(RATIOS)


def figures(results):
    series = []
    for method, ratio in RATIOS.items():
        curve = results.curves[results.curves["method"] == method].dropna(subset=["held_out_loss"])
        curve = curve.sort_values("learning_rate")
        losses, rates = tuple(curve["held_out_loss"]), curve["learning_rate"]
        name = f"λ = {ratio:g}" if ratio >= 1 else "λ = 1/16"
        series.append(Series(name, tuple(rates), losses, "by A's learning rate"))
        series.append(Series(name, tuple(rates * ratio), losses, "by B's learning rate"))
    sweeps = Lines(
        "Sweeps of the learning rate",
        tuple(series),
        "learning rate",
        "held-out loss (nats)",
        log_x=True,
        caption="One run each: the sweeps by which the rates were chosen. λ: B's rate over A's.",
    )
    return [by_method(results), sweeps]


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
            "The best ratio of B's rate to A's is far above 1",
            f"{PAPER} (η_A of order 1/n, η_B of order 1)",
            (
                Criterion("replicates whose lowest loss has λ ≥ 4",
                          lambda results: float((best_ratios(results) >= 4).mean()), at_least=0.8, unit="percent"),
            ),
            (
                Control("replicates whose lowest loss has λ = 1/16",
                        lambda results: float((best_ratios(results) < 1).mean()), at_least=0.8, unit="percent"),
            ),
            "Of λ = 1/16, 1, 4, 16 and 64. The losses of a replicate come from independent runs.",
        ),
        Claim(
            "better",
            "LoRA+ with λ = 16 gains 1 % more than LoRA",
            f"{PAPER}, abstract (1 to 2 %)",
            (Criterion("gain of λ = 16 less that of λ = 1, over full fine-tuning's", lead(PLUS, EQUAL), at_least=0.01,
                       unit="percent"),),
            (Control("λ = 1/16 less λ = 1", lead(SLOWER, EQUAL), at_least=0.01, unit="percent"),),
        ),
        Claim(
            "faster",
            "With nine tenths of the steps LoRA+ gains as much as LoRA",
            f"{PAPER}, abstract (up to twice as fast)",
            (Criterion("gain of λ = 16 in 90 % of the steps, less that of λ = 1 in all, over full fine-tuning's",
                       lead(SHORT[PLUS], EQUAL), at_least=0.0, unit="percent"),),
            (
                Control("λ = 1/16 in 90 % of the steps, less λ = 1 in all", lead(SHORT[SLOWER], EQUAL), at_least=0.0,
                        unit="percent"),
                Control("the head alone less λ = 1", lead(HEAD_ALONE, EQUAL), at_least=0.0, unit="percent"),
            ),
            "The schedule is the shorter run's own; the learning rate is the longer one's.",
        ),
    ),
    figures=figures,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
