"""Should the scale be α/r or α/√r? Gradients and losses by rank at one learning rate.

python studies/rslora.py --scale small --jobs 2
"""

from dataclasses import replace

import numpy as np

from lorascope.blocks import Lines, Marker, Series
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE, by_method, lead, loss
from lorascope.study.tasks import LORA_RATES, full_arm, head_arm, lora, scales

SCALINGS = {"α/r": "lora", "α/√r": "rslora"}
CONSTANT = "constant"
MIDDLE = 8  # the rank whose best learning rate all take


def named(scaling, rank):
    return f"{scaling}, r = {rank}"


def arms(scale):
    yield head_arm({"method": HEAD_ALONE, "scaling": "", "rank": 0})
    yield full_arm({"method": FULL_TUNING, "scaling": "", "rank": None})
    for scaling, name in SCALINGS.items():
        tuned = {"method": named(scaling, MIDDLE), "scaling": scaling, "rank": MIDDLE}
        yield Arm(tuned, lora(MIDDLE, name), LORA_RATES)
        for rank in scale.params["ranks"]:
            if rank != MIDDLE:
                labels = {"method": named(scaling, rank), "scaling": scaling, "rank": rank}
                yield Arm(labels, lora(rank, name), rate_of=tuned)


def gradients(folders, scaling, rank):
    """‖g‖ of all A and B together on 64 training texts, before and after training; of a constant scale, before."""
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
    texts = list(range(min(64, len(prepared.train))))
    ((loss, _),) = loop.Pass([member]).losses([texts])
    trained = {name: tensor for name, tensor in prepared.injected.trainable().items() if name.endswith((".A", ".B"))}
    gradients = torch.autograd.grad(loss / len(texts), list(trained.values()))
    return float(sum(float(tensor.square().sum()) for tensor in gradients) ** 0.5)


def each_adapter(results):
    runs = results.runs[results.runs["scaling"].isin(SCALINGS)]
    return [
        MeasurementSpec((row["key"],), {"scaling": row["scaling"], "rank": row["rank"]})
        for row in runs.to_dict("records")
    ]


def means(results, scale, when):
    table = results.tables["gradients"]
    part = table[(table["scale"] == scale) & (table["when"] == when)]
    return part.groupby("rank")["norm"].mean()


def slope(scale, when):
    """Of log ‖g‖ against log r."""

    def statistic(results):
        norms = means(results, scale, when)
        if len(norms) < 2:
            raise ValueError("fewer than two ranks")
        return float(np.polyfit(np.log(norms.index.to_numpy(float)), np.log(norms.to_numpy()), 1)[0])

    return statistic


def more(scaling):
    """The largest rank's gain less the smallest's, over full fine-tuning's."""

    def statistic(results):
        ranks = results.scale.params["ranks"]
        return lead(named(scaling, max(ranks)), named(scaling, min(ranks)))(results)

    return statistic


def figures(results):
    series = []
    for when, panel in (("start", "before training"), ("end", "after training")):
        for scale in (*SCALINGS, CONSTANT):
            norms_by_rank = means(results, scale, when)
            if len(norms_by_rank):
                series.append(Series(scale, tuple(map(float, norms_by_rank.index)), tuple(norms_by_rank), panel))
    norms = Lines("Norm of the gradients of A and B", tuple(series), "rank r", "‖g‖", log_x=True, log_y=True,
                  caption="Means over replicates; all matrices together, 64 training texts.")  # fmt: skip
    runs, curves = results.runs, []
    for scaling in SCALINGS:
        part = runs[runs["scaling"] == scaling].groupby("rank")["loss"]
        x = tuple(map(float, part.mean().index))
        curves.append(Series(scaling, x, tuple(part.mean()), low=tuple(part.min()), high=tuple(part.max())))
    levels = tuple(Marker("y", loss(results, method), method) for method in (HEAD_ALONE, FULL_TUNING))
    losses = Lines("Loss by rank at one learning rate", tuple(curves), "rank r", "test loss (nats)", log_x=True,
                   markers=levels,
                   caption="Means over replicates, the band from the best to the worst one. Each scale has the "
                   "learning rate that is best at r = 8.")  # fmt: skip
    return [norms, losses, by_method(results)]


