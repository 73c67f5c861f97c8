"""Do adapters find the same subspace? Across ranks, across seeds, and across tasks with and without a shared start.

python studies/subspace_overlap.py --scale small --jobs 2
"""

import numpy as np

from lorascope.blocks import Column, Heatmap, Lines, Marker, Series, Table
from lorascope.blocks import Measure as Layer
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.tasks import LORA_RATES, lora, scales

TASKS = {
    "concrete": ["animal", "artifact", "body", "food", "plant", "substance"],
    "abstract": ["act", "attribute", "cognition", "communication", "event", "state"],
}
SHARED_SEED = 7_000
SHARED = tuple(f"shared start, rate of {task}" for task in TASKS)
SMALL = 8


def arms(scale):
    for rank in (SMALL, scale.params["large"]):
        yield Arm({"task": "wordnet", "rank": rank, "start": "own start"}, lora(rank), LORA_RATES)
    for task, classes in TASKS.items():
        own_start = {"task": task, "rank": SMALL, "start": "own start"}
        changes = {**lora(SMALL), "data.classes": classes}
        yield Arm(own_start, changes, LORA_RATES)
        for rate in TASKS:
            labels = {**own_start, "start": f"shared start, rate of {rate}"}
            yield Arm(labels, changes, rate_of={**own_start, "task": rate}, seed=SHARED_SEED)


def agreement(folders, what, replicate):
    """Two trained adapters, module by module: φ and z of the leading directions and of whole subspaces, both sides."""
    from lorascope.weights import io

    first, second = (io.read(folder / "adapter").updates for folder in folders)
    return [
        {"module": name, **row} for name, update in first.items() for row in sides(update.delta(), second[name].delta())
    ]


def sides(first, second):
    from lorascope.linalg import subspace

    a, b = subspace.bases(first), subspace.bases(second)
    for side, left, right in (("left", a.left, b.left), ("right", a.right, b.right)):
        yield {"side": side, **overlaps(left, right)}


def overlaps(u, v):
    """φ(i, j) and its z over chance (Haar), of orthonormal columns (n, r) that are ordered by their σ."""
    from lorascope.linalg import haar

    n, r, big = u.shape[0], u.shape[1], v.shape[1]
    cross = (u.T @ v) ** 2
    row = {}
    for name, i, j in (("1", 1, 1), ("2", 2, 2), ("1r", 1, big), ("r", r, big)):
        value = float(cross[:i, :j].sum()) / min(i, j)
        chance = haar.phi(n, i, j)
        row |= {f"phi_{name}": value, f"z_{name}": chance.z(value), f"chance_{name}": chance.mean}
    return row


def at_start(folders, what, replicate):
    """The same of A alone (row spaces) before any training."""
    first, second = (started(folder) for folder in folders)
    rows = []
    for name in first:
        bases = [np.linalg.svd(start[name], full_matrices=False)[2].T for start in (first, second)]
        rows.append({"module": name, "side": "A", **overlaps(*bases)})
    return rows


def started(folder):
    """A of every layer as the run's seed draws it."""
    import torch

    from lorascope.training import config, run

    prepared = run.prepare(config.load(folder / "config.yaml"), torch.device("cpu"))
    return {name: layer.delta.A.detach().double().numpy() for name, layer in prepared.injected.layers.items()}


def moved(folders):
    """How far A went from where it began: ‖A − A₀‖/‖A₀‖, median over modules."""
    from lorascope.weights import io

    start = started(folders[0])
    updates = io.read(folders[0] / "adapter").updates
    changes = [np.linalg.norm(updates[name].roles["A"].read() - a) / np.linalg.norm(a) for name, a in start.items()]
    return [{"moved": float(np.median(changes))}]


def alone(folders, what, replicate, n, large):
    """Controls of numbers alone: Gaussian matrices; and torch's own draws of two ranks from one seed."""
    import torch

    rng = np.random.default_rng([replicate, n])
    gaussian = [np.linalg.qr(rng.standard_normal((n, r)))[0] for r in (SMALL, large)]
    rows = [{"control": "Gaussian", **overlaps(*gaussian)}]
    drawn = []
    for rank in (SMALL, large):
        torch.manual_seed(replicate)
        drawn.append(torch.nn.init.kaiming_uniform_(torch.empty(rank, n), a=5**0.5).double().numpy())
    return [*rows, {"control": "torch, one seed", **overlaps(*(np.linalg.qr(a.T)[0] for a in drawn))}]


