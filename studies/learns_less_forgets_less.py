"""LoRA learns less and forgets less: task gain against what is lost of the base, over r, learning rates and full
fine-tuning.

python studies/learns_less_forgets_less.py --scale small --jobs 2
"""

import numpy as np

from lorascope.blocks import Lines, Marker, Series
from lorascope.study import Arm, Call, Claim, Control, Criterion, Measure, Study
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE, by_method, share
from lorascope.study.tasks import FULL, LORA_RATES, full_arm, head_arm, lora, scales

RATES = (3e-4, 1e-3, 3e-3)  # of LoRA; beyond the best ones it forgets more and gains no more
FULL_RATES = (3e-5, 1e-4, 3e-4, 1e-3)
SWEPT = 8
SHRUNK = (0.25, 0.5, 0.75, 1.0)  # times the trained ΔW
TARGET = 0.8  # of full fine-tuning's gain, where forgetting is compared


def named(rank, rate=None):
    return f"LoRA, r = {rank}" + ("" if rate is None else f", rate {rate:g}")


SWEEP = tuple(named(SWEPT, rate) for rate in RATES)
FULLS = tuple(f"{FULL_TUNING}, rate {rate:g}" for rate in FULL_RATES)


def arms(scale):
    yield head_arm({"method": HEAD_ALONE})
    yield full_arm({"method": FULL_TUNING})
    for rank in scale.params["ranks"]:
        yield Arm({"method": named(rank)}, lora(rank), LORA_RATES)
    for name, rate in zip(FULLS, FULL_RATES, strict=True):
        yield Arm({"method": name}, FULL, (rate,))
    for name, rate in zip(SWEEP, RATES, strict=True):
        yield Arm({"method": name}, lora(SWEPT), (rate,))


# Measures.


def retained(folders, method, texts):
    """What a run has lost of the base."""
    from lorascope.study.measures.retention import Retention
    from lorascope.training.reopen import reopen

    found = Retention(reopen(folders[0], max_samples=8), texts)
    return [{**found.score(), "pair_loss_of_base": found.base["pair_loss"]}]


def shrunk(folders, method, texts, split, scored):
    """Task loss and forgetting with every trained ΔW multiplied by one factor, after training."""
    from lorascope.linalg.factored import Factored
    from lorascope.study.measures.retention import Retention
    from lorascope.training.reopen import reopen

    run = reopen(folders[0], split=split, max_samples=scored)
    lost = Retention(run, texts)
    trained = {name: run.delta(name) for name in run.updates}
    for factor in SHRUNK:
        put = {
            name: Factored(delta.left * factor, delta.right) if isinstance(delta, Factored) else delta * factor
            for name, delta in trained.items()
        }
        run.put(put)
        yield {"factor": factor, "loss": run.score().loss, **lost.score()}


# What is measured on which runs. The method is said, for a run of a swept rate may be a tuned one, too.


def each_run(results):
    texts = results.scale.params["texts"]
    runs = results.runs.to_dict("records")
    return [Call((run["key"],), {"method": run["method"], "texts": texts}) for run in runs]


def each_shrunk(results):
    scale = results.scale
    given = {"texts": scale.params["texts"], "split": scale.test_split, "scored": scale.test_samples}
    runs = results.runs[results.runs["method"].isin((FULL_TUNING, named(SWEPT)))].to_dict("records")
    return [Call((run["key"],), {"method": run["method"], **given}) for run in runs]


# Statistics.


def lost(results, method, column="forgetting"):
    table = results.tables["retained"]
    chosen = table["method"].to_numpy() == method
    if not chosen.any():
        raise ValueError(f"no run of {method}")
    return float(table[column].to_numpy()[chosen].mean())


def less_learned(rank):
    """Full fine-tuning's gain is 1."""
    return lambda results: share(results, named(rank))


def less_lost(method, other=FULL_TUNING, column="forgetting"):
    return lambda results: lost(results, method, column) - lost(results, other, column)


def widest(results):
    return max(results.scale.params["ranks"])


def by_rank(of, shuffled=False):
    """Spearman's ρ of r and a number of r, over the ranks."""

    def statistic(results):
        ranks = sorted(results.scale.params["ranks"])
        order = np.argsort(np.argsort([of(results, named(rank)) for rank in ranks]))
        places = np.arange(len(ranks))
        if shuffled:  # the first half of them after the second, from the inside out
            places = np.argsort(np.argsort([(-1) ** i * (i + 1) for i in range(len(ranks))]))
        return float(np.corrcoef(places, order)[0, 1])

    return statistic


