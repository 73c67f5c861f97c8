"""The recorded runs of COMMANDS.md and README, run again: what is printed now, compared with what stands there.

    python -m tests.docs.recorded FOLDER [WORD ...]

runs them in FOLDER, in an order in which each finds what it needs (what is there already is not trained again), prints
each output that is not as recorded, and with it the sample pages (`sample-NAME.html`) that they write. WORD: only
commands that have one of these words. "…" in a record stands for what is left out.
"""

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


def in_order(runs: Sequence[Recorded]) -> list[Recorded]:
    """Those that others need first."""
    return sorted(runs, key=lambda each: FIRST.index(each.name) if each.name in FIRST else len(FIRST))


def main(folder: Path, words: Sequence[str]) -> None:
    prepare(folder)
    for each in in_order(all_recorded()):
        if words and not set(words) & set(each.command.split()):
            continue
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