PAPER = "Kalajdzievski 2023, arXiv 2312.03732"

study = Study(
    name="rslora",
    title="Should the scale be α/r or α/√r?",
    question="Do gradients and what is learned depend on r with the scale α/r, and not with α/√r, if all ranks share a "
    "learning rate?",
    varied="the scale, α/r or α/√r; r",
    tuned="the learning rate at r = 8, for each scale; every other rank takes it",
    fixed="α = 16 on all linear layers; A Kaiming-uniform, B = 0; AdamW without weight decay, linear decay; the head's "
    "rate",
    scales=scales({"smoke": {"ranks": [4, 8]}, "small": {"ranks": [4, 8, 16, 64]}, "full": {"ranks": [4, 8, 16, 64]}}),
    arms=arms,
    measures=(Measure("gradients", gradients, each_adapter),),
    claims=(
        Claim(
            "root-start",
            "With α/√r the gradients do not depend on r at the start",
            f"{PAPER}, Theorem 3.2",
            (Criterion("slope of log ‖g‖ against log r", slope("α/√r", "start"), at_least=-0.2, at_most=0.2),),
            (
                Control("with α/r", slope("α/r", "start"), at_least=-0.2, at_most=0.2),
                Control("with a constant scale", slope(CONSTANT, "start"), at_least=-0.2, at_most=0.2),
            ),
            "At the start B = 0: A has no gradient, and that of B is in expectation the scale times √r. Slopes are 0, "
            "−0.5 and +0.5 by that form; what is measured is how near one draw of A comes.",
        ),
        Claim(
            "root-end",
            "With α/√r the gradients do not depend on r after training",
            f"{PAPER}, on gradient norms by rank",
            (Criterion("slope of log ‖g‖ against log r", slope("α/√r", "end"), at_least=-0.2, at_most=0.2),),
            (Control("with α/r, after training", slope("α/r", "end"), at_least=-0.2, at_most=0.2),),
            "The paper has norms along training. Norms also fall with the loss: where ranks end at other losses, that "
            "is in the slope.",
        ),
        Claim(
            "collapse",
            "With α/r the gradients shrink as r grows",
            f"{PAPER}, on gradient norms by rank",
            (
                Criterion("slope of log ‖g‖ against log r, at the start", slope("α/r", "start"), at_most=-0.35),
                Criterion("slope of log ‖g‖ against log r, after training", slope("α/r", "end"), at_most=-0.35),
            ),
            (
                Control("with α/√r, at the start", slope("α/√r", "start"), at_most=-0.35),
                Control("with α/√r, after training", slope("α/√r", "end"), at_most=-0.35),
            ),
        ),
        Claim(
            "more",
            "At one learning rate the highest rank gains more than the lowest with α/√r, and more so than with α/r",
            f"{PAPER}, on perplexity by rank (α/r: about the same for all)",
            (
                Criterion("α/√r: gain of the highest rank less that of the lowest, over full fine-tuning's",
                          more("α/√r"), at_least=0.02, unit="percent"),
                Criterion("the same, less that of α/r", lambda results: more("α/√r")(results) - more("α/r")(results),
                          at_least=0.02, unit="percent"),
            ),
            (Control("α/r: gain of the highest rank less that of the lowest", more("α/r"), at_least=0.02,
                     unit="percent"),),
            "The rate is the best of r = 8, of each scale: other ranks may have better ones, which rank_sweep tunes. "
            "AdamW's steps do not depend on the gradients' size, ΔW on the scale: at r = 64 it is 0.25 with α/r and 2 "
            "with α/√r.",
        ),
    ),
    figures=figures,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
