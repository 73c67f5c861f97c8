"""The contract of all that opens a run folder, a sweep, unfinished work, a store or a report: it works, or it says in
one sentence why it does not; and what cannot be right is never taken for right.
"""

import contextlib
import inspect
import io
import re
import tempfile
import unicodedata
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

from lorascope.cli import activations, delta, merge, resize, study, train
from lorascope.errors import LorascopeError
from lorascope.models.card import read_card
from lorascope.report import serial
from lorascope.study import record as study_record
from lorascope.study.store import Store
from lorascope.study.work import ROWS, TEST, Chunk, execute, read_rows, read_score
from lorascope.training import run, runs, sweep
from lorascope.training.checkpoint import resume_from
from lorascope.training.loop import Loop
from lorascope.training.member import Member
from lorascope.training.parallel import World
from lorascope.training.reopen import finished_config, reopen
from lorascope.training.run_folder import Record, read_config, read_facts, read_summary
from lorascope.weights.safetensors import open_safetensors
from tests.fuzz.run_folders import REPORT, Scene, adapter_bytes
from tests.fuzz.run_one import LONGEST, SECONDS, SHM, Overdue, _limits, where
from tests.fuzz.spoil import GONE, MARK

THEIRS = r"(torch|transformers|tokenizers|safetensors|huggingface_hub|tqdm)(\..*)?"
UNEXPECTED = re.compile(r"\w+(Error|Exception|Warning): .*\(\w+\.py, line \d+\)", re.S)  # in a job's failure
HERE = World(torch.device("cpu"))


def check(scene: Scene, command: str, folder: Path, done: dict[str, str], seconds: float = SECONDS) -> str:
    """ "works" or "refused". AssertionError, whose cause is the failure, where the contract does not hold.

    Args:
        command: of `OPENERS`.
        folder: a damaged copy of the scene's folder.
        done: what was done to its files.
    """
    opens = next(each[command] for each in OPENERS.values() if command in each)
    try:
        with _limits(seconds), _strict(), tempfile.TemporaryDirectory(dir=SHM) as out:
            opens(scene, folder, SimpleNamespace(out=Path(out), done=done))
    except LorascopeError as error:
        _check_message(str(error), where(error))
        return "refused"
    except Overdue as error:
        raise AssertionError(f"{command} took more than {seconds:g} s, at {where(error)}") from error
    except Exception as error:
        raise AssertionError(f"{command}: {type(error).__name__} at {where(error)}: {str(error)[:300]}") from error
    finally:
        assert not list(folder.rglob(MARK)), f"{command} ran the code in a pickle"
    needed = [name for name in NEEDED.get(command, ()) if done.get(name) in GONE]
    assert not needed, f"{command} works without {needed[0]} ({done[needed[0]]})"
    return "works"


def _check_message(text: str, place: str) -> None:
    assert len(text) <= LONGEST, f"a message of {len(text)} characters at {place}: {text[:300]}"
    assert "\n" not in text, f"a message of several lines at {place}: {text[:300]}"
    assert not _driving(text), f"the message has {_driving(text)!r}, at {place}"


