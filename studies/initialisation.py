"""How should A and B be initialised? Both zero, A random with B zero, and the reverse.

python studies/initialisation.py --scale small --jobs 2
"""

import numpy as np

from lorascope.blocks import Lines, Series
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.statistics import once
from lorascope.study.statistics import slope as line_slope
from lorascope.study.tasks import LORA_RATES, head_arm, lora, scales

STARTS = {"A random, B zero": "kaiming", "A zero, B random": "a-zero", "both zero": "zero-both"}
RANK = 8
STABLE = 10.0  # a learning rate is stable while the final loss is at most so many times the lowest of its draw


def arms(scale):
    yield head_arm({"start": "head alone"})
    for start, init in STARTS.items():
        rates = LORA_RATES if init != "zero-both" else (3e-3,)  # what does not learn needs no search
        yield Arm({"start": start}, {**lora(RANK), "method.init": init}, rates)


def gradients(folders, start):
    """The largest entry of the adapter's gradients at the first step, and of ΔW after the last one."""
    import torch

    from lorascope.training import config, loop, member, run
    from lorascope.updates.base import dense
    from lorascope.weights import io

    settings = config.load(folders[0] / "config.yaml")
    prepared = run.prepare(settings, torch.device("cpu"))
    member = member.Member(
        prepared.injected, prepared.train, prepared.held_out, settings, run.World(torch.device("cpu"))
    )
    single = loop.Pass([member])
    (loss,) = single.losses([list(range(min(32, len(prepared.train))))])
    loss.backward()
    grads = {name: parameter.grad for name, parameter in prepared.injected.trainable().items()}
    of_factors = [grad for name, grad in grads.items() if grad is not None and name.endswith((".A", ".B"))]
    updates = io.read(folders[0] / "adapter").updates.values()
    delta = max(float(abs(dense(update.delta())).max()) for update in updates)
    return [{"gradient": max(float(grad.abs().max()) for grad in of_factors), "delta": delta}]


def adapters(results):
    runs = results.runs[results.runs["start"].isin(STARTS)]
    return [MeasurementSpec((row["key"],), {"start": row["start"]}) for row in runs.to_dict("records")]


def teacher_student(folders, init, width, replicate, steps):
    """Final training losses of a wide student's LoRA by learning rate: one hidden layer, Adam, a low-rank teacher.

    y = w_out · φ((W + ΔW) φ(W_in x)), φ = ReLU, W frozen and random; the teacher's ΔW has rank 20, the student's 4.
    """
    import torch
    from torch import nn

    from lorascope.adapt.inject import inject
    from lorascope.adapt.method import methods

    torch.manual_seed(1000 * replicate + width)
    inputs, samples, teachers = 5, 256, 20
    lora_class = methods.get("lora")
    net = nn.Sequential(nn.Linear(inputs, width, bias=False), nn.ReLU(), nn.Linear(width, width, bias=False), nn.ReLU())
    out = torch.randn(width) / width**0.5
    nn.init.normal_(net[0].weight, std=inputs**-0.5)
    nn.init.normal_(net[2].weight, std=width**-0.5)
    net[2].weight.data *= 0.1
    x = torch.randn(samples, inputs)
    with torch.no_grad():
        features = net[:2](x)
        teacher = torch.randn(width, teachers) @ torch.randn(teachers, width) / (teachers * width) ** 0.5
        target = torch.relu(features @ (net[2].weight + teacher).T) @ out
    rows = []
    for rate in np.geomspace(2.0**-16, 2.0, 18):
        injected = inject(
            nn.Sequential(nn.Identity(), nn.Identity(), nn.Linear(width, width, bias=False), nn.ReLU()),
            lora_class(lora_class.Config(rank=4, alpha=4, init=init)),
            targets=["2"],
            seed=replicate,
        )
        injected.model[2].base.weight.data.copy_(net[2].weight)
        optimizer = torch.optim.Adam(list(injected.trainable().values()), lr=float(rate))
        for _ in range(steps):
            loss = nn.functional.mse_loss(injected.model(features) @ out, target)
            if not torch.isfinite(loss):
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            loss = nn.functional.mse_loss(injected.model(features) @ out, target).item()
        rows.append({"rate": float(rate), "loss": loss if np.isfinite(loss) else None})
    return rows


