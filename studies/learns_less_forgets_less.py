"""LoRA learns less and forgets less: task gain against what is lost of the base, over r, learning rates and full
fine-tuning.

python studies/learns_less_forgets_less.py --scale small --jobs 2
"""

import numpy as np

from lorascope.blocks import Lines, Marker, Series
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE, by_method, lead, loss, share
from lorascope.study.tasks import FULL, LORA_RATES, PAIRS_CANNOT_TELL, full_arm, head_arm, lora, scales

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

    retention = Retention(reopen(folders[0], max_samples=8), texts)
    return [{**retention.score(), "pair_loss_of_base": retention.base["pair_loss"]}]


def shrunk(folders, method, texts, split, scored):
    """Task loss and forgetting with every trained ΔW multiplied by one factor, after training."""
    from lorascope.study.measures.retention import Retention
    from lorascope.training.reopen import reopen

    run = reopen(folders[0], split=split, max_samples=scored)
    lost = Retention(run, texts)
    trained = {name: run.delta(name) for name in run.updates}
    for factor in SHRUNK:
        put = {name: delta.scaled(factor) for name, delta in trained.items()}
        run.put(put)
        yield {"factor": factor, "loss": run.score().loss, **lost.score()}


# What is measured on which runs. The method is said, for a run of a swept rate may be a tuned one, too.


def each_run(results):
    texts = results.scale.params["texts"]
    runs = results.runs.to_dict("records")
    return [MeasurementSpec((run["key"],), {"method": run["method"], "texts": texts}) for run in runs]


def each_shrunk(results):
    scale = results.scale
    settings = {"texts": scale.params["texts"], "split": scale.test_split, "scored": scale.test_samples}
    runs = results.runs[results.runs["method"].isin((FULL_TUNING, named(SWEPT)))].to_dict("records")
    return [MeasurementSpec((run["key"],), {"method": run["method"], **settings}) for run in runs]


# Statistics.


def lost(results, method, column="forgetting"):
    table = results.tables["retained"]
    chosen = table["method"].to_numpy() == method
    if not chosen.any():
        raise ValueError(f"no run of {method}")
    return float(table[column].to_numpy()[chosen].mean())


def less_lost(method, other=FULL_TUNING, column="forgetting"):
    return lambda results: lost(results, method, column) - lost(results, other, column)


def widest(results):
    return max(results.scale.params["ranks"])


def in_order(of, methods):
    """Spearman's ρ of the places of these methods and a mean over each one's runs."""
    order = np.argsort(np.argsort([of(method) for method in methods]))
    return float(np.corrcoef(np.arange(len(methods)), order)[0, 1])


def by_rank(of):
    """Over the ranks."""

    def statistic(results):
        ranks = sorted(results.scale.params["ranks"])
        return in_order(lambda method: of(results, method), [named(rank) for rank in ranks])

    return statistic


def falling(of):
    """Over the rates of full fine-tuning, from the highest to the lowest."""
    return lambda results: in_order(lambda method: of(results, method), FULLS[::-1])


def gained(results, method):
    """In nats, less a constant."""
    return -loss(results, method)


def at_target(points):
    """Forgetting where a path first reaches TARGET of full fine-tuning's gain, between its points by straight lines.

    Args:
        points: (share of the gain, forgetting), in the order of the path, which starts at the base, (0, 0).
    """
    before = (0.0, 0.0)
    for reached, forgotten in points:
        if reached >= TARGET:
            part = (TARGET - before[0]) / (reached - before[0])
            return before[1] + part * (forgotten - before[1])
        before = (reached, forgotten)
    raise ValueError(f"it never reaches {TARGET:.0%} of full fine-tuning's gain")


def by_rates(results, methods):
    return [(share(results, method), lost(results, method)) for method in methods]


def by_factors(results, method):
    table = results.tables["shrunk"]
    part = table[table["method"] == method]
    if part.empty:
        raise ValueError(f"nothing shrunk of {method}")
    means = part.groupby("factor")[["loss", "forgetting"]].mean()
    head, full = (loss(results, name) for name in (HEAD_ALONE, FULL_TUNING))
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


def unmatched(second):
    """Forgetting of full fine-tuning where it has gained all, less that of a path where it has gained 80 %."""
    return lambda results: lost(results, FULL_TUNING) - at_target(second(results))


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
    panel_paths = {
        "trained with lower rates": (("LoRA", lora_path), ("full fine-tuning", full_path)),
        "ΔW shrunk after training": (
            ("LoRA", lambda results: by_factors(results, named(SWEPT))),
            ("full fine-tuning", shrunk_path),
        ),
    }
    series = []
    for panel, named_paths in panel_paths.items():
        for name, path in named_paths:
            reached, forgotten = zip((0.0, 0.0), *path(results), strict=True)
            series.append(Series(name, tuple(map(float, forgotten)), tuple(map(float, reached)), panel))
    caption = (
        "Left, each point is a learning rate. Right, each point is one trained run's ΔW times "
        f"{', '.join(f'{factor:g}' for factor in SHRUNK)}, its head as trained. "
        f"LoRA has r = {SWEPT}. Means over replicates. All paths start at the base with a head of its own; the first "
        "stretch on the right leads from that head to the tuned one, which the base was not tuned with."
    )
    panels = tuple(Marker("y", TARGET, "compared here", panel) for panel in panel_paths)
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
TUNED = (
    "Each r has the rate that its own sweep chose, of rates a factor of about 3 apart: where two r differ in it, they "
    "differ in more than r. Means of neighbouring r may differ by less than their noise, which lowers ρ."
)


