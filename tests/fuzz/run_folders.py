"""Tiny run folders of every sort, made once in a process, to be copied and damaged: finished runs, one that was broken
off, a sweep, unfinished work of `delta`, a store of studies with a report.
"""

import atexit
import contextlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import BertConfig, BertForSequenceClassification

from lorascope.study.store import Job, Store
from lorascope.study.work import Chunk, execute
from lorascope.training import run, sweep
from lorascope.training.config import RunConfig, override, parse, resolved
from lorascope.training.loop import Loop
from tests.fuzz.run_one import SHM
from tests.training.tiny import SPECIAL, WORDS, classifier_values, save_tokenizer, sentences

ROOT = Path(__file__).parents[2]
REPORT = "lora_plus.json"
MORE = (
    "training.max_steps=4",
    "training.save_steps=1",
    "training.eval_steps=2",
    "training.load_best_model_at_end=true",
    "training.measure_cost=false",
    "training.num_threads=1",
)
SCRIPT = """
def rows(folders, **params):
    return [{"run": folder.name, "loss": 0.5, **params} for folder in folders]
"""


class Broken(BaseException):
    """The run is broken off here. No `Exception`, so that nothing on the way catches it."""


@dataclass(frozen=True, eq=False)
class Scene:
    """Where everything lies; folders by their names in `open_run.OPENERS`.

    Attributes:
        base, tuned: models, which nothing damages.
        configs: of the runs, by their folder.
        plan: of the sweep.
        jobs: of the store: a run, a measure of it, and one that failed.
        whole: bytes of the adapter that `broken` ends in when it is resumed.
    """

    root: Path
    base: Path
    tuned: Path
    configs: dict[str, RunConfig]
    plan: sweep.Plan
    jobs: tuple[Job, ...]
    whole: bytes

    def copy(self, name: str, place: Path) -> Path:
        return Path(shutil.copytree(self.root / name, place / name))


def adapter_bytes(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


@contextlib.contextmanager
def broken_after(step: int) -> Iterator[None]:
    """Within, training breaks off when the checkpoint of this step is written."""
    save = Loop.save

    def saving(self: Loop, path: Path) -> None:
        save(self, path)
        if self.step == step:
            raise Broken

    Loop.save = saving
    try:
        yield
    except Broken:
        pass
    else:
        raise AssertionError("the run was not broken off")
    finally:
        Loop.save = save


@cache
def scene() -> Scene:
    """The folders of this process; removed when it ends."""
    root = Path(tempfile.mkdtemp(prefix="lorascope-runs-", dir=SHM))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with warnings.catch_warnings(), _on_fork():
            warnings.simplefilter("ignore")
            return _built(root)
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def _on_fork() -> Iterator[None]:
    """What is drawn here changes nobody's random numbers."""
    with torch.random.fork_rng():
        yield


def model(folder: Path, seed: int) -> Path:
    """A BERT of two layers of width 16, as `tests/training/tiny.py` has it, without dropout."""
    torch.manual_seed(seed)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=len(SPECIAL + WORDS), max_position_embeddings=64, num_labels=2, **size, **none)
    BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def texts(path: Path, number: int = 64) -> Path:
    lines = [{"text": text, "label": "yes" if "the" in text.split() else "no"} for text in sentences(number)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def values(base: Path, rows: Path, method: dict[str, Any], *more: str) -> dict[str, Any]:
    return override(classifier_values(base, rows) | {"method": method}, [*MORE, *more])


def _built(root: Path) -> Scene:
    base, tuned, rows = model(root / "base", 0), model(root / "tuned", 1), texts(root / "rows.jsonl")
    lora = {"name": "lora", "targets": ["query", "value"], "rank": 2, "alpha": 4, "dropout": 0.1}
    drop = {"name": "lora_drop", "targets": ["query"], "rank": 2}
    configs = {
        "run": parse(values(base, rows, lora)),
        "full": parse(values(base, rows, {"name": "full"})),
        "broken": parse(values(base, rows, drop)),
    }
    for name, config in configs.items():
        (root / f"{name}.yaml").write_text(yaml.safe_dump(resolved(config)))
    run.train(configs["run"], root / "run", say=_silent)
    run.train(configs["full"], root / "full", say=_silent)
    run.train(configs["broken"], root / "whole", say=_silent)
    with broken_after(3):
        run.train(configs["broken"], root / "broken", say=_silent)
    several = {**values(base, rows, lora, "training.max_steps=2", "training.eval_steps=1"), "sweep": {}}
    plan = sweep.plan({**several, "sweep": {"method.rank": [1, 2], "max_parallel": 1}})
    with broken_after(1):  # the first step of each adapter; the second one's folder is then as it was killed
        sweep.train(sweep.Plan(plan.entries[1:], 1), root / "sweep", say=_silent)
    run.train(plan.entries[0].config, root / "sweep" / plan.entries[0].name, say=_silent)
    (root / "sweep" / "sweep.yaml").write_text(plan.text())
    _unfinished(base, tuned, root / "delta")
    jobs = _stored(resolved(parse(values(base, rows, lora, "training.max_steps=1"))), root)
    _reported(root / "report")
    return Scene(root, base, tuned, configs, plan, jobs, adapter_bytes(root / "whole"))


def _silent(_: str) -> None:
    pass


def _unfinished(base: Path, tuned: Path, folder: Path) -> None:
    """What an interrupted `lorascope delta` keeps."""
    from lorascope.analyses import delta
    from lorascope.weights.checkpoint import open_checkpoint
    from lorascope.weights.tuned import open_tuned

    def some(pairs: list) -> Iterator[Any]:
        yield from pairs[:8]
        raise Broken

    before = open_checkpoint(str(base))
    with contextlib.suppress(Broken):
        delta.run(before, open_tuned(str(tuned), before), extract=1, state=folder / "state", progress=some)


def _stored(config: dict[str, Any], root: Path) -> tuple[Job, ...]:
    folder = root / "store"
    store, script = Store(folder / "store"), folder / "script.py"
    script.write_text(SCRIPT)
    trained = Job({"kind": "train", "config": config, "test_split": "validation", "test_samples": None})
    about = {"kind": "measure", "script": str(script), "function": "rows", "code": "", "params": {"x": 1}}
    measured = Job(about, (trained.key,))
    failed = Job({**about, "function": "none"}, (trained.key,), "a measure")
    for job in (trained, measured, failed):
        execute(Chunk((job,)), store)
    assert store.intact(trained), store.failure(trained.key)
    assert store.intact(measured), store.failure(measured.key)
    assert store.failure(failed.key)
    return trained, measured, failed


def _reported(folder: Path) -> None:
    folder.mkdir()
    shutil.copy(ROOT / "reports" / REPORT, folder)