def pairs(results):
    """Every pair of runs that is compared: what it says, and the two keys. Pairs of one arm go round in a ring."""
    runs, n = results.runs, results.scale.replicates
    keys = {(row["task"], row["rank"], row["start"], row["replicate"]): row["key"] for row in runs.to_dict("records")}
    large = results.scale.params["large"]

    def pair(what, first, second, i, j):
        keys_of_pair = keys.get((*first, i)), keys.get((*second, j))
        return [(what, i, keys_of_pair)] if None not in keys_of_pair else []

    for i in range(n):
        after = (i + 1) % n
        yield from pair("ranks", ("wordnet", SMALL, "own start"), ("wordnet", large, "own start"), i, i)
        yield from pair("seeds, small r", ("wordnet", SMALL, "own start"), ("wordnet", SMALL, "own start"), i, after)
        yield from pair("seeds, large r", ("wordnet", large, "own start"), ("wordnet", large, "own start"), i, after)
        for start in ("own start", *SHARED):
            yield from pair(f"tasks, {start}", ("concrete", SMALL, start), ("abstract", SMALL, start), i, i)
        for task in TASKS:
            yield from pair("one task, own start", (task, SMALL, "own start"), (task, SMALL, "own start"), i, after)


def each_pair(results):
    return [MeasurementSpec(run_keys, {"what": what, "replicate": i}) for what, i, run_keys in pairs(results)]


def each_start(results):
    kinds = ("ranks", "seeds, large r", "tasks, own start", *(f"tasks, {start}" for start in SHARED))
    return [call for call in each_pair(results) if call.params["what"] in kinds]


def each_run(results):
    return [MeasurementSpec((key,)) for key in results.runs["key"]]


def each_control(results):
    shared = {"what": "numbers", "n": 384, "large": results.scale.params["large"]}
    return [MeasurementSpec((), {**shared, "replicate": i}) for i in range(results.scale.replicates)]


def of(results, table, what, side):
    rows = results.tables[table]
    rows = rows[(rows["what"] == what) & (rows["side"] == side)]
    if rows.empty:
        raise ValueError(f"no pair of {what}")
    return rows


def share_above(what, column, threshold, side="right", table="agreement"):
    return lambda results: (of(results, table, what, side)[column] >= threshold).mean()


def median(what, column, side="right", table="agreement"):
    return lambda results: of(results, table, what, side)[column].median()


def excess(what, which, side="right"):
    """The median of (φ − chance)/(1 − chance): 0 by chance, 1 for equal subspaces."""

    def statistic(results):
        part = of(results, "agreement", what, side)
        chance = part[f"chance_{which}"]
        return ((part[f"phi_{which}"] - chance) / (1 - chance)).median()

    return statistic


def over(first, second):
    return lambda results: first(results) / second(results)


def less(first, second):
    return lambda results: first(results) - second(results)


def control(name, column):
    def statistic(results):
        table = results.tables["controls"]
        return table.loc[table["control"] == name, column].mean()

    return statistic


def by_layer(results):
    """Where in the model ranks share their top direction."""
    columns = [Column("layer", "Layer"), Column("count", "Modules × replicates", "int")]
    columns += [Column(side, f"z ≥ 5, {side} side", "percent") for side in ("left", "right")]
    table = results.tables["agreement"]
    part = table[table["what"] == "ranks"].assign(layer=lambda t: t["module"].str.extract(r"layer\.(\d+)")[0])
    shares = part.assign(above=part["z_1"] >= 5).groupby(["layer", "side"])["above"].agg(["mean", "size"]).unstack()
    rows = [
        (layer, int(row["size", "left"]), float(row["mean", "left"]), float(row["mean", "right"]))
        for layer, row in shares.iterrows()
    ]
    caption = "Share of the modules with z ≥ 5 of φ(1, 1) between r = 8 and the large r."
    return Table(tuple(columns), tuple(rows), "One direction in common, by layer", caption)


def movement(results):
    """How far A went, by arm."""
    labels = ["task", "rank", "start"]
    rates = results.runs.groupby(labels, sort=False)["learning_rate"].first()
    moved = results.tables["moved"].groupby(labels, sort=False)["moved"].agg(["median", "min", "max"])
    rows = [(*key, float(rates[key]), *map(float, row)) for key, row in moved.iterrows()]
    columns = (Column("task", "Task"), Column("rank", "r", "int"), Column("start", "Start"))
    columns += (Column("rate", "Learning rate", "float"), Column("median", "‖A − A₀‖/‖A₀‖", "float"))
    columns += (Column("min", "least", "float"), Column("max", "most", "float"))
    caption = "Of each run the median over modules; of each arm the median, least and most of its runs."
    return Table(columns, tuple(rows), "How far A moved", caption)


