"""`lorascope train`: train an adapter, or a sweep of adapters, from a YAML config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

Config = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Training config (YAML).")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a config field, e.g. optim.learning_rate=1e-3. Repeatable."
    ),
]
Output = Annotated[Path | None, typer.Option(metavar="DIR", help="Run directory. Default: runs/<config name>.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in DIR from its checkpoint.")]
TrainingDevice = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:N or auto; overrides training.device.")
]


def train(
    config: Config,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    device: TrainingDevice = None,
) -> None:
    """Train one adapter, or a sweep of adapters, from a YAML config.

    A small config, saved as wordnet.yaml:

        model: {name: minilm, head: mean-pool}
        data: {path: wordnet-classes}
        method: {name: lora, targets: [query, value], rank: 8, alpha: 16}
        optim: {learning_rate: 2e-3}
        training: {per_device_train_batch_size: 32, eval_steps: 50, snapshot_steps: 50}

    Example:

        lorascope train wordnet.yaml --set method.rank=4 --output runs/rank-4

    The run directory then holds the resolved config, the metrics and the adapter in PEFT's layout. Several processes:
    torchrun --nproc-per-node 2 -m lorascope train wordnet.yaml

    A section sweep trains many adapters at once on one base, each in its own directory, and prints a table:

        sweep: {method.rank: [2, 4, 8], training.seed: [0, 1]}
    """
    from lorascope.training.threads import limit_omp_spin

    limit_omp_spin()  # before torch is loaded
    from lorascope.training.config import read

    values, folder = read(config, overrides or []), output or Path("runs") / config.stem
    (_sweep if "sweep" in values else _run)(values, str(config), folder, resume, device)


def _run(values: Mapping[str, Any], source: str, folder: Path, resume: bool, device: str | None) -> None:
    """Train one adapter and print how it ended."""
    from lorascope.training.config import parse
    from lorascope.training.parallel import pick_device

    config = parse(values, source)
    pick_device(device or config.training.device)  # before anything slow is loaded

    from lorascope.training import run

    finished = run.train(run.with_device(config, device), folder, resume=resume, command=_command(), say=_print_note)
    if finished.first:
        classifies = config.model.task_type == "SEQ_CLS"
        print("\n".join(_report(run.summary_of(finished), finished.seconds, finished.adapter, classifies)))


def _report(summary: Mapping[str, Any], seconds: float, adapter: Path, classifies: bool) -> list[str]:
    """How a run ended, in lines: scores of the adapter and of the base, the adapter's cost, the next command."""
    import shlex

    from lorascope.adapt import inference_cost

    score, base = summary["held_out"], summary["base"]
    after, before = (f", accuracy {100 * each['accuracy']:.1f} %" if classifies else "" for each in (score, base))
    of_base = "not finite" if base["loss"] is None else f"{base['loss']:.4f}"
    lines = [
        f"held-out loss {score['loss']:.4f}{after} after {summary['steps']} steps in {seconds:.0f} s",
        f"the base model's held-out loss {of_base}{before}",
    ]
    if summary["status"] == "worse_than_base":
        lines.append("warning: the adapter is worse than the base model; lower optim.learning_rate, or train longer")
    if "inference" in summary:
        lines.append(inference_cost.in_words(summary["inference"]))
    return [*lines, f"adapter: {adapter}", f"next: lorascope analyze {shlex.quote(str(adapter))}"]


def _sweep(values: Mapping[str, Any], source: str, folder: Path, resume: bool, device: str | None) -> None:
    """Train the adapters of a sweep and print their table."""
    from lorascope.errors import LorascopeError
    from lorascope.training import sweep
    from lorascope.training.config import override
    from lorascope.training.parallel import pick_device

    values = values if device is None else override(values, [f"training.device={device}"])
    plan = sweep.plan(values, source)
    pick_device(plan.entries[0].config.training.device)
    rows = sweep.train(plan, folder, resume=resume, command=_command(), say=_print_note)
    print(sweep.table(rows, accuracy=plan.entries[0].config.model.task_type == "SEQ_CLS"))
    print(f"adapters: {folder}/*/adapter\nresults:  {folder / 'sweep.csv'}")
    if all(row["diverged"] for row in rows):
        raise LorascopeError("every adapter of the sweep diverged", hint="lower optim.learning_rate")


def _command() -> list[str]:
    """What was typed, for the run's record."""
    import sys

    return ["lorascope", *sys.argv[1:]]


def _print_note(note: str) -> None:
    print(f"note: {note}", flush=True)
