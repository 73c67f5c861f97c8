"""`lorascope study`: run, list and render studies."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from lorascope.study import Study
    from lorascope.study.runner import Progress

study = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="The field's claims as studies: a grid of runs, verdicts, one page. Example: lorascope study run rank_sweep",
)
REPORTS = Annotated[Path, typer.Option(metavar="DIR", help="Where reports lie.")]
STUDIES = Annotated[Path, typer.Option(metavar="DIR", help="Where study scripts lie.")]


@study.command()
def run(
    name: Annotated[str, typer.Argument(metavar="STUDY", help="Name of a study, or its script.")],
    scale: Annotated[str, typer.Option(help="smoke, small or full.")] = "small",
    jobs: Annotated[int, typer.Option(min=1, help="Worker processes; they share the cores.")] = 1,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="This machine, or a Ray cluster.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Of the Ray cluster; else RAY_ADDRESS, else this machine.")
    ] = None,
    gpus_per_run: Annotated[float, typer.Option(min=0, help="On Ray: GPUs of each chunk of runs; may be 0.5.")] = 0.0,
    set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Another model or data: model.name=..., data.path=... Repeatable."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")] = "auto",
    store: Annotated[Path, typer.Option(metavar="DIR", help="Where finished runs are kept.")] = Path(
        ".lorascope/store"
    ),
    reports: REPORTS = Path("reports"),
    studies: STUDIES = Path("studies"),
) -> None:
    """Run a study: train what is not in the store yet, measure, judge, and write its JSON and its page.

    Stopped or killed, it goes on where it was when it is started again. Example:

        lorascope study run rank_sweep --scale smoke --jobs 2

    A run is kept by the hash of its config and is shared by all studies.
    """
    import sys
    from contextlib import closing

    from lorascope.outputs import write_json
    from lorascope.report import terminal
    from lorascope.study import page, record
    from lorascope.study.runner import Runner
    from lorascope.study.store import Store
    from lorascope.study.verdict import judge

    script = _script(name, studies)
    found = _load(script)
    workers = _engine(engine, jobs, address, gpus_per_run)
    try:
        with _told(found.name) as progress:
            settings = {"overrides": set or (), "device": device, "progress": progress}
            with closing(workers):
                runner = Runner(found, script, scale, Store(store), workers, **settings)
                results, tuned = runner.run()
            verdicts = []
            progress.say("judging", 0, len(found.claims), 0, "")
            for claim in found.claims:
                verdicts.append(judge(claim, results))
                progress.say("judging", len(verdicts), len(found.claims), 0, claim.name)
    except KeyboardInterrupt:
        print("lorascope: stopped; what is finished is kept, and the same command goes on from there.", file=sys.stderr)
        raise typer.Exit(130) from None
    made = record.make(runner, scale, results, tuned, verdicts)
    reports.mkdir(parents=True, exist_ok=True)
    report = reports / f"{found.name}.json"
    write_json(report, made)
    sys.stdout.write(terminal.render(page.page(made)))
    print(f"wrote {report}", file=sys.stderr)
    _draw([report], studies)


@study.command("list")
def list_(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    reports: REPORTS = Path("reports"),
    studies: STUDIES = Path("studies"),
) -> None:
    """List the studies with question, cost and last verdicts. Example:

    lorascope study list
    """
    import sys

    from lorascope.outputs import json_text
    from lorascope.report import terminal
    from lorascope.study import page, record

    last, wrong = record.all_in(reports)
    by_name = {each["name"]: each for each in last}
    rows = [_listed(script, by_name.get(script.stem)) for script in _scripts(studies)]
    if json:
        print(json_text({"schema": 1, "studies": rows}, indent=2, ensure_ascii=True))
    else:
        sys.stdout.write(terminal.render(page.listing(rows)))
    for each in wrong:
        print(f"lorascope: left out: {each}", file=sys.stderr)


@study.command()
def render(
    reports_json: Annotated[list[Path], typer.Argument(metavar="REPORT.json...", help="Reports of studies.")],
    studies: STUDIES = Path("studies"),
) -> None:
    """Draw the pages of reports again, each beside its JSON, from that alone, and the index. Example:

    lorascope study render reports/rank_sweep.json

    Where the study's script is at hand, its claims that are withdrawn or cannot tell are marked in the JSON first.
    """
    _draw(reports_json, studies)


def _draw(reports: list[Path], studies: Path) -> None:
    """Write the page of each report, with its script's marks in its JSON, and the index of each folder.

    Raises:
        InputError: a report is damaged. Nothing is written then.
    """
    import sys

    from lorascope.errors import InputError
    from lorascope.outputs import write_json, write_text
    from lorascope.report import html
    from lorascope.study import page, record

    drawn, marks = {}, {}
    for path in reports:
        kept = record.read(path)
        found = _marked(kept, studies)
        if found != kept:
            marks[path] = found
        try:
            drawn[path.with_suffix(".html")] = html.render(page.page(found))
        except InputError as error:
            raise InputError(f"{path} is damaged: {error}") from None
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # blocks that fit, and cannot be drawn
            raise InputError(f"{path} cannot be drawn", found=f"{type(error).__name__}: {error}") from error
    for folder in dict.fromkeys(path.parent for path in reports):
        records, wrong = record.all_in(folder)
        drawn[folder / "index.html"] = html.render(page.index([_marked(each, studies) for each in records]))
        for each in wrong:
            print(f"lorascope: left out of the index: {each}", file=sys.stderr)
    for path, found in marks.items():
        write_json(path, found)
        print(f"wrote {path}", file=sys.stderr)
    for path, text in drawn.items():
        write_text(path, text)
        print(f"wrote {path}", file=sys.stderr)


def _marked(record: dict[str, Any], studies: Path) -> dict[str, Any]:
    """The record with its script's marks; as it is where there is no such script.

    Raises:
        InputError: the script cannot be loaded, so that its marks are unknown.
    """
    from lorascope.study.marks import marked

    script = next((path for path in _scripts(studies) if path.stem == record["name"]), None)
    return record if script is None else marked(record, _load(script))


def _scripts(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")]


def _script(name: str, folder: Path) -> Path:
    from difflib import get_close_matches

    from lorascope.errors import InputError

    path = Path(name) if name.endswith(".py") else folder / f"{name}.py"
    if path.is_file():
        return path
    known = [each.stem for each in _scripts(folder)]
    near = get_close_matches(path.stem, known, n=1)
    hint = f"did you mean {near[0]}?" if near else "run it in a clone of lorascope, or name the script"
    raise InputError(f"there is no study {name!r}", found=f"no {path}", expected=", ".join(known) or None, hint=hint)


def _load(script: Path) -> "Study":
    from lorascope.errors import InputError, LorascopeError
    from lorascope.study import Study, work

    try:
        found = getattr(work.script(script), "study", None)
    except LorascopeError:
        raise
    except Exception as error:
        where = f" in line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise InputError(f"{script} cannot be loaded", found=f"{type(error).__name__}{where}: {error}") from error
    if not isinstance(found, Study):
        raise InputError(f"{script} makes no study", expected="a Study called `study`")
    if found.name != script.stem:
        raise InputError(f"the study in {script} has another name", found=found.name, expected=script.stem)
    return found


def _engine(name: str, jobs: int, address: str | None, gpus: float) -> Any:
    if name == "ray":
        from lorascope.study.cluster import Cluster

        return Cluster(address, jobs, gpus=gpus)
    from lorascope.study.local import Local

    return Local(jobs)


def _listed(script: Path, last: dict[str, Any] | None) -> dict[str, Any]:
    """A study's line in the list. What a scale costs is the number of its runs: sweeps may add to it, and runs that
    other studies have trained take from it."""
    from lorascope.study.marks import marked
    from lorascope.study.verdict import MARKS, VERDICTS

    row: dict[str, Any] = {"name": script.stem, "runs": {}, **dict.fromkeys(("question", "claims", "last", "error"))}
    try:
        found = _load(script)
        runs = {name: found.runs_of(scale) for name, scale in found.scales.items()}
    except Exception as error:  # the others are listed all the same
        return row | {"error": str(error)}
    row |= {"question": found.question, "claims": len(found.claims), "runs": runs}
    if last is None:
        return row
    last = marked(last, found)
    verdicts = [claim["verdict"] for claim in last["claims"]]
    counted = {v: verdicts.count(v) for v in (*VERDICTS, *(each for each in MARKS if each in verdicts))}
    marks = [
        {"claim": each["name"], "verdict": each["verdict"], "reason": each["mark"]["reason"]}
        for each in last["claims"]
        if "mark" in each
    ]
    cost, made = last["cost"], last["made"]
    said = {"scale": last["scale"]["name"], "runs": cost["runs"], "hours": round(cost["seconds_of_work"] / 3600, 4)}
    said |= {"devices": made["devices"], "date": made["date"]}
    return row | {"last": said | {"verdicts": counted, "marks": marks}}


class _told:
    """Shows how far a study is: a bar where somebody looks, else a line at each tenth."""

    def __init__(self, name: str):
        self.name, self.stage, self.last = name, "", -1

    def __enter__(self) -> "Progress":
        import sys

        from lorascope.study.runner import Progress

        self.bar = None
        self.terminal = sys.stderr.isatty()
        return Progress(self.say)

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def say(self, stage: str, done: int, number: int, failed: int, title: str) -> None:
        if number == 0:
            return
        if self.terminal:
            self._draw(stage, done, number, failed, title)
            return
        import sys

        tenth = 10 * done // number
        if stage != self.stage or tenth != self.last:
            wrong = f", {failed} failed" if failed else ""
            print(f"{self.name}: {stage}, {done} of {number} done{wrong}", file=sys.stderr, flush=True)
        self.stage, self.last = stage, tenth

    def _draw(self, stage: str, done: int, number: int, failed: int, title: str) -> None:
        from tqdm import tqdm

        if stage != self.stage or self.bar is None:
            if self.bar is not None:
                self.bar.close()
            shape = "{desc} |{bar:20}| {n_fmt}/{total_fmt}, {elapsed}, {remaining} left{postfix}"
            self.bar = tqdm(
                total=number, initial=done, desc=f"{self.name}: {stage}", bar_format=shape, dynamic_ncols=True
            )
            self.stage = stage
        self.bar.total, self.bar.n = number, done
        self.bar.set_postfix_str(f"{failed} failed; {title}" if failed else title)
