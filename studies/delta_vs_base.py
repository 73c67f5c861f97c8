"""Does ΔW lie where W already is, or does it amplify what W hardly used? With what chance gives beside it.

python studies/delta_vs_base.py --scale small --jobs 2
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from lorascope.blocks import Column, Lines, Series, Table
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.tasks import LORA_RATES, lora, scales

TRAINED, RANDOM, OWN = "ΔW", "a random ΔW", "W's own leading directions"
MEASURES = ("inside", "random", "top", "ratio", "z", "top_ratio", "amplification", "amplification_random")
OVERLAPS = {"phi_left": "left.tenth.phi", "chance_left": "left.tenth.chance", "phi_right": "right.tenth.phi",
            "chance_right": "right.tenth.chance"}  # fmt: skip


def arms(scale):
    for rank in scale.params["ranks"]:
        yield Arm({"rank": rank}, lora(rank), LORA_RATES)


def against(folders):
    """Every module's ΔW against W; the same of a random ΔW of that rank and norm, and of W's own leading directions."""
    from lorascope.analyses import against_base
    from lorascope.models import assets
    from lorascope.training import config
    from lorascope.weights import io
    from lorascope.weights.base_svd import SvdCache
    from lorascope.weights.checkpoint import open_checkpoint

    settings = config.load(folders[0] / "config.yaml")
    base = open_checkpoint(assets.resolve(settings.model.name))
    trained = io.read(folders[0] / "adapter")
    rng, rows = np.random.default_rng(settings.training.seed), []
    variants = {
        TRAINED: trained,
        RANDOM: replace(trained, updates={name: drawn(update, rng) for name, update in trained.updates.items()}),
        OWN: replace(trained, updates={name: own(update, base) for name, update in trained.updates.items()}),
    }
    with tempfile.TemporaryDirectory() as cache_folder:
        for of, adapter in variants.items():
            for row in against_base.run(adapter, base, cache=SvdCache(Path(cache_folder))).table().to_dict("records"):
                measured = {name: row[name] for name in MEASURES} | {name: row[key] for name, key in OVERLAPS.items()}
                rows.append({"of": of, "module": row["name"], **measured})
    return rows


def drawn(update, rng):
    """An update of this one's shape, rank and norm with Gaussian factors."""
    roles = {name: rng.standard_normal(stored.shape) for name, stored in update.roles.items()}
    norm = np.linalg.norm(roles["B"] @ roles["A"])
    return made(update, roles["A"], roles["B"] * (update.delta().frobenius_norm() / norm))


def own(update, base):
    """W's own truncation to this update's rank."""
    u, sigma, vh = np.linalg.svd(base.of(update).read(), full_matrices=False)
    return made(update, vh[: update.rank], u[:, : update.rank] * sigma[: update.rank])


def made(update, a, b):
    from lorascope.weights.tensors import InMemory

    return replace(update, roles={"A": InMemory(np.ascontiguousarray(a)), "B": InMemory(np.ascontiguousarray(b))},
                   scale=1.0)  # fmt: skip


def each_run(results):
    return [MeasurementSpec((key,)) for key in results.runs["key"]]


def median(of, rank, column):
    """Over modules and replicates. `rank` says which of the scale's ranks: the first or the last."""

    def statistic(results):
        table, r = results.tables["against"], results.scale.params["ranks"][rank]
        chosen = (table["of"].to_numpy() == of) & (table["rank"].to_numpy() == r)
        if not chosen.any():
            raise ValueError(f"no run of r = {r}")
        return float(np.median(table[column].to_numpy()[chosen]))

    return statistic


FIRST, LAST = 0, -1


def fall(of, column):
    """The largest rank's over the smallest's."""
    first, last = median(of, FIRST, column), median(of, LAST, column)
    return lambda results: last(results) / first(results)


def excess(results):
    """What the directions hold above chance, the largest rank's over the smallest's."""
    first, last = (median(TRAINED, rank, "ratio")(results) - 1 for rank in (FIRST, LAST))
    return last / first


def change(of):
    """Of the ratio to random directions, from the smallest rank to the largest."""
    first, last = median(of, FIRST, "ratio"), median(of, LAST, "ratio")
    return lambda results: last(results) - first(results)


def medians(results):
    """By rank, in the columns of the paper's Table 7."""
    table = results.tables["against"]
    part = table[table["of"] == TRAINED].groupby("rank")[[*MEASURES, *OVERLAPS]].median()
    named = {
        "inside": "‖UᵀWV‖, ΔW's",
        "random": "random",
        "top": "W's own",
        "ratio": "ΔW's / random",
        "top_ratio": "W's own / ΔW's",
        "amplification": "amplification",
        "amplification_random": "of a random ΔW",
        "phi_left": "φ left, W's top 10 %",
        "phi_right": "φ right",
        "chance_left": "chance",
    }
    columns = (Column("rank", "r", "int"), *(Column(key, title, "float") for key, title in named.items()))
    rows = tuple((int(rank), *(float(row[key]) for key in named)) for rank, row in part.iterrows())
    caption = (
        "Medians over modules and replicates. U, V: the r leading singular directions; amplification: ‖ΔW‖/‖UᵀWV‖."
    )
    return Table(columns, rows, "ΔW against W by rank", caption)


