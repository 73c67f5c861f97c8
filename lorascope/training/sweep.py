"""Many adapters on one base model, trained together: the `sweep:` section of a config.

    sweep:                                   a grid: every combination of these values
      method.rank: [2, 4, 8]
      training.seed: [0, 1]
      max_parallel: 6                        how many go through the model in one pass; by default as many as hold
                                             2,048 tokens together on a CPU, 8,192 on a GPU
    sweep:                                   or a list of configs, each by what it changes
      - {method.rank: 2, optim.learning_rate: 1e-3}
      - {method.name: dora, method.rank: 4}

(`configs:` with grid keys gives every combination of both.) Members may differ in method, optim and training.seed.
Each gets the folder that its own run would have written, and its adapter equals that run's up to rounding.
"""

import functools
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from lorascope import locks
from lorascope.adapt.inject import Injected
from lorascope.adapt.stacked import draws
from lorascope.destinations import check_regular
from lorascope.errors import InputError, LorascopeError
from lorascope.inputs import read_text
from lorascope.models.loading import DROPOUTS
from lorascope.outputs import csv_text, write_json, write_text
from lorascope.training.config import RunConfig, changed, parse, resolved
from lorascope.training.failures import in_words
from lorascope.training.parallel import World, pick_device, world
from lorascope.training.run import Job, Prepared, fit_together, prepare_together, set_threads
from lorascope.training.run_folder import AGAIN, SUMMARY, Record, read_facts, read_summary, working_in

# Tokens of one pass by default: on a CPU more are no faster (tests/benchmarks/sweep.py) and cost memory. The number for
# GPUs is not measured.
TOKENS = {"cpu": 2048, "cuda": 8192}
FILES = ("sweep.yaml", "sweep.csv", "sweep.json")


@dataclass(frozen=True)
class Entry:
    """One adapter of a sweep: its name, which is its folder's, what it changes, and its whole config."""

    name: str
    changes: Mapping[str, Any]
    config: RunConfig


@dataclass(frozen=True)
class Plan:
    """A sweep: its adapters, and how many of them go through the model together."""

    entries: tuple[Entry, ...]
    max_parallel: int

    def groups(self) -> list[tuple[Entry, ...]]:
        size = self.max_parallel
        return [self.entries[start : start + size] for start in range(0, len(self.entries), size)]

    def text(self) -> str:
        """What a resumed sweep must share with the one it resumes."""
        adapters = [{"name": entry.name, "config": resolved(entry.config)} for entry in self.entries]
        return yaml.safe_dump({"max_parallel": self.max_parallel, "adapters": adapters}, sort_keys=False)


def plan(values: Mapping[str, Any], source: str = "the config") -> Plan:
    """The sweep that nested dictionaries with a `sweep` section describe.

    Raises:
        InputError: the section is not of its form, an adapter's config is wrong, or two differ in what all must share.
    """
    rest = {key: value for key, value in values.items() if key != "sweep"}
    changes, most = _section(values["sweep"])
    names = _names(changes)
    entries = []
    for name, change in zip(names, changes, strict=True):
        entries.append(Entry(name, change, parse(changed(rest, change), f"{source}, for {name},")))
    for entry in entries[1:]:
        _agree(entries[0], entry)
    return Plan(tuple(entries), most or default_parallel(entries[0].config))