def widths(results):
    for init in ("kaiming", "a-zero"):
        for width in results.scale.params["widths"]:
            for replicate in range(results.scale.replicates):
                yield MeasurementSpec(
                    (), {"init": init, "width": width, "replicate": replicate, "steps": results.scale.params["steps"]}
                )


def best_rates(results, init):
    """Geometric mean over replicates of the learning rate with the lowest loss, by width."""
    table = results.tables["teacher_student"].dropna(subset=["loss"])
    table = table[table["init"] == init]
    best = table.loc[table.groupby(["width", "replicate"])["loss"].idxmin()]
    return np.exp(np.log(best["rate"]).groupby(best["width"]).mean())


@once
def stable_rates(results, init):
    """Log of the largest stable learning rate by width, the mean over replicates; widths ascending."""
    table = results.tables["teacher_student"]
    of_start = table["init"].to_numpy() == init
    columns = ("width", "replicate", "rate", "loss")
    width, replicate, rate, loss = (table[column].to_numpy(float)[of_start] for column in columns)
    order = np.lexsort((rate, replicate, width))
    width, replicate, rate, loss = (values[order] for values in (width, replicate, rate, loss))
    starts = np.flatnonzero(np.r_[True, (np.diff(width) != 0) | (np.diff(replicate) != 0)])
    ends = np.r_[starts[1:], len(width)]
    largest = np.array([largest_stable(rate[i:j], loss[i:j]) for i, j in zip(starts, ends, strict=True)])
    widths = np.unique(width)
    return widths, np.array([largest[width[starts] == each].mean() for each in widths])


def largest_stable(rates, losses):
    """Log of the rate above the best one at which the final loss passes STABLE times the lowest, by log-log lines."""
    losses = np.where(np.isfinite(losses), losses, np.inf)
    best = int(losses.argmin())
    bound = STABLE * losses[best]
    above = np.flatnonzero(losses[best:] > bound)
    if not len(above):
        return float(np.log(rates[-1]))
    i = best + int(above[0])
    if np.isinf(losses[i]):
        return float(np.log(rates[i - 1]))
    return float(np.interp(np.log(bound), np.log(losses[i - 1 : i + 1]), np.log(rates[i - 1 : i + 1])))


def slope(init):
    """Of the log of the largest stable rate on log n."""

    def statistic(results):
        sizes, rates = stable_rates(results, init)
        if len(sizes) < 3:
            raise ValueError("fewer than three widths")
        return line_slope(np.log(sizes), rates)

    return statistic


def ratio_at_widest(results):
    """The largest stable rate with A random over that with B random."""
    first, second = (stable_rates(results, init)[1] for init in ("kaiming", "a-zero"))
    return float(np.exp(first[-1] - second[-1]))


def loss(results, start):
    return results.runs.loc[results.runs["start"] == start, "loss"].mean()


def gain(start):
    return lambda results: loss(results, "head alone") - loss(results, start)


def gain_ratio(results):
    first, second = (gain(start)(results) for start in list(STARTS)[:2])
    return first / second


def largest(start, column):
    def statistic(results):
        table = results.tables["gradients"]
        return table.loc[table["start"] == start, column].max()

    return statistic


