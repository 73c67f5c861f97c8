"""Does DoRA learn more like full fine-tuning than LoRA does? Change of length and of direction, and what it gains.

python studies/dora.py --scale small --jobs 2
"""

import numpy as np

from lorascope.blocks import Column, Lines, Series, Table
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.claims import reworded
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE, by_method, lead
from lorascope.study.grid import DECODER
from lorascope.study.statistics import once
from lorascope.study.tasks import (
    FULL,
    VARIANTS,
    full_arm,
    lora,
    rates_of_full,
    rates_of_lora,
    reference_arm,
    scales,
    variant_arm,
)

LORA, DORA, HALF = "LoRA", "DoRA", "DoRA, r = 4"
CHANGES = {FULL_TUNING: FULL, LORA: VARIANTS[LORA][0], DORA: VARIANTS[DORA][0]}
SHORTER = (4, 2)  # runs of a fourth and of half of the steps
TYPES = ("query", "value")
NAMES = {"query": "query", "value": "value", "q_proj": "query", "v_proj": "value"}  # as models call them
PAPER_FIGURES = {FULL_TUNING: -0.62, DORA: -0.31, LORA: 0.83}


def shorter(method, part):
    return f"{method}, 1/{part} of the steps"


def arms(scale):
    yield reference_arm(scale, {"method": HEAD_ALONE})
    yield full_arm({"method": FULL_TUNING}, rates=rates_of_full(scale))
    yield variant_arm(LORA, scale.testbed)
    yield variant_arm(DORA, scale.testbed)
    yield Arm({"method": HALF}, lora(4, "dora"), rates_of_lora(scale))
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
        if type := NAMES.get(name.rpartition(".")[2]):
            before, delta = opened.base_weight(name), dense(opened.delta(name))
            noise = rng.standard_normal(delta.shape)
            size = float(np.linalg.norm(delta))
            random = moved(before, noise * (size / np.linalg.norm(noise)))
            row = {"module": name, "type": type, **moved(before, delta)}
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
    methods, types, own, of_random = columns(results)
    chosen = (methods == method) & (types == type)
    if chosen.sum() < 3:
        raise ValueError(f"fewer than three points of {method}")
    return (of_random if random else own)[:, chosen]


@once
def columns(results):
    """Method and type of every point, and (2, points) ΔD and ΔM, of ΔW and of a random ΔW."""
    table = results.tables["decomposed"]
    own, of_random = (
        np.array([table[f"{name}{suffix}"] for name in ("direction", "magnitude")]) for suffix in ("", "_random")
    )
    return table["of"].to_numpy(), table["type"].to_numpy(), own, of_random


@once
def correlation(results, method, random=False):
    """Pearson's, of ΔM with ΔD: the mean of that of queries and that of values."""
    return float(np.mean([pearson(*points(results, method, type, random)) for type in TYPES]))


def pearson(x, y):
    x, y = x - x.mean(), y - y.mean()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def apart(first, second):
    return lambda results: correlation(results, first) - correlation(results, second)


def beyond_norms(results, method):
    """The correlation less that of random ΔW of the same norms."""
    return correlation(results, method) - correlation(results, method, True)


def apart_beyond_norms(first, second):
    return lambda results: beyond_norms(results, first) - beyond_norms(results, second)


def figures(results):
    series = []
    for method in CHANGES:
        for type in TYPES:
            x, y = points(results, method, type)
            names = tuple(f"{method}, {type}" for _ in x)
            series.append(Series(type, tuple(map(float, x)), tuple(map(float, y)), method, points=names))
    scatter = Lines("Change of length against change of direction", tuple(series), "ΔD, mean 1 − cos",
                    "ΔM, mean change of length", log_x=True, log_y=True,
                    caption="A point for each layer, number of steps and replicate; hover for its label.")  # fmt: skip
    return [by_method(results), correlations(results), scatter]


