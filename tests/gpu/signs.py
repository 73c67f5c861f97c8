"""Does a sign change with 80 times the tokens? Full fine-tuning and LoRA at r = 1, 8, 64, 1,000 steps of 64 × 128
tokens in bfloat16, one seed: held-out loss, and of LoRA the median stable rank of ΔW. On SmolLM2, or where that is not
at hand on MiniLM, whose texts are shorter.
"""

import statistics
import tempfile
from pathlib import Path

from lorascope.analyses.spectrum import run as spectrum
from lorascope.errors import LorascopeError
from lorascope.models import assets
from lorascope.training import run as training
from lorascope.training.config import parse
from lorascope.weights import io
from tests.gpu import lines

ARMS = {
    "lora, r = 8": ({"name": "lora", "rank": 8, "alpha": 16, "targets": "all-linear"}, 1.7e-3),
    "full": ({"name": "full", "embeddings": False}, 1e-4),
    "lora, r = 1": ({"name": "lora", "rank": 1, "alpha": 2, "targets": "all-linear"}, 1.7e-3),
    "lora, r = 64": ({"name": "lora", "rank": 64, "alpha": 128, "targets": "all-linear"}, 5e-4),
}


def run(part: str, dry: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        model, data, task = _task(place, dry)
        for name, (method, rate) in ARMS.items():
            size, steps = (2, 2) if dry else (64, 1000)
            config = {
                "model": {"name": model, "task_type": task},
                "data": data,
                "method": method,
                "optim": {"learning_rate": rate, "warmup_ratio": 0.05},
                "training": {"max_steps": steps, "per_device_train_batch_size": size, "bf16": not dry}
                | {"device": "cpu" if dry else "cuda", "logging_steps": 100, "measure_cost": False},
            }
            try:
                finished = training.train(parse(config), place / name, say=lambda text: None)
            except LorascopeError as error:
                lines.write(part, arm=name, model=model, failed=str(error))
                continue
            ranks = {}
            if "lora" in name:
                rows = spectrum(io.read(finished.adapter)).rows
                ranks["stable_rank"] = statistics.median(row.stable_rank for row in rows)
            base = training.summary_of(finished)["base"]["loss"]
            lines.write(
                part,
                arm=name,
                model=model,
                steps=finished.steps,
                seconds=finished.seconds,
                base_loss=base,
                loss=finished.score.loss,
                **ranks,
            )


def _task(place: Path, dry: bool) -> tuple[str, dict, str]:
    if dry:
        from tests.training import tiny

        (place / "text.txt").write_text("\n".join(tiny.sentences(60)))
        return str(tiny.make_llama(place / "llama")), {"path": str(place / "text.txt"), "max_length": 16}, "CAUSAL_LM"
    if (assets.cache() / assets.ASSETS["smollm2"].folder_name).is_dir():
        return "smollm2", {"path": "wordnet-glosses", "max_length": 128}, "CAUSAL_LM"
    return lines.minilm(), {"path": "wordnet-classes", "max_length": 128}, "SEQ_CLS"
