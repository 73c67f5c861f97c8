"""Does DoRA learn as full fine-tuning does? Change of length against change of direction, and what it gains.

python studies/dora.py --scale small --jobs 2
"""

import numpy as np

from lorascope.blocks import Column, Lines, Series, Table
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
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
    """ΔM and ΔD of every query and value matrix: mean change of its rows' lengths, and mean 1 − cos of their turns; the
    same of a random ΔW of the same norm."""
    from lorascope.training import config
    from lorascope.training.reopen import reopen
    from lorascope.updates.base import dense

    opened = reopen(folders[0], device="cpu")
    rng = np.random.default_rng(config.load(folders[0] / "config.yaml").training.seed)
    rows = []
    for name in opened.updates:
        if name.endswith(TYPES):
            before, delta = opened.base_weight(name), dense(opened.delta(name))
            noise = rng.standard_normal(delta.shape)
            size = float(np.linalg.norm(delta))
            random = moved(before, noise * (size / np.linalg.norm(noise)))
            row = {"module": name, "type": name.rpartition(".")[2], **moved(before, delta)}
            row |= {f"{key}_random": value for key, value in random.items()}
            rows.append({**row, "relative_norm": size / float(np.linalg.norm(before))})
    return rows


def moved(before, delta):
    """Liu et al. 2024, §3.2: with W' = W + ΔW, mean |‖w'‖ − ‖w‖| and mean 1 − cos(w', w) over rows."""
    after = before + delta
    lengths = [np.linalg.norm(weight, axis=1) for weight in (before, after)]
    cosines = np.sum(before * after, axis=1) / (lengths[0] * lengths[1])
    return {"magnitude": float(np.abs(lengths[1] - lengths[0]).mean()), "direction": float((1 - cosines).mean())}


def each_run(results):
    runs = results.runs.groupby("method")
    for method in CHANGES:
        for part, name in ((1, method), *((part, shorter(method, part)) for part in SHORTER)):
            if name in runs.groups:
                for key in runs.get_group(name)["key"]:
                    yield MeasurementSpec((key,), {"of": method, "part": part})


def points(results, method, type, random=False):
    """(2, points): ΔD and ΔM of the layers, lengths of training and replicates of a method, or of random ΔW."""
    table = results.tables["decomposed"]
    chosen = (table["of"].to_numpy() == method) & (table["type"].to_numpy() == type)
    if chosen.sum() < 3:
        raise ValueError(f"fewer than three points of {method}")
    columns = ["direction_random", "magnitude_random"] if random else ["direction", "magnitude"]
    return table[columns].to_numpy()[chosen].T


def correlation(results, method, random=False):
    """Of ΔM with ΔD, the mean of that of queries and that of values."""
    return float(np.mean([np.corrcoef(points(results, method, type, random))[0, 1] for type in TYPES]))


def apart(first, second, random=False):
    """`random`: ΔW of the second method's norms in the place of its own."""
    return lambda results: correlation(results, first) - correlation(results, second, random)


def figures(results):
    series = []
    for method in CHANGES:
        for type in TYPES:
            x, y = points(results, method, type)
            names = tuple(f"{method}, {type}" for _ in x)
            series.append(Series(type, tuple(map(float, x)), tuple(map(float, y)), method, points=names))
    scatter = Lines("Change of length against change of direction", tuple(series), "ΔD, mean 1 − cos",
                    "ΔM, mean change of length", log_x=True, log_y=True,
                    caption="A point for each layer, length of training and replicate.")  # fmt: skip
    return [by_method(results), correlations(results), scatter]


def correlations(results):
    table = results.tables["decomposed"].groupby("of")
    rows = tuple(
        (
            method,
            correlation(results, method),
            correlation(results, method, random=True),
            PAPER_FIGURES[method],
            float(table.get_group(method)["direction"].min()),
            float(table.get_group(method)["direction"].max()),
            float(table.get_group(method)["relative_norm"].median()),
        )
        for method in CHANGES
    )
    columns = (
        Column("method", "Method"),
        Column("correlation", "Correlation", "float", 2),
        Column("random", "Of random ΔW", "float", 2),
        Column("paper", "The paper's", "float", 2),
        Column("least", "Least ΔD", "float"),
        Column("most", "Largest ΔD", "float"),
        Column("norm", "Median ‖ΔW‖/‖W‖", "percent"),
    )
    caption = (
        "Pearson's, of ΔM and ΔD themselves, not of their logarithms: the mean of the query matrices' and of the value "
        "matrices'. Random ΔW: Gaussian, each of the norm of a trained one. Its ΔM and ΔD both grow with its norm, so "
        "that norms alone make a correlation."
    )
    return Table(columns, rows, "Correlation of ΔM with ΔD", caption)


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
            "Lengths and directions change together in LoRA, and far less so in full fine-tuning",
            f"{PAPER}, Figure 2 (correlation +0.83 against −0.62)",
            (Criterion("correlation of ΔM and ΔD in LoRA less that in full fine-tuning", apart(LORA, FULL_TUNING),
                       at_least=0.5),),
            (Control("less that of random ΔW of full fine-tuning's norms", apart(LORA, FULL_TUNING, random=True),
                     at_least=0.5),),
            "Query and value matrices; points are layers, lengths of training and replicates. The paper's are layers "
            "and checkpoints of one run; here a length is a run with a schedule of its own. Each method has its own "
            "best learning rate, and its own size of ΔW.",
        ),
        Claim(
            "dora",
            "Lengths and directions change together in LoRA, and far less so in DoRA",
            f"{PAPER}, Figure 2 (+0.83 against −0.31)",
            (Criterion("correlation of ΔM and ΔD in LoRA less that in DoRA", apart(LORA, DORA), at_least=0.5),),
            (Control("less that of random ΔW of DoRA's norms", apart(LORA, DORA, random=True), at_least=0.5),),
        ),
        Claim(
            "positive",
            "In LoRA they are strongly correlated",
            f"{PAPER}, Figure 2 (+0.83)",
            (Criterion("correlation of ΔM and ΔD in LoRA", lambda results: correlation(results, LORA),
                       at_least=0.5),),
            (Control("in full fine-tuning", lambda results: correlation(results, FULL_TUNING), at_least=0.5),),
            "What random ΔW of LoRA's norms have stands in the table of correlations: so much says nothing of LoRA.",
        ),
        Claim(
            "gain",
            "DoRA gains more than LoRA at the same r",
            f"{PAPER}, Table 1 (commonsense accuracy, LLaMA-7B: 78.4 against 74.7)",
            (Criterion("gain of DoRA less that of LoRA, over full fine-tuning's", lead(DORA, LORA), at_least=0.0,
                       unit="percent"),),
            (Control("DoRA in half of the steps in its place", lead(shorter(DORA, 2), LORA), at_least=0.0,
                     unit="percent"),),
            "DoRA trains a length for each row, too: see the table by method. PEFT's own comparison finds no "
            "difference: GSM8K 46.9 against 47.8.",
        ),
        Claim(
            "half",
            "DoRA with half of the rank gains more than LoRA",
            f"{PAPER}, Table 1 (commonsense accuracy, LLaMA2-7B: 80.5 against 77.6)",
            (Criterion("gain of DoRA, r = 4, less that of LoRA, r = 8, over full fine-tuning's", lead(HALF, LORA),
                       at_least=0.0, unit="percent"),),
            (Control("LoRA in half of the steps in its place", lead(shorter(LORA, 2), LORA), at_least=0.0,
                     unit="percent"),),
            "What half of the rank costs LoRA itself is the question of rank_sweep.",
        ),
    ),
    figures=figures,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