def figures(results):
    series = []
    for start, init in list(STARTS.items())[:2]:
        best, (sizes, stable) = best_rates(results, init), stable_rates(results, init)
        series.append(Series(f"{start}: largest stable", tuple(sizes), tuple(np.exp(stable))))
        series.append(Series(f"{start}: best", tuple(map(float, best.index)), tuple(best), weight="thin"))
        power = -0.5 if init == "kaiming" else -1.0
        label = "n^(−1/2)" if init == "kaiming" else "n^(−1)"
        guide = tuple(float(np.exp(stable[0])) * (size / sizes[0]) ** power for size in sizes)
        series.append(Series(label, tuple(sizes), guide, weight="reference"))
    curves = []
    table = results.tables["teacher_student"]
    widest = table[table["width"] == table["width"].max()]
    for start, init in list(STARTS.items())[:2]:
        mean = widest[widest["init"] == init].groupby("rate")["loss"].median()
        shown = mean[mean < 10 * mean.min()]
        curves.append(Series(start, tuple(map(float, shown.index)), tuple(shown)))
    logs = {"log_x": True, "log_y": True}
    means = "Teacher–student network, geometric means over replicates. Largest stable: above it the final loss is more "
    means += "than ten times the lowest of its replicate. Best: lowest final loss."
    left_out = "Medians over replicates; losses above ten times the lowest are not shown."
    return [
        Lines("Learning rates by width", tuple(series), "width n", "learning rate", **logs, caption=means),
        Lines(
            "Loss by learning rate at the largest width",
            tuple(curves),
            "learning rate",
            "final loss",
            **logs,
            caption=left_out,
        ),
    ]


def reading(answers):
    falls = "like n to the power of {} with {} random (published: {}, {})"
    parts = [
        falls.format(answers.found(name), factor, power, answers.verdict(name))
        for name, factor, power in (("slope-a", "A", "−1/2"), ("slope-b", "B", "−1"))
    ]
    return (
        f"{answers.opening}, LoRA with A random and B zero gains {answers.found('first-better')} times what the "
        f"reverse gains: that it gains more is {answers.verdict('first-better')}. In a network with one hidden layer "
        f"of width n the largest stable learning rate falls {' and '.join(parts)}."
    )


HAYOU = "Hayou, Ghosh and Yu 2024, arXiv 2406.08447"
HAYOU_SETTING = "RoBERTa-large on GLUE, TinyLlama on WikiText-2, Llama-7B on other tasks; learning rates swept"
WIDTH_SETTING = "theory for n → ∞ with Adam; teacher–student networks of n = 128 to 8192"
WIDTH_NOTE = (
    "ReLU network with one hidden layer, low-rank teacher, full-batch steps of Adam; the paper's sizes differ. Stable: "
    "the final loss is at most ten times the lowest of its replicate."
)
WIDTH_AMENDED = (
    "The largest stable rate in place of the best one, because the theory is of that; the bounds are now the middle "
    "between the two published powers and as far on the other side."
)
ABOUT_LEARNING = "ours: three standard deviations between seeds, about a sixth of what LoRA gains"

