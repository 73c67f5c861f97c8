"""Every registered method on the packaged task: settings and a learning rate with which it learns, and nothing more.

The task is the quickstart's (MiniLM, 25 classes of WordNet glosses, 6,400 texts in 200 steps of 32, a new head on
pooled features): only the method and the rate change. Rates come from short searches on held-out texts of the training
split; they are no comparison of methods, for which each would have to be tuned alike. As a script, it runs what is
named, or everything, and adds each result to a JSON file:

    python -m tests.training.recipes results.json [METHOD ...]
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from lorascope.adapt.method import methods
from lorascope.training import run
from lorascope.training.config import parse
from lorascope.training.parallel import World, pick_device
from lorascope.training.quickstart import CONFIGS, test_set
from lorascope.training.scores import evaluate
from lorascope.weights import io

ATTENTION = {"targets": ["query", "value"]}
RECIPES: dict[str, tuple[dict[str, Any], float]] = {
    "lora": ({"rank": 8, "alpha": 16, **ATTENTION}, 2e-3),
    "rslora": ({"rank": 8, "alpha": 8, **ATTENTION}, 2e-3),
    "lora_plus": ({"rank": 8, "alpha": 16, "loraplus_lr_ratio": 4, **ATTENTION}, 2e-3),
    "lora_fa": ({"rank": 8, "alpha": 16, **ATTENTION}, 5e-3),
    "lora_drop": ({"rank": 8, "alpha": 16, **ATTENTION}, 5e-3),
    "dora": ({"rank": 8, "alpha": 16, **ATTENTION}, 3e-3),
    "adalora": ({"init_r": 12, "target_r": 8, "alpha": 32, **ATTENTION}, 5e-3),
    "lora_xs": ({"rank": 16, **ATTENTION}, 1e-2),
    "vera": ({"rank": 256, **ATTENTION}, 2e-2),
    "vera_unshared": ({"rank": 256, **ATTENTION}, 2e-2),
    "vera_only_b": ({"rank": 256, **ATTENTION}, 2e-2),
    "vera_only_d": ({"rank": 256, **ATTENTION}, 1e-2),
    "ia3": ({"targets": ["key", "value", "output.dense"]}, 1e-2),
    "magnitude": ({"targets": "all-linear"}, 1e-2),
    "bitfit": ({}, 5e-3),
    "layernorm": ({}, 5e-3),
    "full": ({}, 5e-4),
    "random_subspace": ({"d": 5000}, 2e-2),
    "houlsby": ({}, 3e-3),
    "prefix": ({"encoder_lr_ratio": 0.03}, 1e-2),
    "p_tuning_v2": ({}, 1e-2),
    "prompt": ({}, 3e-2),
}


def accuracy(name: str, folder: Path, **training: Any) -> dict[str, Any]:
    """Train the method by its recipe; accuracy on the 2,000 test texts, which nothing was chosen on."""
    settings, rate = RECIPES[name]
    values = {section: dict(keys) for section, keys in CONFIGS["minilm"].items()}
    values["method"] = {"name": name, **settings}
    values["optim"] = {"learning_rate": rate}
    values["training"] |= {"device": "cpu", **training}
    config = parse(values)
    finished = run.train(config, folder)
    here = World(pick_device("cpu"))
    prepared = run.prepare(config, here.device)
    test = test_set(prepared, config)
    prepared.injected.load(io.read(finished.adapter))
    score = evaluate(prepared.model, test, 64, here)
    return {
        "learning_rate": rate,
        "accuracy": round(score.accuracy, 4),
        "loss": round(score.loss, 4),
        "trained": json.loads((folder / "run.json").read_text())["trained_parameters"],
        "seconds": round(finished.seconds, 1),
    }


def main(path: Path, names: list[str]) -> None:
    for name in names or methods.names():
        with tempfile.TemporaryDirectory() as folder:
            found = accuracy(name, Path(folder) / name)
        results = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**results, name: found}, indent=1))
        print(name, found, flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
