"""Does a reward need fewer trained numbers than examples do? A bandit on SmolLM2, with 13, 210 and 840 numbers.

python studies/rank_one_rl.py --scale small

A policy reads a WordNet gloss and names one of six classes: the softmax of the next token's logits over six names. Of
the reward, 1 for the right class, the expectation is the probability of that class, and its gradient is the policy
gradient without any sampling; supervised training raises the logarithm of the same probability. The two differ by what
a text weighs: p(right) times as much with the reward. LoRA-XS has few numbers in directions of W's singular vectors, as
TinyLoRA does, which ties all modules together besides.
"""

import numpy as np

from lorascope.blocks import Column, Lines, Series, Table
from lorascope.study import Claim, Control, Criterion, Measure, MeasurementSpec, Study
from lorascope.study.grid import DECODER, StudyScale
from lorascope.study.statistics import once

REWARD, LIKELIHOOD, BASE = "expected reward", "likelihood", "untrained"
CLASSES = ("animal", "artifact", "body", "food", "plant", "substance")
PROMPT = "Definition: {}.\nOne of animal, artifact, body, food, plant, substance:"
THIRTEEN = r".*layers\.(?:[02468]|1[02468]|2[024])\.mlp\.down_proj"  # of every second one of 26 layers
SIZES = {13: (1, THIRTEEN), 210: (1, "all-linear"), 840: (2, "all-linear")}  # numbers: r, modules
FEW, MANY = min(SIZES), max(SIZES)
RATES = (1e-2, 3.2e-2, 1e-1, 3.2e-1)
BATCH = 16


def trained(folders, size, replicate, layers, steps, held_out_texts, test_texts):
    """Train with both objectives at every rate; accuracies on held-out and on test texts, and before any training.

    Args:
        size: how many numbers train, of SIZES.
        layers: of the model; None takes all.
        held_out_texts, test_texts: how many.
    """
    import torch

    from lorascope.adapt.inject import inject
    from lorascope.models.config import ModelConfig
    from lorascope.models.loading import load_model, load_tokenizer

    settings = ModelConfig(name="smollm2", task_type="CAUSAL_LM", dropout=0.0, num_hidden_layers=layers)
    tokenizer, model = load_tokenizer(settings), load_model(settings)
    answers = torch.tensor([tokenizer(f" {name}", add_special_tokens=False)["input_ids"][0] for name in CLASSES])
    rank, targets = SIZES[size]
    injected = inject(model, "lora_xs", targets=targets, seed=replicate, rank=rank, alpha=rank, init_std=0.0)
    parameters = list(injected.trainable().values())
    data = encoded(tokenizer, {"train": steps * BATCH, "validation": held_out_texts, "test": test_texts}, replicate)

    def scores(texts):
        with torch.no_grad():
            return [
                hit
                for begin in range(0, len(texts), 2 * BATCH)
                for rows in [texts[begin : begin + 2 * BATCH]]
                for hit in (policy(model, rows, answers).argmax(1) == classes_of(rows)).tolist()
            ]

    def row(objective, rate):
        found = {split: float(np.mean(scores(data[split]))) for split in ("validation", "test")}
        return {"objective": objective, "rate": rate, "held_out": found["validation"], "accuracy": found["test"],
                "parameters": sum(parameter.numel() for parameter in parameters)}  # fmt: skip

    yield row(BASE, None)
    for objective in (REWARD, LIKELIHOOD):
        for rate in RATES:
            with torch.no_grad():
                for parameter in parameters:
                    parameter.zero_()
            fit(model, parameters, data["train"], answers, (objective, rate))
            yield row(objective, rate)


def fit(model, parameters, texts, answers, how):
    """One pass over the texts with Adam, at a rate that falls linearly."""
    import torch

    objective, rate = how
    optimizer = torch.optim.Adam(parameters, lr=rate)
    steps = len(texts) // BATCH
    for step in range(steps):
        rows = texts[step * BATCH : (step + 1) * BATCH]
        right = policy(model, rows, answers).log_softmax(1).gather(1, classes_of(rows)[:, None])
        loss = -right.exp().mean() if objective == REWARD else -right.mean()
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def policy(model, rows, answers):
    """Logits (b, 6) of the answers at the end of each text."""
    import torch

    lengths = torch.tensor([len(tokens) for tokens, _ in rows])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(tokens) for tokens, _ in rows], batch_first=True)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    hidden = model.model(input_ids=ids, attention_mask=mask).last_hidden_state
    last = hidden[torch.arange(len(rows)), lengths - 1]
    return last @ model.get_output_embeddings().weight[answers].t()


def classes_of(rows):
    import torch

    return torch.tensor([CLASSES.index(label) for _, label in rows])


def encoded(tokenizer, counts, replicate):
    """By split, (token ids, class) of so many glosses: training texts drawn by the replicate, others once for all."""
    from lorascope.training import wordnet

    found = {}
    for split, nouns in wordnet.read().items():
        kept = [noun for noun in nouns if noun.label in CLASSES]
        rng = np.random.default_rng([replicate if split == "train" else 0, len(kept)])
        taken = [kept[i] for i in rng.choice(len(kept), counts[split], replace=counts[split] > len(kept))]
        found[split] = [(tokenizer(PROMPT.format(noun.gloss))["input_ids"], noun.label) for noun in taken]
    return found


def each_size(results):
    for size in results.scale.params["sizes"]:
        for replicate in range(results.scale.replicates):
            yield MeasurementSpec((), {"size": size, "replicate": replicate, **results.scale.params["each"]})