def _driving(text: str) -> set[str]:
    """Characters that drive a terminal."""
    return {c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp")}


@contextlib.contextmanager
def _strict() -> Iterator[None]:
    """Warnings of ours are errors, nothing is fetched, and what is printed drives no terminal."""
    screen = io.StringIO()
    with warnings.catch_warnings(), mock.patch("huggingface_hub.constants.HF_HUB_OFFLINE", True):
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.filterwarnings("ignore", module=THEIRS)
        with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(io.StringIO()):
            yield
    assert not _driving(screen.getvalue()), f"the terminal gets {_driving(screen.getvalue())!r}"


# --- finished runs ----------------------------------------------------------------------------------------------------


def _read(_: Scene, folder: Path, about: SimpleNamespace) -> None:
    """Every reader of a run's files; each is asked, whatever the others said."""
    said = []
    readers = (read_facts, read_summary, read_config, finished_config, lambda path: runs.find([path]))
    for reads in (*readers, lambda path: read_card(path / "adapter")):
        try:
            reads(folder)
        except LorascopeError as error:
            said.append(error)
    if said:
        raise max(said, key=lambda error: len(str(error)))


def _reopen(_: Scene, folder: Path, about: SimpleNamespace) -> None:
    opened = reopen(folder, "cpu")
    opened.restore()
    opened.score()


def _activations(_: Scene, folder: Path, about: SimpleNamespace) -> None:
    _cli(activations.activations, [folder], max_samples=8, samples=8, json=about.out / "x.json", device="cpu")


def _resize(_: Scene, folder: Path, about: SimpleNamespace) -> None:
    out = {"json": about.out / "x.json", "csv": about.out / "x.csv"}
    _cli(resize.resize, folder / "adapter", rank=[1], evaluate=folder, device="cpu", **out)


def _merge(scene: Scene, folder: Path, about: SimpleNamespace) -> None:
    _cli(merge.merge, folder / "adapter", base=str(scene.base), output=about.out / "merged")


def _beside(scene: Scene, folder: Path, about: SimpleNamespace) -> None:
    out = {"json": about.out / "x.json", "modules": "layer.0.attention.self"}
    _cli(delta.delta, str(scene.base), str(scene.tuned), adapter=[folder / "adapter"], **out)


def _of_full(scene: Scene, folder: Path, about: SimpleNamespace) -> None:
    _cli(delta.delta, str(scene.base), str(folder / "adapter"), json=about.out / "x.json", modules="layer.0.attention")


def _dimension(scene: Scene, folder: Path, about: SimpleNamespace) -> None:
    """What `lorascope dimension` takes of its runs; the analysis takes seconds, and is fuzzed with its own tests."""
    compared = runs.Runs(runs.find([folder, scene.root / "run"]), None, 4, "cpu")
    assert len(compared.texts) > 0
    assert compared.size > 0
    assert compared.layers > 0
    assert compared.prior is None or compared.prior > 0
    assert compared.full_config
    for each in compared.candidates:
        trained = each.open()
        trained.put({})
        trained.score()


def _cli(command: Callable, *given: object, **options: object) -> None:
    """A command's function with the defaults that the command line would fill in."""
    defaults = {name: each.default for name, each in inspect.signature(command).parameters.items()}
    command(**{**defaults, **dict(zip(defaults, given, strict=False)), **options})


# --- unfinished work --------------------------------------------------------------------------------------------------


def _record(scene: Scene, folder: Path, about: SimpleNamespace) -> None:
    Record(folder, scene.configs["broken"], resume=True).rewind(3)


def _checkpoint(scene: Scene, folder: Path, about: SimpleNamespace) -> None:
    prepared = run.prepare(scene.configs["broken"], HERE.device)
    loop = Loop.together([Member(prepared.injected, prepared.train, prepared.held_out, scene.configs["broken"], HERE)])
    resume_from(loop, folder / "checkpoint.pt", HERE.device)


def _resume(scene: Scene, folder: Path, about: SimpleNamespace) -> None:
    """`lorascope train --resume`; unless what decides was changed, it ends in the bytes of a run without a break."""
    _cli(train.train, scene.root / "broken.yaml", output=folder, resume=True)
    changed = {name for name, how in about.done.items() if how != "missing"}
    if not changed & {"checkpoint.pt", "calibration.json"}:
        assert adapter_bytes(folder) == scene.whole, "the adapter is another one than without the break"
    _finite(folder)
    read_summary(folder)


def _finite(folder: Path) -> None:
    tensors, _ = open_safetensors(folder / "adapter" / "adapter_model.safetensors")
    bad = [name for name, stored in tensors.items() if not np.isfinite(stored.read()).all()]
    assert not bad, f"{bad[0]} of the trained adapter is not finite"


def _sweep(scene: Scene, folder: Path, about: SimpleNamespace) -> None:
    rows = sweep.train(scene.plan, folder, resume=True, say=lambda _: None)
    sweep.table(rows, accuracy=True)
    for entry, row in zip(scene.plan.entries, rows, strict=True):
        if not row["diverged"] and not any(name.startswith(f"{entry.name}/adapter") for name in about.done):
            _finite(folder / entry.name)


def _state(scene: Scene, folder: Path, about: SimpleNamespace) -> None:
    out = {"extract": 1, "output": about.out / "small", "json": about.out / "x.json"}
    _cli(delta.delta, str(scene.base), str(scene.tuned), state=folder / "state", **out)
    assert _said(about.out) == _undamaged(scene), "the result is another one than without the state"
    assert not (folder / "state" / "modules.jsonl").exists()


def _said(out: Path) -> tuple[bytes, bytes]:
    return (out / "x.json").read_bytes(), (out / "small" / "adapter_model.safetensors").read_bytes()


@cache
def _undamaged(scene: Scene) -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory(dir=SHM) as place:
        out = {"extract": 1, "output": Path(place) / "small", "json": Path(place) / "x.json"}
        _cli(delta.delta, str(scene.base), str(scene.tuned), **out)
        return _said(Path(place))


def _store(scene: Scene, folder: Path, about: SimpleNamespace) -> None:
    """What a study reads of its store; what is not intact is done again, and is no failure that nobody expected."""
    store = Store(folder / "store")
    for job in scene.jobs:
        store.done(job.key)
        store.failure(job.key)
        if not store.intact(job):
            execute(Chunk((job,), weights=True), store)
            failed = store.failure(job.key)
            assert failed or store.intact(job), f"{job.key} is neither done nor failed"
            assert not failed or job is scene.jobs[-1] or not UNEXPECTED.search(failed["message"]), failed["message"]
    trained, measured, _ = scene.jobs
    if store.done(trained.key):
        read_summary(store.run_folder(trained.key))
        read_facts(store.run_folder(trained.key))
        read_score(store.run_folder(trained.key) / TEST)
    if store.done(measured.key):
        assert (store.folder(measured.key) / ROWS).exists()
        read_rows(store.folder(measured.key))


def _report(_: Scene, folder: Path, about: SimpleNamespace) -> None:
    study_record.read_folder(folder)
    serial.from_json(study_record.read(folder / REPORT)["figures"])


def _draw(_: Scene, folder: Path, about: SimpleNamespace) -> None:
    study._draw([folder / REPORT])


OPENERS: dict[str, dict[str, Callable[[Scene, Path, SimpleNamespace], None]]] = {
    "run": {
        "read": _read, "reopen": _reopen, "activations": _activations, "resize": _resize, "merge": _merge,
        "beside": _beside,
    },
    "full": {"dimension": _dimension, "delta": _of_full},
    "broken": {"record": _record, "checkpoint": _checkpoint, "resume": _resume},
    "sweep": {"sweep": _sweep},
    "delta": {"state": _state},
    "store": {"store": _store},
    "report": {"report": _report, "draw": _draw},
}  # fmt: skip
CHEAP = ("read", "record", "checkpoint", "store", "report", "state")
# The files that a command reads, where it does not read nearly all.
MOSTLY = {
    **dict.fromkeys(("merge", "beside", "delta"), "adapter/[al]*"),
    "checkpoint": "checkpoint.pt",
    "resume": "[!rm]*",
    "record": "*[yl]",
}
_ADAPTER = ("adapter/adapter_model.safetensors", "adapter/adapter_config.json")
_RUN = ("config.yaml", "summary.json")
# Files without which, or with others in their place, a command cannot do what it says.
NEEDED = {
    **dict.fromkeys(("reopen", "activations", "resize", "dimension"), (*_RUN, *_ADAPTER)),
    **dict.fromkeys(("merge", "delta"), _ADAPTER),
    "beside": _ADAPTER[:1],
    "read": _RUN,
    "record": ("config.yaml",),
    "checkpoint": ("checkpoint.pt",),
    "resume": ("config.yaml",),
    "sweep": ("sweep.yaml",),
    **dict.fromkeys(("report", "draw"), (REPORT,)),
}
