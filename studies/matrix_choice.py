"""Which matrices should be adapted? One parameter budget, spent on some or on all of them.

python studies/matrix_choice.py --scale small --jobs 2
"""

from lorascope.blocks import Heatmap
from lorascope.blocks import Measure as Layer
from lorascope.study import Arm, Claim, Control, Criterion, Study
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE, by_method, lead, share
from lorascope.study.tasks import LORA_RATES, full_arm, head_arm, lora, memorise, scales

TASKS = ("wordnet", "memorise")
# The ranks spend 9,216 numbers for each unit of width and layer: exactly equal, but for the MLP's, which is 2.8 % less.
CHOICES = {
    "q": (["query"], 36),
    "k": (["key"], 36),
    "v": (["value"], 36),
    "o": (["attention.output.dense"], 36),
    "q, k": (["query", "key"], 18),
    "q, v": (["query", "value"], 18),
    "q, k, v, o": ("attention", 9),
    "MLP": ("mlp", 7),
    "all linear": ("all-linear", 4),
}
ATTENTION = "q, k, v, o"


def arms(scale):
    for task in TASKS:
        changes = memorise(scale.params["size"]) if task == "memorise" else {}
        yield head_arm({"task": task, "method": HEAD_ALONE, "rank": 0}, changes)
        yield full_arm({"task": task, "method": FULL_TUNING, "rank": None}, changes)
        for choice, (targets, rank) in CHOICES.items():
            labels = {"task": task, "method": choice, "rank": rank}
            yield Arm(labels, {**lora(rank, targets=targets), **changes}, LORA_RATES)


def least_lead(better, worse, task):
    """By how much the worst of `better` exceeds the best of `worse`, over full fine-tuning's gain."""

    def statistic(results):
        return min(share(results, each, task=task) for each in better) - max(
            share(results, each, task=task) for each in worse
        )

    return statistic


def figures(results):
    shares = tuple(tuple(share(results, choice, task=task) for task in TASKS) for choice in CHOICES)
    layer = Layer("share", "gain over full fine-tuning's", shares, "percent")
    rows = tuple(f"{choice} (r = {rank})" for choice, (_, rank) in CHOICES.items())
    caption = (
        "Gain: how far the loss lies below that of the head alone; means over replicates. wordnet: test texts; "
        "memorise: the training texts, whose classes are random."
    )
    grid = Heatmap("Gain by what is adapted", rows, TASKS, (layer,), "adapted", "task", caption)
    return [grid, *(by_method(results, task=task) for task in TASKS)]


def alone(task):
    """The claim of Table 5 on a task."""
    names = {
        f"{better}, less that of {worse}": (better, worse) for better in ("q, v", ATTENTION) for worse in ("q", "k")
    }
    return Claim(
        f"alone-{task}",
        f"q alone and k alone gain less than q, v and than all four of attention, on {task}",
        "Hu et al. 2021, arXiv 2106.09685, §7.1, Table 5",
        tuple(
            Criterion(f"gain of {text}, over full fine-tuning's", lead(*pair, task=task), at_least=0.0, unit="percent")
            for text, pair in names.items()
        ),
        tuple(
            Control(f"the head alone, less that of {worse}", lead(HEAD_ALONE, worse, task=task), at_least=0.0,
                    unit="percent")
            for worse in ("q", "k")
        ),
        "The paper's effect is 3 to 4 points on WikiSQL and 0.3 to 0.9 on MNLI.",
    )  # fmt: skip


def over(name, text, source, better, worse, note=""):
    """A claim on both tasks, that `better` gain more than `worse`."""
    told = f"gain of {' or '.join(better)}, less that of {' or '.join(worse)}, over full fine-tuning's"
    told = told if len(better) == len(worse) == 1 else f"{told}: the least difference"
    return Claim(
        name,
        text,
        source,
        tuple(
            Criterion(f"{task}: {told}", least_lead(better, worse, task), at_least=0.0, unit="percent")
            for task in TASKS
        ),
        tuple(
            Control(
                f"{task}: the head alone in its place",
                least_lead((HEAD_ALONE,), worse, task),
                at_least=0.0,
                unit="percent",
            )
            for task in TASKS
        ),
        note,
    )


TML = "Schulman and Thinking Machines Lab 2025, LoRA Without Regret"

study = Study(
    name="matrix_choice",
    title="Which matrices should be adapted?",
    question="With one budget of parameters, is it better spent on one matrix at a large rank or on several at a small "
    "one, and on attention or on the MLP?",
    varied="the adapted matrices, with r chosen so that the trained parameters are equal; the task: classes of WordNet "
    "glosses, or the same texts with random classes, to be memorised",
    tuned="the learning rate, for every choice and task",
    fixed="α/r with α = 16; A Kaiming-uniform, B = 0; AdamW without weight decay, linear decay; the head's rate",
    scales=scales({"smoke": {"size": "smoke"}, "small": {"size": "small"}, "full": {"size": "full"}}),
    arms=arms,
    claims=(
        *(alone(task) for task in TASKS),
        over(
            "value-output",
            "Of single matrices, v and o gain more than q and k",
            "Hu et al. 2021, Table 5 (WikiSQL 73.0 and 73.2 against 70.4 and 70.0)",
            ("v", "o"),
            ("q", "k"),
        ),
        over(
            "spread",
            "A small rank on all four of attention gains more than a large one on any single matrix",
            "Hu et al. 2021, §7.1",
            (ATTENTION,),
            ("q", "k", "v", "o"),
        ),
        over(
            "mlp",
            "The MLP alone gains more than attention alone",
            f"{TML} (MLP-only r = 128 above attention-only r = 256)",
            ("MLP",),
            (ATTENTION,),
        ),
        Claim(
            "all",
            "Adapting all linear layers gains no more than the MLP alone",
            TML,
            tuple(
                Criterion(
                    f"{task}: gain of all linear layers less that of the MLP, over full fine-tuning's",
                    lead("all linear", "MLP", task=task),
                    at_most=0.05,
                    unit="percent",
                )
                for task in TASKS
            ),
            tuple(
                Control(
                    f"{task}: the head alone in the MLP's place",
                    lead("all linear", HEAD_ALONE, task=task),
                    at_most=0.05,
                    unit="percent",
                )
                for task in TASKS
            ),
        ),
    ),
    figures=figures,
)

if __name__ == "__main__":
    study.main()
