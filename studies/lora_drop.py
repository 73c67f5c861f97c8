"""Do a few layers' LoRAs suffice? LoRA-drop's choice by the size of each layer's output, against random choices.

python studies/lora_drop.py --scale small --jobs 2
"""

import numpy as np

from lorascope.blocks import Heatmap
from lorascope.blocks import Measure as Layer
from lorascope.inputs import read_json
from lorascope.study import Arm, Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.gains import FULL_TUNING, HEAD_ALONE, by_method, lead, loss, parameters, share
from lorascope.study.tasks import LORA_RATES, full_arm, head_arm, lora, scales, variant_arm

LORA, DROP, REST_DROPPED = "LoRA", "LoRA-drop", "LoRA-drop, others without"
HALF_RANK, QUERIES = "LoRA, r = 4", "LoRA on queries alone, r = 36"
RANDOM = ("random layers, 1", "random layers, 2", "random layers, 3")
NARROW = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
WIDE = ("intermediate.dense", "output.dense")
TITLES = ("query", "key", "value", "output", "MLP in", "MLP out")


def arms(scale):
    yield head_arm({"method": HEAD_ALONE})
    yield full_arm({"method": FULL_TUNING})
    yield variant_arm(LORA)
    yield Arm({"method": HALF_RANK}, lora(4), LORA_RATES)
    yield Arm({"method": QUERIES}, lora(36, targets=["query"]), LORA_RATES)
    yield Arm({"method": DROP}, lora(8, "lora_drop"), LORA_RATES)
    yield Arm({"method": REST_DROPPED}, {**lora(8, "lora_drop"), "method.rest": "drop"}, rate_of={"method": DROP})
    for i, name in enumerate(RANDOM):
        keep = random_layers(scale.config["model"]["num_hidden_layers"] or 6, i)
        yield Arm({"method": name}, {**lora(8, "lora_drop"), "method.keep": keep}, rate_of={"method": DROP})


