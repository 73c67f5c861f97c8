"""Does DoRA learn as full fine-tuning does? Change of length against change of direction, and what it gains.

python studies/dora.py --scale small --jobs 2
"""

import numpy as np

from lorascope.blocks import Lines, Series
from lorascope.study import Arm, Call, Claim, Control, Criterion, Measure, Study
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE, by_method, lead
from lorascope.study.tasks import FULL, LORA_RATES, VARIANTS, full_arm, head_arm, lora, scales, variant_arm

LORA, DORA, HALF = "LoRA", "DoRA", "DoRA, r = 4"
CHANGES = {FULL_TUNING: FULL, LORA: VARIANTS[LORA][0], DORA: VARIANTS[DORA][0]}
SHORTER = (4, 2)  # runs of a fourth and of half of the steps
TYPES = ("query", "value")
PAPER_FIGURES = {FULL_TUNING: -0.62, DORA: -0.31, LORA: 0.83}


def shorter(method, part):
    return f"{method}, 1/{part} of the steps"


def arms(scale):
    yield head_arm({"method": HEAD_ALONE})
    yield full_arm({"method": FULL_TUNING})
    yield variant_arm(LORA)
    yield variant_arm(DORA)
    yield Arm({"method": HALF}, lora(4, "dora"), LORA_RATES)
    for method, changes in CHANGES.items():
        for part in SHORTER:
            steps = max(1, scale.config["training"]["max_steps"] // part)
            changed = {**changes, "training.max_steps": steps}
            yield Arm({"method": shorter(method, part)}, changed, rate_of={"method": method})


def decomposed(folders, of, part):
    """ΔM and ΔD of every query and value matrix: mean change of its rows' lengths, and mean 1 − cos of their turns."""
    from lorascope.training.reopen import reopen
    from lorascope.updates.base import dense

    opened = reopen(folders[0], device="cpu")
    rows = []
    for name in opened.updates:
        if name.endswith(TYPES):
            before = opened.base_weight(name)
            rows.append({"module": name, "type": name.rpartition(".")[2], **moved(before, dense(opened.delta(name)))})
    return rows


def moved(before, delta):
    """Liu et al. 2024, §3.2: with W' = W + ΔW, mean |‖w'‖ − ‖w‖| and mean 1 − cos(w', w) over rows."""
    after = before + delta
    lengths = [np.linalg.norm(each, axis=1) for each in (before, after)]
    cosines = np.sum(before * after, axis=1) / (lengths[0] * lengths[1])
    return {"magnitude": float(np.abs(lengths[1] - lengths[0]).mean()), "direction": float((1 - cosines).mean())}


def each_run(results):
    runs = results.runs.groupby("method")
    for method in CHANGES:
        for part, name in ((1, method), *((part, shorter(method, part)) for part in SHORTER)):
            if name in runs.groups:
                for key in runs.get_group(name)["key"]:
                    yield Call((key,), {"of": method, "part": part})


def points(results, method, type):
    """(2, points): ΔD and ΔM of the layers, lengths of training and replicates of a method."""
    table = results.tables["decomposed"]
    chosen = (table["of"].to_numpy() == method) & (table["type"].to_numpy() == type)
    if chosen.sum() < 3:
        raise ValueError(f"fewer than three points of {method}")
    return table[["direction", "magnitude"]].to_numpy()[chosen].T


def correlation(results, method, shuffled=False):
    """Of ΔM with ΔD, the mean of that of queries and that of values."""
    rng, found = np.random.default_rng(0), []
    for type in TYPES:
        x, y = points(results, method, type)
        found.append(np.corrcoef(x, rng.permutation(y) if shuffled else y)[0, 1])
    return float(np.mean(found))


def apart(first, second, shuffled=False):
    return lambda results: correlation(results, first, shuffled) - correlation(results, second, shuffled)


def signed(number):
    return f"{number:+.2f}".replace("-", "−")


def figures(results):
    series = []
    for method in CHANGES:
        for type in TYPES:
            x, y = points(results, method, type)
            names = tuple(f"{method}, {type}" for _ in x)
            series.append(Series(type, tuple(map(float, x)), tuple(map(float, y)), method, points=names))
    said = "; ".join(
        f"{method} {signed(correlation(results, method))} (paper {signed(PAPER_FIGURES[method])})" for method in CHANGES
    )
    caption = f"A point for each layer, length of training and replicate. Correlation: {said}."
    scatter = Lines("Change of length against change of direction", tuple(series), "ΔD, mean 1 − cos",
                    "ΔM, mean change of length", log_x=True, log_y=True, caption=caption)  # fmt: skip
    return [by_method(results), scatter]


PAPER = "Liu et al. 2024, arXiv 2402.09353"

study = Study(
    name="dora",
    title="Does DoRA learn as full fine-tuning does?",
    question="Do lengths and directions of the weights' rows change together in LoRA and against each other in full "
    "fine-tuning and in DoRA, and does DoRA gain more?",
    varied="the method; DoRA's r; for lengths and directions the number of steps, too, a fourth and a half of all",
    tuned="the learning rate, for every method; shorter runs take the longer ones'",
    fixed="r = 8, α = 16 on all linear layers; the head's rate; AdamW without weight decay, linear decay",
    scales=scales({"smoke": {}, "small": {}, "full": {}}),
    arms=arms,
    measures=(Measure("decomposed", decomposed, each_run),),
    claims=(
        Claim(
            "full",
            "Lengths and directions change together in LoRA, and not in full fine-tuning",
            f"{PAPER}, Figure 2 (correlation +0.83 against −0.62)",
            (Criterion("correlation of ΔM and ΔD in LoRA less that in full fine-tuning", apart(LORA, FULL_TUNING),
                       at_least=0.5),),
            (Control("with ΔM shuffled over the points", apart(LORA, FULL_TUNING, shuffled=True), at_least=0.5),),
            "Query and value matrices; points are layers, lengths of training and replicates. The paper's are "
            "layers and checkpoints of one run.",
        ),
        Claim(
            "dora",
            "In DoRA they change as in full fine-tuning, and not as in LoRA",
            f"{PAPER}, Figure 2 (+0.83 against −0.31)",
            (Criterion("correlation of ΔM and ΔD in LoRA less that in DoRA", apart(LORA, DORA), at_least=0.5),),
            (Control("with ΔM shuffled over the points", apart(LORA, DORA, shuffled=True), at_least=0.5),),
        ),
        Claim(
            "positive",
            "In LoRA they are strongly correlated",
            f"{PAPER}, Figure 2 (+0.83)",
            (Criterion("correlation of ΔM and ΔD in LoRA", lambda results: correlation(results, LORA),
                       at_least=0.5),),
            (Control("with ΔM shuffled over the points", lambda results: correlation(results, LORA, shuffled=True),
                     at_least=0.5),),
        ),
        Claim(
            "gain",
            "DoRA gains more than LoRA at the same r",
            f"{PAPER}, Table 1 (LLaMA-7B: 78.4 against 74.7)",
            (Criterion("gain of DoRA less that of LoRA, over full fine-tuning's", lead(DORA, LORA), at_least=0.0,
                       unit="percent"),),
            (Control("the head alone in its place", lead(HEAD_ALONE, LORA), at_least=0.0, unit="percent"),),
            "PEFT's own comparison finds no difference: GSM8K 46.9 against 47.8.",
        ),
        Claim(
            "half",
            "DoRA with half of the rank gains more than LoRA",
            f"{PAPER}, Table 1 (LLaMA2-7B: 80.5 against 77.6)",
            (Criterion("gain of DoRA, r = 4, less that of LoRA, r = 8, over full fine-tuning's", lead(HALF, LORA),
                       at_least=0.0, unit="percent"),),
            (Control("the head alone in its place", lead(HEAD_ALONE, LORA), at_least=0.0, unit="percent"),),
        ),
    ),
    figures=figures,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
