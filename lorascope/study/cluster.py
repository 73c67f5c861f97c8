"""Work on a Ray cluster: chunks go there and their folders come back, so that the nodes need no common disk.

Ray is an optional extra (`pip install 'lorascope[ray]'`). A chunk whose worker dies is done again by Ray; one that
fails by itself is not. https://docs.ray.io/en/latest/ray-core/fault_tolerance/tasks.html
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorascope.atomic import write_bytes
from lorascope.errors import InputError
from lorascope.study.store import Store
from lorascope.study.work import Chunk, execute, start_worker

Files = Mapping[str, bytes]
RETRIES = 3


class Cluster:
    """An engine: does chunks as Ray tasks.

    Args:
        address: of a running cluster; None takes RAY_ADDRESS, or starts Ray on this machine.
        cpus, gpus: of each chunk; a fraction of a GPU lets several share it.
    """

    def __init__(self, address: str | None = None, cpus: float = 1, gpus: float = 0):
        try:
            import ray
        except ImportError:
            raise InputError(
                "--engine ray needs Ray, which is not installed", hint="pip install 'lorascope[ray]'"
            ) from None
        self.ray, self.cpus = ray, cpus
        if not ray.is_initialized():
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        settings = {"num_cpus": cpus, "num_gpus": gpus, "max_retries": RETRIES, "retry_exceptions": False}
        self._remote = ray.remote(**settings)(_execute)

    def close(self) -> None:
        """Leave the cluster."""
        self.ray.shutdown()

    def run(self, chunks: Sequence[Chunk], store: Store) -> Iterator[tuple[Chunk, list[str]]]:
        """Each chunk as it ends, with the keys of its jobs that failed."""
        waiting = {self._submit(chunk, store): chunk for chunk in chunks}
        while waiting:
            (ended,), _ = self.ray.wait(list(waiting), num_returns=1)
            chunk = waiting.pop(ended)
            try:
                folders, failed = self.ray.get(ended)
            except self.ray.exceptions.RayError as error:  # its worker died once too often
                for job in chunk.jobs:
                    store.fail(job, f"Ray gave it up: {type(error).__name__}")
                yield chunk, [job.key for job in chunk.jobs]
                continue
            for key, files in folders.items():
                unpack(files, store.folder(key))
            yield chunk, failed

    def _submit(self, chunk: Chunk, store: Store) -> Any:
        inputs = {key: packed(store.folder(key)) for job in chunk.jobs for key in job.inputs}
        script = chunk.jobs[0].spec.get("script")
        return self._remote.remote(chunk, inputs, Path(script).read_bytes() if script else b"", max(1, int(self.cpus)))


def _execute(
    chunk: Chunk, inputs: Mapping[str, Files], script: bytes, threads: int
) -> tuple[dict[str, Files], list[str]]:
    """On a node: do the chunk in a store of its own, and give its folders back."""
    from dataclasses import replace

    start_worker(threads)
    with tempfile.TemporaryDirectory() as root:
        store = Store(Path(root) / "store")
        for key, files in inputs.items():
            unpack(files, store.folder(key))
        keys = {job.key: job for job in chunk.jobs}
        if script:
            (job,) = chunk.jobs
            path = Path(root) / Path(job.spec["script"]).name
            path.write_bytes(script)
            here = replace(job, spec={**job.spec, "script": str(path)})
            failed = [job.key] if execute(Chunk((here,)), store) else []
            return {job.key: packed(store.folder(here.key))}, failed
        failed = execute(chunk, store)
        return {key: packed(store.folder(key)) for key in keys}, failed


def packed(folder: Path) -> dict[str, bytes]:
    """Every file under a folder, by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def unpack(files: Files, folder: Path) -> None:
    """Write files into a folder; the one that says the job is done comes last."""
    for name in sorted(files, key=lambda name: name == "done.json"):
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError("a file of a node's answer lies outside of its folder", found=name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, files[name])
