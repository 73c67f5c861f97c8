"""`lorascope dimension`: the intrinsic dimension of full fine-tuning against BA, from run folders."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lorascope.cli._outputs import check, to_file, write_outputs

if TYPE_CHECKING:
    from lorascope.analyses.dimension import Candidate, DimensionResult
    from lorascope.blocks import Page
    from lorascope.cli._runs import Runs


def dimension(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of finished runs, or folders that hold such (a sweep's)."),
    ],
    html: Annotated[Path | None, to_file("Write one self-contained HTML page.")] = None,
    json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|-", readable=False, help="Write JSON (schema 1); - is stdout, and then nothing else is."
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        to_file("Write one row per matrix, point of a curve, and run."),
    ] = None,
    modules: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Truncate only these matrices; the others stay as trained.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="NAME", help="Score on this split, such as test, not on the held-out texts.")
    ] = None,
    max_samples: Annotated[
        int, typer.Option(min=1, metavar="N", help="At most so many texts; each evaluation takes that long.")
    ] = 1000,
    baseline: Annotated[
        str,
        typer.Option(
            metavar="START",
            help="What gain starts from: matrices (at W, head and vectors tuned), prior (class frequencies), a run's"
            " folder (such as one that trained the head alone), or a loss.",
        ),
    ] = "matrices",
    draws: Annotated[int, typer.Option(min=1, metavar="N", help="Draws of each random control.")] = 3,
    device: Annotated[str, typer.Option(help="Where to evaluate and train: cpu, cuda, cuda:1, or auto.")] = "auto",
    search: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Search for d90: train random_subspace runs here, adaptively.")
    ] = None,
    said: Annotated[
        str, typer.Option(metavar="HOW", help="Of the search: none (DID), or a trained factor by layer or tensor.")
    ] = "none",
    start: Annotated[int, typer.Option(min=2, metavar="D", help="Of the search: the first d.")] = 1000,
    tolerance: Annotated[
        float, typer.Option(metavar="RATIO", help="Of the search: stop at a bracket of this ratio.")
    ] = 1.5,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Of the search: how many seeds at each d.")] = 1,
    learning_rates: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Of the search, as 1e-2,3e-2; of each d the best counts. Default: 2e-2·√(1000/d), a third and thrice.",
        ),
    ] = None,
) -> None:
    """Say what dimension full fine-tuning really needs: spectral, denoised and functional rank of ΔW beside trained BA.

    Truncates every ΔW of a full fine-tuning run jointly and evaluates: k90, k95, k99 of the gain in held-out loss, with
    controls; beside the smallest trained LoRA rank and d90 of subspace training, all on one axis of parameters.
    Example:

        lorascope dimension runs/full runs/ranks --html dimension.html

    With --search it trains what d90 needs itself; a search that was stopped goes on where it was:

        lorascope dimension runs/full --search runs/subspace --seeds 2
    """
    import sys

    check([*paths, search], html=html, json=json, csv=csv)
    from lorascope.training.threads import limit_omp_spin

    limit_omp_spin()
    from lorascope.analyses import dimension as analysis
    from lorascope.cli._runs import Runs, find

    _check(said, tolerance)
    rates, given = _rates(learning_rates), _baseline(baseline)
    runs = Runs(find(paths, search), split, max_samples, device)

    from lorascope.training.run import set_threads  # torch: only now, so that a refusal is quick

    set_threads(None)
    tick = _Ticker()
    result = analysis.run(
        runs.candidates,
        modules=modules,
        baseline=_start(given, runs),
        prior=runs.prior,
        draws=tuple(range(draws)),
        texts=runs.texts_facts,
        search=None if search is None else _search(runs, search, said, start, tolerance, seeds, rates, tick),
        tick=tick,
    )
    tick.close()
    page = _page(result)
    if str(json) != "-":
        from lorascope.report import terminal

        sys.stdout.write(terminal.render(page))
    write_outputs(page, result.to_json, result.flat_rows, html=html, json=json, csv=csv)


def _check(said: str, tolerance: float) -> None:
    from lorascope.errors import InputError

    if said not in ("none", "layer", "tensor"):
        raise InputError("--said is unknown", found=said, expected="none, layer or tensor")
    if tolerance <= 1:
        raise InputError("--tolerance is too small", found=tolerance, expected="a ratio above 1, such as 1.5")


def _baseline(text: str) -> float | Path | Literal["prior"] | None:
    """--baseline, read without opening anything."""
    from lorascope.errors import InputError

    if text == "matrices":
        return None
    if text == "prior":
        return "prior"
    if (Path(text) / "config.yaml").is_file():
        return Path(text)
    try:
        return float(text)
    except ValueError:
        expected = "matrices, prior, the folder of a run, or a loss"
        raise InputError("--baseline is unknown", found=text, expected=expected) from None


def _start(given: float | Path | Literal["prior"] | None, runs: "Runs") -> float | None:
    """The loss that gain starts from; None is the full run's with its matrices at W."""
    from lorascope.errors import InputError

    if isinstance(given, Path):
        return runs.loss(given)
    if given == "prior":
        if runs.prior is None:
            raise InputError("--baseline prior is of classes, which a language model has none of")
        return runs.prior
    return given