def grid(results, side):
    table = results.tables["agreement"]
    kinds = list(dict.fromkeys(table["what"]))
    columns = ("phi_1", "phi_2", "phi_1r", "phi_r")
    titles = ("φ(1, 1)", "φ(2, 2)", "φ(1, r₂)", "φ(r₁, r₂)")
    part = table[table["side"] == side].groupby("what")
    values = tuple(tuple(float(part.get_group(kind)[column].median()) for column in columns) for kind in kinds)
    chance = tuple(tuple(float(part.get_group(k)[c.replace("phi", "chance")].median()) for c in columns) for k in kinds)
    layers = (Layer("phi", "φ", values, limits=(0.0, 1.0)), Layer("chance", "φ by chance", chance, limits=(0.0, 1.0)))
    caption = "Medians over modules and replicates."
    return Heatmap(f"φ of ΔW's {side} side", tuple(kinds), titles, layers, "pair", "directions", caption)


def figures(results):
    table = results.tables["agreement"]
    series = []
    for what in dict.fromkeys(table["what"]):
        for side in ("left", "right"):
            part = table[(table["what"] == what) & (table["side"] == side)]
            values = np.sort(part["z_1"].to_numpy())
            share = tuple(np.linspace(0, 1, len(values)))
            series.append(Series(what, tuple(map(float, values)), share, side))
    lines = Lines(
        "z of the leading directions, over modules",
        tuple(series),
        "z of φ(1, 1)",
        "share of the modules below",
        markers=(Marker("x", 5.0, "z = 5"),),
        caption="Chance is at 0 ± 1. φ(1, 1) of random directions is skewed: of 384 dimensions 0.4 % have z ≥ 5.",
    )
    return [grid(results, "right"), grid(results, "left"), by_layer(results), movement(results), lines]


TOP_AGREES = share_above("ranks", "z_1", 5)
TOP_AT_START = share_above("ranks", "z_1", 5, "A", "starts")
SEEDS_LEFT, SEEDS_RIGHT = median("seeds, small r", "phi_r", "left"), median("seeds, small r", "phi_r")
OWN_RIGHT, OWN_LEFT = median("tasks, own start", "phi_r"), median("tasks, own start", "phi_r", "left")
WITHIN_RIGHT, WITHIN_LEFT = median("one task, own start", "phi_r"), median("one task, own start", "phi_r", "left")

