"""Finished work without its weights, in one file: what makes a study's numbers travel to another machine.

A zip archive of `pack.json`, which names every file with its size and sha256; of `KEY/...`, the files of `store.LIGHT`,
`spec.json` and `done.json` of each finished job; and of `claims/...`, the claims as they were frozen. Losses of texts
are kept in float32, as the store has them: a run's scores take some twenty kilobytes, and its digits stay the same.

A pack may come from anyone. Nothing in it is run, only files of these names are written, each of the size and hash that
it is said to have, and a job is taken only where its key is the hash of its spec.
"""

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorascope import __version__
from lorascope.errors import InputError
from lorascope.inputs import MAX_JSON, OBJECT, misfit, open_regular, parse_json
from lorascope.outputs import json_text, write_bytes
from lorascope.study import frozen
from lorascope.study.runner import Runner
from lorascope.study.store import DONE, LIGHT, VERSIONS, Job, Store
from lorascope.study.work import Chunk
from lorascope.training.run_folder import package_version

SCHEMA, KIND = 1, "lorascope study pack"
INDEX, SPEC, DONE_FILE = "pack.json", "spec.json", "done.json"
WHOLE = (SPEC, *LIGHT, DONE_FILE)  # of a job; the last is written last
KEY = re.compile(r"[0-9a-f]{16}")
CLAIMS = re.compile(r"claims/[A-Za-z0-9_]+(-[A-Za-z0-9_]+)+\.json")
MAX_OF_ONE, MAX_BYTES = MAX_JSON, 1 << 30  # bytes of a file, and of all of them
MAX_FILES = 200_000
FILE = {"size": (int,), "sha256": (str,)}
SHAPE = {"schema": (int,), "kind": (str,), "lorascope": (str,), "jobs": {str: {str: FILE}}, "claims": {str: FILE}}
SPECS: dict[str, Any] = {
    "train": {"kind": (str,), "config": {str: OBJECT}, "inputs": [(str,)]},
    "measure": {"kind": (str,), "script": (str,), "function": (str,), "code": (str,), "inputs": [(str,)]},
}
ERRORS = (
    OSError, ValueError, EOFError, KeyError, TypeError, NotImplementedError, RuntimeError, MemoryError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip
DATE = (1980, 1, 1, 0, 0, 0)  # of every file in it: the same work gives the same bytes


@dataclass(frozen=True)
class Unpacked:
    """What became of the jobs in a pack, by number.

    Attributes:
        added: now in the store.
        kept: the store had them.
        foreign: of other versions of the packages that a run depends on, or not what their key says: left out.
        claims: files of frozen claims that were added.
    """

    added: int
    kept: int
    foreign: int
    claims: int


class Absent:
    """An engine that does nothing: with it a runner lists what a study needs, as far as the store shows it."""

    slots = 1

    def close(self) -> None:
        """Nothing to let go of."""

    def run(self, chunks: Sequence[Chunk], store: Store) -> Iterator[tuple[Chunk, list[str]]]:
        """No chunk is done."""
        return iter(())


def finished(runners: Iterable[Runner]) -> list[Job]:
    """The jobs that are in the store with their numbers, of studies and of their first arms (`together.prefixes`).

    Args:
        runners: with the engine `Absent`.
    """
    jobs: dict[str, Job] = {}
    for runner in runners:
        runner.run()
        jobs |= {job.key: job for job in runner.used.values() if runner.store.scored(job)}
    return list(jobs.values())


def pack(store: Store, jobs: Iterable[Job], claims: Iterable[str]) -> bytes:
    """The archive of finished jobs.

    Args:
        claims: names of files in the store's folder `claims`; those that are not there are left out.
    """
    files: dict[str, bytes] = {}
    for key in sorted({job.key for job in jobs}):
        with store.locked([key]):
            folder = store.folder(key)
            kept = {name: (folder / name).read_bytes() for name in WHOLE if (folder / name).is_file()}
            files |= {f"{key}/{name}": each for name, each in (kept | {SPEC: _portable(kept[SPEC])}).items()}
    paths = [store.root / "claims" / name for name in sorted(set(claims))]
    files |= {f"claims/{path.name}": path.read_bytes() for path in paths if path.is_file()}
    facts = {name: {"size": len(each), "sha256": hashlib.sha256(each).hexdigest()} for name, each in files.items()}
    by_job: dict[str, dict[str, Any]] = {}
    for name, fact in facts.items():
        key, _, rest = name.partition("/")
        if key != "claims":
            by_job.setdefault(key, {})[rest] = fact
    index = {
        "schema": SCHEMA,
        "kind": KIND,
        "lorascope": __version__,
        "versions": {name: package_version(name) for name in VERSIONS},
        "jobs": by_job,
        "claims": {name: fact for name, fact in facts.items() if name.startswith("claims/")},
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in {INDEX: json_text(index).encode(), **files}.items():
            archive.writestr(zipfile.ZipInfo(name, DATE), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _portable(spec: bytes) -> bytes:
    """A job's spec without the folder of its script, which is no part of the key."""
    fields = parse_json(spec.decode())
    if "script" in fields:
        fields["script"] = Path(fields["script"]).name
    return json_text(fields, indent=2).encode()


def unpack(path: Path, store: Store) -> Unpacked:
    """Put the jobs of an archive into a store. What the store has finished stays as it is.

    Raises:
        InputError: it is no pack, or damaged, or larger than a pack may be. Jobs before the damage may have been added.
        LorascopeError: the store cannot be written.
    """
    counts = dict.fromkeys(("added", "kept", "foreign"), 0)
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            index = _index(archive, path)
            for key, facts in index["jobs"].items():
                counts[
                    _put_job(store, key, {name: _content(archive, f"{key}/{name}", facts[name]) for name in facts})
                ] += 1
            claims = sum(
                _put_claims(store, name, _content(archive, name, fact)) for name, fact in index["claims"].items()
            )
    except InputError:
        raise
    except ERRORS as error:
        raise InputError(f"{path} is not a pack, or damaged", found=error, hint="write it again with `pack`") from None
    return Unpacked(**counts, claims=claims)


def _index(archive: zipfile.ZipFile, path: Path) -> dict[str, Any]:
    """What the pack says is in it, of names and sizes that a pack may have."""
    listed = archive.infolist()
    if len(listed) > MAX_FILES or sum(each.file_size for each in listed) > MAX_BYTES:
        raise ValueError(f"{len(listed):,} files of {sum(each.file_size for each in listed):,} bytes")
    if others := {each.compress_type for each in listed} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ValueError(f"compression of the kind {min(others)}")
    index = _json(_bounded(archive, INDEX, MAX_JSON), SHAPE)
    if index["kind"] != KIND or index["schema"] != SCHEMA:
        raise InputError(
            f"{path} is not a pack that this version reads", found=f"{index['kind']}, schema {index['schema']}",
            expected=f"{KIND}, schema {SCHEMA}",
        )  # fmt: skip
    for key, files in index["jobs"].items():
        if not KEY.fullmatch(key) or not files.keys() <= set(WHOLE) or not {SPEC, DONE_FILE} <= files.keys():
            raise ValueError(f"the job {key[:40]!r} with the files {sorted(files)[:9]}")
    for name in index["claims"]:
        if not CLAIMS.fullmatch(name):
            raise ValueError(f"the file {name[:60]!r}")
    return index


def _bounded(archive: zipfile.ZipFile, name: str, most: int) -> bytes:
    """A file of the archive, which may be larger than it says."""
    with archive.open(name) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{name} has more than {most:,} bytes")
    return content


def _content(archive: zipfile.ZipFile, name: str, fact: Mapping[str, Any]) -> bytes:
    if not 0 <= fact["size"] <= MAX_OF_ONE:
        raise ValueError(f"{name} of {fact['size']:,} bytes")
    content = _bounded(archive, name, fact["size"])
    if len(content) != fact["size"] or hashlib.sha256(content).hexdigest() != fact["sha256"]:
        raise ValueError(f"{name} has another size or sha256 than {INDEX} says")
    return content


def _json(content: bytes, shape: Mapping[str, Any]) -> Any:
    value = parse_json(content.decode())
    if not isinstance(value, dict):
        raise ValueError("a JSON file that holds no object")
    if wrong := misfit(value, shape):
        raise ValueError(wrong)
    return value


def _put_job(store: Store, key: str, files: Mapping[str, bytes]) -> str:
    """Write the files of one job, `done.json` last; what became of it."""
    job = _job(files[SPEC])
    sizes = _json(files[DONE_FILE], DONE).get("files") or {}
    missing = [name for name in sizes if name in LIGHT and len(files.get(name, b"")) != sizes[name]]
    if missing or not any(name in files for name in ("rows.json", "run/summary.json")):
        raise ValueError(f"the job {key} without {(missing or ['its numbers'])[0]}")
    if job.key != key:
        return "foreign"
    if "run/texts.npz" in files:
        _check_arrays(files["run/texts.npz"])
    with store.locked([key]):
        if store.scored(job):
            return "kept"
        folder = store.begin(job)
        store.start_over(key)
        for name in WHOLE:
            if name in files:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                write_bytes(folder / name, files[name])
    return "added"


def _job(content: bytes) -> Job:
    spec = _json(content, {"kind": (str,)})
    if wrong := misfit(spec, SPECS.get(spec["kind"], {"no such kind": (str,)})):
        raise ValueError(wrong)
    inputs = tuple(spec.pop("inputs"))
    spec.pop("lorascope", None)
    if spec["kind"] == "train" and "training" not in spec["config"]:
        raise ValueError("a run without a config")
    return Job(spec, inputs)


def _check_arrays(content: bytes) -> None:
    """ValueError where scores of texts are anything but plain arrays of a moderate size."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(each.file_size for each in archive.infolist()) > MAX_OF_ONE:
            raise ValueError("scores of texts that are too large")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        for name in arrays.files:
            if arrays[name].dtype.kind not in "fiuU":
                raise ValueError(f"scores of texts that are not numbers: {name[:40]!r}")


def _put_claims(store: Store, name: str, content: bytes) -> bool:
    """Whether the frozen claims were added: those that the store has stay."""
    _json(content, frozen.SHAPE)
    path = store.root / name
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)
    return True