def random_layers(depth, seed):
    """A third of the narrow matrices and a third of the wide ones: about as many parameters as LoRA-drop keeps."""
    rng, chosen = np.random.default_rng(seed), []
    for names in (NARROW, WIDE):
        candidates = [f"layer.{i}.{name}" for i in range(depth) for name in names]
        chosen += [
            candidates[i] for i in sorted(rng.choice(len(candidates), max(1, len(candidates) // 3), replace=False))
        ]
    return chosen


def importances(folders):
    """LoRA-drop's score of every layer, and whether it kept a LoRA of its own."""
    from lorascope.training.calibrate import calibration_file

    learned = read_json(calibration_file(folders[0]))
    return [
        {"module": module, "score": score, "kept": module in learned["kept"]}
        for module, score in learned["scores"].items()
    ]


def each_drop(results):
    return [MeasurementSpec((key,)) for key in results.runs.loc[results.runs["method"] == DROP, "key"]]


def orders(results, within=None):
    """(replicates, layers): ranks of the scores, a replicate that is drawn twice once; `within`: of one kind alone."""
    table = results.tables["importances"]
    scores = table["score"].to_numpy().reshape(table["replicate"].nunique(), -1)
    if within is not None:
        modules = table["module"].to_numpy()[: scores.shape[1]]
        scores = scores[:, [kind_of(module) == within for module in modules]]
    order = np.unique(scores, axis=0).argsort(axis=1).argsort(axis=1)
    if len(order) < 2:
        raise ValueError("one seed has none to agree with")
    return order


def kind_of(module):
    return next(name for name in (*NARROW, *WIDE) if module.endswith(name))


def agreement(results, shuffled=False, within=None):
    """Mean rank correlation of two seeds' scores."""
    order, rng = orders(results, within), np.random.default_rng(0)
    order = rng.permuted(order, axis=1) if shuffled else order
    return float(np.mean(np.corrcoef(order)[np.triu_indices(len(order), 1)]))


def kept_share(method):
    return lambda results: parameters(results, method) / parameters(results, LORA)


def worse(method):
    """Its loss over LoRA's, less 1."""
    return lambda results: loss(results, method) / loss(results, LORA) - 1


def over_random(method):
    """Its gain less the mean of the random choices', over full fine-tuning's gain."""
    return lambda results: (
        share(results, method) - float(np.mean([share(results, random_choice) for random_choice in RANDOM]))
    )


def figures(results):
    table = results.tables["importances"]
    means = table.groupby("module", sort=False)[["score", "kept"]].mean()
    modules = [module.split("layer.")[-1] for module in means.index]
    depths = sorted({module.split(".")[0] for module in modules}, key=int)
    types = [*NARROW, *WIDE]
    by_module = dict(zip(modules, means.to_dict("records"), strict=True))
    layers = [
        Layer(
            key, title, tuple(tuple(float(by_module[f"{i}.{name}"][key]) for name in types) for i in depths), "percent"
        )
        for key, title in (("score", "importance"), ("kept", "kept, of the seeds"))
    ]
    caption = "Means over seeds. Importance: the layer's share of Σ‖ΔW x‖² on a tenth of the training texts."
    if len(depths) > 2:  # of two blocks an order says little
        within = np.mean([agreement(results, within=name) for name in types])
        caption += f" Rank correlation of two seeds: {agreement(results):.2f}; over blocks alone, within one kind of "
        caption += f"matrix, {within:.2f}, the mean of the six kinds."
    grid = Heatmap("Importance by layer", tuple(depths), TITLES, tuple(layers), "block", "matrix", caption)
    return [by_method(results), grid]


PAPER = "Zhou et al. 2024, arXiv 2402.07721"

study = Study(
    name="lora_drop",
    title="Do a few layers' LoRAs suffice?",
    question="Does LoRA-drop's choice of layers by their outputs keep what LoRA gains with half of the parameters, and "
    "would any choice?",
    varied="which layers keep a LoRA of their own, chosen by LoRA-drop or at random; whether the others share one or "
    "have none; for comparison LoRA's rank and a LoRA on queries alone",
    tuned="the learning rate, for every LoRA and for LoRA-drop, whose rate the random choices take",
    fixed="r = 8, α = 16 on all linear layers unless said; threshold 0.9; the trial: a tenth of the texts, three "
    "passes; the head's rate; AdamW without weight decay, linear decay",
    scales=scales({"smoke": {}, "small": {}, "full": {}}),
    arms=arms,
    measures=(Measure("importances", importances, each_drop),),
    claims=(
        Claim(
            "par",
            "LoRA-drop is on a par with LoRA, 1 % of its loss worse at most, with 60 % of the parameters or fewer",
            f"{PAPER}, abstract (half of the parameters)",
            (
                Criterion("parameters of LoRA-drop over LoRA's, without the head", kept_share(DROP), at_most=0.6,
                          unit="percent"),
                Criterion("test loss of LoRA-drop over LoRA's, less 1", worse(DROP), at_most=0.01, unit="percent"),
            ),
            (Control("loss: LoRA on queries alone in its place", worse(QUERIES), at_most=0.01, unit="percent"),),
            "LoRA on queries alone has half of LoRA's parameters. So has LoRA with r = 4: whether a choice of layers "
            "does better than half of the rank shows in the table by method. LoRA-drop's trial, 30 % more steps at "
            "scale small, is not counted.",
            cannot_tell="It fails by the share of parameters alone, 65.6 % where the bound is 60 %, which follows from "
            "a threshold of 0.9 on 18 modules whatever the losses are.",
        ),
        Claim(
            "choice",
            "Layers chosen by the size of their outputs gain more than layers chosen at random",
            f"{PAPER}, which chooses by outputs; the random choices are this study's",
            (Criterion("gain of LoRA-drop less the mean of three random choices', over full fine-tuning's",
                       over_random(DROP), at_least=0.0, unit="percent"),),
            (Control("LoRA on queries alone in its place", over_random(QUERIES), at_least=0.0, unit="percent"),),
            "Random choices keep a third of the narrow and of the wide matrices, at scale small 56 % of LoRA's "
            "parameters with what the others share, and take LoRA-drop's learning rate; LoRA-drop has as many as its "
            "threshold gives it: see the table by method. The interval is of seeds, not of choices, which are three.",
        ),
        Claim(
            "share",
            "One LoRA that the other layers share is better than none",
            f"{PAPER}, which shares one",
            (Criterion("gain with a shared LoRA less that without, over full fine-tuning's", lead(DROP, REST_DROPPED),
                       at_least=0.0, unit="percent"),),
            (Control("LoRA on queries alone in its place", lead(QUERIES, REST_DROPPED), at_least=0.0,
                     unit="percent"),),
            "What is shared is trained besides. Without it the learning rate is the same.",
        ),
        Claim(
            "stable",
            "Seeds agree on the importances",
            f"{PAPER}, which scores layers on a sample; asked of seeds here",
            (Criterion("mean rank correlation of two seeds' importances", agreement, at_least=0.7),),
            (Control("with the layers shuffled", lambda results: agreement(results, shuffled=True), at_least=0.7),),
            "On one task: whether the importances are the task's, or the model's, is not asked. Layers differ in shape "
            "and in the size of what enters them, which any seed sees: how far seeds agree within one kind of matrix "
            "stands below the figure.",
        ),
    ),
    figures=figures,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
