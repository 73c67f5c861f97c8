"""What a worker process does: train runs that share a base in one pass, or call a measure. Independent of any study."""

import importlib.util
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from lorascope.errors import InputError, LorascopeError
from lorascope.inputs import OBJECT, read_json
from lorascope.outputs import write_json
from lorascope.study import texts
from lorascope.study.measures.finished import measured_on
from lorascope.study.store import Job, Store
from lorascope.training.run_folder import SCORE

ROWS, TEST = "rows.json", "test.json"


@dataclass(frozen=True)
class Chunk:
    """Jobs that one worker does in one go: training runs that share a pass, or one measure.

    Attributes:
        weights: whether runs whose scores are there without their weights are trained again.
    """

    jobs: tuple[Job, ...]
    weights: bool = False

    @property
    def title(self) -> str:
        return self.jobs[0].title + (f" and {len(self.jobs) - 1} more" if len(self.jobs) > 1 else "")


def execute(chunk: Chunk, store: Store) -> list[str]:
    """Do the chunk's jobs into the store; the keys of those that failed, each with its reason there.

    Raises:
        LorascopeError: the store cannot be written.
    """
    try:
        with store.locked([job.key for job in chunk.jobs]):
            there = store.intact if chunk.weights else store.scored
            jobs = [job for job in chunk.jobs if not there(job)]  # another process may have done some meanwhile
            if jobs:
                _train(jobs, store) if jobs[0].spec["kind"] == "train" else _measure(jobs[0], store)
    except Exception as error:  # a study goes on without the run, and its page says why
        message = str(error) if isinstance(error, LorascopeError) else _located(error)
        if len(chunk.jobs) > 1:  # one of them may be the cause: each on its own
            return [key for job in chunk.jobs for key in execute(Chunk((job,), chunk.weights), store)]
        store.fail(chunk.jobs[0], message)
        return [chunk.jobs[0].key]
    return []


def _located(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"


def _train(jobs: Sequence[Job], store: Store) -> None:
    from lorascope.training import run
    from lorascope.training.config import parse
    from lorascope.training.parallel import World, pick_device
    from lorascope.training.run_folder import Record

    configs = [parse(job.spec["config"]) for job in jobs]
    for job in jobs:
        store.begin(job)
    folders = [store.run_folder(job.key) for job in jobs]
    run.set_threads(configs[0].training.num_threads)
    world = World(pick_device(configs[0].training.device))
    began = time.perf_counter()

    def fit(resume: bool) -> tuple[list[Any], Any]:
        if not resume:
            for job in jobs:
                store.start_over(job.key)
        records = [Record(folder, config, resume=resume) for folder, config in zip(folders, configs, strict=True)]
        prepared = run.prepare_together(configs, world.device)
        members = [run.Job(*parts) for parts in zip(configs, prepared, folders, records, strict=True)]
        ended, _ = run.fit_together(members, world, resume, (), progress=False, trained_together=len(jobs))
        return ended, prepared[0].tokenizer

    resume = (folders[0] / "checkpoint.pt").is_file()
    try:
        ended, tokenizer = fit(resume)
    except InputError:
        if not resume:
            raise
        ended, tokenizer = fit(False)  # what an earlier try left is of another grouping of runs, device or version
    for job, member, folder in zip(jobs, ended, folders, strict=True):
        if member.error is None:
            _score_texts(job, member, folder, tokenizer)
    seconds = round((time.perf_counter() - began) / len(jobs), 3)
    for job in jobs:
        store.finish(job.key, {"seconds": seconds, "together": len(jobs)} | _hardware(world.device))


def _score_texts(job: Job, member: Any, folder: Path, tokenizer: Any) -> None:
    """The scores of each held-out text, and of each one that neither training nor any choice has seen."""
    from lorascope.training.reopen import other_texts
    from lorascope.training.scores import evaluate_texts

    config, model, device = member.config, member.injected.model, member.world.device
    size = config.training.per_device_eval_batch_size
    scores = member.texts
    if scores is None or config.training.load_best_model_at_end:
        scores = evaluate_texts(model, member.held_out, size, device)
    splits = {texts.HELD_OUT: (member.held_out.tokens, vars(scores))}
    if job.spec.get("test_split"):
        unseen = other_texts(config, member.train, tokenizer, job.spec["test_split"], job.spec["test_samples"])
        scores = evaluate_texts(model, unseen, size, device)
        splits[texts.TEST] = (unseen.tokens, vars(scores))
        write_json(folder / TEST, asdict(scores.score))
    texts.write(folder / texts.FILE, splits)


def _hardware(device: Any) -> dict[str, Any]:
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _measure(job: Job, store: Store) -> None:
    spec = job.spec
    folder = store.begin(job)
    began = time.perf_counter()
    function = getattr(script(Path(spec["script"])), spec["function"])
    with measured_on(spec.get("device", "auto")):
        rows = [dict(row) for row in function([store.run_folder(key) for key in job.inputs], **spec["params"])]
    write_json(folder / ROWS, {"rows": rows})
    store.finish(job.key, {"seconds": round(time.perf_counter() - began, 3)})


_scripts: dict[Path, ModuleType] = {}


def script(path: Path) -> ModuleType:
    """The study's script as a module. Its last lines, which run it, are not run."""
    path = path.resolve()
    if path not in _scripts:
        name = f"lorascope_study_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses in the script look themselves up there
        spec.loader.exec_module(module)
        _scripts[path] = module
    return _scripts[path]


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a measure. InputError where its file is damaged."""
    return read_json(folder / ROWS, {"rows": [OBJECT]}, hint=f"remove {folder}; it is measured again")["rows"]


def read_score(path: Path) -> dict[str, Any] | None:
    """The score on test texts; None where there is none. InputError where its file is damaged."""
    return read_json(path, SCORE, hint=f"remove {path.parent}; the run is done again") if path.exists() else None


def start_worker(threads: int) -> None:
    """Called first in every worker process, before anything imports torch. Workers print errors only."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["TQDM_DISABLE"] = "1"
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
