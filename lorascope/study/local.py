"""Work on this machine: N worker processes, each with its share of the cores."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from lorascope.study.store import Store
from lorascope.study.work import Chunk, execute, start_worker
from lorascope.training.threads import usable_cores

TRIES = 2  # by itself, of a chunk whose worker died


class Local:
    """An engine: does chunks in worker processes.

    Args:
        jobs: how many processes. Of one, the work is done in this process.
    """

    def __init__(self, jobs: int = 1):
        self.jobs = self.slots = jobs
        self.threads = max(1, usable_cores() // jobs)
        self._pool: ProcessPoolExecutor | None = None

    def close(self) -> None:
        """Let the workers go."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def run(self, chunks: Sequence[Chunk], store: Store) -> Iterator[tuple[Chunk, list[str]]]:
        """Each chunk as it ends, with the keys of its jobs that failed."""
        if self.jobs == 1:
            for chunk in chunks:
                yield chunk, execute(chunk, store)
            return
        waiting = list(chunks)
        while waiting:
            lost: list[Chunk] = []
            yield from self._through(waiting, lost, store)
            for chunk in lost:  # each by itself now, to see whose fault it was
                lost_again = [chunk]
                for _ in range(TRIES):
                    alone, lost_again = lost_again, []
                    yield from self._through(alone, lost_again, store)
                if lost_again:
                    for job in chunk.jobs:
                        store.fail(job, f"its worker process died {TRIES} times: killed, or out of memory")
                    yield chunk, [job.key for job in chunk.jobs]

    def _workers(self) -> ProcessPoolExecutor:
        if self._pool is None:
            spawn = multiprocessing.get_context("spawn")  # a forked torch may hang
            self._pool = ProcessPoolExecutor(self.jobs, mp_context=spawn, initializer=_start, initargs=(self.threads,))
        return self._pool

    def _through(self, waiting: list[Chunk], lost: list[Chunk], store: Store) -> Iterator[tuple[Chunk, list[str]]]:
        """Takes chunks off `waiting`, as many at a time as there are workers. Where a worker dies, those under way are
        put on `lost`, and it ends: any of them may be the cause."""
        running: dict[Future, Chunk] = {}
        while waiting or running:
            while waiting and len(running) < self.jobs:
                chunk = waiting.pop(0)
                running[self._workers().submit(execute, chunk, store)] = chunk
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                chunk = running.pop(future)
                try:
                    failed = future.result()
                except BrokenProcessPool:
                    lost.extend([chunk, *running.values()])
                    self.close()
                    return
                yield chunk, failed


def _start(threads: int) -> None:
    """Called first in every worker. It ends with its parent, and without a word where that is interrupted."""
    start_worker(threads)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C reaches every process of the terminal
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
