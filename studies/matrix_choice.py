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
ATTENTION, ALL = "q, k, v, o", "all linear"


def arms(scale):
    for task in TASKS:
        changes = memorise(scale.params["size"]) if task == "memorise" else {}
        yield head_arm({"task": task, "method": HEAD_ALONE, "rank": 0}, changes)
        yield full_arm({"task": task, "method": FULL_TUNING, "rank": None}, changes)
        for choice, (targets, rank) in CHOICES.items():
            labels = {"task": task, "method": choice, "rank": rank}
            yield Arm(labels, {**lora(rank, targets=targets), **changes}, LORA_RATES)


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


def less(better, worse, task):
    return Criterion(f"gain of {better}, less that of {worse}, over full fine-tuning's", lead(better, worse, task=task),
                     at_least=0.0, unit="percent")  # fmt: skip


def poorest(task):
    """The choices of which the paper has least gain, against all layers: q or k in the place of the better one."""
    return tuple(
        Control(f"{matrix} alone in its place, less that of {ALL}", lead(matrix, ALL, task=task), at_least=0.0,
                unit="percent")
        for matrix in ("q", "k")
    )  # fmt: skip


def over(name, text, source, better, worse, note=""):
    """A claim for each task, that each of `better` gains more than each of `worse`: none is picked by its result."""
    return tuple(
        Claim(
            f"{name}-{task}",
            f"{text}, on {task}",
            source,
            tuple(less(one, other, task) for one in better for other in worse),
            poorest(task),
            note,
        )
        for task in TASKS
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
        *over(
            "alone",
            "q alone and k alone gain less than q, v and than all four of attention",
            "Hu et al. 2021, arXiv 2106.09685, §7.1, Table 5",
            ("q, v", ATTENTION),
            ("q", "k"),
            "The paper's effect is 3 to 4 points on WikiSQL and 0.3 to 0.9 on MNLI.",
        ),
        *over(
            "value-output",
            "Of single matrices, v and o gain more than q and k",
            "Hu et al. 2021, Table 5 (WikiSQL 73.0 and 73.2 against 70.4 and 70.0; on MNLI v has no lead over q)",
            ("v", "o"),
            ("q", "k"),
        ),
        *over(
            "spread",
            "A small rank on all four of attention gains more than a large one on any single matrix",
            "Hu et al. 2021, §7.1, Table 5",
            (ATTENTION,),
            ("q", "k", "v", "o"),
            "α is 16 for all: B·A of r = 36 is multiplied by 4/9, of r = 9 by 16/9. Rates are tuned with that.",
        ),
        *over(
            "mlp",
            "The MLP alone gains more than attention alone",
            f"{TML} (MLP-only r = 128 above attention-only r = 256)",
            ("MLP",),
            (ATTENTION,),
            "With 2.8 % fewer parameters here.",
        ),
        *(
            Claim(
                f"all-{task}",
                "Adapting all linear layers gains more than the MLP alone by 5 % of full fine-tuning's gain at most, "
                f"on {task}",
                f"{TML} (MLP-only about as good as all layers)",
                (
                    Criterion("gain of all linear layers less that of the MLP, over full fine-tuning's",
                              lead(ALL, "MLP", task=task), at_most=0.05, unit="percent"),
                ),
                (
                    Control("k alone in the MLP's place", lead(ALL, "k", task=task), at_most=0.05, unit="percent"),
                ),
                "At equal parameters: r = 4 on all layers, r = 7 on the MLP.",
            )
            for task in TASKS
        ),
    ),
    figures=figures,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
