"""Should the scale be α/r or α/√r? Gradients and losses by rank at one learning rate.

python studies/rslora.py --scale small --jobs 2
"""

from dataclasses import replace

import numpy as np

from lorascope.blocks import Lines, Marker, Series
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.gains import (
    FULL_TUNING,
    HEAD_ALONE,
    NATS,
    POINTS,
    InUnits,
    accuracy,
    alone,
    by_method,
    loss,
    share,
)
from lorascope.study.grid import DECODER
from lorascope.study.measures import by_step
from lorascope.study.measures.by_step import held_out_by_step  # noqa: F401  (workers look for it here)
from lorascope.study.statistics import once
from lorascope.study.statistics import slope as line_slope
from lorascope.study.tasks import full_arm, lora, rates_of_full, rates_of_lora, reference_arm, scales

SCALINGS = {"α/r": "lora", "α/√r": "rslora"}
CONSTANT = "constant"
MIDDLE = 8  # the rank whose learning rate is tuned and which all others take
RANKS = [4, MIDDLE, 64, 256]
TEXTS = {"SEQ_CLS": 64, "CAUSAL_LM": 16}  # whose gradient is taken; of a decoder, blocks


def named(scaling, rank):
    return f"{scaling}, r = {rank}"


def arms(scale):
    yield reference_arm(scale, {"method": HEAD_ALONE, "scaling": "", "rank": 0})
    yield full_arm({"method": FULL_TUNING, "scaling": "", "rank": None}, rates=rates_of_full(scale))
    if scale.testbed != DECODER:  # whose curve is on the page of variants
        yield by_step.arm(scale, {"scaling": "", "rank": None})
    for scaling, name in SCALINGS.items():
        tuned = {"method": named(scaling, MIDDLE), "scaling": scaling, "rank": MIDDLE}
        yield Arm(tuned, lora(MIDDLE, name), rates_of_lora(scale))
        for rank in scale.params["ranks"]:
            if rank != MIDDLE:
                labels = {"method": named(scaling, rank), "scaling": scaling, "rank": rank}
                yield Arm(labels, lora(rank, name), rate_of=tuned)


def gradients(folders, scaling, rank):
    """‖g‖ of all A and B together on some training texts, before and after training; of a constant scale, before."""
    import torch

    from lorascope.training import config, run
    from lorascope.weights import io

    settings = config.load(folders[0] / "config.yaml")
    prepared = run.prepare(settings, torch.device("cpu"))
    rows = [{"scale": scaling, "when": "start", "norm": norm(prepared, settings)}]
    prepared.injected.load(io.read(folders[0] / "adapter"))
    rows.append({"scale": scaling, "when": "end", "norm": norm(prepared, settings)})
    if scaling == "α/r":
        chosen = replace(settings.method.settings, alpha=2.0 * rank)
        changed = replace(settings, method=replace(settings.method, settings=chosen))
        prepared = run.prepare(changed, torch.device("cpu"))
        rows.append({"scale": CONSTANT, "when": "start", "norm": norm(prepared, changed)})
    return rows


def norm(prepared, settings):
    import torch

    from lorascope.training import loop, member, run

    member = member.Member(
        prepared.injected, prepared.train, prepared.held_out, settings, run.World(torch.device("cpu"))
    )
    texts = list(range(min(TEXTS[settings.model.task_type], len(prepared.train))))
    (loss,) = loop.Pass([member]).losses([texts])
    trained = {name: tensor for name, tensor in prepared.injected.trainable().items() if name.endswith((".A", ".B"))}
    gradients = torch.autograd.grad(loss / len(texts), list(trained.values()))
    return float(sum(float(tensor.square().sum()) for tensor in gradients) ** 0.5)


def each_adapter(results):
    runs = results.runs[results.runs["scaling"].isin(SCALINGS)]
    return [
        MeasurementSpec((row["key"],), {"scaling": row["scaling"], "rank": row["rank"]})
        for row in runs.to_dict("records")
    ]


@once
def means(results, scale, when):
    """The ranks that were measured, ascending, and the mean ‖g‖ of each."""
    table = results.tables["gradients"]
    chosen = (table["scale"].to_numpy() == scale) & (table["when"].to_numpy() == when)
    of_run, norms = (table[column].to_numpy(float)[chosen] for column in ("rank", "norm"))
    ranks, places = np.unique(of_run, return_inverse=True)
    return ranks, np.bincount(places, norms) / np.bincount(places)