def default_parallel(config: RunConfig) -> int:
    """As many adapters as fill a pass with the device's TOKENS."""
    tokens = TOKENS[pick_device(config.training.device).type]
    return max(1, tokens // (config.training.per_device_train_batch_size * config.data.max_length))


def _section(section: object) -> tuple[list[dict[str, Any]], int | None]:
    """The changes that make each adapter, and max_parallel where it is given."""
    section = {"configs": section} if isinstance(section, list) else section
    if not isinstance(section, Mapping):
        raise InputError("sweep is neither a grid nor a list", found=repr(section)[:60])
    grid = {key: value for key, value in section.items() if key not in ("configs", "max_parallel")}
    for key, value in grid.items():
        if not isinstance(value, list) or not value:
            raise InputError(f"sweep: {key} is {value!r}", expected="a list of values")
    configs, most = section.get("configs", [{}]), section.get("max_parallel")
    if not isinstance(configs, list) or not configs or not all(isinstance(each, Mapping) for each in configs):
        raise InputError("sweep: configs is not a list of changes", expected="as - {method.rank: 2}")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise InputError("sweep: max_parallel is wrong", found=repr(most), expected="a whole number from 1")
    changes = [
        {**each, **dict(zip(grid, values, strict=True))} for each in configs for values in product(*grid.values())
    ]
    for key in (key for each in changes for key in each):
        if not re.fullmatch(r"\w+\.\w+", str(key)):
            raise InputError(f"sweep: {key!r} names no field", expected="section.key, as method.rank")
    return changes, most


def _names(changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """A folder's name for each: `rank=2,seed=0`, of what differs among them."""
    keys = list(dict.fromkeys(key for each in changes for key in each))
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}
    several = [key for key in keys if len({repr(each.get(key)) for each in changes}) > 1]
    names = [",".join(f"{short[k]}={_plain(each[k])}" for k in each if k in several) or "base" for each in changes]
    twins = {name for name in names if names.count(name) > 1}
    if twins:
        raise InputError(f"two adapters of the sweep are the same: {min(twins)}", hint="change or drop one of them")
    return names


def _plain(value: object) -> str:
    text = "+".join(map(str, value)) if isinstance(value, list) else str(value)
    return re.sub(r"[^\w.+-]+", "-", text)


def _agree(first: Entry, other: Entry) -> None:
    """InputError where two adapters differ in anything but method, optim and training.seed."""
    ours, theirs = resolved(first.config), resolved(other.config)
    for section in ("model", "data", "training"):
        for key, value in ours[section].items():
            if value != theirs[section][key] and (section, key) != ("training", "seed"):
                raise InputError(
                    f"the adapters of a sweep must agree in {section}.{key}",
                    found=f"{value} ({first.name}) and {theirs[section][key]} ({other.name})",
                    hint="only method, optim and training.seed may differ; train the others in a sweep of their own",
                )


def train(
    plan: Plan,
    folder: Path,
    *,
    resume: bool = False,
    command: Sequence[str] = (),
    say: Callable[[str], None] = warnings.warn,
) -> list[dict[str, Any]]:
    """Train every adapter of the plan and write its folder, and the table of all, sweep.json and sweep.csv.

    One that diverges is reported in its own summary and in the table, and the others go on.

    Args:
        folder: of the sweep; each adapter gets a folder in it.
        resume: go on with a sweep that was stopped: finished groups stay, one under way continues from its checkpoint.
        say: is told, before training, what the user may not expect, in sentences.

    Returns:
        The table's rows.

    Raises:
        InputError: the plan does not fit the machine, the model, the data or the folder.
        LorascopeError: a file cannot be written.
    """
    first = plan.entries[0].config
    set_threads(first.training.num_threads)
    with world(first.training.device) as here:
        if here.size > 1:
            raise InputError("a sweep trains in one process", found=f"{here.size} processes", hint="start no torchrun")
        with working_in(folder):
            _claim(plan, folder, resume)
            rows: list[dict[str, Any]] = []
            once = functools.cache(say)  # groups share most of what there is to say
            for group in plan.groups():
                with _leaves_nothing(folder, plan if not (resume or rows) else None):
                    _train_group(group, folder, here, resume, command, once)
                rows += [_row(entry, folder) for entry in group]
                _write_table(rows, plan, folder)
            return rows


@contextmanager
def _leaves_nothing(folder: Path, plan: Plan | None) -> Iterator[None]:
    """A sweep that is refused before any run of it wrote anything leaves nothing of it, where `plan` is given."""
    try:
        yield
    except InputError:
        if plan is not None:
            with suppress(OSError):  # a run has written something
                for entry in plan.entries:
                    if (folder / entry.name).is_dir():
                        (folder / entry.name).rmdir()
                (folder / "sweep.yaml").unlink()
        raise


def _train_group(
    group: Sequence[Entry],
    folder: Path,
    here: World,
    resume: bool,
    command: Sequence[str],
    say: Callable[[str], None],
) -> None:
    folders = [folder / entry.name for entry in group]
    if resume and all((each / SUMMARY).is_file() for each in folders):
        (folders[0] / "checkpoint.pt").unlink(missing_ok=True)
        return
    configs = [entry.config for entry in group]
    with ExitStack() as held, in_words(configs[0], len(group)):
        records = []
        for each, config in zip(folders, configs, strict=True):
            held.enter_context(working_in(each))
            records.append(Record(each, config, resume=resume and os.path.lexists(each / "config.yaml")))
        prepared = prepare_together(configs, here.device)
        if len(group) > 1:
            _check(prepared, configs[0])
        for note in dict.fromkeys(note for each in prepared for note in each.notes):
            say(note)
        parts = zip(configs, prepared, folders, records, strict=True)
        fit_together([Job(*each) for each in parts], here, resume, command, trained_together=len(group))


def _check(prepared: Sequence[Prepared], config: RunConfig) -> None:
    """InputError where adapters in one pass would not equal their own runs."""
    alone = "or train one after another with sweep.max_parallel=1"
    dropout = base_dropout(prepared[0].injected)
    if dropout:
        raise InputError(
            "the base model's own dropout would draw other numbers than in each adapter's own run",
            found=f"{dropout[1]} in {dropout[0] or 'the model'}",
            hint=f"set model.dropout to 0, {alone}",
        )
    if config.training.gradient_checkpointing and any(draws(each.injected) for each in prepared):
        raise InputError(
            "adapters with dropout cannot share a pass that is computed again in backward",
            hint=f"set training.gradient_checkpointing or method.dropout to its default, {alone}",
        )
    if len({each.train.label_names for each in prepared}) > 1:
        raise InputError(
            "the adapters have different classes, because each seed holds out other rows",
            hint="give the data an eval_path",
        )


def base_dropout(injected: Injected) -> tuple[str, float] | None:
    """A module of the frozen base that drops out, and its probability; None where none does."""
    of_adapter = {id(module) for part in injected._parts().values() for module in part.modules()}
    for path, module in injected.model.named_modules():
        if id(module) in of_adapter:
            continue
        numbers = [module.p] if isinstance(module, nn.modules.dropout._DropoutNd) else []
        numbers += [value for name in DROPOUTS if isinstance(value := getattr(module, name, None), float)]
        if max(numbers, default=0.0) > 0:
            return path, max(numbers)
    return None


def _claim(plan: Plan, folder: Path, resume: bool) -> None:
    """Make the folder this sweep's. InputError where it is another's."""
    path, text = folder / "sweep.yaml", plan.text()
    check_regular(folder / name for name in FILES)
    try:
        if resume:
            if not os.path.lexists(path):
                raise InputError(f"{folder} holds no sweep to resume", hint="start it without --resume")
            if read_text(path) != text:
                raise InputError(
                    f"the config is not the one {folder} was started with",
                    found=f"another text in {path.name}",
                    hint="resume with the same config, or name another --output",
                )
            return
        folder.mkdir(parents=True, exist_ok=True)
        if any(entry.name != locks.NAME for entry in folder.iterdir()):
            hint = "continue it with --resume, or name another --output" if path.exists() else "name another --output"
            raise InputError(f"{folder} is not empty", hint=hint)
    except OSError as error:
        raise LorascopeError(f"cannot use the folder {folder}", found=error.strerror, hint="name another") from error
    write_text(path, text)


def _row(entry: Entry, folder: Path) -> dict[str, Any]:
    """An adapter's line in the table, from its folder."""
    run_folder = folder / entry.name
    summary, run = read_summary(run_folder), read_facts(run_folder)
    score = summary.get("held_out") or {}
    wanted = {"steps": summary.get("steps"), "trained_parameters": run.get("trained_parameters")}
    wanted |= {} if summary.get("diverged") else {f"held_out.{key}": score.get(key) for key in ("loss", "accuracy")}
    if missing := [key for key, value in wanted.items() if value is None]:
        raise InputError(f"the record of {run_folder} is damaged", found=f"no {missing[0]}", hint=AGAIN)
    return {
        "name": entry.name,
        **entry.changes,
        **{key: wanted[key] for key in ("trained_parameters", "steps")},
        "eval_loss": score.get("loss"),
        "eval_accuracy": score.get("accuracy"),
        "base_loss": summary["base"]["loss"] if "base" in summary else None,
        "status": summary.get("status"),
        "diverged": summary.get("diverged"),
    }


def _write_table(rows: Sequence[Mapping[str, Any]], plan: Plan, folder: Path) -> None:
    write_text(folder / "sweep.csv", csv_text(rows))
    write_json(folder / "sweep.json", {"max_parallel": plan.max_parallel, "adapters": list(rows)})


def table(rows: Sequence[Mapping[str, Any]], accuracy: bool) -> str:
    """The rows as lines of text, the lowest held-out loss marked."""
    best = min((row["eval_loss"] for row in rows if row["eval_loss"] is not None), default=None)
    width = max(len("adapter"), *(len(row["name"]) for row in rows))
    lines = [f"{'adapter':<{width}}  {'parameters':>10}  {'steps':>6}  held-out loss" + "  accuracy" * accuracy]
    for row in rows:
        start = f"{row['name']:<{width}}  {row['trained_parameters']:>10,}  {row['steps']:>6}  "
        if row["diverged"]:
            lines.append(start + f"{'diverged':>13}")
            continue
        share = f"  {100 * row['eval_accuracy']:>6.1f} %" * accuracy
        worse = "  worse than the base" * (row["status"] == "worse_than_base")
        lines.append(start + f"{row['eval_loss']:13.4f}{share}" + "  best" * (row["eval_loss"] == best) + worse)
    bases = {f"{row['base_loss']:.4f}" for row in rows if row["base_loss"] is not None}
    if bases:
        lines.append(f"the base model's held-out loss: {min(bases)}" + f" to {max(bases)}" * (len(bases) > 1))
    return "\n".join(lines)
