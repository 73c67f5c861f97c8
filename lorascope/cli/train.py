"""`lorascope train`: train an adapter as a YAML file says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="What to train, on what, and how.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override one field, as optim.learning_rate=1e-3. Repeatable."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the run. Default: runs/ and the config's name.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in DIR from its checkpoint.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:N or auto; overrides training.device.")] = None,
) -> None:
    """Train an adapter as a YAML file says.

    A small config, saved as wordnet.yaml:

        model: {name: minilm, head: mean-pool}
        data: {path: wordnet-classes}
        method: {name: lora, targets: [query, value], rank: 8, alpha: 16}
        optim: {learning_rate: 2e-3}
        training: {per_device_train_batch_size: 32, eval_steps: 50, save_steps: 50}

    Example:

        lorascope train wordnet.yaml --set method.rank=4 --output runs/rank-4

    The folder then holds the resolved config, the metrics and the adapter in PEFT's layout. Several processes:
    torchrun --nproc-per-node 2 -m lorascope train wordnet.yaml

    A section sweep trains many adapters at once on one base, each into a folder of its own, and prints a table:

        sweep: {method.rank: [2, 4, 8], training.seed: [0, 1]}
    """
    import shlex
    import sys

    from lorascope.training.threads import limit_omp_spin

    limit_omp_spin()  # before torch is loaded
    from lorascope.training.config import override, parse, read
    from lorascope.training.parallel import pick_device

    values = read(config, overrides or [])
    folder, full_command = output or Path("runs") / config.stem, ["lorascope", *sys.argv[1:]]
    if "sweep" in values:
        values = values if device is None else override(values, [f"training.device={device}"])
        _sweep(values, str(config), folder, resume, full_command)
        return
    settings = parse(values, str(config))
    pick_device(device or settings.training.device)  # before anything slow is loaded

    from lorascope.adapt import inference_cost
    from lorascope.training import run

    finished = run.train(run.with_device(settings, device), folder, resume=resume, command=full_command, say=_say)
    if not finished.first:
        return
    summary = run.summary_of(finished)
    score, base = summary["held_out"], summary["base"]
    shares = [f", {100 * each['accuracy']:.1f} % right" for each in (score, base)]
    after, before = shares if settings.model.task_type == "SEQ_CLS" else ("", "")
    print(f"held-out loss {score['loss']:.4f}{after} after {finished.steps} steps in {finished.seconds:.0f} s")
    of_base = "not finite" if base["loss"] is None else f"{base['loss']:.4f}"
    print(f"the base model's held-out loss {of_base}{before}")
    if summary["status"] == "worse_than_base":
        print("warning: the adapter is worse than the base model; lower optim.learning_rate, or train longer")
    if "inference" in summary:
        print(inference_cost.in_words(summary["inference"]))
    print(f"adapter: {finished.adapter}")
    print(f"look into it: lorascope analyze {shlex.quote(str(finished.adapter))}")


def _say(note: str) -> None:
    print(f"note: {note}", flush=True)


def _sweep(values: Mapping[str, Any], source: str, folder: Path, resume: bool, command: list[str]) -> None:
    from lorascope.errors import LorascopeError
    from lorascope.training import sweep
    from lorascope.training.parallel import pick_device

    plan = sweep.plan(values, source)
    pick_device(plan.entries[0].config.training.device)
    rows = sweep.train(plan, folder, resume=resume, command=command, say=_say)
    print(sweep.table(rows, accuracy=plan.entries[0].config.model.task_type == "SEQ_CLS"))
    print(f"adapters: {folder}/*/adapter; the table: {folder / 'sweep.csv'}")
    if all(row["diverged"] for row in rows):
        raise LorascopeError("every adapter of the sweep diverged", hint="lower optim.learning_rate")