def correlations(results):
    table = results.tables["decomposed"].groupby("of")
    rows = tuple(
        (
            method,
            correlation(results, method),
            correlation(results, method, True),
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
        Column("random", "of random ΔW of its norms", "float", 2),
        Column("paper", "Published", "float", 2),
        Column("least", "Smallest ΔD", "float"),
        Column("most", "Largest ΔD", "float"),
        Column("norm", "Median ‖ΔW‖/‖W‖", "percent"),
    )
    caption = (
        "Pearson's correlation of ΔM and ΔD themselves, not of their logarithms: the mean of that over query matrices "
        "and that over value matrices. Random ΔW: Gaussian, each with the norm of a trained one; its ΔM and ΔD both "
        "grow with the norm, so norms alone make a correlation. Published ΔD: 0.014 to 0.022 (full fine-tuning), 0.10 "
        "to 0.16 (LoRA), 0.16 to 0.32 (DoRA)."
    )
    return Table(columns, rows, "Correlation of ΔM with ΔD", caption)


PAPER = "Liu et al. 2024, arXiv 2402.09353"
SETTING = "VL-BART on four image-text tasks, query and value matrices; points are 6 layers at 4 checkpoints of one run"
REASONING = "r = 32, three epochs of 170,000 commonsense examples; means of 8 tests"
OURS = "ours: half a point of accuracy here, where full fine-tuning gains 10"


def together(name, text, method, published, note=""):
    """In LoRA lengths and directions change together more than in another method, and not for their norms alone."""
    place = "full fine-tuning" if method == FULL_TUNING else method
    return Claim(
        name,
        text,
        f"{PAPER}, Figure 2 (correlation +0.83 in LoRA, −{-PAPER_FIGURES[method]} in {place})",
        (
            Criterion(f"correlation of ΔM and ΔD in LoRA less that in {place}", apart(LORA, method),
                      at_least=round(published / 2, 2), no_effect=0.0, published=published,
                      origin=f"half of the published {published}"),
            Criterion(f"correlation less that of random ΔW of the same norms, in LoRA less that in {place}",
                      apart_beyond_norms(LORA, method), at_least=round(published / 2, 2), no_effect=0.0,
                      expected=published, margin=0.1,
                      origin=f"half of the published {published}, which has no random baseline; less than 0.1, a tenth "
                      "of it or less, counts as none"),
        ),
        note=f"{note}No negative control: the second number is a comparison with a random baseline.",
        setting=SETTING,
        kind="random baseline",
        amended="The random baseline, which was a control with the same bound of 0.5, is now subtracted: norms alone "
        "make a difference that the published one must exceed.",
    )  # fmt: skip


def reading(answers):
    both = [answers.criterion(name, 1).estimate for name in ("full", "dora")]
    if None in both:
        return ""
    words = {
        "reproduced": "is lower than LoRA's, as published",
        "weaker": "is lower than LoRA's, the published direction but far weaker",
        "absent or opposite": "differs from LoRA's by no more than the norms of ΔW explain",
    }
    full, dora = (
        words.get(answers[name].verdict, "was not shown to differ from LoRA's by more than the norms of ΔW explain")
        for name in ("full", "dora")
    )
    positive = {
        "not specific": "LoRA's own correlation is as high for random ΔW of its norms, so it says nothing about LoRA.",
    }.get(answers["positive"].verdict, "")
    gain = {
        "reproduced": "DoRA gains more than LoRA",
        "weaker": "DoRA gains a little more than LoRA",
        "absent or opposite": "DoRA gains no more than LoRA",
    }.get(answers["gain"].verdict, "DoRA was not shown to gain more than LoRA")
    return (
        f"{answers.opening}, the correlation of changes in length and direction in full fine-tuning {full} "
        f"(difference beyond norms {answers.found('full', 1)}); in DoRA it {dora} ({answers.found('dora', 1)}). "
        f"{positive} {gain} ({answers.found('gain')} of full fine-tuning's gain)."
    ).replace(".  ", ". ")


CLAIMS = (
    together(
        "full",
        "Lengths and directions change together in LoRA, and far less so in full fine-tuning",
        FULL_TUNING,
        1.45,
        "Query and value matrices; points are layers, numbers of steps and replicates. Here each number of steps "
        "is a run with a schedule of its own. Each method has its own learning rate, and its own size of ΔW. ",
    ),
    together(
        "dora",
        "Lengths and directions change together in LoRA, and far less so in DoRA",
        DORA,
        1.14,
    ),
    Claim(
        "positive",
        "In LoRA changes of length and of direction are strongly correlated",
        f"{PAPER}, Figure 2 (+0.83)",
        (
            Criterion("correlation of ΔM and ΔD in LoRA", lambda results: correlation(results, LORA),
                      at_least=0.42, no_effect=0.0, published=0.83, origin="half of the published 0.83"),
        ),
        (
            Control("in random ΔW of LoRA's norms", lambda results: correlation(results, LORA, True),
                    at_least=0.42),
            Control("in full fine-tuning, published as −0.62",
                    lambda results: correlation(results, FULL_TUNING), at_least=0.42),
        ),
        "ΔM and ΔD both grow with the norm of ΔW, so runs of different norms make a correlation on their own.",
        SETTING,
        "random baseline",
        amended="Random updates of LoRA's norms, until now in a table, are a control; the bound is half of the "
        "published value, it was 0.5.",
    ),
    Claim(
        "gain",
        "DoRA gains more than LoRA at the same r",
        f"{PAPER}, Table 1 (LLaMA-7B 78.4 against 74.7, LLaMA2-7B 79.7 against 77.6, LLaMA3-8B 85.2 against 80.8)",
        (
            Criterion("(gain of DoRA − gain of LoRA) / gain of full fine-tuning", lead(DORA, LORA), at_least=0.05,
                      no_effect=0.0, expected=0.21, unit="percent",
                      origin=f"{OURS}; published: 2.1 points of other tests or more"),
        ),
        note="DoRA also trains one length for each row of W: see the table by method. PEFT's own comparison finds "
        "no difference: GSM8K 46.9 against 47.8. No negative control: the number is itself a comparison with LoRA, "
        "tuned alike. The study of variants tests the same in points of accuracy.",
        setting=f"LLaMA-7B, LLaMA2-7B and LLaMA3-8B, {REASONING}",
        amended="The bound was 0, which is no effect; the control, DoRA in half of the steps, failed for any "
        "method.",
    ),
    Claim(
        "half",
        "DoRA with half of the rank gains more than LoRA",
        f"{PAPER}, Table 1 (LLaMA2-7B: 80.5 against 77.6)",
        (
            Criterion("(gain of DoRA, r = 4 − gain of LoRA, r = 8) / gain of full fine-tuning", lead(HALF, LORA),
                      at_least=0.05, no_effect=0.0, expected=0.29, unit="percent",
                      origin=f"{OURS}; published: 2.9 points of other tests"),
        ),
        note="What half of the rank costs LoRA itself is tested in the study of ranks. No negative control: the "
        "number is itself a comparison with LoRA, tuned alike.",
        setting=f"LLaMA2-7B, {REASONING}",
        amended="The bound was 0, which is no effect; the control, LoRA in half of the steps, failed for any "
        "method.",
    ),
)  # fmt: skip

study = Study(
    name="dora",
    title="Does DoRA learn more like full fine-tuning than LoRA does?",
    question="Do lengths and directions of the weights' rows change together in LoRA but not in full fine-tuning and "
    "DoRA, would random updates of the same norms do the same, and does DoRA gain more?",
    varied="the method; DoRA's r; for lengths and directions also the number of steps, a quarter and a half of all",
    tuned="the learning rate, for every method; shorter runs take the longer ones'",
    fixed="r = 8, α = 16 on all linear layers; the head's rate; AdamW without weight decay, linear decay",
    scales=scales({"smoke": {}, "small": {}, "full": {}, "small-lm": {}}),
    arms=arms,
    measures=(Measure("decomposed", decomposed, each_run),),
    claims=CLAIMS,
    figures=figures,
    reading=reading,
    elsewhere={
        DECODER: {
            "fixed": "r = 8, α = 16 on all linear layers; AdamW without weight decay, linear decay",
            "claims": reworded(CLAIMS, {OURS: "ours: the same share of the gain as on the encoder"}),
        }
    },
)  # fmt: skip

if __name__ == "__main__":
    study.main()
