"""Which training runs share a pass over one base model in memory."""

import json
import math
from collections.abc import Sequence

from lorascope.study.store import Job
from lorascope.study.work import Chunk
from lorascope.training.config import parse

SEEDS = ("seed", "data_seed")


def chunks(jobs: Sequence[Job], workers: int = 1) -> list[Chunk]:
    """Training runs that can share a pass and gain by it, together; everything else alone.

    Args:
        workers: how many chunks are worked on at once. No chunk is so large that one of them would have nothing to do.
    """
    fair = math.ceil(len(jobs) / workers)
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(_shared(job), []).append(job)
    made = []
    for key, group in groups.items():
        size = min(fair, _max_together(group[0])) if key != "alone" else 1
        made += [Chunk(tuple(group[start : start + size])) for start in range(0, len(group), size)]
    return made


def _shared(job: Job) -> str:
    """What runs of one pass agree in."""
    if job.spec["kind"] != "train" or _max_together(job) == 1:
        return "alone"
    config = job.spec["config"]
    training = {key: value for key, value in config["training"].items() if key not in SEEDS}
    parts = [config["model"], config["data"], training, config["method"]["name"], job.spec["test_split"]]
    return json.dumps(parts, sort_keys=True)


def _max_together(job: Job) -> int:
    from lorascope.adapt.method import methods
    from lorascope.training.sweep import default_parallel

    config = parse(job.spec["config"])
    if config.model.dropout != 0.0 or not methods.get(config.method.name).uses_targets:
        return 1  # the base's own dropout is each run's; what trains the base itself shares nothing
    return default_parallel(config)
