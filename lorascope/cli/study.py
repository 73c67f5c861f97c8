"""`lorascope study`: run, list and render studies."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from lorascope.cli._study_progress import ProgressBar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from lorascope.study import Study
    from lorascope.study.runner import Engine as Engines
    from lorascope.study.runner import Runner

study = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Replicate published claims: run, judge, list and render studies. Example: lorascope study run rank_sweep",
)
Names = Annotated[list[str], typer.Argument(metavar="STUDY...", help="Names of studies, or their scripts.")]
Scale = Annotated[str, typer.Option(help="smoke, small, small-lm (a decoder) or full.")]
Jobs = Annotated[int, typer.Option(min=1, help="Number of worker processes, which share the cores.")]
Engine = Annotated[Literal["local", "ray"], typer.Option(help="This machine, or a Ray cluster.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster address (default: $RAY_ADDRESS, else local).")]
Gpus = Annotated[float, typer.Option(min=0, help="With Ray: GPUs per group of runs; may be a fraction such as 0.5.")]
Set = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Another model or data: model.name=..., data.path=... Repeatable."),
]
Arms = Annotated[
    list[str] | None,
    typer.Option(
        "--arms",
        metavar="LABEL=VALUE,...",
        help="Only the arms with these labels, as their page shows them; all others stay as the report has them. "
        "Repeatable.",
    ),
]
Device = Annotated[str, typer.Option(help="Where runs are trained and measured: cpu, cuda, cuda:N or auto.")]
StoreFolder = Annotated[Path, typer.Option(metavar="DIR", help="Directory of finished runs.")]
Reports = Annotated[Path, typer.Option(metavar="DIR", help="Reports directory.")]
Studies = Annotated[Path, typer.Option(metavar="DIR", help="Directory of study scripts.")]


@study.command()
def run(  # one parameter per option
    names: Names,
    scale: Scale = "small",
    jobs: Jobs = 1,
    engine: Engine = "local",
    address: Address = None,
    gpus_per_run: Gpus = 0.0,
    set: Set = None,
    arms: Arms = None,
    device: Device = "auto",
    discard_weights: Annotated[
        bool, typer.Option("--discard-weights", help="Delete the weights of runs once they are measured.")
    ] = False,
    store: StoreFolder = Path(".lorascope/store"),
    reports: Reports = Path("reports"),
    studies: Studies = Path("studies"),
) -> None:
    """Run studies and write their reports (JSON and HTML).

    Trains and measures what is not in the store yet, and judges the claims. Stopped or killed, it resumes when it is
    started again. Example:

        lorascope study run rank_sweep --scale smoke --jobs 2

    Runs are stored by the hash of their config and shared by all studies. A measure that needs the weights of a run
    that has none any more trains it again. With --arms some arms of one study alone are run again:

        lorascope study run rank_sweep --arms 'task=memorise,rank=2'
    """
    import sys
    from contextlib import closing

    from lorascope.destinations import check_folder_for_files
    from lorascope.errors import InputError
    from lorascope.study import together
    from lorascope.study.again import Again
    from lorascope.study.runner import Runner
    from lorascope.study.store import Store

    scripts = [_script(name, studies) for name in dict.fromkeys(names)]
    if arms and len(scripts) > 1:
        raise InputError("--arms is of one study", found=", ".join(names), hint="run them one after another")
    check_folder_for_files(reports)  # before a night's work
    kind = Again if arms else Runner
    definitions = [(_load(script), script) for script in scripts]
    kept, workers = Store(store), _engine(engine, jobs, address, gpus_per_run)
    settings: dict[str, Any] = {"overrides": set or (), "device": device}
    try:
        with closing(workers):
            runners = [kind(study, script, scale, kept, workers, **settings) for study, script in definitions]
            if not arms:
                _by_arm(runners, scale, reports, settings)
            for runner in runners:
                _run(runner, scale, reports, arms or ())
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept. Run the same command again to resume.", file=sys.stderr)
        raise typer.Exit(130) from None
    if discard_weights:
        freed = together.discard_weights(runners, kept)
        print(f"deleted the weights of measured runs, {freed / 1e6:,.0f} MB", file=sys.stderr)


def _by_arm(runners: "Sequence[Runner]", scale: str, reports: Path, settings: "Mapping[str, Any]") -> None:
    """Train and measure the studies that are better run arm by arm, their claims frozen before."""
    from lorascope.study import together
    from lorascope.study.runner import Runner

    whole = {runner.study.name: runner for runner in runners if together.is_by_arm(runner)}
    for runner in whole.values():
        _frozen(runner, scale, reports)
    with ProgressBar(", ".join(whole)) as progress:

        def runner_of(study: "Study") -> Runner:
            of = whole[study.name]
            return Runner(study, of.script, scale, of.store, of.engine, **settings, progress=progress.update)

        together.run_by_arm([runner.study for runner in whole.values()], scale, runner_of)


def _run(runner: "Runner", scale: str, reports: Path, arms: "Sequence[str]") -> None:
    """Freeze the claims, run the study, or some arms of it, and judge it, with progress on stderr; write its report."""
    from lorascope.study import again, making

    before, frozen = _frozen(runner, scale, reports, arms)
    with ProgressBar(runner.study.name) as progress:
        runner.progress = progress.update
        results, tuned = runner.run()
        if isinstance(runner, again.Again):
            report, texts = again.make(runner, scale, (results, tuned), frozen, reports, progress.judging)
        else:
            report, texts = making.make(runner, scale, results, tuned, frozen, before, progress.judging)
    _write(report, texts, reports)


def _frozen(
    runner: "Runner", scale: str, reports: Path, arms: "Sequence[str]" = ()
) -> "tuple[dict[str, Any] | None, dict[str, Any]]":
    """The report that a run will replace, and the claims as they are frozen, once the arms are picked."""
    from lorascope.study import making
    from lorascope.study.again import Again
    from lorascope.study.frozen import freeze
    from lorascope.study.record import file_stem

    study, testbed = runner.study, runner.scale.testbed
    before = making.replaced(reports / f"{file_stem(study.name, testbed)}.json", study.name, scale, testbed)
    if isinstance(runner, Again):
        runner.pick(before, arms)
    return before, freeze(study, scale, runner.store.root, making.today(), is_first=before is None)


def _write(report: dict[str, Any], texts: bytes | None, reports: Path) -> None:
    """Print a report, and write its JSON, the scores of texts and its page."""
    import sys

    from lorascope.outputs import write_bytes, write_json
    from lorascope.report import terminal
    from lorascope.study import page
    from lorascope.study.record import file_stem

    path = reports / f"{file_stem(report['name'], report['scale']['testbed'])}.json"
    if texts is not None:
        write_bytes(reports / report["texts"]["file"], texts)
    write_json(path, report)
    sys.stdout.write(terminal.render(page.page(report)))
    print(f"wrote {path}", file=sys.stderr)
    _draw([path])


@study.command()
def judge(
    reports_json: Annotated[list[Path], typer.Argument(metavar="REPORT.json...", help="Reports of studies.")],
    studies: Studies = Path("studies"),
) -> None:
    """Judge the claims of reports again, by their scripts.

    Computes verdicts, power, q-values, the answer and the figures from the numbers in the JSON; nothing is trained. A
    claim that was changed since gets an amendment with its earlier verdict. Writes the JSON and the pages. Example:

        lorascope study judge reports/rank_sweep.json
    """
    import sys

    from lorascope.outputs import write_json
    from lorascope.study import judging, making, record

    reports_json = _of_studies(reports_json)
    found = {path: record.read(path) for path in reports_json}
    scripts = {path: _load(_script(report["name"], studies)) for path, report in found.items()}
    for path, report in found.items():
        with ProgressBar(report["name"]) as progress:
            judged = judging.again(report, scripts[path], path.parent, making.today(), progress.judging)
        write_json(path, judged)
        for line in judging.changes(report, judged):
            print(line)
        print(f"wrote {path}", file=sys.stderr)
    _draw(reports_json)


@study.command()
def pack(
    names: Names,
    scale: Scale = "small",
    store: StoreFolder = Path(".lorascope/store"),
    set: Set = None,
    studies: Studies = Path("studies"),
    out: Annotated[Path, typer.Option(metavar="FILE", help="The file to write.")] = Path("studies.zip"),
) -> None:
    """Write the finished runs of studies into one file, without their weights.

    Holds configs, losses of every text, measurements and the frozen claims: enough to go on with the studies, and to
    judge them, on another machine (`lorascope study unpack`). Example:

        lorascope study pack rank_sweep intruders --scale small --out work.zip
    """
    import sys

    from lorascope.outputs import write_bytes
    from lorascope.study import pack as packs
    from lorascope.study import together
    from lorascope.study.frozen import file_name
    from lorascope.study.runner import Runner
    from lorascope.study.store import Store

    scripts = {name: _script(name, studies) for name in names}
    definitions = {_load(script).name: (_load(script), script) for script in scripts.values()}
    kept, engine = Store(store), packs.Absent()
    whole = [Runner(study, script, scale, kept, engine, overrides=set or ()) for study, script in definitions.values()]
    parts = together.prefixes([runner.study for runner in whole], scale)
    some = [Runner(each, definitions[each.name][1], scale, kept, engine, overrides=set or ()) for each in parts]
    jobs = packs.finished([*whole, *some])
    claims = [file_name(runner.study.name, scale, runner.scale.testbed) for runner in whole]
    content = packs.pack(kept, jobs, claims)
    write_bytes(out, content)
    runs = sum(job.spec["kind"] == "train" for job in jobs)
    print(f"wrote {out}: {runs} runs and {len(jobs) - runs} measurements, {len(content) / 1e6:.1f} MB", file=sys.stderr)


@study.command()
def unpack(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `pack` wrote.")],
    store: StoreFolder = Path(".lorascope/store"),
) -> None:
    """Put the finished runs of a pack into the store.

    Work that the store has finished is kept. The file may come from anyone: nothing in it is run. Example:

        lorascope study unpack work.zip
    """
    import sys

    from lorascope.study import pack as packs
    from lorascope.study.store import Store

    done = packs.unpack(file, Store(store))
    print(f"{done.added} runs and measurements added, {done.kept} were there", file=sys.stderr)
    if done.foreign:
        why = "made with other versions of torch, transformers or tokenizers, or not what their name says"
        print(f"warning: {done.foreign} skipped: {why}", file=sys.stderr)


@study.command("list")
def list_(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    reports: Reports = Path("reports"),
    studies: Studies = Path("studies"),
) -> None:
    """List studies with their question, cost and last verdicts.

    Example:

        lorascope study list
    """
    import sys

    from lorascope.errors import InputError
    from lorascope.outputs import json_text
    from lorascope.report import terminal
    from lorascope.study import index, record
    from lorascope.study.grid import ENCODER

    scripts = _scripts(studies)
    if not scripts:
        what = "holds no study scripts" if studies.is_dir() else "is not a folder"
        hint = "run it in a clone of lorascope, or give their folder with --studies DIR"
        raise InputError(f"no studies to list: {studies} {what}", hint=hint)
    records, errors = record.read_folder(reports)
    order = sorted(records, key=lambda r: (r["scale"]["conclusive"], r["scale"]["testbed"] == ENCODER))
    by_name = {report["name"]: report for report in order}  # one that gives verdicts before one that does not
    rows = [_listed(script, by_name.get(script.stem)) for script in scripts]
    if json:
        print(json_text({"schema": 2, "studies": rows}, indent=2, ensure_ascii=True))
    else:
        sys.stdout.write(terminal.render(index.listing(rows)))
    for error in errors:
        print(f"warning: skipped: {error}", file=sys.stderr)


@study.command()
def render(
    reports_json: Annotated[list[Path], typer.Argument(metavar="REPORT.json...", help="Reports of studies.")],
) -> None:
    """Re-render HTML pages from report JSON files.

    Writes each page next to its JSON, and the index of the folder. Example:

        lorascope study render reports/rank_sweep.json
    """
    _draw(_of_studies(reports_json))


def _of_studies(paths: list[Path]) -> list[Path]:
    """The paths without files of other kinds, each of which is named on stderr. InputError where no other is left."""
    import sys

    from lorascope.study import record

    others = {}
    for path in paths if len(paths) > 1 else ():
        try:
            record.read(path)
        except record.NotAStudyReport as error:
            others[path] = str(error)
    if len(others) < len(paths):
        for message in others.values():
            print(f"warning: skipped: {message}", file=sys.stderr)
        return [path for path in paths if path not in others]
    return paths


def _draw(reports: list[Path]) -> None:
    """Write the page of each report, and the index of each folder.

    Raises:
        InputError: a report is damaged. Nothing is written then.
    """
    import sys

    from lorascope.errors import InputError
    from lorascope.outputs import write_text
    from lorascope.report import html
    from lorascope.study import index, page, record

    pages: dict[Path, str] = {}
    for path in reports:
        recorded = record.read(path)
        try:
            pages[path.with_suffix(".html")] = html.render(page.page(recorded))
        except InputError as error:
            raise InputError(f"{path} is damaged: {error}") from None
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # blocks that fit, and cannot be drawn
            raise InputError(f"{path} cannot be drawn", found=f"{type(error).__name__}: {error}") from error
        if "converted" in recorded:
            print(f"note: {path}: {recorded['converted']}", file=sys.stderr)
    for folder in dict.fromkeys(path.parent for path in reports):
        records, errors = record.read_folder(folder)
        pages[folder / "index.html"] = html.render(index.index(records))
        for message in errors:
            print(f"warning: skipped in the index: {message}", file=sys.stderr)
    for path, text in pages.items():
        write_text(path, text)
        print(f"wrote {path}", file=sys.stderr)


def _scripts(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")]


def _script(name: str, folder: Path) -> Path:
    from difflib import get_close_matches

    from lorascope.errors import InputError

    path = Path(name) if name.endswith(".py") else folder / f"{name}.py"
    if path.is_file():
        return path
    names = [script.stem for script in _scripts(folder)]
    near = get_close_matches(path.stem, names, n=1)
    hint = f"did you mean {near[0]}?" if near else "run it in a clone of lorascope, or name the script"
    raise InputError(f"no such study: {name}", found=f"no {path}", expected=", ".join(names) or None, hint=hint)


def _load(script: Path) -> "Study":
    from lorascope.errors import InputError, LorascopeError
    from lorascope.study import Study, work

    try:
        definition = getattr(work.script(script), "study", None)
    except LorascopeError:
        raise
    except Exception as error:
        where = f" in line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise InputError(f"{script} cannot be loaded", found=f"{type(error).__name__}{where}: {error}") from error
    if not isinstance(definition, Study):
        raise InputError(f"{script} defines no study", expected="a Study called `study`")
    if definition.name != script.stem:
        raise InputError(
            f"the study in {script} is not named after its script", found=definition.name, expected=script.stem
        )
    return definition


def _engine(name: str, jobs: int, address: str | None, gpus: float) -> "Engines":
    if name == "ray":
        from lorascope.study.cluster import Cluster

        return Cluster(address, jobs, gpus=gpus)
    from lorascope.study.local import Local

    return Local(jobs)


def _listed(script: Path, last: dict[str, Any] | None) -> dict[str, Any]:
    """A study's line in the list. The cost of a scale is its number of runs: sweeps may add to it, and runs that other
    studies have trained are reused."""
    row: dict[str, Any] = {"name": script.stem, "runs": {}, **dict.fromkeys(("question", "claims", "last", "error"))}
    try:
        definition = _load(script)
        runs = {name: definition.runs_of(scale) for name, scale in definition.scales.items()}
    except Exception as error:  # the others are listed all the same
        return row | {"error": str(error)}
    row |= {"question": definition.question, "claims": len(definition.claims), "runs": runs}
    return row if last is None else row | {"last": _last_run(last)}


def _last_run(report: dict[str, Any]) -> dict[str, Any]:
    """When and where a study was last run, and its verdicts."""
    from lorascope.study.verdict import VERDICTS

    verdicts = [claim["verdict"] for claim in report["claims"]]
    cost, made = report["cost"], report["made"]
    return {
        "scale": report["scale"]["name"],
        "testbed": report["scale"]["testbed"],
        "runs": cost["runs"],
        "hours": round(cost["seconds_of_work"] / 3600, 4),
        "devices": made["devices"],
        "date": made["date"],
        "judged": made["judged"],
        "verdicts": {verdict: verdicts.count(verdict) for verdict in VERDICTS},
    }