@once
def accuracy(results, objective, size):
    """Mean test accuracy at the rate with the highest mean held-out accuracy, which every resample chooses again."""
    table = results.tables["trained"]
    rows = table[(table["objective"] == objective) & (table["size"] == size)]
    if not len(rows):
        raise ValueError(f"no run of {objective} with {size} numbers")
    if objective == BASE:
        return float(rows["accuracy"].mean())
    means = rows.groupby("rate")[["held_out", "accuracy"]].mean()
    return float(means["accuracy"].loc[means["held_out"].idxmax()])


def lead(size):
    return lambda results: accuracy(results, REWARD, size) - accuracy(results, LIKELIHOOD, size)


def share(objective):
    """Of what 840 numbers gain with the reward, how much 13 numbers gain."""

    def statistic(results):
        base = accuracy(results, BASE, MANY)
        whole = accuracy(results, REWARD, MANY) - base
        if whole <= 0:
            raise ValueError(f"{MANY} numbers gained nothing")
        return (accuracy(results, objective, FEW) - base) / whole

    return statistic


def figures(results):
    table, sizes = results.tables["trained"], results.scale.params["sizes"]
    series = [
        Series(objective, tuple(map(float, sizes)), tuple(accuracy(results, objective, size) for size in sizes))
        for objective in (REWARD, LIKELIHOOD, BASE)
    ]
    rows = []
    for (size, objective, rate), part in table.groupby(["size", "objective", "rate"], sort=False, dropna=False):
        shown = None if objective == BASE else float(rate)
        rows.append((int(size), objective, shown, float(part["held_out"].mean()), float(part["accuracy"].mean())))
    columns = (
        Column("size", "Trained numbers", "int"),
        Column("objective", "Objective"),
        Column("rate", "Learning rate", "float"),
        Column("held_out", "Held-out accuracy", "percent"),
        Column("accuracy", "Test accuracy", "percent"),
    )
    caption = "Means over replicates, each at the learning rate with the highest held-out accuracy."
    return [
        Lines("Accuracy by trained numbers", tuple(series), "trained numbers", "test accuracy", True, caption=caption),
        Table(columns, tuple(rows), "All runs", "Means over replicates."),
    ]


def reading(answers):
    if answers.criterion("lead").estimate is None:
        return ""
    return (
        f"{answers.opening} with 13 trained numbers, the accuracy with the expected reward less that with the "
        f"likelihood is {answers.found('lead')}: that it is half of the published difference is "
        f"{answers.verdict('lead')}. 13 numbers gain {answers.found('few')} of what 840 gain with the reward."
    )


TINY = "TinyLoRA, arXiv 2602.04118"
SETTING = "Qwen2.5-7B on GSM8K, reinforcement learning from sampled answers against fine-tuning on written solutions"
GRID = {  # steps, layers, held-out and test texts, sizes
    "smoke": (2, 2, 20, 20, [13, 840]),
    "small": (60, None, 300, 500, [13, 210, 840]),
    "full": (400, None, 700, 700, [13, 210, 840]),
}


def scale(name):
    steps, layers, held_out, test, sizes = GRID[name]
    config = {
        "model": {"name": "smollm2", "num_hidden_layers": layers},
        "data": {"path": "wordnet-classes", "classes": list(CLASSES), "max_train_samples": steps * BATCH},
        "training": {"max_steps": steps, "per_device_train_batch_size": BATCH},
    }
    params = {
        "sizes": sizes,
        "each": {"layers": layers, "steps": steps, "held_out_texts": held_out, "test_texts": test},
    }
    common = {"test_split": "test", "test_samples": test, "testbed": DECODER}
    return StudyScale(config, 2 if name == "smoke" else 5, params, conclusive=name != "smoke", **common)


study = Study(
    name="rank_one_rl",
    title="Does a reward need fewer trained numbers than examples?",
    question="With 13 to 840 trained numbers, does raising the expected reward of a policy reach a higher accuracy "
    "than raising the likelihood of the right answers?",
    varied="the objective, and how many numbers train",
    tuned="the learning rate, for each objective and size, on held-out texts; every resample chooses it again",
    fixed="LoRA-XS from R = 0; one pass of Adam over the same texts; six answers, of which the expectation is exact",
    scales={name: scale(name) for name in GRID},
    measures=(Measure("trained", trained, each_size),),
    claims=(
        Claim(
            "lead",
            "With 13 trained numbers a reward reaches a higher accuracy than examples",
            f"{TINY} (GSM8K: 91 % against 83 %)",
            (Criterion("accuracy with the expected reward less that with the likelihood, 13 numbers", lead(FEW),
                       at_least=0.04, no_effect=0.0, published=0.08, unit="percent",
                       origin="half of the published 8 points"),),
            (Control("the same with 840 numbers, where both are said to learn", lead(MANY), at_least=0.04,
                     unit="percent"),),
            "The answers are single words here, so that supervised training has no wording to learn beyond the answer, "
            "which is the paper's explanation of the difference: if it is right, there is little of it here.",
            SETTING,
        ),
        Claim(
            "few",
            "With a reward 13 numbers gain most of what 840 gain",
            f"{TINY} (13 numbers come near to full fine-tuning)",
            (Criterion("gain in accuracy with 13 numbers over that with 840, expected reward", share(REWARD),
                       at_least=0.5, no_effect=0.0, expected=0.9, unit="percent",
                       origin="ours: half; what was read here has no gain over the base"),),
            (Control("13 numbers trained by likelihood", share(LIKELIHOOD), at_least=0.5, unit="percent"),),
            "Over the accuracy of the untrained model. If the control passes, it is not the reward that needs few.",
            SETTING,
        ),
    ),
    figures=figures,
    reading=reading,
)  # fmt: skip

if __name__ == "__main__":
    study.main()
