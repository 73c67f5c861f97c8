"""How must A and B start? Both zero, A random with B zero, and the reverse.

python studies/initialisation.py --scale small --jobs 2
"""

import numpy as np

from lorascope.blocks import Lines, Series
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.tasks import LORA_RATES, head_arm, lora, scales

STARTS = {"A random, B zero": "kaiming", "A zero, B random": "a-zero", "both zero": "zero-both"}
RANK = 8


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
    ((loss, _),) = single.losses([list(range(min(32, len(prepared.train))))])
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
    """Median over replicates of the learning rate with the lowest loss, by width."""
    table = results.tables["teacher_student"].dropna(subset=["loss"])
    table = table[table["init"] == init]
    best = table.loc[table.groupby(["width", "replicate"])["loss"].idxmin()]
    return np.exp(np.log(best["rate"]).groupby(best["width"]).mean())


def slope(init):
    def statistic(results):
        rates = best_rates(results, init)
        if len(rates) < 3:
            raise ValueError("fewer than three widths")
        return float(np.polyfit(np.log(rates.index.to_numpy(float)), np.log(rates.to_numpy()), 1)[0])

    return statistic


def ratio_at_widest(results):
    first, second = (best_rates(results, init) for init in ("kaiming", "a-zero"))
    return float(first.iloc[-1] / second.iloc[-1])


def ratio_of_halves(results):
    rates = best_rates(results, "a-zero")
    return float(rates.iloc[-1] / rates.iloc[-2])


def loss(results, start):
    return results.runs.loc[results.runs["start"] == start, "loss"].mean()


def gain(start):
    return lambda results: loss(results, "head alone") - loss(results, start)


def gain_ratio(results):
    first, second = (gain(start)(results) for start in list(STARTS)[:2])
    return first / second


def zero_ratio(results):
    return gain("both zero")(results) / gain("A zero, B random")(results)


def largest(start, column):
    def statistic(results):
        table = results.tables["gradients"]
        return table.loc[table["start"] == start, column].max()

    return statistic


def figures(results):
    series = []
    for start, init in list(STARTS.items())[:2]:
        rates = best_rates(results, init)
        series.append(Series(start, tuple(map(float, rates.index)), tuple(rates)))
        first = float(rates.iloc[0])
        power = -0.5 if init == "kaiming" else -1.0
        label = "n^(−1/2)" if init == "kaiming" else "n^(−1)"
        guide = tuple(first * (width / rates.index[0]) ** power for width in rates.index)
        series.append(Series(label, tuple(map(float, rates.index)), guide, weight="reference"))
    curves = []
    table = results.tables["teacher_student"]
    widest = table[table["width"] == table["width"].max()]
    for start, init in list(STARTS.items())[:2]:
        mean = widest[widest["init"] == init].groupby("rate")["loss"].median()
        shown = mean[mean < 10 * mean.min()]
        curves.append(Series(start, tuple(map(float, shown.index)), tuple(shown)))
    logs = {"log_x": True, "log_y": True}
    best = "Teacher–student: geometric means over replicates of the rate with the lowest final loss."
    left_out = "Medians over replicates; losses above ten times the lowest are left out."
    return [
        Lines("Best learning rate by width", tuple(series), "width n", "learning rate", **logs, caption=best),
        Lines("Loss by rate at the widest", tuple(curves), "learning rate", "final loss", **logs, caption=left_out),
    ]


study = Study(
    name="initialisation",
    title="How must A and B start?",
    question="What does LoRA learn from A and B both zero, from A random with B zero, and from the reverse, and at "
    "which learning rates?",
    varied="the start of A and B; in the teacher–student model the width, too",
    tuned="the learning rate, for each start; in the teacher–student model its best value is the result",
    fixed="r = 8, α = 16 on all linear layers; the head's rate; in the teacher–student model r = 4, Adam, full batches",
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
                Criterion(
                    "largest entry of the first gradients of A and B", largest("both zero", "gradient"), at_most=0.0
                ),
                Criterion("largest entry of ΔW after training", largest("both zero", "delta"), at_most=0.0),
                Criterion(
                    "loss less that of the head alone, absolute (nats)",
                    lambda r: abs(gain("both zero")(r)),
                    at_most=0.05,
                ),
            ),
            (
                Control("gradients with A random", largest("A random, B zero", "gradient"), at_most=0.0),
                Control("gradients with B random", largest("A zero, B random", "gradient"), at_most=0.0),
            ),
            "Losses differ by the seeds of the head and of the data alone.",
        ),
        Claim(
            "both-learn",
            "Either factor may be the random one: both starts learn",
            "Hayou, Ghosh and Yu 2024, arXiv 2406.08447, on both starts",
            (
                Criterion("gain with A random, B zero (nats)", gain("A random, B zero"), at_least=0.05),
                Criterion("gain with A zero, B random (nats)", gain("A zero, B random"), at_least=0.05),
            ),
            (Control("gain with both zero (nats)", gain("both zero"), at_least=0.05),),
        ),
        Claim(
            "first-better",
            "A random with B zero gains more than the reverse, each at its best learning rate",
            "Hayou, Ghosh and Yu 2024, abstract (on average)",
            (Criterion("gain with A random over gain with B random", gain_ratio, at_least=1.0),),
            (Control("both zero in place of A random", zero_ratio, at_least=1.0),),
        ),
        Claim(
            "slope-a",
            "With A random the best learning rate falls like n^(−1/2) in the width n",
            "Hayou, Ghosh and Yu 2024, on the largest stable rate, in theory and in a teacher–student model",
            (Criterion("slope of log rate against log n", slope("kaiming"), at_least=-0.75, at_most=-0.25),),
            (Control("the slope with B random", slope("a-zero"), at_least=-0.75, at_most=-0.25),),
            "ReLU network of one hidden layer, low-rank teacher, full-batch steps of Adam; the paper's sizes differ.",
        ),
        Claim(
            "slope-b",
            "With B random the best learning rate falls like n^(−1)",
            "Hayou, Ghosh and Yu 2024, on the largest stable rate, in theory and in a teacher–student model",
            (Criterion("slope of log rate against log n", slope("a-zero"), at_least=-1.3, at_most=-0.7),),
            (Control("the slope with A random", slope("kaiming"), at_least=-1.3, at_most=-0.7),),
        ),
        Claim(
            "larger-rates",
            "A random allows larger learning rates at large width",
            "Hayou, Ghosh and Yu 2024, abstract",
            (
                Criterion(
                    "best rate with A random over that with B random, at the largest width",
                    ratio_at_widest,
                    at_least=2.0,
                ),
            ),
            (Control("B random at the widest over B random at half the width", ratio_of_halves, at_least=2.0),),
        ),
    ),
    figures=figures,
)

if __name__ == "__main__":
    study.main()