def slope(scale, when):
    """Of log ‖g‖ against log r."""

    def statistic(results):
        ranks, norms = means(results, scale, when)
        if len(ranks) < 2:
            raise ValueError("fewer than two ranks")
        return line_slope(np.log(ranks), np.log(norms))

    return statistic


@once
def added(results, scaling, score):
    """By how much a score rises when r doubles: the slope of a line over all ranks."""
    ranks = results.scale.params["ranks"]
    return line_slope(np.log2(ranks), [score(results, named(scaling, rank)) for rank in ranks])


def nats(results, method):
    return -loss(results, method)


def points(results, method):
    return 100 * accuracy(results, method)


def in_units(difference):
    """A difference in scores, as a share of full fine-tuning's gain and in the other units."""
    return InUnits(difference(share), {NATS: difference(nats), POINTS: difference(points)})


def per_doubling(scaling):
    return in_units(lambda score: lambda results: added(results, scaling, score))


STEEPER = in_units(lambda score: lambda results: added(results, "α/√r", score) - added(results, "α/r", score))


def figures(results):
    series = []
    texts = "16 training blocks" if results.scale.testbed == DECODER else "64 training texts"
    for when, panel in (("start", "before training"), ("end", "after training")):
        for scale in (*SCALINGS, CONSTANT):
            ranks, norms = means(results, scale, when)
            if len(ranks):
                series.append(Series(scale, tuple(map(float, ranks)), tuple(map(float, norms)), panel))
    of_norms = Lines("Norm of the gradients of A and B", tuple(series), "rank r", "‖g‖", log_x=True, log_y=True,
                  caption=f"Means over replicates; all matrices together, {texts}.")  # fmt: skip
    runs, curves = results.runs, []
    for scaling in SCALINGS:
        part = runs[runs["scaling"] == scaling].groupby("rank")["loss"]
        x = tuple(map(float, part.mean().index))
        curves.append(Series(scaling, x, tuple(part.mean()), low=tuple(part.min()), high=tuple(part.max())))
    levels = {alone(results.scale): HEAD_ALONE, FULL_TUNING: FULL_TUNING}
    levels = tuple(Marker("y", loss(results, method), name) for name, method in levels.items())
    losses = Lines("Loss by rank at one learning rate", tuple(curves), "rank r", "test loss (nats)", log_x=True,
                   markers=levels,
                   caption="Means over replicates, the band from the lowest to the highest. Each scale has the "
                   "learning rate tuned at r = 8.")  # fmt: skip
    return [of_norms, losses, by_method(results), *by_step.figure(results)]


def reading(answers):
    root, plain = answers.found("root-end"), answers.found("collapse", 1)
    return (
        f"{answers.opening}, from r = {RANKS[0]} to {RANKS[-1]}, gradients after training go like r to the power of "
        f"{root} with α/√r and {plain} with α/r: that they do not depend on r with α/√r is "
        f"{answers.verdict('root-end')}, that they shrink with α/r is {answers.verdict('collapse')}. At one learning "
        f"rate each doubling of r adds {answers.found('more')} of full fine-tuning's gain with α/√r; that this is more "
        f"than with α/r is {answers.verdict('more')}."
    )


PAPER = "Kalajdzievski 2023, arXiv 2312.03732"
SETTING = "Llama-2-7B on 20,000 examples of OpenOrca, all linear layers, r from 4 to 2048 at one learning rate, AdamW"
PER_DOUBLING = "share of full fine-tuning's gain added by each doubling of r"

