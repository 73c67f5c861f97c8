"""Are A and B alike? Each trained alone, the other frozen orthonormal; and what of each comes back with a new seed.

python studies/asymmetry.py --scale small --jobs 2

B alone is LoRA-FA with an orthonormal A. Of A alone B's learning rate is 10⁻⁹ of A's, so that it hardly moves. How A's
initialisation stays in A across tasks is in `subspace_overlap`, and what training B alone saves in `lora_fa`. That
fewer trained parameters generalise better, as Zhu et al. prove a bound for, is not asked: in one pass over the texts
training and test loss are the same.
"""

import numpy as np

from lorascope.blocks import Column, Table
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.gains import HEAD_ALONE, accuracy, accuracy_lead, alone, loss, parameters
from lorascope.study.grid import DECODER
from lorascope.study.measures.overlap import agreement
from lorascope.study.statistics import once
from lorascope.study.tasks import lora, rates_of_lora, reference_arm, scales

BOTH, AGAIN = "LoRA", "LoRA, another A"
B_ALONE, B_DOUBLE, A_ALONE = "B alone", "B alone, r = 16", "A alone"
TASKS = {
    "LoRA, things": ["animal", "artifact", "body", "food", "plant", "substance"],
    "LoRA, abstractions": ["act", "attribute", "cognition", "communication", "event", "state"],
}
INIT, ALL, ACROSS = "another A", "another seed", "another task"
SIDES = {"left": "B (output side)", "right": "A (input side)"}
OTHER_SEED = 8_000


def frozen_a(rank):
    return {**lora(rank, "lora_fa"), "method.init": "a-orthonormal"}


FROZEN_B = {**lora(8, "lora_plus"), "method.init": "b-orthonormal", "method.loraplus_lr_ratio": 1e-9}


def arms(scale):
    rates = rates_of_lora(scale)
    yield reference_arm(scale, {"method": HEAD_ALONE})
    yield Arm({"method": BOTH}, lora(8), rates)
    yield Arm({"method": B_ALONE}, frozen_a(8), rates)
    yield Arm({"method": A_ALONE}, FROZEN_B, rates)
    yield Arm({"method": B_DOUBLE}, frozen_a(16), rates)
    yield Arm({"method": AGAIN}, lora(8), rate_of={"method": BOTH}, seed=OTHER_SEED)
    for task, classes in TASKS.items() if scale.testbed != DECODER else ():
        yield Arm({"method": task}, {**lora(8), "data.classes": classes}, rate_of={"method": BOTH})


def each_pair(results):
    """Runs of one replicate share texts, order and head, and differ in A's initialisation; of the next one, in all."""
    runs, n = results.runs, results.scale.replicates
    keys = {(row["method"], row["replicate"]): row["key"] for row in runs.to_dict("records")}
    things, abstractions = TASKS
    for i in range(n):
        pairs = {
            INIT: ((BOTH, i), (AGAIN, i)),
            ALL: ((BOTH, i), (BOTH, (i + 1) % n)),
            ACROSS: ((things, i), (abstractions, i)),
        }
        for what, (first, second) in pairs.items():
            if first in keys and second in keys:
                yield MeasurementSpec((keys[first], keys[second]), {"what": what, "replicate": i})


@once
def column(results, name):
    """As an array: it is read thousands of times for an interval."""
    return results.tables["agreement"][name].to_numpy()


@once
def excess(results, what, side):
    """Median over modules and replicates of (φ − chance)/(1 − chance): 0 by chance, 1 for equal subspaces."""
    here = (column(results, "what") == what) & (column(results, "side") == side)
    if not here.any():
        raise ValueError(f"no pair of {what}")
    phi, chance = (column(results, name)[here].astype(float) for name in ("phi_r", "chance_r"))
    return float(np.median((phi - chance) / (1 - chance)))


def sides_apart(what):
    """How much more B agrees than A."""
    return lambda results: excess(results, what, "left") - excess(results, what, "right")


def tasks_apart(side):
    """How much more two seeds of one task agree than two tasks."""
    return lambda results: excess(results, ALL, side) - excess(results, ACROSS, side)


def by_method(results):
    rows = []
    for method, part in results.runs.groupby("method", sort=False):
        rate = None if method == HEAD_ALONE else float(part["learning_rate"].iloc[0])
        name = alone(results.scale) if method == HEAD_ALONE else method
        scores = (None, None) if method in TASKS else (loss(results, method), accuracy(results, method))
        rows.append((name, parameters(results, method), rate, *scores))
    columns = (
        Column("method", "Method"),
        Column("trained", "Trainable parameters (head excluded)", "int"),
        Column("rate", "Learning rate", "float"),
        Column("loss", "Loss (nats)", "float", 4),
        Column("accuracy", "Accuracy", "percent"),
    )
    caption = (
        "Means over replicates. Of A alone B's are counted, which hardly move. Two tasks of six classes: no score."
    )
    return Table(columns, tuple(rows), "By method", caption)


def similarity(results):
    rows = []
    for what in (INIT, ALL, ACROSS):
        try:
            rows.append((what, *(excess(results, what, side) for side in SIDES)))
        except ValueError:
            continue
    columns = (Column("what", "Two LoRAs with"), *(Column(side, title, "float") for side, title in SIDES.items()))
    caption = (
        "(φ(8, 8) − chance)/(1 − chance): 0 of random subspaces, 1 of equal ones; medians over modules and replicates. "
        "Another A: texts, order and head are shared. Another seed or task: nothing is."
    )
    return Table(columns, tuple(rows), "What A and B have in common", caption)