def _rates(text: str | None) -> tuple[float, ...]:
    from lorascope.errors import InputError

    if text is None:
        return ()
    try:
        rates = tuple(float(each) for each in text.split(","))
    except ValueError:
        rates = ()
    if not rates or min(rates) <= 0:
        raise InputError("--learning-rates is no list of rates", found=repr(text), expected="as 1e-2,3e-2")
    return rates


def _search(
    runs: "Runs",
    folder: Path,
    said: str,
    start: int,
    tolerance: float,
    seeds: int,
    rates: tuple[float, ...],
    tick: "_Ticker",
) -> Callable[[Callable[["Candidate"], float]], tuple[Sequence["Candidate"], Mapping[str, Any]]]:
    """What trains the search's runs, given how to score one."""

    def go(gain: Callable[["Candidate"], float]) -> tuple[Sequence["Candidate"], Mapping[str, Any]]:
        import math
        import shlex
        import sys
        from dataclasses import asdict

        from lorascope.training.search import SubspaceRuns, search

        tick.close()  # training has a bar of its own
        command = shlex.split(shlex.join(["lorascope", *sys.argv[1:]]))
        train = SubspaceRuns(
            runs.full_config, folder, lambda path: gain(runs.candidate(path)), said=said, rates=rates, command=command
        )
        first = int(runs.full_config["training"]["seed"])
        found = search(
            train,
            lowest=runs.layers + 1 if said != "none" else 2,
            highest=runs.size,
            start=start,
            seeds=tuple(range(first, first + seeds)),
            tolerance=tolerance,
        )
        record = asdict(found) | {
            "folder": str(folder),
            "said": said,
            "trained": train.trained,
            "found": len(train.folders) - train.trained,
            "tried": [
                {"d": t.d, "gains": [None if math.isnan(g) else g for g in t.gains],
                 "mean": None if math.isnan(t.mean) else t.mean}
                for t in found.tried
            ],
        }  # fmt: skip
        return [runs.candidate(path) for path in dict.fromkeys(train.folders)], record

    return go


class _Ticker:
    """A count of evaluations on stderr, where somebody is looking."""

    def __init__(self) -> None:
        self.bar: Any = None

    def __call__(self, what: str) -> None:
        import sys

        if not sys.stderr.isatty():
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(desc="dimension", unit=" steps", leave=False, delay=0.5)
        self.bar.set_postfix_str(what)
        self.bar.update()

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def _page(result: "DimensionResult") -> "Page":
    import platform
    import shlex
    import sys

    import numpy
    import torch

    import lorascope
    from lorascope.blocks import Page

    k90 = [k for k in result.k(0.9) if k is not None]
    labels = ", ".join(run.facts.label for run in result.full)
    text = f"k90 = {' / '.join(map(str, k90))}" if k90 else "no k90"
    for group in result.families:
        if group.axis and (size := group.reach["0.9"].size) is not None:
            text += f"; {group.label} {group.axis} = {size:,}"
    made_by = (
        ("command", shlex.join(["lorascope", *sys.argv[1:]])),
        ("lorascope", lorascope.__version__),
        ("python", platform.python_version()),
        ("numpy", numpy.__version__),
        ("torch", torch.__version__),
    )
    return Page(f"Intrinsic dimension of {labels}", result.blocks(), "lorascope dimension", text, made_by)
