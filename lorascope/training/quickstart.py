"""The quickstart's two runs, and what their results are measured against.

minilm: 25 classes of WordNet nouns from their glosses, compared with the majority class and a linear probe: logistic
regression on the frozen encoder's mean-pooled features. The probe's C is chosen on validation texts.
smollm2: next-token loss on "lemma (class): gloss", compared with the base model's own.
"""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lorascope.outputs import write_json
from lorascope.training import data, run
from lorascope.training.batches import Encoded
from lorascope.training.config import RunConfig, parse
from lorascope.training.parallel import World, pick_device
from lorascope.training.rows import packaged
from lorascope.training.run_folder import Record, working_in
from lorascope.training.scores import Score, evaluate

FACTS = "quickstart.json"

LORA = {"name": "lora", "rank": 8, "alpha": 16}
CONFIGS: dict[str, dict[str, Any]] = {
    "minilm": {
        # The base's own dropout of 0.1 would cost a third of each step and gains nothing in one pass over the data.
        "model": {"name": "minilm", "task_type": "SEQ_CLS", "head": "mean-pool", "dropout": 0.0},
        "data": {"path": "wordnet-classes", "max_train_samples": 6400, "max_eval_samples": 250},
        "method": {**LORA, "targets": ["query", "value"]},
        "optim": {"learning_rate": 2e-3},
        "training": {
            "max_steps": 200,
            "per_device_train_batch_size": 32,
            "group_by_length": True,
            "eval_steps": 50,
            "snapshot_steps": 25,
        },
    },
    "smollm2": {
        "model": {"name": "smollm2", "task_type": "CAUSAL_LM"},
        "data": {"path": "wordnet-glosses", "max_length": 64, "max_train_samples": 4000, "max_eval_samples": 200},
        "method": {**LORA, "targets": ["q_proj", "v_proj"]},
        "optim": {"learning_rate": 2e-3},
        "training": {"max_steps": 60, "per_device_train_batch_size": 8, "eval_steps": 20, "snapshot_steps": 10},
    },
}
PROBE_C = (0.3, 3.0)


@dataclass(frozen=True)
class Outcome:
    """What a quickstart found.

    Attributes:
        finished: the run.
        train, held_out: how many texts (or blocks) were trained on and held out.
        trained: how many numbers were trained.
        score: of the adapted model on the held-out texts.
        majority, probe: held-out accuracy of the two baselines, of a classifier.
        base: the base model's score, of a language model.
    """

    finished: run.Finished
    train: int
    held_out: int
    trained: int
    score: Score
    majority: float | None = None
    probe: float | None = None
    base: Score | None = None


def config_for(model: str, seed: int, device: str) -> RunConfig:
    values = {section: dict(keys) for section, keys in CONFIGS[model].items()}
    values["training"] |= {"seed": seed, "device": device}
    return parse(values)


def go(config: RunConfig, folder: Path, command: list[str]) -> Outcome:
    """Measure the baselines, train, evaluate, and write the run's folder, in the place of an earlier quickstart's.

    Raises:
        InputError: the folder holds another run; and what `run.train` raises.
    """
    run.set_threads(config.training.num_threads)
    here = World(pick_device(config.training.device))
    with working_in(folder):
        record = Record(folder, config, replace=(folder / FACTS).is_file())
        write_json(folder / FACTS, {})  # marks the folder as one that the next quickstart may replace
        prepared = run.prepare(config, here.device)
        if config.model.task_type == "CAUSAL_LM":
            outcome = _language_model(prepared, config, here, record, command)
        else:
            outcome = _classifier(prepared, config, here, record, command)
        write_json(folder / FACTS, _facts(outcome))
    return outcome


def _language_model(
    prepared: run.Prepared, config: RunConfig, here: World, record: Record, command: list[str]
) -> Outcome:
    base = evaluate(prepared.model, prepared.held_out, config.training.per_device_eval_batch_size, here)
    finished = run.fit(prepared, config, here, record, record.folder, command=command)
    trained = prepared.injected.parameter_count()
    return Outcome(finished, len(prepared.train), len(prepared.held_out), trained, finished.score, base=base)