def figures(results):
    return [by_method(results), similarity(results)]


def reading(answers):
    if answers.criterion("b-over-a").estimate is None:
        return ""
    bound = f"{100 * (answers.criterion('b-over-a').at_least or 0):.1f} points"
    limit = answers.criterion("b-init").at_least

    def points(claim):
        return f"{answers.found(claim)} points".replace(" %", "")

    return (
        f"{answers.opening} at r = 8, training B alone is {points('b-over-a')} more accurate than training A alone; "
        f"{bound}, half of the published difference, was the bound ({answers['b-over-a'].verdict}). B alone differs "
        f"from LoRA by {points('b-enough')}; a point below it was allowed ({answers['b-enough'].verdict}). "
        f"Two LoRAs that start from different A agree in B by {answers.found('b-init')} more than in A, where 0 is no "
        "difference and 1 the largest "
        f"({answers['b-init'].verdict}; bound {limit})."
    )


ZHU = "Zhu et al. 2024, arXiv 2402.16842"
GLUE = "RoBERTa-large on GLUE, query, key and value matrices, frozen factor orthonormal, r = 8"
FIGURE = "RoBERTa-large on GLUE, similarity of A and of B over seeds and tasks (canonical correlation)"
POINT = "ours: a point; published: {} points better"
EXPLAINED = (
    "(φ − chance)/(1 − chance) of ΔW's left and right side, which are the column space of B and the row space of A."
)

study = Study(
    name="asymmetry",
    title="Is it B that learns the task?",
    question="Is training B alone, with a frozen orthonormal A, better than training A alone, and as good as both? And "
    "does B come back with another seed, where A does not?",
    varied="which factor trains; r, for B alone; A's initialisation, the seed and the task of two LoRAs",
    tuned="the learning rate, for every method; the two tasks, and LoRA with another A, take LoRA's",
    fixed="α = 16 on all linear layers; the head's rate; AdamW without weight decay, linear decay",
    scales=scales({"smoke": {}, "small": {}, "small-lm": {}, "full": {}}),
    arms=arms,
    measures=(Measure("agreement", agreement, each_pair),),
    claims=(
        Claim(
            "b-over-a",
            "B alone reaches a higher accuracy than A alone",
            f"{ZHU} (GLUE, r = 8: 87.4 against 84.2)",
            (Criterion("accuracy of B alone less that of A alone", accuracy_lead(B_ALONE, A_ALONE), at_least=0.016,
                       no_effect=0.0, published=0.032, unit="percent", origin="half of the published 3.2 points"),),
            (Control("LoRA instead of A alone", accuracy_lead(B_ALONE, BOTH), at_least=0.016, unit="percent"),),
            "As in `lora_fa`, here with orthonormal frozen factors, as published. Of a decoder, accuracy is the next "
            "token's.",
            GLUE,
        ),
        Claim(
            "b-enough",
            "B alone is as accurate as LoRA of the same rank, within a point",
            f"{ZHU} (GLUE, r = 8: 87.4 against 87.2)",
            (Criterion("accuracy of B alone less that of LoRA", accuracy_lead(B_ALONE, BOTH), at_least=-0.01,
                       published=0.002, unit="percent", origin=POINT.format(0.2)),),
            (Control("A alone instead of B alone", accuracy_lead(A_ALONE, BOTH), at_least=-0.01, unit="percent"),),
            "Half as many parameters train.",
            GLUE,
        ),
        Claim(
            "equal-parameters",
            "With as many parameters, twice the rank, B alone is as accurate as LoRA, within a point",
            f"{ZHU} (GLUE: 87.5 at r = 16 against 87.2)",
            (Criterion("accuracy of B alone at r = 16 less that of LoRA at r = 8", accuracy_lead(B_DOUBLE, BOTH),
                       at_least=-0.01, published=0.003, unit="percent", origin=POINT.format(0.3)),),
            (Control("A alone at r = 8 instead", accuracy_lead(A_ALONE, BOTH), at_least=-0.01, unit="percent"),),
            "On BART LoRA of r = 8 stays above B alone of r = 16, in the same paper.",
            GLUE,
        ),
        Claim(
            "b-init",
            "With another initialisation of A, B comes back and A does not",
            f"{ZHU}, Figure 1",
            (Criterion("excess overlap of B less that of A, of two LoRAs that differ in A's initialisation",
                       sides_apart(INIT), at_least=0.2, no_effect=0.0,
                       origin="ours: a fifth of full agreement; the paper has a figure"),),
            (Control("the same of two tasks", sides_apart(ACROSS), at_least=0.2),),
            f"{EXPLAINED} Texts, order and head are shared.",
            FIGURE,
            kind="random baseline",
            out_of_reach={DECODER: "There are no two tasks on this test bed for the control."},
        ),
        Claim(
            "b-task",
            "B is the task's: two seeds of one task agree in B more than two tasks do",
            f"{ZHU}, Figure 1",
            (Criterion("excess overlap of B, two seeds of one task less two tasks", tasks_apart("left"), at_least=0.1,
                       no_effect=0.0, origin="ours: a tenth of full agreement; the paper has a figure"),),
            (Control("the same of A", tasks_apart("right"), at_least=0.1),),
            f"{EXPLAINED} The tasks are six classes of WordNet each, at the rate tuned for all 25.",
            FIGURE,
            kind="random baseline",
            out_of_reach={DECODER: "There are no two tasks on this test bed."},
        ),
    ),
    figures=figures,
    reading=reading,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
