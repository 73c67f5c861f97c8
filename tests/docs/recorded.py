"""The recorded runs of COMMANDS.md and README, run again: what is printed now, compared with what stands there.

    python -m tests.docs.recorded FOLDER [--write] [WORD ...]

runs them in FOLDER, in an order in which each finds what it needs (runs that are there already are not trained again),
prints each output that is not as recorded, and with it the sample pages (`sample-NAME.html`) that they write. WORD:
only commands that have one of these words. "…" in a record stands for what is left out; `--write` puts what is printed
now in the place of each of its parts, from the line that is most like its first to the one most like its last.
"""

import difflib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.docs import site

NEEDED = {  # runs that the commands are about, and how they are trained
    "runs/seed0-r8": "lorascope train minilm.yaml --output runs/seed0-r8",
    "runs/seed1-r8": "lorascope train minilm.yaml --set training.seed=1 --output runs/seed1-r8",
    "runs/full": "lorascope train full.yaml --output runs/full",
    "runs/loras": "lorascope train full.yaml --set method.name=lora --set method.targets=all-linear"
    " --set method.alpha=16 --set optim.learning_rate=2e-3 --set 'sweep.method.rank=[1, 2, 4]'"
    " --set 'sweep.training.seed=[0, 1]' --output runs/loras",
}
FIRST = ("quickstart", "train", "merge")  # what others need
SAMPLES = ("compare", "delta", "dimension", "intruders", "activations", "resize", "trajectory")
MASK = re.compile(r"[-−+]?\d[\d,.]*(e[-−+]?\d+)?%?|[▁▂▃▄▅▆▇█·]{3,}|█+")


@dataclass(frozen=True)
class Recorded:
    """One command line with its outputs as they stand in documents."""

    command: str
    outputs: tuple[str, ...]

    @property
    def name(self) -> str:
        """The command of lorascope."""
        return self.command.split()[1]


def all_recorded() -> tuple[Recorded, ...]:
    """Every run that is shown whole or in part, in the order of the pages."""
    found: dict[str, tuple[str, ...]] = {}
    for page in ("COMMANDS", "README"):
        for fence in re.findall(r"^```console\n(.*?)^```", site.text_of(page), re.M | re.S):
            for command, output in _runs(fence):
                if output.strip() not in ("", "…"):
                    found[command] = (*found.get(command, ()), output)
    return tuple(Recorded(command, outputs) for command, outputs in found.items())


def _runs(fence: str) -> Iterator[tuple[str, str]]:
    for part in re.split(r"^\$ ", fence, flags=re.M)[1:]:
        command, _, output = part.partition("\n")
        command = command.rpartition(" && ")[2]
        if command.startswith("lorascope ") and "|" not in command:
            yield command, output


def configs() -> dict[str, str]:
    """The YAML files that COMMANDS.md shows, by name."""
    return dict(re.findall(r"^```yaml\n# (\S+)\n(.*?)^```", site.text_of("COMMANDS"), re.M | re.S))


def differences(recorded: Recorded, printed: str, masked: bool) -> list[str]:
    """The parts of a record that were not printed, in order. `masked`: numbers and bars count as equal."""
    return [part for output in recorded.outputs for part in _missing(output, _words(printed, masked), masked)]


def _missing(output: str, words: list[str], masked: bool) -> Iterator[str]:
    at = 0
    for part in output.split("…\n"):
        wanted = _words(part, masked)
        place = next((i for i in range(at, len(words) - len(wanted) + 1) if words[i : i + len(wanted)] == wanted), None)
        if place is None:
            yield part.strip()
        else:
            at = place + len(wanted)


def _words(text: str, masked: bool) -> list[str]:
    words = text.split()
    return [word for each in words if (word := MASK.sub("#", each))] if masked else words


def run(command: str, folder: Path) -> str:
    """What it prints in `folder`, and what it wrote, without its progress; of a command that fails, what it says."""
    environment = {**os.environ, "NO_COLOR": "1", "COLUMNS": "100"}
    words = [sys.executable, "-m", "lorascope", *shlex.split(command)[1:]]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    wrote = [line for line in done.stderr.splitlines(keepends=True) if line.startswith("wrote ")]
    return "".join([done.stdout, *wrote]) if done.returncode == 0 else done.stderr


def prepare(folder: Path) -> None:
    """The configs that the commands name."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in configs().items():
        (folder / name).write_text(text, encoding="utf-8")


def rewritten(output: str, printed: str) -> str:
    """The record with its parts as they are printed now."""
    lines, at, parts = printed.splitlines(keepends=True), 0, []
    for part in output.split("…\n"):
        old = part.splitlines(keepends=True)
        if not any(line.strip() for line in old):
            parts.append(part)
            continue
        first = _most_alike(old[0], lines, at) if old[0].strip() else at
        last = _most_alike(next(line for line in reversed(old) if line.strip()), lines, first)
        tail = "".join(old[len("".join(old).rstrip().splitlines()) :])  # empty lines at its end
        parts.append("".join(lines[first : last + 1]) + tail)
        at = last + 1
    return "…\n".join(parts)


def _most_alike(line: str, lines: Sequence[str], start: int) -> int:
    ratios = [difflib.SequenceMatcher(None, line, other).ratio() for other in lines[start:]]
    return start + max(range(len(ratios)), key=ratios.__getitem__)


def write(each: Recorded, printed: str) -> None:
    """Put what is printed into the pages that show the command."""
    for page in ("COMMANDS", "README"):
        path, text = site.path_of(page), site.text_of(page)
        for output in each.outputs:
            old = f"$ {each.command}\n{output}"
            before, found, after = text.partition(old)
            if found:
                text = f"{before}$ {each.command}\n{rewritten(output, printed)}{after}"
        path.write_text(text, encoding="utf-8")


def in_order(runs: Sequence[Recorded]) -> list[Recorded]:
    """Those that others need first."""
    return sorted(runs, key=lambda each: FIRST.index(each.name) if each.name in FIRST else len(FIRST))


def main(folder: Path, words: Sequence[str], rewrite: bool = False) -> None:
    prepare(folder)
    chosen = [each for each in in_order(all_recorded()) if not words or set(words) & set(each.command.split())]
    for place, command in NEEDED.items():
        if any(place in each.command for each in chosen) and not (folder / place).exists():
            run(command, folder)
    for each in chosen:
        output = re.search(r"--output (\S+)", each.command)
        if output and each.name in ("resize", "merge"):
            shutil.rmtree(folder / output[1], ignore_errors=True)
        printed = run(each.command, folder)
        page = re.search(r"--html (\S+)", each.command)
        if page and each.name in SAMPLES and (folder / page[1]).is_file():
            text = (folder / page[1]).read_text(encoding="utf-8")
            text = text.replace(str(Path.home()), "~")  # of no machine in particular
            (site.OUT / f"sample-{each.name}.html").write_text(text, encoding="utf-8")
        if not differences(each, printed, masked=False):
            print(f"as recorded: {each.command}", flush=True)
        else:
            how = "numbers" if not differences(each, printed, masked=True) else "words"
            print(f"{how} differ:\n$ {each.command}\n{printed}", flush=True)
            if rewrite:
                write(each, printed)


if __name__ == "__main__":
    options = [word for word in sys.argv[2:] if word != "--write"]
    main(Path(sys.argv[1]), options, len(options) < len(sys.argv[2:]))