def forgets_less(rank):
    return Criterion(f"forgetting of LoRA, r = {rank}, less full fine-tuning's", less_lost(named(rank)), at_most=0.0)


def learns_less(rank):
    text = f"gain of LoRA, r = {rank}, less full fine-tuning's, over full fine-tuning's"
    return Criterion(text, lead(named(rank), FULL_TUNING), at_most=0.0, unit="percent")


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
            f"{PAPER}, §4.1 (code, instructions: r = 16 .358, full .497)",
            (learns_less(1), learns_less(8)),
            tuple(
                Control(f"LoRA, r = {rank}, against full fine-tuning at a rate of {FULL_RATES[0]:g} only",
                        lead(named(rank), FULLS[0]), at_most=0.0, unit="percent")
                for rank in (1, 8)
            ),
        ),
        Claim(
            "matches",
            "At the highest rank LoRA gains 95 % of what full fine-tuning gains, or more",
            f"{PAPER}, §4.1 (code, instructions: r = 256 .498, full .497)",
            (
                Criterion("gain of LoRA of the highest r over full fine-tuning's",
                          lambda results: share(results, named(widest(results))), at_least=0.95, unit="percent"),
            ),
            (
                Control(f"of full fine-tuning at a rate of {FULL_RATES[0]:g} only",
                        lambda results: share(results, FULLS[0]), at_least=0.95, unit="percent"),
            ),
            "The paper has α = 2r. Here α = 16 for every r, so that B·A of r = 64 is multiplied by 1/4: its rate is "
            "tuned with that.",
        ),
        Claim(
            "forgets-less",
            "LoRA forgets less than full fine-tuning",
            f"{PAPER}, §4.2 (code, instructions: LoRA r = 64 .509, full .414)",
            (forgets_less(1), forgets_less(8), forgets_less(64)),
            (
                Control("full fine-tuning at its highest rate against at its lowest", less_lost(FULLS[-1], FULLS[0]),
                        at_most=0.0),
            ),
            f"Each at its tuned rate, whatever it has learned with it. {FORGETS}",
        ),
        Claim(
            "objective",
            "After LoRA the loss of the base's pre-training is lower than after full fine-tuning",
            f"{PAPER}, §4.2, there of accuracy on other tasks",
            (
                Criterion("loss of pre-training, LoRA, r = 8, less full fine-tuning's (nats)",
                          less_lost(named(8), column="pair_loss"), at_most=0.0),
            ),
            (
                Control("full fine-tuning at its highest rate against at its lowest",
                        less_lost(FULLS[-1], FULLS[0], "pair_loss"), at_most=0.0),
            ),
            "Which gloss belongs to a noun, among those of its class. A tuned encoder may become better at it than the "
            "base, which was cut to its first layers: the figure shows where the base is.",
            cannot_tell=PAIRS_CANNOT_TELL,
        ),
        Claim(
            "rank-learns",
            "More rank learns more",
            f"{PAPER}, §4.1",
            (Criterion("Spearman's ρ of r and gain, over ranks", by_rank(gained), at_least=0.8),),
            (Control("the same over full fine-tuning's rates, from the highest to the lowest", falling(gained),
                     at_least=0.8),),
            TUNED,
        ),
        Claim(
            "rank-forgets",
            "More rank forgets more",
            f"{PAPER}, §4.2",
            (Criterion("Spearman's ρ of r and forgetting, over ranks", by_rank(lost), at_least=0.8),),
            (Control("the same over full fine-tuning's rates, from the highest to the lowest", falling(lost),
                     at_least=0.8),),
            f"{TUNED} {FORGETS}",
            cannot_tell="The seven means lie between 0.33 and 0.38, where seeds of one arm differ by 0.034: resampling "
            "breaks a true order of such means, and in simulations a true rise of half of the seeds' spread is never "
            "held and not held in 35 % of the cases.",
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
                Control("full fine-tuning with all of its gain in LoRA's place", unmatched(full_path), at_most=0.0),
            ),
            "Paths over learning rates from the base on, between their points by straight lines, which lie above a "
            f"path that bends: LoRA has {len(RATES)} rates, full fine-tuning {len(FULL_RATES)}. {FORGETS}",
        ),
        Claim(
            "shrinking",
            "Where both have learned as much, full fine-tuning whose ΔW is shrunk after training has forgotten no more "
            "than LoRA",
            "Wortsman et al. 2022, arXiv 2109.01903 (interpolating with the base, of accuracy under a shift of the "
            "data); not asked by Biderman et al.",
            (
                Criterion("forgetting at 80 % of full fine-tuning's gain: ΔW shrunk, less LoRA, r = 8",
                          dearer(shrunk_path, lora_path), at_most=0.0),
            ),
            (Control("full fine-tuning's ΔW as trained in its place", unmatched(lora_path), at_most=0.0),),
            "Of shrunk runs the head stays as trained. LoRA over its learning rates, unshrunk: shrunk as well it is in "
            "the figure.",
        ),
    ),
    figures=figures,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
