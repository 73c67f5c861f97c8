"""What `AdapterCallback` costs at its defaults: its share of a TRL run of SmolLM2 on this machine's CPU.

    python tests/benchmarks/callback.py [--steps 30]

LoRA of rank 16 on all linear layers, four texts of 256 tokens a step. The goal is under 2 % of training. Printed
are also one measurement (all 210 modules, with a snapshot) and the page at the end, which comes once whatever the run's
length.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import datasets
from peft import LoraConfig
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from lorascope.callbacks import AdapterCallback
from lorascope.models import assets
from tests.benchmarks.machine import add_json, finish

GOAL = 0.02


class Timed(AdapterCallback):
    """Counts its measurements, and the seconds of the end."""

    def __init__(self):
        super().__init__()
        self.measurements, self.end = 0, 0.0

    def _measured(self, adapter):
        self.measurements += 1
        return super()._measured(adapter)

    def on_train_end(self, args, state, control, **kwargs):
        began = time.perf_counter()
        super().on_train_end(args, state, control, **kwargs)
        self.end = time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    add_json(parser)
    arguments = parser.parse_args()
    steps = arguments.steps
    place = assets.resolve("smollm2")
    texts = datasets.Dataset.from_dict({"text": ["the quick brown fox jumps over the lazy dog " * 40] * (4 * steps)})
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            folder, max_steps=steps, logging_steps=5, report_to=[], use_cpu=True, bf16=False, max_length=256,
            per_device_train_batch_size=4, save_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
        )  # fmt: skip
        callback = Timed()
        trainer = SFTTrainer(
            place, args=config, train_dataset=texts, processing_class=AutoTokenizer.from_pretrained(place),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
            callbacks=[callback],
        )  # fmt: skip
        began = time.perf_counter()
        trainer.train()
        total = time.perf_counter() - began - callback.end
    share = callback.seconds / total
    print(f"{steps} steps in {total:.1f} s, {callback.measurements} measurements of {callback.seconds:.2f} s in all")
    print(f"share of the training time {100 * share:.2f} %   goal: under {100 * GOAL:.0f} %")
    print(f"the last snapshot and the page {callback.end:.2f} s, once")
    finish(arguments.json, {"share": share, "seconds": total, "measuring": callback.seconds, "end": callback.end})


if __name__ == "__main__":
    main()