def at_target(points):
    """Forgetting where a path first reaches TARGET of full fine-tuning's gain, between its points by straight lines.

    Args:
        points: (share of the gain, forgetting), in the order of the path, which starts at the base, (0, 0).
    """
    before = (0.0, 0.0)
    for gained, forgotten in points:
        if gained >= TARGET:
            part = (TARGET - before[0]) / (gained - before[0])
            return before[1] + part * (forgotten - before[1])
        before = (gained, forgotten)
    raise ValueError(f"it never reaches {TARGET:.0%} of full fine-tuning's gain")


def by_rates(results, methods):
    return [(share(results, method), lost(results, method)) for method in methods]


def by_factors(results, method):
    table = results.tables["shrunk"]
    part = table[table["method"] == method]
    if part.empty:
        raise ValueError(f"nothing shrunk of {method}")
    means = part.groupby("factor")[["loss", "forgetting"]].mean()
    runs = results.runs
    head, full = (runs.loc[runs["method"] == name, "loss"].mean() for name in (HEAD_ALONE, FULL_TUNING))
    return [((head - row.loss) / (head - full), row.forgetting) for row in means.itertuples()]


def dearer(first, second):
    """Forgetting of one path less that of another, at the same gain."""
    return lambda results: at_target(first(results)) - at_target(second(results))


def lora_path(results):
    return by_rates(results, SWEEP)


def full_path(results):
    return by_rates(results, FULLS)


def shrunk_path(results):
    return by_factors(results, FULL_TUNING)


def drowned(results):
    """The path of full fine-tuning with twice the forgetting."""
    return [(gained, 2 * forgotten) for gained, forgotten in full_path(results)]


# Figures.


def pareto(results, column, title, label):
    ranks = [named(rank) for rank in sorted(results.scale.params["ranks"])]
    kinds = (("LoRA by r, tuned", ranks), (f"LoRA, r = {SWEPT}, by rate", SWEEP), ("full fine-tuning by rate", FULLS))
    series = []
    for name, methods in (*kinds, ("full fine-tuning, tuned", [FULL_TUNING])):
        x = tuple(lost(results, method, column) for method in methods)
        series.append(Series(name, x, tuple(share(results, method) for method in methods), points=tuple(methods)))
    marks = [Marker("y", 1.0, "full fine-tuning, tuned"), Marker("y", 0.0, "head alone")]
    if column == "pair_loss":
        marks.append(Marker("x", float(results.tables["retained"]["pair_loss_of_base"].iloc[0]), "base"))
    caption = "Means over replicates; a point's name shows under the pointer. Up and to the left is better."
    return Lines(title, tuple(series), label, "gain over full fine-tuning's", markers=tuple(marks), caption=caption)


def paths(results):
    found = {
        "trained with lower rates": (("LoRA", lora_path), ("full fine-tuning", full_path)),
        "ΔW shrunk after training": (
            ("LoRA", lambda results: by_factors(results, named(SWEPT))),
            ("full fine-tuning", shrunk_path),
        ),
    }
    series = []
    for panel, those in found.items():
        for name, path in those:
            gained, forgotten = zip((0.0, 0.0), *path(results), strict=True)
            series.append(Series(name, tuple(map(float, forgotten)), tuple(map(float, gained)), panel))
    caption = (
        "Left, each point is a learning rate. Right, each point is one trained run's ΔW times "
        f"{', '.join(f'{factor:g}' for factor in SHRUNK)}, its head as trained. "
        f"LoRA has r = {SWEPT}. All paths start at the base with a head of its own."
    )
    panels = tuple(Marker("y", TARGET, "compared here", panel) for panel in found)
    return Lines(
        "Two ways to forget less", tuple(series), "forgetting", "gain over full fine-tuning's", markers=panels,
        caption=caption,
    )  # fmt: skip


def figures(results):
    return [
        by_method(results),
        pareto(results, "forgetting", "Learning against forgetting", "forgetting: 1 − ρ of the base's similarities"),
        pareto(results, "pair_loss", "Learning against the pre-training's loss", "loss of pre-training (nats)"),
        paths(results),
    ]


PAPER = "Biderman et al. 2024, arXiv 2405.09673 (TMLR)"
FORGETS = (
    "Forgetting: 1 − Spearman's ρ of the cosine similarities of held-out glosses of one class, after tuning against "
    "before. The paper has accuracy on other tasks, of a language model."
)
NO = "full fine-tuning against the head alone, which changes nothing in the base"


def forgets_less(rank):
    return Criterion(f"forgetting of LoRA, r = {rank}, less full fine-tuning's", less_lost(named(rank)), at_most=0.0)


def learns_less(rank):
    text = f"gain of LoRA, r = {rank}, over full fine-tuning's"
    return Criterion(text, less_learned(rank), at_most=1.0, unit="percent")