study = Study(
    name="rslora",
    title="Should the scale be α/r or α/√r?",
    question="Do gradients and what is learned depend on r with the scale α/r, and not with α/√r, if all ranks share a "
    "learning rate?",
    varied="the scale, α/r or α/√r; r",
    tuned="the learning rate at r = 8, for each scale; every other rank takes it",
    fixed="α = 16 on all linear layers; A Kaiming-uniform, B = 0; AdamW without weight decay, linear decay; the head's "
    "rate",
    scales=scales({
        "smoke": {"ranks": [4, 8]},
        "small": {"ranks": RANKS},
        "small-lm": {"ranks": RANKS},
        "full": {"ranks": RANKS},
    }),
    arms=arms,
    measures=(Measure("gradients", gradients, each_adapter), by_step.measure()),
    claims=(
        Claim(
            "root-start",
            "With α/√r the gradients do not depend on r before training",
            f"{PAPER}, Theorem 3.2",
            (
                Criterion("slope of log ‖g‖ against log r", slope("α/√r", "start"), at_least=-0.2, at_most=0.2,
                          no_effect=-0.5, published=0.0,
                          origin="ours: less than half of the way from 0 to the −0.5 of α/r"),
            ),
            (
                Control("slope with α/r", slope("α/r", "start"), at_least=-0.2, at_most=0.2),
                Control("slope with a constant scale", slope(CONSTANT, "start"), at_least=-0.2, at_most=0.2),
            ),
            "B = 0: A has no gradient, and that of B is in expectation the scale times √r, so that slopes are 0, −0.5 "
            "and +0.5 by the formula. It is measured how near one draw of A comes.",
            SETTING,
            kind="identity",
            amended="r = 256 is in place of r = 16, to be within the published ranks.",
        ),
        Claim(
            "root-end",
            "With α/√r the gradients do not depend on r after training",
            f"{PAPER}, on gradient norms by rank during training",
            (
                Criterion("slope of log ‖g‖ against log r", slope("α/√r", "end"), at_least=-0.2, at_most=0.2,
                          no_effect=-0.5, published=0.0,
                          origin="ours: less than half of the way from 0 to the −0.5 of α/r"),
            ),
            (Control("slope with α/r, after training", slope("α/r", "end"), at_least=-0.2, at_most=0.2),),
            "Norms also fall with the loss: where ranks end at different losses, that is in the slope.",
            SETTING,
            amended="r = 256 is in place of r = 16, to be within the published ranks.",
        ),
        Claim(
            "collapse",
            "With α/r the gradients shrink as r grows",
            f"{PAPER}, on gradient norms by rank during training",
            (
                Criterion("slope of log ‖g‖ against log r, before training", slope("α/r", "start"), at_most=-0.35,
                          no_effect=0.0, published=-0.5, origin="70 % of the −0.5 of the formula"),
                Criterion("slope of log ‖g‖ against log r, after training", slope("α/r", "end"), at_most=-0.35,
                          no_effect=0.0, expected=-0.5, origin="as before training; the paper has curves, no number"),
            ),
            (
                Control("slope with α/√r, before training", slope("α/√r", "start"), at_most=-0.35),
                Control("slope with α/√r, after training", slope("α/√r", "end"), at_most=-0.35),
            ),
            setting=SETTING,
            amended="r = 256 is in place of r = 16, to be within the published ranks.",
        ),
        Claim(
            "more",
            "At one learning rate the gain rises with r with α/√r, and more steeply than with α/r",
            f"{PAPER}, on perplexity by rank",
            (
                Criterion(f"α/√r: {PER_DOUBLING}", per_doubling("α/√r"), at_least=0.02, no_effect=0.0, unit="percent",
                          origin="ours: 12 % of the gain from r = 4 to 256; the paper has perplexities"),
                Criterion(f"{PER_DOUBLING}: α/√r less α/r", STEEPER, at_least=0.02, no_effect=0.0, unit="percent",
                          origin="ours: as above"),
            ),
            note="The learning rate is the one tuned at r = 8 for each scale, so that at r = 8 both are at their best. "
            "AdamW's steps do not depend on the gradients' size; ΔW depends on the scale, which from r = 4 to 256 "
            "falls from 4 to 1/16 with α/r and from 8 to 1 with α/√r. No negative control: the second number is the "
            "comparison with α/r.",
            setting=SETTING,
            amended="A slope over all ranks in place of the highest less the lowest; the control, α/r alone, is now "
            "within the second number.",
        ),
        Claim(
            "flat",
            "At one learning rate r makes no difference with α/r",
            f"{PAPER}, on perplexity by rank (α/r: about the same for all)",
            (
                Criterion(f"α/r: {PER_DOUBLING}", per_doubling("α/r"), at_least=-0.02, at_most=0.02, expected=0.0,
                          unit="percent", origin="ours: what the claim before it counts as a difference"),
            ),
            (Control(f"α/√r: {PER_DOUBLING}", per_doubling("α/√r"), at_least=-0.02, at_most=0.02, unit="percent"),),
            "An equivalence test: the interval must lie between the bounds.",
            SETTING,
            amended="New: it was part of the control of the claim before it.",
        ),
    ),
    figures=figures,
    reading=reading,
    elsewhere={
        DECODER: {
            "fixed": "α = 16 on all linear layers; A Kaiming-uniform, B = 0; AdamW without weight decay, linear decay",
        }
    },
)  # fmt: skip

if __name__ == "__main__":
    study.main()