study = Study(
    name="subspace_overlap",
    title="Do adapters find the same subspace?",
    question="Do LoRAs of different rank, seed or task share directions beyond chance, and how much is the start?",
    varied="the rank (8 and a large one), the seed, the task (classes of things, classes of abstractions), and whether "
    "two runs share their random start",
    tuned="the learning rate, for each rank and task; runs that share a start have either task's",
    fixed="α/r with α = 16 on all linear layers; A Kaiming-uniform, B = 0; every run has a seed of its own, except the "
    "arms that share one",
    scales=scales({"smoke": {"large": 16}, "small": {"large": 64}, "full": {"large": 64}}),
    arms=arms,
    measures=(
        Measure("agreement", agreement, each_pair),
        Measure("starts", at_start, each_start),
        Measure("moved", moved, each_run),
        Measure("controls", alone, each_control),
    ),
    claims=(
        Claim(
            "ranks",
            "r = 8 and r = 64 share their top direction on the input side, and little else",
            "Hu et al. 2021, arXiv 2106.09685, §7.2, Figure 3",
            (
                Criterion("modules with z ≥ 5 of φ(1, 1), right side", TOP_AGREES, at_least=0.75, unit="percent"),
                Criterion(
                    "excess of φ(r₁, r₂) over that of φ(1, 1), right side; excess: (φ − chance)/(1 − chance)",
                    over(excess("ranks", "r"), excess("ranks", "1")),
                    at_most=0.5,
                ),
            ),
            (Control("the same modules before training (A alone)", TOP_AT_START, at_least=0.75, unit="percent"),),
            "Of all modules; by layer below. Both runs have seeds of their own; the paper does not say so of its own.",
        ),
        Claim(
            "seeds",
            "Two seeds share a few directions; their A before training do not",
            "Hu et al. 2021, §7.2, Figure 4",
            (
                Criterion("median z of φ(1, 1), right side, large r", median("seeds, large r", "z_1"), at_least=5),
                Criterion("median z of φ(2, 2), right side, large r", median("seeds, large r", "z_2"), at_least=5),
            ),
            (
                Control("φ(1, 1) of A before training", median("seeds, large r", "z_1", "A", "starts"), at_least=5),
                Control("φ(2, 2) of A before training", median("seeds, large r", "z_2", "A", "starts"), at_least=5),
            ),
        ),
        Claim(
            "left",
            "The left (output) side agrees across seeds more than the right (input) side",
            "Zhu et al. 2024, arXiv 2402.16842, Figure 1 (B is alike across seeds, A follows its start)",
            (Criterion("median φ(r, r), left over right, r = 8", over(SEEDS_LEFT, SEEDS_RIGHT), at_least=1.2),),
            (
                Control(
                    "the same where tasks share a start",
                    over(median(f"tasks, {SHARED[0]}", "phi_r", "left"), median(f"tasks, {SHARED[0]}", "phi_r")),
                    at_least=1.2,
                ),
            ),
            "Across tasks the left side agrees more than the right as well: see the next claim.",
        ),
        Claim(
            "left-task",
            "The left side is the task's: two seeds of one task agree more there than seeds of two tasks",
            "Zhu et al. 2024, Figure 1 (B is alike within a task and differs between tasks)",
            (
                Criterion(
                    "median φ(r, r), left side, within a task over across tasks",
                    over(WITHIN_LEFT, OWN_LEFT),
                    at_least=1.2,
                ),
            ),
            (Control("the same of the right side", over(WITHIN_RIGHT, OWN_RIGHT), at_least=1.2),),
        ),
        Claim(
            "trap",
            "One seed for two ranks makes A agree before any training",
            "torch draws the first eight of 64 rows as it draws eight; the figure's protocol does not exclude it",
            (Criterion("φ(r₁, r₂) of torch's own draws", control("torch, one seed", "phi_r"), at_least=0.999),),
            (Control("of Gaussian matrices of different seeds", control("Gaussian", "phi_r"), at_least=0.999),),
            "lorascope draws A from the seed, the module's name and the rank, so its own runs are independent.",
        ),
        Claim(
            "start",
            "Across tasks the right side is the start: with a shared one it agrees, with starts of its own it does not",
            "Zhu et al. 2024, Figure 1 (A of equal starts agrees across tasks)",
            (
                *(
                    Criterion(
                        f"median φ(r, r), right side, shared start, both at the learning rate tuned for {task}",
                        median(f"tasks, {start}", "phi_r"),
                        at_least=0.8,
                    )
                    for task, start in zip(TASKS, SHARED, strict=True)
                ),
                Criterion(
                    "median φ(r, r) less chance, right side, tasks with starts of their own",
                    less(OWN_RIGHT, median("tasks, own start", "chance_r")),
                    at_most=0.05,
                ),
            ),
            (Control("median φ(r, r), right side, tasks with starts of their own", OWN_RIGHT, at_least=0.8),),
            "The further A moves, the less of its start is left: the table below has how far. Chance is 0.02.",
            withdrawn="Tuning grid too coarse. For the task abstract one run per rate chose 1e-3 (held-out loss 0.731 "
            "against 0.743), and the five seeds that this page has at both rates with a shared start find 3e-3 better "
            "(0.682 against 0.754): the second number is of a rate that is not the task's, and the verdict hangs on "
            "it.",
        ),
        Claim(
            "left-tasks",
            "The left side does not come from the start",
            "Zhu et al. 2024, Figure 1 (B differs between tasks)",
            tuple(
                Criterion(
                    f"median φ(r, r), left side: tasks with a shared start, rate of {task}, less those with their own",
                    less(median(f"tasks, {start}", "phi_r", "left"), OWN_LEFT),
                    at_most=0.05,
                )
                for task, start in zip(TASKS, SHARED, strict=True)
            ),
            tuple(
                Control(
                    f"the same of the right side, rate of {task}",
                    less(median(f"tasks, {start}", "phi_r"), OWN_RIGHT),
                    at_most=0.05,
                )
                for task, start in zip(TASKS, SHARED, strict=True)
            ),
        ),
    ),
    figures=figures,
)

if __name__ == "__main__":
    study.main()