study = Study(
    name="learns_less_forgets_less",
    title="Learns less, forgets less",
    question="At equal steps and each at its best rate, does LoRA learn less than full fine-tuning and forget less of "
    "the base? And does it forget less where it has learned as much?",
    varied="r; the learning rate of LoRA, r = 8, and of full fine-tuning; the size of ΔW after training",
    tuned="the learning rate, but in the arms that name one",
    fixed="steps, texts, α = 16; all linear layers adapted; the head's rate",
    scales=scales({
        "smoke": {"ranks": (1, 8, 64), "texts": 60},
        "small": {"ranks": (1, 2, 4, 8, 16, 32, 64), "texts": 500},
        "full": {"ranks": (1, 4, 8, 16, 64, 256), "texts": 1000},
    }),
    arms=arms,
    measures=(Measure("retained", retained, each_run), Measure("shrunk", shrunk, each_shrunk)),
    claims=(
        Claim(
            "learns-less",
            "At low ranks LoRA learns less than full fine-tuning",
            f"{PAPER}, §4.1 (code: r = 16 .358, full .497)",
            (learns_less(1), learns_less(8)),
            (
                Control(f"full fine-tuning's own gain over that at a rate of {FULL_RATES[0]:g}",
                        lambda results: 1 / share(results, FULLS[0]), at_most=1.0, unit="percent"),
            ),
        ),
        Claim(
            "matches",
            "At the highest rank it learns as much",
            f"{PAPER}, §4.1 (code, instructions: r = 256 .498, full .497)",
            (
                Criterion("gain of LoRA of the highest r over full fine-tuning's",
                          lambda results: share(results, named(widest(results))), at_least=0.95, unit="percent"),
            ),
            (Control("of the head alone", lambda results: share(results, HEAD_ALONE), at_least=0.95, unit="percent"),),
            "5 % of the gain count as as much.",
        ),
        Claim(
            "forgets-less",
            "LoRA forgets less than full fine-tuning",
            f"{PAPER}, §4.2 (code: LoRA r = 64 .509, full .414)",
            (forgets_less(1), forgets_less(8), forgets_less(64)),
            (Control(NO, less_lost(FULL_TUNING, HEAD_ALONE), at_most=0.0),),
            FORGETS,
        ),
        Claim(
            "objective",
            "It keeps more of what the base was pre-trained for",
            f"{PAPER}, §4.2, there of other tasks",
            (
                Criterion("loss of pre-training, LoRA, r = 8, less full fine-tuning's (nats)",
                          less_lost(named(8), column="pair_loss"), at_most=0.0),
            ),
            (
                Control("full fine-tuning at its highest rate against at its lowest",
                        less_lost(FULLS[-1], FULLS[0], "pair_loss"), at_most=0.0),
            ),
            "Which gloss belongs to a noun, among those of its class. A tuned encoder may become better at it.",
        ),
        Claim(
            "rank-learns",
            "More rank learns more",
            f"{PAPER}, §4.1",
            (Criterion("Spearman's ρ of r and gain, over ranks", by_rank(share), at_least=0.8),),
            (Control("with the ranks in another order", by_rank(share, shuffled=True), at_least=0.8),),
        ),
        Claim(
            "rank-forgets",
            "More rank forgets more",
            f"{PAPER}, §4.2",
            (Criterion("Spearman's ρ of r and forgetting, over ranks", by_rank(lost), at_least=0.8),),
            (Control("with the ranks in another order", by_rank(lost, shuffled=True), at_least=0.8),),
            FORGETS,
        ),
        Claim(
            "pareto",
            "Where both have learned as much, LoRA has forgotten less",
            f"{PAPER}, §4.3 (for code; for math it is full fine-tuning)",
            (
                Criterion("forgetting at 80 % of full fine-tuning's gain: LoRA, r = 8, less full fine-tuning",
                          dearer(lora_path, full_path), at_most=0.0),
            ),
            (
                Control("full fine-tuning with twice its forgetting in LoRA's place", dearer(drowned, full_path),
                        at_most=0.0),
            ),
            f"Paths over learning rates, between their points by straight lines. {FORGETS}",
        ),
        Claim(
            "shrinking",
            "Shrinking full fine-tuning's ΔW after training does no worse than LoRA",
            "Wortsman et al. 2022, arXiv 2109.01903 (interpolating with the base keeps what it can); not in the paper",
            (
                Criterion("forgetting at 80 % of full fine-tuning's gain: ΔW shrunk, less LoRA, r = 8",
                          dearer(shrunk_path, lora_path), at_most=0.0),
            ),
            (
                Control("full fine-tuning with twice its forgetting in the place of ΔW shrunk",
                        dearer(drowned, lora_path), at_most=0.0),
            ),
            "Of shrunk runs the head stays as trained. LoRA over its learning rates.",
        ),
    ),
    figures=figures,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