def kinds(results):
    """The ratio by kind of matrix: the paper's table is of one query matrix."""
    table = results.tables["against"]
    part = table[table["of"] == TRAINED].assign(
        kind=lambda t: t["module"].str.split(r"layer\.\d+\.", regex=True).str[-1]
    )
    wide = part.groupby(["kind", "rank"])["ratio"].median().unstack()
    columns = (Column("kind", "Matrix"), *(Column(str(rank), f"r = {rank}", "float") for rank in wide.columns))
    rows = tuple((kind, *map(float, row)) for kind, row in zip(wide.index, wide.to_numpy(), strict=True))
    caption = "‖UᵀWV‖ in ΔW's directions over random ones: medians over layers and replicates. 1 is chance."
    return Table(columns, rows, "By kind of matrix", caption)


def figures(results):
    table = results.tables["against"]
    part = table[table["of"] == TRAINED].groupby("rank")[list(MEASURES)].median()
    x = tuple(map(float, part.index))
    lines = (
        ("W's own leading directions", "top", "‖UᵀWV‖", "normal"),
        ("ΔW's directions", "inside", "‖UᵀWV‖", "normal"),
        ("random directions", "random", "‖UᵀWV‖", "reference"),
        ("trained ΔW", "amplification", "amplification", "normal"),
        ("a random ΔW of its norm", "amplification_random", "amplification", "reference"),
    )
    series = tuple(Series(label, x, tuple(part[key]), panel, weight) for label, key, panel, weight in lines)
    caption = "Medians over modules and replicates."
    return [
        medians(results),
        kinds(results),
        Lines("How much of W lies in ΔW's directions", series, "rank r", "", log_x=True, log_y=True, caption=caption),
    ]


TABLE_7 = "Hu et al. 2021, arXiv 2106.09685, §7.3, Table 7"

study = Study(
    name="delta_vs_base",
    title="ΔW against W",
    question="Does a LoRA's ΔW lie where W already is, does it amplify directions that W hardly used, and what would a "
    "random ΔW show?",
    varied="r",
    tuned="the learning rate, for each r",
    fixed="α/r with α = 16 on all linear layers; A Kaiming-uniform, B = 0; AdamW without weight decay, linear decay",
    scales=scales({"smoke": {"ranks": [4, 8]}, "small": {"ranks": [4, 16, 64]}, "full": {"ranks": [4, 16, 64]}}),
    arms=arms,
    measures=(Measure("against", against, each_run),),
    claims=(
        Claim(
            "order",
            "Twice as much of W lies in ΔW's directions as in random ones, and far more in W's own leading ones",
            f"{TABLE_7} (r = 4: 0.32 against 0.02 and 21.67)",
            (
                Criterion("‖UᵀWV‖ in ΔW's directions over random ones, r = 4", median(TRAINED, FIRST, "ratio"),
                          at_least=2.0),
                Criterion("‖UᵀWV‖ in ΔW's directions over random ones, largest r", median(TRAINED, LAST, "ratio"),
                          at_least=2.0),
                Criterion("‖UᵀWV‖ in W's own directions over ΔW's, r = 4", median(TRAINED, FIRST, "top_ratio"),
                          at_least=3.0),
            ),
            (
                Control("a random ΔW's directions over random ones", median(RANDOM, FIRST, "ratio"), at_least=2.0),
            ),
            "Medians over modules. Random: √E‖UᵀWV‖² = r‖W‖/√(mn). Of each module the amplification factor over that "
            "of a random ΔW of the same norm is this ratio's inverse: above 1 ΔW amplifies less than random directions "
            "would. The third number is large of any ΔW away from W's leading directions, of a random one too.",
        ),
        Claim(
            "fall",
            "The amplification factor falls with r",
            f"{TABLE_7} (21.5 at r = 4, about 2 at r = 64)",
            (Criterion("factor of the largest r over that of r = 4", fall(TRAINED, "amplification"), at_most=0.5),),
            (Control("a random ΔW of the same norm", fall(RANDOM, "amplification"), at_most=0.5),),
            "At the norms of Table 7 that of a random ΔW falls from 343 to 11.1: the fall says nothing about training.",
        ),
        Claim(
            "excess",
            "What ΔW's directions hold of W above chance falls with r",
            f"{TABLE_7}, recomputed: 15.9 times the random value at r = 4, 5.9 at r = 64",
            (
                Criterion("‖UᵀWV‖ over random, less 1: largest r over r = 4", excess, at_most=0.75),
                Criterion("‖UᵀWV‖ over random: largest r less r = 4", change(TRAINED), at_most=-0.05),
            ),
            (Control("the difference of a random ΔW", change(RANDOM), at_most=-0.05),),
            "The same of Table 7's numbers: 4.9 over 14.9 is 0.33.",
        ),
        Claim(
            "apart",
            "ΔW's leading directions overlap little with W's top directions",
            "Hu et al. 2021, appendix H.3, Figure 8: φ(top 4 of ΔW, top 10 % of W) barely above 0.2",
            (
                Criterion("φ left, r = 4, against W's top 10 %", median(TRAINED, FIRST, "phi_left"), at_most=0.25),
                Criterion("φ right, r = 4, against W's top 10 %", median(TRAINED, FIRST, "phi_right"), at_most=0.25),
            ),
            (Control("W's own leading directions", median(OWN, FIRST, "phi_left"), at_most=0.25),),
            "Chance is 0.1, there too; on the wide side of the MLP's matrices it is 0.025. A random ΔW keeps the "
            "bounds, too.",
        ),
    ),
    figures=figures,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
