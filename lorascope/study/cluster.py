"""Work on a Ray cluster: chunks go there and their folders come back, so that the nodes need no common disk.

Ray is an optional extra (`pip install 'lorascope[ray]'`). The nodes need the same versions of lorascope, torch and
transformers: a node computes each run's key again, and refuses the run where it is another. A model or data that is
named by a path must lie at that path on the nodes.

A chunk whose worker dies is done again by Ray; one that fails by itself is not.
https://docs.ray.io/en/latest/ray-core/fault_tolerance/tasks.html
"""

import os
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorascope.errors import InputError
from lorascope.outputs import write_bytes
from lorascope.study.store import Store, data_hashes
from lorascope.study.work import Chunk, execute, start_worker

Files = Mapping[str, bytes]
RETRIES = 2  # of a chunk whose worker died
QUEUED = 2  # chunks handed to Ray per chunk that it can do at once: their inputs are kept in its memory


class Cluster:
    """An engine: does chunks as Ray tasks.

    Args:
        address: of a running cluster; None takes RAY_ADDRESS, or starts Ray on this machine alone.
        jobs: how many chunks at once where Ray is started here; a running cluster does as many as it has room for.
        cpus, gpus: of each chunk; a fraction of a GPU lets several share it.

    Raises:
        InputError: Ray is not installed, the cluster does not answer, or has no node with so many GPUs.
    """

    def __init__(self, address: str | None = None, jobs: int = 1, cpus: float = 1, gpus: float = 0):
        # Read when Ray starts: no usage reports, and a task without a GPU sees none whatever Ray's version does.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
        try:
            import ray
        except ImportError:
            raise InputError(
                "--engine ray needs Ray, which is not installed", hint="pip install 'lorascope[ray]'"
            ) from None
        self.ray, self.cpus, self.gpus = ray, cpus, gpus
        self._started_here = not ray.is_initialized()
        if self._started_here:
            _start(ray, address, jobs * cpus)
        try:
            self.slots = self._slots()
        except InputError:
            self.close()
            raise
        settings = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES, "retry_exceptions": False}
        self._remote = ray.remote(**settings)(_execute)

    def close(self) -> None:
        """Leave the cluster; end it where it was started here."""
        if self._started_here:
            self.ray.shutdown()

    def run(self, chunks: Sequence[Chunk], store: Store) -> Iterator[tuple[Chunk, list[str]]]:
        """Each chunk as it ends, with the keys of its jobs that failed."""
        waiting, running = deque(chunks), dict[Any, Chunk]()
        while waiting or running:
            while waiting and len(running) < QUEUED * self.slots:
                chunk = waiting.popleft()
                running[self._submit(chunk, store)] = chunk
            (ended,), _ = self.ray.wait(list(running), num_returns=1)
            chunk = running.pop(ended)
            try:
                folders, failed = self.ray.get(ended)
            except self.ray.exceptions.RayError as error:  # its worker died once too often
                if len(chunk.jobs) > 1:  # one of them may be the cause: each on its own
                    waiting.extend(Chunk((job,), chunk.weights) for job in chunk.jobs)
                    continue
                store.fail(chunk.jobs[0], f"its Ray worker died {RETRIES + 1} times: {type(error).__name__}")
                yield chunk, [chunk.jobs[0].key]
                continue
            for job in chunk.jobs:
                with store.locked([job.key]):
                    if not store.intact(job):
                        unpack(folders[job.key], store.folder(job.key))
            yield chunk, failed

    def _slots(self) -> int:
        """How many chunks the cluster has room for now; one at least."""
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= self.cpus and node.get("GPU", 0) >= self.gpus for node in nodes):
            largest = max((node.get("GPU", 0) for node in nodes), default=0)
            raise InputError(
                f"no node of the Ray cluster has room for a run of {self.cpus:g} CPUs and {self.gpus:g} GPUs",
                found=f"at most {largest:g} GPUs on one node",
                hint="ask for fewer with --gpus-per-run",
            )
        room = [min(node.get("CPU", 0) / self.cpus, node.get("GPU", 0) / (self.gpus or 1)) for node in nodes]
        if not self.gpus:
            room = [node.get("CPU", 0) / self.cpus for node in nodes]
        return max(1, sum(map(int, room)))

    def _submit(self, chunk: Chunk, store: Store) -> Any:
        inputs = {key: packed(store.folder(key)) for job in chunk.jobs for key in job.inputs}
        script = chunk.jobs[0].spec.get("script")
        source = Path(script).read_bytes() if script else b""
        keys = [job.key for job in chunk.jobs]
        return self._remote.remote(chunk, keys, inputs, source, max(1, int(self.cpus)))


def _start(ray: Any, address: str | None, cpus: float) -> None:
    quiet = {"log_to_driver": False, "configure_logging": False}
    try:
        if address or os.environ.get("RAY_ADDRESS"):
            ray.init(address=address, **quiet)
        else:
            ray.init(num_cpus=int(cpus), include_dashboard=False, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = address or os.environ.get("RAY_ADDRESS") or "this machine"
        raise InputError(
            f"cannot start work on Ray ({where})",
            found=" ".join(str(error).split())[:200],
            hint="check the address with `ray status`",
        ) from None


def _execute(
    chunk: Chunk, keys: Sequence[str], inputs: Mapping[str, Files], script: bytes, threads: int
) -> tuple[Mapping[str, Files], list[str]]:
    """On a node: do the chunk in a store of its own, and give its folders back by their keys."""
    start_worker(threads)
    with tempfile.TemporaryDirectory(prefix="lorascope-") as root:
        store = Store(Path(root) / "store")
        for key, files in inputs.items():
            unpack(files, store.folder(key))
        if script:
            (job,) = chunk.jobs
            path = Path(root) / Path(job.spec["script"]).name
            path.write_bytes(script)
            chunk = Chunk((replace(job, spec={**job.spec, "script": str(path)}),))
        if mismatch := _mismatch(chunk, keys):
            for job in chunk.jobs:
                store.fail(job, mismatch)
            failed = [job.key for job in chunk.jobs]
        else:
            failed = execute(chunk, store)
        answer = {key: packed(store.folder(job.key)) for key, job in zip(keys, chunk.jobs, strict=True)}
        return answer, [key for key, job in zip(keys, chunk.jobs, strict=True) if job.key in failed]


def _mismatch(chunk: Chunk, keys: Sequence[str]) -> str | None:
    """Why this node would do other work than requested; None where it would not."""
    for job, key in zip(chunk.jobs, keys, strict=True):
        if job.key != key:
            return "the node has other versions of torch, transformers, tokenizers or lorascope"
        if job.spec["kind"] == "train" and data_hashes(job.spec["config"]) != job.spec["data"]:
            return f"the node has other data at {job.spec['config']['data']['path']}"
    return None


def packed(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def unpack(files: Files, folder: Path) -> None:
    """Write files into a folder, in place of what was there; the one that says the job is done comes last.

    Raises:
        InputError: a file would lie outside of the folder.
        LorascopeError: it cannot be written.
    """
    for name in sorted(files, key=lambda name: name == "done.json"):
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError("a file of a node's answer lies outside of its folder", found=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, files[name])
