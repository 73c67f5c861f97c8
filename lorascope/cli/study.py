"""`lorascope study`: run, list and render studies."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from lorascope.study import Study
    from lorascope.study.runner import Engine as Engines
    from lorascope.study.store import Store

study = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Replicate published claims: run, judge, list and render studies. Example: lorascope study run rank_sweep",
)
Name = Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study, or its script.")]
Scale = Annotated[str, typer.Option(help="smoke, small or full.")]
Jobs = Annotated[int, typer.Option(min=1, help="Number of worker processes, which share the cores.")]
Engine = Annotated[Literal["local", "ray"], typer.Option(help="This machine, or a Ray cluster.")]
Address = Annotated[str | None, typer.Option(help="Ray cluster address (default: $RAY_ADDRESS, else local).")]
Gpus = Annotated[float, typer.Option(min=0, help="With Ray: GPUs per group of runs; may be a fraction such as 0.5.")]
Set = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Another model or data: model.name=..., data.path=... Repeatable."),
]
Device = Annotated[str, typer.Option(help="Where runs are trained and measured: cpu, cuda, cuda:N or auto.")]
StoreFolder = Annotated[Path, typer.Option(metavar="DIR", help="Directory of finished runs.")]
Reports = Annotated[Path, typer.Option(metavar="DIR", help="Reports directory.")]
Studies = Annotated[Path, typer.Option(metavar="DIR", help="Directory of study scripts.")]


@study.command()
def run(  # one parameter per option
    name: Name,
    scale: Scale = "small",
    jobs: Jobs = 1,
    engine: Engine = "local",
    address: Address = None,
    gpus_per_run: Gpus = 0.0,
    set: Set = None,
    device: Device = "auto",
    store: StoreFolder = Path(".lorascope/store"),
    reports: Reports = Path("reports"),
    studies: Studies = Path("studies"),
) -> None:
    """Run a study and write its report (JSON and HTML).

    Trains and measures what is not in the store yet, and judges the claims. Stopped or killed, it resumes when it is
    started again. Example:

        lorascope study run rank_sweep --scale smoke --jobs 2

    Runs are stored by the hash of their config and shared by all studies.
    """
    import sys

    from lorascope.study.store import Store

    script = _script(name, studies)
    definition = _load(script)
    workers = _engine(engine, jobs, address, gpus_per_run)
    try:
        settings = {"overrides": set or (), "device": device}
        report, texts = _report(definition, script, scale, Store(store), workers, reports, settings)
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept. Run the same command again to resume.", file=sys.stderr)
        raise typer.Exit(130) from None
    _write(report, texts, reports)


def _report(  # one parameter per option
    definition: "Study",
    script: Path,
    scale: str,
    store: "Store",
    workers: "Engines",
    reports: Path,
    settings: dict[str, Any],
) -> tuple[dict[str, Any], bytes | None]:
    """Freeze the claims, run the study and judge it, with progress on stderr: its record, and the scores of texts."""
    from contextlib import closing

    from lorascope.study import making
    from lorascope.study.frozen import freeze
    from lorascope.study.runner import Runner

    with ProgressBar(definition.name) as progress:
        with closing(workers):
            runner = Runner(definition, script, scale, store, workers, **settings, progress=progress.update)
            path = reports / f"{definition.name}.json"
            before = making.replaced(path, definition.name, scale, runner.scale.testbed)
            frozen = freeze(definition, scale, store.root, making.today(), is_first=before is None)
            results, tuned = runner.run()
        return making.make(runner, scale, results, tuned, frozen, before, progress.judging)


def _write(report: dict[str, Any], texts: bytes | None, reports: Path) -> None:
    """Print a report, and write its JSON, the scores of texts and its page."""
    import sys

    from lorascope.outputs import write_bytes, write_json
    from lorascope.report import terminal
    from lorascope.study import page

    reports.mkdir(parents=True, exist_ok=True)
    path = reports / f"{report['name']}.json"
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

    from lorascope.outputs import json_text
    from lorascope.report import terminal
    from lorascope.study import index, record

    records, errors = record.read_folder(reports)
    by_name = {report["name"]: report for report in records}
    rows = [_listed(script, by_name.get(script.stem)) for script in _scripts(studies)]
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
    _draw(reports_json)


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


class ProgressBar:
    """Shows how far a study is on stderr: a bar in a terminal, else a line at each tenth."""

    def __init__(self, name: str):
        self.name, self.stage, self.tenth = name, "", -1
        self.bar: Any = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def judging(self, done: int, total: int) -> None:
        """How many resamples are judged."""
        self.update("judging", done, total, 0, "")

    def update(self, stage: str, done: int, total: int, failed: int, title: str) -> None:
        """`title` is of what ended last."""
        import sys

        if total == 0:
            return
        if sys.stderr.isatty():
            self._draw(stage, done, total, failed, title)
            return
        tenth = 10 * done // total
        if stage != self.stage or tenth != self.tenth:
            failures = f", {failed} failed" if failed else ""
            print(f"{self.name}: {stage}, {done} of {total} done{failures}", file=sys.stderr, flush=True)
        self.stage, self.tenth = stage, tenth

    def _draw(self, stage: str, done: int, total: int, failed: int, title: str) -> None:
        from tqdm import tqdm

        if stage != self.stage or self.bar is None:
            if self.bar is not None:
                self.bar.close()
            shape = "{desc} |{bar:20}| {n_fmt}/{total_fmt}, {elapsed}, {remaining} left{postfix}"
            self.bar = tqdm(
                total=total, initial=done, desc=f"{self.name}: {stage}", bar_format=shape, dynamic_ncols=True
            )
            self.stage = stage
        self.bar.total, self.bar.n = total, done
        self.bar.set_postfix_str(f"{failed} failed; {title}" if failed else title)
