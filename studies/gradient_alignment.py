"""Does a trained adapter lie where the first full gradient points? Full fine-tuning's and LoRA's ΔW against it.

python studies/gradient_alignment.py --scale small --jobs 2

LoRA-GA and LoRA-One start A and B from the leading singular directions of the base weights' gradient, because LoRA is
said to move there anyway. G here is that gradient before any training, of the run's own training texts. Starts that are
made of it are not among lorascope's initialisations, so that what they gain is not asked.
"""

import numpy as np

from lorascope.blocks import Column, Table
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE
from lorascope.study.measures.gradient import BEFORE, PERMUTED, START, TRAINED_HEAD, against_gradient
from lorascope.study.statistics import once
from lorascope.study.tasks import full_arm, lora, rates_of_full, rates_of_lora, reference_arm, scales

LORA, RANK = "LoRA", 8
TEXTS = {"smoke": 16, "small": 512, "small-lm": 256, "full": 512}  # that G is of


def arms(scale):
    yield reference_arm(scale, {"method": HEAD_ALONE})
    yield full_arm({"method": FULL_TUNING}, rates=rates_of_full(scale))
    yield Arm({"method": LORA}, lora(RANK), rates_of_lora(scale))


def each_replicate(results):
    """The three runs of a replicate, which share texts, order and head."""
    runs = results.runs
    keys = {(row["method"], row["replicate"]): row["key"] for row in runs.to_dict("records")}
    order = (HEAD_ALONE, LORA, FULL_TUNING)
    for i in range(results.scale.replicates):
        if all((method, i) in keys for method in order):
            named = {"names": f"{LORA};{FULL_TUNING}", "rank": RANK, "texts": results.scale.params["texts"]}
            yield MeasurementSpec(tuple(keys[method, i] for method in order), {**named, "replicate": i})


@once
def column(results, name):
    """As an array: it is read thousands of times for an interval."""
    return results.tables["gradient"][name].to_numpy()


@once
def values(results, method, gradient, name):
    here = (column(results, "method") == method) & (column(results, "gradient") == gradient)
    if not here.any():
        raise ValueError(f"no gradient {gradient}")
    return column(results, name)[here].astype(float)


def median(method, name, gradient=START):
    """Over modules and replicates."""
    return lambda results: float(np.median(values(results, method, gradient, name)))


def descent(method, gradient=START):
    """Median of how far ΔW goes down G, over what the best ΔW of rank 8 would: 1 at the most, for rank 8."""

    def statistic(results):
        return float(np.median(values(results, method, gradient, "cosine") / values(results, method, gradient, "best")))

    return statistic


def of_task(method, name):
    """How much more ΔW agrees with G than with G of permuted labels."""
    whole, permuted = median(method, name), median(method, name, PERMUTED)
    return lambda results: whole(results) - permuted(results)


def by_gradient(results):
    table = results.tables["gradient"]
    rows = []
    for which in (START, PERMUTED, TRAINED_HEAD):
        for method in (LORA, FULL_TUNING, BEFORE):
            if not ((table["gradient"] == which) & (table["method"] == method)).any():
                continue
            right = median(method, "right", which)(results)
            rest = (None, None) if method == BEFORE else (median(method, "left", which)(results),
                                                          descent(method, which)(results))  # fmt: skip
            rows.append((which, method, rest[0], right, rest[1]))
    columns = (
        Column("gradient", "Gradient"),
        Column("method", "ΔW of"),
        Column("left", "Output side", "float"),
        Column("right", "Input side", "float"),
        Column("descent", "Descent", "float"),
    )
    caption = (
        "Medians over modules and replicates. Sides: (φ − chance)/(1 − chance) of the 8 leading directions of ΔW and "
        "G: 0 of random directions, 1 of equal ones. Descent: cosine of ΔW and −G, over that of the best ΔW of rank 8. "
        "Permuted: G at the start, of the same texts with each other's labels."
    )
    return Table(columns, tuple(rows), "ΔW against the first gradient", caption)


def kinds(results):
    """By kind of matrix, LoRA and the gradient at the start."""
    table = results.tables["gradient"]
    part = table[(table["method"] == LORA) & (table["gradient"] == START)]
    kind = part["module"].str.split(r"layers?\.\d+\.", regex=True).str[-1]
    means = part.assign(kind=kind).groupby("kind", sort=False)[["left", "right"]].median()
    rows = tuple((name, *map(float, row)) for name, row in zip(means.index, means.to_numpy(), strict=True))
    columns = (Column("kind", "Matrix"), Column("left", "Output side", "float"), Column("right", "Input side", "float"))
    return Table(columns, rows, "By kind of matrix", "LoRA, r = 8, G at the start: medians over layers and replicates.")


def figures(results):
    return [by_gradient(results), kinds(results)]


