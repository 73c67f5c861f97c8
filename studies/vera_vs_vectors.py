"""Is VeRA more than vectors? Its two vectors and their random matrices against vectors alone, at equal parameters.

python studies/vera_vs_vectors.py --scale small --jobs 2
"""

import math

import numpy as np

from lorascope.blocks import Heatmap, Lines, Marker, Series
from lorascope.blocks import Measure as Layer
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE, by_method, lead, parameters, share
from lorascope.study.tasks import LORA_RATES, full_arm, head_arm, lora, scales

RANK = 192  # on all linear layers: as many numbers as (IA)³ trains there
VECTOR_RATES = (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
OWN_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # of the base's own parameters, and of LoRA-XS's core
KEY = "method.projection_prng_key"
SHARED = "VeRA, r = 192"
SMALLER, SMALLEST = "VeRA, r = 16", "VeRA, attention, r = 64"
ONE_PAIR = "VeRA, one pair for all seeds"
UNSHARED = "VeRA, unshared matrices"
ONLY_B, ONLY_D, LARGE_D = "VeRA, only b", "VeRA, only d", "VeRA, only d, r = 768"
STILL = "VeRA, d = 0"
LORA, LORA_1 = "LoRA, r = 8", "LoRA, r = 1"
MAGNITUDE = "magnitude alone"
FAMILIES = {
    "VeRA": (SHARED, SMALLER, SMALLEST, UNSHARED),
    "one vector of VeRA": (ONLY_B, ONLY_D, LARGE_D),
    "vectors alone": ("(IA)³", "BitFit", MAGNITUDE, "LayerNorm"),
    "LoRA-XS": ("LoRA-XS, r = 28",),
    "LoRA": (LORA_1, LORA),
}
DIRECTIONS = 8


def vera(name="vera", rank=RANK, targets="all-linear", **settings):
    config = {"name": name, "rank": rank, "targets": targets, **settings}
    if name != "vera_unshared":
        config["save_projection"] = False
    return {f"method.{key}": value for key, value in config.items()}


def arms(scale):
    """Every run has a pair of matrices of its own, except the arm that has one pair for all seeds."""

    def own(label, changes, rates=VECTOR_RATES, seeded=(KEY,)):
        return Arm({"method": label}, changes, rates, seeded=seeded)

    yield head_arm({"method": HEAD_ALONE})
    yield full_arm({"method": FULL_TUNING})
    yield Arm({"method": LORA}, lora(8), LORA_RATES)
    yield Arm({"method": LORA_1}, lora(1), LORA_RATES)
    yield own(SHARED, vera())
    yield own(SMALLER, vera(rank=16))
    yield own(SMALLEST, vera(rank=64, targets="attention"))
    yield Arm({"method": ONE_PAIR}, vera(projection_prng_key=0), rate_of={"method": SHARED})
    yield own(UNSHARED, vera("vera_unshared"), seeded=())
    yield own(ONLY_B, vera("vera_only_b"))
    yield own(ONLY_D, vera("vera_only_d"))
    yield own(LARGE_D, vera("vera_only_d", rank=768))
    yield own(STILL, vera(d_initial=0.0), rates=(3e-2,))  # what does not learn needs no search
    yield own("LoRA-XS, r = 28", {"method.name": "lora_xs", "method.rank": 28}, OWN_RATES, seeded=())
    yield own("(IA)³", {"method.name": "ia3", "method.targets": "all-linear"}, seeded=())
    yield own(MAGNITUDE, {"method.name": "magnitude", "method.targets": "all-linear"}, seeded=())
    yield own("BitFit", {"method.name": "bitfit"}, OWN_RATES, seeded=())
    yield own("LayerNorm", {"method.name": "layernorm"}, OWN_RATES, seeded=())


def agreement(folders, what, replicate):
    """Two trained adapters, module by module: φ and z of their leading directions, on both sides, beside φ of the same
    directions with one adapter's entries shuffled."""
    from lorascope.linalg import haar, subspace

    first, second = map(deltas, folders)
    rng, rows = np.random.default_rng(replicate), []
    for name, delta in first.items():
        ours, theirs = subspace.bases(delta), subspace.bases(second[name])
        for side in ("left", "right"):
            u, v = getattr(ours, side), getattr(theirs, side)
            row = {"module": name, "side": side}
            for k in (1, DIRECTIONS):
                chance = haar.phi(len(u), k, k)
                for label, other in (("", v), ("shuffled_", rng.permutation(v))):
                    phi = float(np.sum((u[:, :k].T @ other[:, :k]) ** 2)) / k
                    row |= {f"{label}phi_{k}": phi, f"{label}z_{k}": chance.z(phi), f"chance_{k}": chance.mean}
            rows.append(row)
    return rows


def deltas(folder):
    """ΔW of every module."""
    from lorascope.training.reopen import reopen
    from lorascope.weights import io

    updates = io.read(folder / "adapter").updates
    if not any(update.needs_base for update in updates.values()):
        return {name: update.delta() for name, update in updates.items()}
    opened = reopen(folder, device="cpu")
    return {name: opened.delta(name) for name in updates}


def sizes(folders):
    """The largest entry of ΔW over all modules."""
    from lorascope.updates.base import dense
    from lorascope.weights import io

    updates = io.read(folders[0] / "adapter").updates.values()
    return [{"largest": max(float(abs(dense(update.delta())).max()) for update in updates)}]


PAIRS = (  # what is compared, and whether the second one is the same replicate's or the next one's
    ("VeRA, seeds", SHARED, SHARED, 1),
    ("VeRA with one pair, seeds", ONE_PAIR, ONE_PAIR, 1),
    ("VeRA unshared, seeds", UNSHARED, UNSHARED, 1),
    ("VeRA, VeRA unshared", SHARED, UNSHARED, 0),
    ("LoRA, seeds", LORA, LORA, 1),
    ("VeRA, LoRA", SHARED, LORA, 0),
    ("VeRA, full fine-tuning", SHARED, FULL_TUNING, 0),
    ("LoRA, full fine-tuning", LORA, FULL_TUNING, 0),
)


def each_pair(results):
    keys = {(row["method"], row["replicate"]): row["key"] for row in results.runs.to_dict("records")}
    for what, first, second, step in PAIRS:
        for i in range(results.scale.replicates):
            run_keys = keys.get((first, i)), keys.get((second, (i + step) % results.scale.replicates))
            if None not in run_keys:
                yield MeasurementSpec(run_keys, {"what": what, "replicate": i})


def each_vera(results):
    return [MeasurementSpec((key,)) for key in results.runs.loc[results.runs["method"].isin((SHARED, STILL)), "key"]]


def median(what, column, side="right"):
    def statistic(results):
        table = results.tables["agreement"]
        chosen = (table["what"].to_numpy() == what) & (table["side"].to_numpy() == side)
        if not chosen.any():
            raise ValueError(f"no pair of {what}")
        return float(np.median(table[column].to_numpy()[chosen]))

    return statistic


def by_pair(prefix):
    """φ(8, 8) on the right: what one pair for all seeds adds to that of pairs of their own."""
    column = f"{prefix}phi_{DIRECTIONS}"
    one_pair, separate_pairs = median("VeRA with one pair, seeds", column), median("VeRA, seeds", column)
    return lambda results: one_pair(results) - separate_pairs(results)


def largest(method):
    def statistic(results):
        table = results.tables["sizes"]
        return float(table.loc[table["method"] == method, "largest"].max())

    return statistic


def fewer(results):
    return parameters(results, LORA) / parameters(results, SHARED)


def against_parameters(results):
    series = []
    for family, methods in FAMILIES.items():
        points = sorted((float(parameters(results, method)), share(results, method), method) for method in methods)
        x, y, names = zip(*points, strict=True)
        series.append(Series(family, x, y, points=names))
    caption = "Means over replicates; a point's name shows under the pointer. Without the head's parameters."
    return Lines(
        "Gain by parameters",
        tuple(series),
        "trained parameters",
        "share of full fine-tuning's gain",
        log_x=True,
        markers=(Marker("y", 1.0, "full fine-tuning"),),
        caption=caption,
    )


def grid(results, side):
    table = results.tables["agreement"]
    part = table[table["side"] == side].groupby("what")
    kinds = [what for what, *_ in PAIRS if what in part.groups]
    columns = ("1", str(DIRECTIONS))
    values = {
        title: tuple(tuple(float(part.get_group(kind)[f"{prefix}_{k}"].median()) for k in columns) for kind in kinds)
        for prefix, title in (("phi", "φ"), ("chance", "φ by chance"), ("shuffled_phi", "φ, one of them shuffled"))
    }
    upper_limit = math.ceil(10 * max(map(max, values["φ"]))) / 10
    layers = [Layer(title, title, cells, limits=(0.0, upper_limit)) for title, cells in values.items()]
    titles = ("φ(1, 1)", "φ(8, 8)")
    caption = "Medians over modules and replicates. Matrices are each run's own unless one pair is said."
    return Heatmap(f"φ of ΔW's {side} side", tuple(kinds), titles, tuple(layers), "pair", "directions", caption)


def figures(results):
    return [by_method(results), against_parameters(results), grid(results, "left"), grid(results, "right")]


def against(method, ours, name, note, source="Asked here; the VeRA paper has no such row", control_method=None):
    """VeRA against vectors without random matrices, at equal parameters.

    `control_method`: the method that must fail in its place.
    """
    control_method = control_method or STILL
    return Claim(
        name,
        f"At equal parameters VeRA ({ours.removeprefix('VeRA, ')}) gains more than {method}",
        source,
        (Criterion(f"gain of VeRA less that of {method}, over full fine-tuning's", lead(ours, method), at_least=0.0,
                   unit="percent"),),
        (Control(f"{control_method} in its place", lead(control_method, method), at_least=0.0, unit="percent"),),
        note,
    )  # fmt: skip


VERA = "Kopiczko, Blankevoort and Asano 2024, arXiv 2310.11454"

study = Study(
    name="vera_vs_vectors",
    title="Is VeRA more than vectors?",
    question="Do VeRA's frozen random matrices buy anything over training vectors alone, and does it matter that all "
    "layers share them?",
    varied="the method, at equal trained parameters where it has a knob; VeRA's matrices shared by all layers or each "
    "layer's own; which of its vectors train; in one arm, the same matrices for all seeds",
    tuned="the learning rate, for every method but two: VeRA with one pair for all seeds takes VeRA's, and VeRA that "
    "cannot learn has one",
    fixed="all linear layers adapted, unless said; VeRA's d starts at 0.1; the head's rate; every run has random "
    "matrices of its own, unless said",
    scales=scales({"smoke": {}, "small": {}, "full": {}}),
    arms=arms,
    measures=(Measure("agreement", agreement, each_pair), Measure("sizes", sizes, each_vera)),
    claims=(
        Claim(
            "both",
            "Training both vectors gains more than either alone, at the same r",
            f"{VERA}, ablation of the vectors (MRPC: 90.5 with both, 89.7 with d, 81.6 with b)",
            (
                Criterion("gain of VeRA less that of only b, over full fine-tuning's", lead(SHARED, ONLY_B),
                          at_least=0.0, unit="percent"),
                Criterion("gain of VeRA less that of only d, over full fine-tuning's", lead(SHARED, ONLY_D),
                          at_least=0.0, unit="percent"),
            ),
            (
                Control("VeRA with d = 0 in its place, against only b", lead(STILL, ONLY_B), at_least=0.0,
                        unit="percent"),
                Control("VeRA with d = 0 in its place, against only d", lead(STILL, ONLY_D), at_least=0.0,
                        unit="percent"),
            ),
            "r = 192. Only b leaves d at 0.1; only d has b = 1 and d start at 0. In the paper only d gains more than "
            "only b; the table below has them here.",
        ),
        Claim(
            "both-matched",
            "Training both vectors gains more than either alone, at equal parameters",
            f"{VERA}, ablation of the vectors, with r chosen for equal parameters",
            (
                Criterion("gain of VeRA, r = 16, less that of only b, over full fine-tuning's", lead(SMALLER, ONLY_B),
                          at_least=0.0, unit="percent"),
                Criterion("gain of VeRA, r = 192, less that of only d, r = 768, over full fine-tuning's",
                          lead(SHARED, LARGE_D), at_least=0.0, unit="percent"),
            ),
            (
                Control("only d, r = 192, in its place, against only d, r = 768", lead(ONLY_D, LARGE_D), at_least=0.0,
                        unit="percent"),
            ),
            "Only b has no knob: it trains one number for each output, whatever r is (192 here).",
        ),
        Claim(
            "lora",
            "VeRA falls short of LoRA by 15 % of full fine-tuning's gain at most, with a tenth of the parameters",
            f"{VERA}, Table 2 (on RoBERTa-base 85.2 against 86.6, on large 87.8 both)",
            (
                Criterion("gain of LoRA, r = 8, less that of VeRA, over full fine-tuning's", lead(LORA, SHARED),
                          at_most=0.15, unit="percent"),
                Criterion("parameters of LoRA over those of VeRA, without the head", fewer, at_least=10.0),
            ),
            (Control("VeRA, r = 16, in its place", lead(LORA, SMALLER), at_most=0.15, unit="percent"),),
        ),
        Claim(
            "shared",
            "Sharing the random matrices costs 5 % of full fine-tuning's gain at most",
            f"{VERA}, Table 7 (RTE 84.6 and 84.6, CoLA 67.7 and 68.3)",
            (
                Criterion("gain with shared less that with unshared matrices, over full fine-tuning's",
                          lead(SHARED, UNSHARED), at_least=-0.05, unit="percent"),
            ),
            (Control("only d in its place", lead(ONLY_D, UNSHARED), at_least=-0.05, unit="percent"),),
            "Shared matrices are as wide as the widest layer and cut for the others, and A's entries are scaled by its "
            "own width: a layer's own A has entries twice as large where its input is 384 wide. The paper's layers are "
            "all equally wide.",
        ),
        against(
            "(IA)³", SHARED, "ia3", "",
            "Not at equal parameters in the VeRA paper; PEFT's comparison has (IA)³ above VeRA at twice its parameters",
            SMALLER,
        ),
        against("BitFit", SHARED, "bitfit", "BitFit trains 6 % fewer numbers here."),
        against(MAGNITUDE, SMALLER, "magnitude", "VeRA trains 3 % more numbers here.", control_method=ONLY_B),
        against("LayerNorm", SMALLEST, "layernorm", "VeRA on attention alone has r for as few parameters."),
        Claim(
            "xs",
            "LoRA-XS, whose core lies between the weight's own singular vectors, falls short of VeRA by 5 % at most",
            "Bałazy et al. 2024, arXiv 2405.17604, abstract",
            (
                Criterion("gain of LoRA-XS less that of VeRA, over full fine-tuning's", lead("LoRA-XS, r = 28", SHARED),
                          at_least=-0.05, unit="percent"),
            ),
            (Control("BitFit in its place", lead("BitFit", SHARED), at_least=-0.05, unit="percent"),),
            "It trains 2 % more numbers here.",
        ),
        Claim(
            "still",
            "With d = 0 and b = 0 at the start VeRA never learns",
            f"From the form of {VERA}: each vector's gradient is the other one's multiple",
            (Criterion("largest entry of ΔW after training", largest(STILL), at_most=0.0),),
            (Control("of VeRA with d = 0.1", largest(SHARED), at_most=0.0),),
        ),
        Claim(
            "input-side",
            "The random matrices shape the input side of VeRA's update: seeds agree more there if they share the pair",
            "ΔW's rows are combinations of A's; for LoRA Zhu et al. 2024, arXiv 2402.16842, Figure 1",
            (
                Criterion("median φ(8, 8), right side: one pair for all seeds less pairs of their own", by_pair(""),
                          at_least=0.05),
            ),
            (Control("with the entries of one adapter's directions shuffled", by_pair("shuffled_"), at_least=0.05),),
            "That is the form of the update: random vectors b and d on one pair agree as well.",
        ),
        Claim(
            "output-side",
            "The output side of VeRA's update agrees across seeds though their random matrices differ",
            "For LoRA's B Zhu et al. 2024, Figure 1; asked of VeRA here",
            (Criterion("median z of φ(1, 1), left side", median("VeRA, seeds", "z_1", "left"), at_least=5.0),),
            (Control("shuffled", median("VeRA, seeds", "shuffled_z_1", "left"), at_least=5.0),),
            "φ(1, 1) of random directions is skewed: its median lies 0.4 below 0. LoRA's seeds agree: see the figures.",
        ),
        Claim(
            "as-lora",
            "VeRA finds LoRA's leading direction on the output side",
            "Asked here",
            (Criterion("median z of φ(1, 1), left side", median("VeRA, LoRA", "z_1", "left"), at_least=5.0),),
            (Control("shuffled", median("VeRA, LoRA", "shuffled_z_1", "left"), at_least=5.0),),
        ),
    ),
    figures=figures,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