study = Study(
    name="initialisation",
    title="How should A and B be initialised?",
    question="What does LoRA learn from A and B both zero, from A random with B zero, and from the reverse, and at "
    "which learning rates?",
    varied="the initialisation of A and B; in the teacher–student network the width, too",
    tuned="the learning rate, for each initialisation; in the teacher–student network it is the result",
    fixed="r = 8, α = 16 on all linear layers; the head's rate; in the teacher–student network r = 4, Adam, full "
    "batches",
    scales=scales(
        {
            "smoke": {"widths": [16, 32, 64], "steps": 10},
            "small": {"widths": [64, 128, 256, 512, 1024, 2048], "steps": 100},
            "full": {"widths": [128, 256, 512, 1024, 2048, 4096, 8192], "steps": 100},
        }
    ),
    arms=arms,
    scope_note="The claims on the width n: a ReLU network with one hidden layer, {steps} steps, n = {widths}.",
    measures=(
        Measure("gradients", gradients, adapters),
        Measure("teacher_student", teacher_student, widths, independent_params=("width",)),
    ),
    claims=(
        Claim(
            "never",
            "A and B both zero never learn: their gradients are exactly zero at every step",
            "∂L/∂A = s Bᵀ G, ∂L/∂B = s G Aᵀ, from the form W + s B A (Hu et al. 2021, §4.1)",
            (
                Criterion("largest entry of the first gradients of A and B", largest("both zero", "gradient"),
                          at_most=0.0, expected=0.0, origin="the formula: exactly 0"),
                Criterion("largest entry of ΔW after training", largest("both zero", "delta"), at_most=0.0,
                          expected=0.0, origin="the formula: exactly 0"),
                Criterion("absolute difference in loss from the head alone (nats)",
                          lambda r: abs(gain("both zero")(r)), at_most=0.05, expected=0.0, origin=ABOUT_LEARNING),
            ),
            (
                Control("gradients with A random", largest("A random, B zero", "gradient"), at_most=0.0),
                Control("gradients with B random", largest("A zero, B random", "gradient"), at_most=0.0),
            ),
            "Losses differ by the seeds of the head and of the data alone.",
            kind="identity",
            amended="The bound is unchanged; the value for no effect and the origin of the bound were added.",
        ),
        Claim(
            "both-learn",
            "Either factor may be the random one: both initialisations learn",
            f"{HAYOU}, on both",
            tuple(
                Criterion(f"gain with {start} (nats)", gain(start), at_least=0.05, no_effect=0.0,
                          origin=ABOUT_LEARNING)
                for start in list(STARTS)[:2]
            ),
            (Control("gain with both zero (nats)", gain("both zero"), at_least=0.05),),
            "Gain: how far the test loss lies below that of a trained head on the frozen base.",
            HAYOU_SETTING,
            amended="The bound is unchanged; the value for no effect and the origin of the bound were added.",
        ),
        Claim(
            "first-better",
            "A random with B zero gains more than the reverse, each at its own learning rate",
            f"{HAYOU}, abstract (on average)",
            (
                Criterion("gain with A random / gain with B random", gain_ratio, at_least=1.05, no_effect=1.0,
                          origin="ours: 5 % more; the paper has scores on several tasks"),
            ),
            note="Learning rates a factor of about 3 apart were tuned with one run each; the interval does not include "
            "this noise. No negative control: the number is itself a comparison of two initialisations, tuned alike.",
            setting=HAYOU_SETTING,
            amended="The bound was 1, which is no effect; the control, both zero in place of A random, failed for "
            "anything that does not learn.",
        ),
        Claim(
            "slope-a",
            "With A random the largest stable learning rate falls like n^(−1/2) in the width n",
            f"{HAYOU}, theory and a teacher–student network",
            (
                Criterion("slope of the log of the largest stable rate on log n", slope("kaiming"), at_least=-0.75,
                          at_most=-0.25, no_effect=0.0, published=-0.5,
                          origin="the middle between the published −1/2 and −1, and as far on the other side"),
            ),
            (Control("the slope with B random", slope("a-zero"), at_least=-0.75, at_most=-0.25),),
            WIDTH_NOTE,
            WIDTH_SETTING,
            amended=WIDTH_AMENDED,
        ),
        Claim(
            "slope-b",
            "With B random the largest stable learning rate falls like n^(−1)",
            f"{HAYOU}, theory and a teacher–student network",
            (
                Criterion("slope of the log of the largest stable rate on log n", slope("a-zero"), at_least=-1.25,
                          at_most=-0.75, no_effect=0.0, published=-1.0,
                          origin="the middle between the published −1/2 and −1, and as far on the other side"),
            ),
            (Control("the slope with A random", slope("kaiming"), at_least=-1.25, at_most=-0.75),),
            WIDTH_NOTE,
            WIDTH_SETTING,
            amended=WIDTH_AMENDED,
        ),
        Claim(
            "larger-rates",
            "A random allows larger learning rates at large width",
            f"{HAYOU}, abstract",
            (
                Criterion("largest stable rate with A random / with B random, at the largest width", ratio_at_widest,
                          at_least=2.0, no_effect=1.0, origin="ours: a step of the grid of rates"),
            ),
            note=f"{WIDTH_NOTE} No negative control: the number is itself a comparison of two initialisations.",
            setting=WIDTH_SETTING,
            amended="The largest stable rate in place of the best one; the control compared two widths, not two "
            "initialisations.",
        ),
    ),
    figures=figures,
    reading=reading,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
