"""Coverage-guided fuzzing of the readers with atheris: bytes that reach new lines of lorascope breed further bytes.

    python -m tests.fuzz.coverage_guided --cases 100000 [--seed 0] [--keep FOLDER]

An input's first byte says what the rest is: a safetensors file, its header, or the config beside valid weights of one
of the families that have a config.
"""

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["lorascope.weights", "lorascope.updates"]):
    import lorascope.weights.io

    lorascope.weights.io.formats.names()  # loads every format
    lorascope.weights.io.kinds.names()

from tests.fuzz.adapters import FAMILIES, Hand
from tests.fuzz.hostile import altered
from tests.fuzz.run_one import SHM, Overdue, check, where
from tests.fuzz.writing import json_object, json_text, safetensors, write

WORDS = (
    "dtype", "shape", "data_offsets", "__metadata__", "F32", "BF16", "F8_E4M3", "peft_type", "LORA", "rank_pattern",
    "alpha_pattern", "NaN", "Infinity", "1e400", "null", "true", "[]", "{}", "-1", "0", "9" * 40, r"\ud800", "(a+)+$",
)  # fmt: skip


class Target:
    """Counts what becomes of each input; keeps one input for every distinct failure."""

    def __init__(self, cases: int, keep: Path | None):
        self.cases, self.keep = cases, keep
        self.folder = Path(tempfile.mkdtemp(dir=SHM))
        self.counts: Counter[str] = Counter()
        self.failures: dict[str, str] = {}
        self.weights = {}
        for name, (_, build) in FAMILIES.items():
            files = build(Hand(random.Random(0)))
            if files.config is not None:
                self.weights[name] = files
        self.configured = list(self.weights)

    def seeds(self, corpus: Path) -> None:
        """Valid inputs of every sort: what the mutations start from."""
        for name, (_, build) in FAMILIES.items():
            files = build(Hand(random.Random(1)))
            content = safetensors(files.tensors, files.metadata)
            length = int.from_bytes(content[:8], "little")
            (corpus / f"file-{name}").write_bytes(b"\x00" + content)
            (corpus / f"header-{name}").write_bytes(b"\x01" + content[8 : 8 + length])
        for number, name in enumerate(self.configured):
            text = json_object(self.weights[name].config)
            (corpus / f"config-{name}").write_bytes(bytes([number + 2]) + text.encode())

    def path_of(self, data: bytes) -> Path:
        """Write an input as files; the path to read."""
        which, rest = data[0] % (2 + len(self.configured)), data[1:]
        if which < 2:
            content = rest if which == 0 else len(rest).to_bytes(8, "little") + rest + bytes(_promised(rest))
            (self.folder / "a.safetensors").write_bytes(content)
            return self.folder / "a.safetensors"
        folder = self.folder / self.configured[which - 2]
        if not folder.exists():
            folder.mkdir()
            write(self.weights[folder.name], folder)
        (folder / "adapter_config.json").write_bytes(rest)
        return folder

    def __call__(self, data: bytes) -> None:
        self.counts["cases"] += 1
        try:
            self.counts[check(self.path_of(data or b"\x00"), analyse=False)] += 1
        except AssertionError as error:
            self._failed(data, error)
        if self.counts["cases"] == self.cases:
            self.report()

    def _failed(self, data: bytes, error: AssertionError) -> None:
        cause = error.__cause__
        self.counts["hangs" if isinstance(cause, Overdue) else "uncaught"] += 1
        key = f"{type(cause or error).__name__} at {where(cause)}"
        if key not in self.failures and self.keep is not None:
            (self.keep / f"failure-{len(self.failures)}").write_bytes(data)
        self.failures.setdefault(key, str(error)[:300])

    def report(self) -> None:
        names = ("cases", "read", "refused", "uncaught", "hangs")
        print(", ".join(f"{self.counts[name]} {name}" for name in names))
        for key, text in self.failures.items():
            print(f"{key}: {text}")
        sys.stdout.flush()
        shutil.rmtree(self.folder, ignore_errors=True)  # libFuzzer ends the process without a word to Python


def mutated(data: bytes, most: int, seed: int) -> bytes:
    """libFuzzer's own change of bytes; or, of JSON, one value in place of another, which bytes rarely become."""
    chance = random.Random(seed)
    if data[:1] > b"\x00" and chance.random() < 0.5:
        with contextlib.suppress(ValueError, RecursionError):
            text = json_text(altered(json.loads(data[1:]), chance)).encode("utf-8", "backslashreplace")
            if len(text) < most:
                return data[:1] + text
    return atheris.Mutate(data, most)


def _promised(header: bytes) -> int:
    """How many bytes a header speaks of, at most a few."""
    try:
        entries = json.loads(header).values()
        ends = [entry["data_offsets"][1] for entry in entries if isinstance(entry, dict) and "data_offsets" in entry]
        return int(min(max(0, *ends), 1 << 16))
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="an empty folder for the inputs that fail")
    asked = parser.parse_args()
    target = Target(asked.cases, asked.keep)
    corpus = target.folder / "corpus"
    corpus.mkdir()
    target.seeds(corpus)
    words = target.folder / "words"
    words.write_text("".join(f'"{word}"\n'.replace("\\", "\\\\") for word in WORDS))
    # libFuzzer's own alarm is off: `check` has one. Its last argument is where new inputs go, and the seeds lie.
    options = [f"-atheris_runs={asked.cases}", f"-seed={asked.seed + 1}", "-max_len=8192", "-timeout=0",
               "-rss_limit_mb=0", "-verbosity=0", f"-dict={words}", f"-artifact_prefix={target.folder}/"]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], target, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
