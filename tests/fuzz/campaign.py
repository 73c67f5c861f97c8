"""Many mutated cases, counted: each has its own seed, so that a failure is one number to run again.

python -m tests.fuzz.campaign --cases 10000 --seed 0 [--workers 2]
python -m tests.fuzz.campaign --case 1234 --keep /tmp/case
"""

import argparse
import faulthandler
import multiprocessing
import os
import random
import re
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

from tests.fuzz.mutate import write_mutated
from tests.fuzz.run_one import SHM, Overdue, check, where

STUCK = 30  # seconds after which a case that no signal interrupts ends its process
NAMES = ("cases", "read", "refused", "uncaught", "hangs")


@dataclass
class Counts:
    """Outcomes; `failures` has an example's number and sentence by exception and innermost line, `times` how often."""

    outcomes: Counter[str] = field(default_factory=Counter)
    failures: dict[str, tuple[int, str]] = field(default_factory=dict)
    times: Counter[str] = field(default_factory=Counter)

    def add(self, number: int, outcome: str, key: str = "", text: str = "") -> None:
        self.outcomes.update(("cases", outcome))
        if key:
            self.times[key] += 1
            self.failures.setdefault(key, (number, text))

    def __str__(self) -> str:
        lines = [", ".join(f"{self.outcomes[name]} {name}" for name in NAMES)]
        for key, (number, text) in sorted(self.failures.items()):
            lines.append(f"{self.times[key]} × {key}: case {number}: {text}")
        return "\n".join(lines)


def run_case(number: int) -> tuple[str, ...]:
    """The outcome of one case; of a failure also its kind and place, and the sentence."""
    with tempfile.TemporaryDirectory(dir=SHM) as folder:
        path = write_mutated(random.Random(number), Path(folder))
        try:
            return (check(path),)
        except AssertionError as error:
            cause = error.__cause__
            outcome = "hangs" if isinstance(cause, Overdue) else "uncaught"
            return outcome, f"{type(cause or error).__name__} at {where(cause)}", str(error)[:400]


def _work(numbers: range, results: Connection, traces: Path) -> None:
    warnings.simplefilter("ignore")  # torch's, while a case is written; `check` has its own filter
    with traces.open("w") as file:
        for number in numbers:
            faulthandler.dump_traceback_later(STUCK, exit=True, file=file)
            results.send(run_case(number))
        faulthandler.cancel_dump_traceback_later()


class Worker:
    """A process that runs cases one after another, and is started again behind one that ended it."""

    def __init__(self, numbers: range, counts: Counts):
        self.numbers, self.counts, self.done, self.tried_again = numbers, counts, 0, -1
        self.traces = Path(tempfile.mkstemp(prefix="lorascope-fuzz-", dir=SHM)[1])
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.results, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(self.numbers[self.done :], theirs, self.traces), daemon=True)
        self.process.start()
        theirs.close()

    def goes_on(self) -> bool:
        """Whether cases are left, after what has come from the process was counted."""
        try:
            while self.done < len(self.numbers) and self.results.poll(0.05):
                self._count(*self.results.recv())
        except EOFError:
            self.process.join()
            place = re.search(r'lorascope/(\S+)", line (\d+)', self.traces.read_text())
            if place:
                self._count("hangs", f"Stuck at lorascope/{place[1]}:{place[2]}", f"no signal ends it in {STUCK} s")
            elif self.tried_again != self.done:
                self.tried_again = self.done  # a machine that stalls ends a process as well: its case would do it twice
            else:
                frames = self.traces.read_text()[-300:]
                self._count(
                    "uncaught", f"End of the process with exit code {self.process.exitcode}", frames or "stderr"
                )
            self._start()
        if self.done == len(self.numbers):
            self.process.join()
            self.traces.unlink(missing_ok=True)
        return self.done < len(self.numbers)

    def _count(self, *found: str) -> None:
        self.counts.add(self.numbers[self.done], *found)
        self.done += 1


def run(cases: int, seed: int, workers: int) -> Counts:
    """`cases` cases that follow from `seed`, spread over worker processes."""
    first, counts = seed * 1_000_000_000, Counts()
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # of the workers, which start anew
    running = [Worker(range(first + n, first + cases, workers), counts) for n in range(min(workers, cases))]
    while running:
        running = [worker for worker in running if worker.goes_on()]
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--case", type=int, help="run this one alone, with the whole traceback")
    parser.add_argument("--keep", type=Path, help="with --case: an empty folder for its files")
    asked = parser.parse_args()
    if asked.case is not None:
        folder = asked.keep or Path(tempfile.mkdtemp(dir=SHM))
        folder.mkdir(parents=True, exist_ok=True)
        path = write_mutated(random.Random(asked.case), folder)
        print(path, flush=True)
        print(check(path))
        return
    start = time.monotonic()
    print(run(asked.cases, asked.seed, asked.workers), f"\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
