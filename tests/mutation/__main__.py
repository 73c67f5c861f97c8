"""`python -m tests.mutation`: draws changes, runs the tests that call the changed functions, prints what survives."""

import argparse
import json
import random
import subprocess
import sys
from pathlib import Path

from tests.mutation.equivalent import EQUIVALENT
from tests.mutation.operators import candidates, mutation
from tests.mutation.run import Tests, outcomes

ROOT = Path(__file__).parents[2]
JUDGING = ("verdict", "outcome", "power", "coverage", "claims")
MUTATED = (
    "lorascope/linalg", "lorascope/updates", "lorascope/weights/formats",
    *(f"lorascope/study/{name}.py" for name in JUDGING),
)  # fmt: skip
TESTS = (
    "linalg updates weights contracts/test_formats.py contracts/test_kinds.py methods/test_virtual_tokens.py"
    " study/test_verdict.py study/test_outcome.py study/test_power.py study/test_scope.py study/test_coverage.py"
)
NOT_RUN = "weights/test_safetensors.py"  # of files, which takes long


def files(paths: tuple[str, ...] = MUTATED) -> list[str]:
    """The Python files of these rooms, below the root."""
    found = [
        p for path in paths for p in ([ROOT / path] if path.endswith(".py") else sorted((ROOT / path).rglob("*.py")))
    ]
    return [p.relative_to(ROOT).as_posix() for p in found if p.stat().st_size]


def map_calls(to: Path, tests: str) -> None:
    """Run the tests once, unchanged, with a note of which calls what; takes about five minutes."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.mutation.calls", "--calls-to", str(to)]
    command += ["--calls-of", ",".join(MUTATED), "--hypothesis-seed=0", *(f"tests/{t}" for t in tests.split())]
    command += [f"--ignore=tests/{t}" for t in NOT_RUN.split()]
    subprocess.run(command, cwd=ROOT, check=False)  # a test that fails unchanged is left out by the map


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("--number", type=int, default=100, help="how many changes to draw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--map", type=Path, help="where the map of calls is kept; made where it is absent")
    parser.add_argument("--tests", default=TESTS, help="below tests/, what the map is made of")
    parser.add_argument("--only", default="", help="only files whose path contains this")
    parser.add_argument("--least", type=float, default=0.92, help="the share that has to be killed")
    chosen = parser.parse_args(arguments)

    to = chosen.map or ROOT / ".pytest_cache" / "calls.json"
    if not to.exists():
        to.parent.mkdir(exist_ok=True)
        map_calls(to, chosen.tests)
    tests = Tests(**json.loads(to.read_text()))
    everything = [c for file in files() if chosen.only in file for c in candidates(ROOT, file)]
    drawn = random.Random(chosen.seed).sample(everything, min(chosen.number, len(everything)))
    mutations = [m for m in (mutation(ROOT, *c) for c in drawn) if m.key not in EQUIVALENT]

    killed = survived = 0
    for change, outcome in outcomes(ROOT, mutations, tests, chosen.workers):
        killed, survived = killed + (outcome != "survived"), survived + (outcome == "survived")
        if outcome == "survived":
            print(f"survived: {change}", flush=True)
    share = killed / max(1, killed + survived)
    print(f"{killed} of {killed + survived} changes were noticed: {share:.1%} (of {len(everything)} possible ones;")
    print(f"{len(drawn) - len(mutations)} more are known to change nothing). At least {chosen.least:.0%} are wanted.")
    return int(share < chosen.least)


if __name__ == "__main__":
    raise SystemExit(main())