def reading(answers):
    if answers.criterion("left").estimate is None:
        return ""
    return (
        f"{answers.opening}, the 8 leading directions of LoRA's ΔW agree with those of the first full gradient by "
        f"{answers.found('left')} on the output side ({answers['left'].verdict}) and {answers.found('right')} on the "
        f"input side ({answers['right'].verdict}), where 0 is random, 1 is equal and 0.25 was the bound. Its descent "
        f"along that gradient is {answers.found('descent')} of the steepest that rank 8 allows "
        f"({answers['descent'].verdict}; bound 0.25)."
    )


ONE = "LoRA-One, arXiv 2502.01235 (LoRA aligns with the singular directions of the one-step full gradient)"
GA = "LoRA-GA, arXiv 2407.05000 (a start from these directions)"
SETTING = "theory for linear models and gradient descent from a small start; language models in experiments"
OURS = "ours: a quarter of full agreement; what was read here has no number"
NOTE = (
    "The 8 leading directions of each; (φ − chance)/(1 − chance). G is of the run's first training texts. Training is "
    "Adam's and stochastic, the theory gradient descent's."
)

study = Study(
    name="gradient_alignment",
    title="Does LoRA's update lie where the first full gradient points?",
    question="Do the directions of a trained LoRA's ΔW, and of full fine-tuning's, agree beyond chance with those of "
    "the base weights' gradient before training, and is that gradient one of the task?",
    varied="the method; which gradient: at the start, with a trained head in place of a new one, with labels permuted",
    tuned="the learning rate, for each method",
    fixed="r = 8, α = 16 on all linear layers; the head's rate; runs of a replicate share texts, order and head",
    scales=scales({name: {"texts": texts} for name, texts in TEXTS.items()}),
    arms=arms,
    measures=(Measure("gradient", against_gradient, each_replicate),),
    claims=(
        Claim(
            "left",
            "LoRA's output-side directions are those of the first full gradient",
            ONE,
            (Criterion("median excess overlap of LoRA's ΔW and G, output side", median(LORA, "left"), at_least=0.25,
                       no_effect=0.0, origin=OURS),),
            (Control("the same with G of permuted labels", median(LORA, "left", PERMUTED), at_least=0.25),),
            f"{NOTE} With B = 0 the first step puts B into G's column space. Where the control passes, they are not "
            "the task's.",
            SETTING,
            kind="random baseline",
        ),
        Claim(
            "right",
            "LoRA's input-side directions are those of the first full gradient",
            f"{ONE}; {GA}",
            (Criterion("median excess overlap of LoRA's ΔW and G, input side", median(LORA, "right"), at_least=0.25,
                       no_effect=0.0, origin=OURS),),
            (
                Control("the same with G of permuted labels", median(LORA, "right", PERMUTED), at_least=0.25),
                Control("the same of A before training", median(BEFORE, "right"), at_least=0.25),
            ),
            f"{NOTE} A's gradient is zero in the first step, and A moves from a random start. The input side of G is "
            "made of the layer's inputs, whatever the labels.",
            SETTING,
            kind="random baseline",
        ),
        Claim(
            "task",
            "They agree with the task's gradient more than with one of permuted labels",
            f"{ONE}; the papers do not ask how much of the agreement is the task's",
            (Criterion("excess overlap of LoRA's ΔW with G less that with G of permuted labels, output side",
                       of_task(LORA, "left"), at_least=0.1, no_effect=0.0, origin="ours: a tenth of full agreement"),),
            note="Permuted within each pass of 32 texts (8 blocks of a decoder): the mean of the targets stays. "
            "No negative control: the number is itself a comparison with permuted labels.",
            setting="not a published claim",
            kind="random baseline",
        ),
        Claim(
            "descent",
            "LoRA's ΔW goes down the first full gradient",
            GA,
            (Criterion("median of cosine(ΔW, −G) over that of the best ΔW of rank 8", descent(LORA), at_least=0.25,
                       no_effect=0.0, origin="ours: a quarter of what is possible at this rank"),),
            (Control("the same with G of permuted labels", descent(LORA, PERMUTED), at_least=0.25),),
            "By chance the cosine is 0 with a standard deviation of 1/√(d_out·d_in), below 0.003 here.",
            SETTING,
            kind="random baseline",
        ),
        Claim(
            "full",
            "The leading directions of full fine-tuning's ΔW are those of the first full gradient",
            f"{ONE}, as the reason why that gradient is a good start",
            tuple(
                Criterion(f"median excess overlap of full fine-tuning's ΔW and G, {side} side",
                          median(FULL_TUNING, name), at_least=0.25, no_effect=0.0, origin=OURS)
                for name, side in (("left", "output"), ("right", "input"))
            ),
            tuple(
                Control(f"the same with G of permuted labels, {side} side", median(FULL_TUNING, name, PERMUTED),
                        at_least=0.25)
                for name, side in (("left", "output"), ("right", "input"))
            ),
            NOTE,
            SETTING,
            kind="random baseline",
        ),
    ),
    figures=figures,
    reading=reading,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