def _classifier(prepared: run.Prepared, config: RunConfig, here: World, record: Record, command: list[str]) -> Outcome:
    test = test_set(prepared, config)
    majority = Counter(prepared.train.labels).most_common(1)[0][0]
    probe = linear_probe(
        prepared, test, here.device
    )  # the fresh adapter changes nothing: these are the base's features
    finished = run.fit(prepared, config, here, record, record.folder, command=command)
    return Outcome(
        finished,
        len(prepared.train),
        len(test),
        prepared.injected.parameter_count(),
        evaluate(prepared.model, test, config.training.per_device_eval_batch_size, here),
        majority=float(np.mean(np.array(test.labels) == majority)),
        probe=probe,
    )


def test_set(prepared: run.Prepared, config: RunConfig) -> Encoded:
    """The texts that neither training nor the choice of anything sees."""
    only = replace(config.data, train_split="test", max_train_samples=None)
    rows = packaged(config.data.path, "test")
    return data.encode_classes(rows, prepared.train.label_names, prepared.tokenizer, only)


def linear_probe(prepared: run.Prepared, test: Encoded, device: torch.device) -> float:
    """Test accuracy of logistic regression on the frozen encoder's features, C chosen on the held-out texts."""
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    x = {name: features(prepared.model, texts, device) for name, texts in _sets(prepared, test)}
    with threadpool_limits(1, "blas"):  # products this small gain nothing from threads, whose waiting costs a lot
        fits = [LogisticRegression(C=c, max_iter=300).fit(x["train"], prepared.train.labels) for c in PROBE_C]
    best = max(fits, key=lambda fit: fit.score(x["validation"], prepared.held_out.labels))
    return float(best.score(x["test"], test.labels))


def _sets(prepared: run.Prepared, test: Encoded) -> list[tuple[str, Encoded]]:
    return [("train", prepared.train), ("validation", prepared.held_out), ("test", test)]


@torch.no_grad()
def features(model: Any, texts: Encoded, device: torch.device) -> np.ndarray:
    """Mean-pooled features of all texts, (n, hidden_size)."""
    model.eval()
    result = np.empty((len(texts), model.mean_pool_head.in_features), dtype=np.float32)
    for indices in texts.by_length(64):
        batch = texts.batch(indices).to(device)
        result[indices] = model.features(batch.input_ids, batch.attention_mask).float().cpu().numpy()
    return result


def _facts(outcome: Outcome) -> dict[str, Any]:
    facts = {name: getattr(outcome, name) for name in ("train", "held_out", "trained", "majority", "probe")}
    facts |= {"score": vars(outcome.score), "base": outcome.base and vars(outcome.base)}
    return {**facts, "steps": outcome.finished.steps, "seconds": round(outcome.finished.seconds, 2)}


def table(outcome: Outcome, config: RunConfig) -> str:
    """The results as lines of text, the baselines first."""
    adapter = f"LoRA, r = {LORA['rank']} on {' and '.join(config.method.targets)}"
    cost = f"{outcome.trained:,} trainable parameters, {outcome.finished.seconds:.0f} s"
    rows: list[tuple[str, str, str]]
    if outcome.base is not None:
        head = f"next-token loss in nats on {outcome.held_out} held-out blocks of WordNet glosses:"
        rows = [("base model", f"{outcome.base.loss:.3f}", ""), (adapter, f"{outcome.score.loss:.3f}", cost)]
    else:
        assert outcome.majority is not None  # of a classifier
        assert outcome.probe is not None
        examples = f"25 classes ({outcome.train:,} training examples)"
        head = f"accuracy on {outcome.held_out:,} held-out WordNet glosses, {examples}:"
        rows = [
            ("majority class", f"{100 * outcome.majority:.1f} %", ""),
            ("linear probe on the frozen encoder", f"{100 * outcome.probe:.1f} %", ""),
            (adapter, f"{100 * outcome.score.accuracy:.1f} %", cost),
        ]
    width = max(len(name) for name, _, _ in rows)
    return "\n".join([head, *(f"  {name:<{width}}  {value:>7}   {note}".rstrip() for name, value, note in rows)])
