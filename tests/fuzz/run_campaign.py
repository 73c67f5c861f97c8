"""Many damaged run folders, counted: each has its own seed, so that a failure is one number to run again.

python -m tests.fuzz.run_campaign --cases 1000 --seed 0 [--commands read,resume]
python -m tests.fuzz.run_campaign --case 1234
"""

import argparse
import random
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.fuzz.campaign import Counts
from tests.fuzz.open_run import MOSTLY, OPENERS, check
from tests.fuzz.run_folders import scene
from tests.fuzz.run_one import SHM, Overdue, where
from tests.fuzz.spoil import spoil

COMMANDS = tuple(command for each in OPENERS.values() for command in each)


def run_case(chance: random.Random, commands: Sequence[str] = COMMANDS) -> tuple[str, str, dict[str, str]]:
    """One folder, damaged and opened: the command, what `check` says, and what was done. AssertionError as `check`."""
    here, command = scene(), chance.choice(commands)
    name = next(name for name, each in OPENERS.items() if command in each)
    with tempfile.TemporaryDirectory(dir=SHM, ignore_cleanup_errors=True) as place:
        folder = here.copy(name, Path(place))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            done = spoil(folder, chance, MOSTLY.get(command, "*"))
        try:
            return command, check(here, command, folder, done), done
        except AssertionError as error:
            raise AssertionError(f"{command} of {done}: {error}") from error.__cause__


def run(cases: int, seed: int, commands: Sequence[str] = COMMANDS) -> tuple[Counts, Counter[str]]:
    """`cases` cases that follow from `seed`: their outcomes, and how often each command was refused or worked."""
    torch.set_num_threads(1)
    counts, by_command = Counts(), Counter()
    for number in range(seed * 1_000_000_000, seed * 1_000_000_000 + cases):
        try:
            command, outcome, _ = run_case(random.Random(number), commands)
            by_command[f"{command} {outcome}"] += 1
            counts.add(number, "read" if outcome == "works" else outcome)
        except AssertionError as error:
            cause = error.__cause__
            key = f"{type(cause or error).__name__} at {where(cause)}" if cause else str(error).partition(": ")[2][:60]
            counts.add(number, "hangs" if isinstance(cause, Overdue) else "uncaught", key, str(error)[:500])
    return counts, by_command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", default=",".join(COMMANDS))
    parser.add_argument("--case", type=int, help="run this one alone, with the whole traceback")
    asked = parser.parse_args()
    if asked.case is not None:
        print(*run_case(random.Random(asked.case), asked.commands.split(",")))
        return
    start = time.monotonic()
    counts, by_command = run(asked.cases, asked.seed, asked.commands.split(","))
    print(counts, f"\n{dict(sorted(by_command.items()))}\n{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
