"""Which training runs share a pass over one base model in memory."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise

from lorascope.study.store import Job
from lorascope.study.work import Chunk
from lorascope.training.config import parse

SEEDS = ("seed", "data_seed")


def chunks(jobs: Sequence[Job], workers: int = 1) -> list[Chunk]:
    """Training runs that can share a pass and gain by it, together; everything else alone.

    Args:
        workers: how many chunks are worked on at once. No chunk is so large that one of them would have nothing to do.
    """
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(_shared(job), []).append(job)
    fair, made = math.ceil(len(jobs) / workers), []
    for key, group in groups.items():
        count = math.ceil(len(group) / min(fair, _max_together(group[0]))) if key != "alone" else len(group)
        if len(groups) == 1:  # as many for each worker
            count = min(len(group), workers * math.ceil(count / workers))
        made += [Chunk(tuple(part)) for part in _parts(group, count)]
    return made


def _parts(group: Sequence[Job], count: int) -> list[Sequence[Job]]:
    """So many parts of about one size, the larger ones first."""
    size, more = divmod(len(group), count)
    ends = [i * size + min(i, more) for i in range(count + 1)]
    return [group[start:end] for start, end in pairwise(ends)]


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
