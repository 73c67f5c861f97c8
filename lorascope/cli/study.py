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

    from lorascope.report import html, terminal
    from lorascope.study import page, record
    from lorascope.study.runner import Runner
    from lorascope.study.store import Store
    from lorascope.study.verdict import judge
    from lorascope.training.record import write_json

    script = _script(name, studies)
    found = _load(script)
    workers = _engine(engine, jobs, address, gpus_per_run)
    with closing(workers), _told(found.name) as progress:
        settings = {"overrides": set or (), "device": device, "progress": progress}
        runner = Runner(found, script, scale, Store(store), workers, **settings)
        results, tuned = runner.run()
        verdicts = [judge(claim, results) for claim in found.claims]
    made = record.make(runner, scale, results, tuned, verdicts)
    reports.mkdir(parents=True, exist_ok=True)
    written = [reports / f"{found.name}.json", reports / f"{found.name}.html", reports / "index.html"]
    write_json(written[0], made)
    html.write(page.page(record.read(written[0])), written[1])
    html.write(page.index(record.all_in(reports)), written[2])
    sys.stdout.write(terminal.render(page.page(made)))
    for path in written:
        print(f"wrote {path}", file=sys.stderr)


@study.command("list")
def list_(
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    reports: REPORTS = Path("reports"),
    studies: STUDIES = Path("studies"),
) -> None:
    """List the studies with question, cost and last verdicts. Example:

    lorascope study list
    """
    import json as encoder
    import sys

    from lorascope.blocks import Column, Page, Table
    from lorascope.report import terminal
    from lorascope.study import record

    last = {each["name"]: each for each in record.all_in(reports)}
    rows = [_listed(_load(script), last.get(script.stem)) for script in _scripts(studies)]
    if json:
        print(encoder.dumps({"schema": 1, "studies": rows}, indent=2))
        return
    columns = [Column("name", "study"), Column("question", "question"), Column("scale", "last scale")]
    columns += [
        Column("runs", "runs", "int"),
        Column("hours", "hours", "float", 2),
        Column("verdicts", "last verdicts"),
    ]
    cells = tuple(tuple(row[c.key] for c in columns) for row in rows)
    sys.stdout.write(terminal.render(Page(f"{len(rows)} studies", (Table(tuple(columns), cells),))))


@study.command()
def render(
    reports_json: Annotated[list[Path], typer.Argument(metavar="REPORT.json...", help="Reports of studies.")],
) -> None:
    """Draw the pages of reports again, each beside its JSON, from that alone, and the index. Example:

    lorascope study render reports/rank_sweep.json
    """
    import sys

    from lorascope.report import html
    from lorascope.study import page, record

    pages = [(path.with_suffix(".html"), page.page(record.read(path))) for path in reports_json]
    folders = dict.fromkeys(path.parent for path in reports_json)
    pages += [(folder / "index.html", page.index(record.all_in(folder))) for folder in folders]
    for path, drawn in pages:
        html.write(drawn, path)
        print(f"wrote {path}", file=sys.stderr)


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
    from lorascope.errors import InputError
    from lorascope.study import Study, work

    found = getattr(work.script(script), "study", None)
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


def _listed(found: "Study", last: dict[str, Any] | None) -> dict[str, Any]:
    row = {"name": found.name, "question": found.question, "scale": None, "runs": None, "hours": None, "verdicts": None}
    if last is None:
        return row
    verdicts = [claim["verdict"] for claim in last["claims"]]
    counted = [f"{verdicts.count(v)} {v}" for v in ("held", "not held", "undecided") if v in verdicts]
    cost = last["cost"]
    said = {"scale": last["scale"]["name"], "runs": cost["runs"], "hours": cost["seconds_of_work"] / 3600}
    return row | said | {"verdicts": ", ".join(counted)}


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
            self.bar = tqdm(total=number, initial=done, desc=f"{self.name}: {stage}", unit="run")
            self.stage = stage
        self.bar.total, self.bar.n = number, done
        self.bar.set_postfix_str(f"{title}{f', {failed} failed' if failed else ''}")
