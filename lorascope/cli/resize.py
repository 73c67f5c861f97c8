"""`lorascope resize`: an adapter at lower rank, and what that loses."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli._outputs import check, to_file, write_outputs
from lorascope.destinations import check_new_folder

if TYPE_CHECKING:
    from lorascope.analyses.resize import ResizeResult
    from lorascope.analyses.resize.truncate import Rule
    from lorascope.blocks import Page

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64"}


def resize(
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Its file or folder, in any format.")],
    rank: Annotated[
        list[int] | None, typer.Option(min=1, metavar="R", help="One rank for all modules; may be given several times.")
    ] = None,
    energy: Annotated[
        list[float] | None,
        typer.Option(min=0.0, max=1.0, metavar="P", help="In each module the smallest rank that keeps this of ‖ΔW‖²."),
    ] = None,
    budget_rank: Annotated[
        list[float] | None,
        typer.Option(metavar="R", help="R directions a module on average, the largest singular values first."),
    ] = None,
    parameters: Annotated[
        list[int] | None,
        typer.Option(min=1, metavar="N", help="At most N numbers in all factors, the largest singular values first."),
    ] = None,
    by_energy: Annotated[
        bool,
        typer.Option("--by-energy", help="With --parameters: first what keeps most energy for each number it takes."),
    ] = False,
    output: Annotated[
        Path | None,
        to_file("New folder for the resized adapter, in PEFT's layout.", "DIR"),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="Store factors as float32, float16, bfloat16 or float64; else as the source.")
    ] = None,
    base: Annotated[str | None, typer.Option(metavar="MODEL", help="The base model: completes DoRA and (IA)³.")] = None,
    evaluate: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Folder of the run it was trained in: score each plan on its held-out data."),
    ] = None,
    max_samples: Annotated[int | None, typer.Option(min=1, help="With --evaluate: only so many texts.")] = None,
    html: Annotated[Path | None, to_file("Write one self-contained HTML page.")] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|-", readable=False, help="Write JSON (schema 1); - is stdout, and then nothing else is."
        ),
    ] = None,
    csv: Annotated[Path | None, to_file("Write one row per plan and module.")] = None,
    device: Annotated[str, typer.Option(help="Where to evaluate: auto, cpu, cuda, ...")] = "auto",
) -> None:
    """Give an adapter a lower rank: by rank, by energy or under one budget over all modules. Says what each loses.

    Without --output, and without any rule, it compares plans and writes nothing. The result has PEFT's layout, with a
    rank_pattern where ranks differ; heads and trained biases are carried over. Example:

        lorascope resize runs/lora/adapter --budget-rank 4 --output smaller --evaluate runs/lora
    """
    import sys

    check([adapter, base, evaluate], html=html, json=json, csv=csv, output=output)
    from lorascope.linalg.blas import prepare_process

    if evaluate is None:
        prepare_process()
    from lorascope.analyses import resize as analysis
    from lorascope.weights import io

    rules = _rules(rank, energy, budget_rank, parameters, by_energy)
    _check_output(rules, output)
    checkpoint = _open_base(base)
    read = io.read(adapter, checkpoint)
    scorer, scored_on = _scorer(evaluate, read, device, max_samples)
    result = analysis.run(
        read,
        rules,
        base=checkpoint,
        dtype=_dtype(dtype),
        build=output is not None,
        evaluate=scorer,
        scored_on=scored_on,
        progress=_bar,
    )
    page = _page(result)
    if output is not None and result.resized is not None:
        io.write(result.resized, output, replace=False)
        print(f"wrote {output}", file=sys.stderr)
    if str(json) != "-":
        from lorascope.report import terminal

        sys.stdout.write(terminal.render(page))
    write_outputs(page, result.to_json, result.flat_rows, html=html, json=json, csv=csv)


def _rules(
    rank: list[int] | None,
    energy: list[float] | None,
    budget_rank: list[float] | None,
    parameters: list[int] | None,
    by_energy: bool,
) -> "list[Rule]":
    from lorascope.analyses.resize.truncate import Energy, ParameterBudget, RankBudget, Uniform
    from lorascope.errors import InputError

    if by_energy and not parameters:
        raise InputError("--by-energy says how --parameters are spent", hint="give --parameters N as well")
    wrong = [value for value in budget_rank or () if not 0 < value < float("inf")]
    wrong += [value for value in energy or () if not value > 0]
    if wrong:
        raise InputError("a budget and a share of the energy are positive", found=wrong[0])
    return [
        *(Uniform(value) for value in rank or ()),
        *(Energy(value) for value in energy or ()),
        *(RankBudget(value) for value in budget_rank or ()),
        *(ParameterBudget(value, by_energy) for value in parameters or ()),
    ]


def _check_output(rules: "list[Rule]", output: Path | None) -> None:
    from lorascope.errors import InputError

    if output is None:
        return
    if len(rules) != 1:
        raise InputError(
            "--output takes exactly one rule",
            found=", ".join(rule.label for rule in rules) or "none",
            expected="one of --rank, --energy, --budget-rank and --parameters, once",
            hint="without --output several are compared",
        )
    check_new_folder(output)


def _dtype(name: str | None) -> str | None:
    from lorascope.errors import InputError

    if name is not None and name not in DTYPES:
        raise InputError(f"--dtype {name!r} is not offered", expected=", ".join(DTYPES))
    return None if name is None else DTYPES[name]


def _open_base(base: str | None) -> Any:
    if base is None:
        return None
    from lorascope.models import assets
    from lorascope.weights.checkpoint import open_checkpoint

    return open_checkpoint(assets.resolve(base))


def _scorer(
    run: Path | None, adapter: Any, device: str, max_samples: int | None
) -> tuple[Callable[[Any], dict[str, Any]] | None, str]:
    """A function that scores a ΔW in the run's model, and on what it does."""
    from lorascope.errors import InputError, preview

    if run is None:
        if max_samples is not None:
            raise InputError("--max-samples belongs to --evaluate", hint="name the run with --evaluate RUN")
        return None, ""
    from lorascope.cli import _runs

    opened = _runs.opened(run, device=device, max_samples=max_samples)
    if strange := [name for name in adapter.updates if name not in opened.updates]:
        raise InputError(
            f"{run} has no such modules",
            found=preview(strange, 3),
            expected=f"those of its own adapter: {preview(opened.updates, 3)}",
        )
    own = opened.adapter.source.sha256 == adapter.source.sha256
    head = "" if own else ", under the head and biases of that run"

    def score(deltas: Any) -> dict[str, Any]:
        opened.put(deltas)
        found = opened.score()
        return {"loss": found.loss, "accuracy": found.accuracy}

    return score, f"{len(opened.held_out):,} held-out texts of {run}{head}"


def _bar(names: list) -> Iterable:
    """A progress bar on stderr, where somebody is looking and there is something to wait for."""
    import sys

    if not sys.stderr.isatty():
        return iter(names)
    from tqdm import tqdm

    return tqdm(names, desc="resize", unit=" modules", leave=False, delay=0.5)


def _page(result: "ResizeResult") -> "Page":
    import platform
    import shlex
    import sys

    import numpy

    import lorascope
    from lorascope.blocks import Page

    modules = len(result.plans[0].modules)
    if len(result.plans) == 1:
        plan = result.plans[0]
        summary = f"{plan.label}: {plan.parameters:,} of {result.parameters_before:,} parameters"
        if plan.error is not None:
            summary += f", ‖ΔW − ΔW_r‖ = {100 * plan.error:.3g} % of ‖ΔW‖"
    else:
        summary = f"{len(result.plans)} plans for {modules} modules, {result.parameters_before:,} parameters as B·A"
    made_by = (
        ("command", shlex.join(["lorascope", *sys.argv[1:]])),
        ("lorascope", lorascope.__version__),
        ("python", platform.python_version()),
        ("numpy", numpy.__version__),
    )
    return Page(result.source.path, result.blocks(), "lorascope resize", summary, made_by)
