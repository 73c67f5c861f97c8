"""What the commands that analyse write: JSON (to a file, or - for stdout), CSV, and the page. No command itself."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli import _streams as streams
from lorascope.cli._command import exit_with
from lorascope.destinations import STDOUT, check_outputs

if TYPE_CHECKING:
    from lorascope.analyses.base import Result
    from lorascope.blocks import Finding, Page


def to_file(help: str, metavar: str = "FILE") -> Any:
    """An option for something that is written: whether it could be read does not matter."""
    return typer.Option(metavar=metavar, readable=False, help=help)


Html = Annotated[Path | None, to_file("Write one self-contained HTML page.")]
Json = Annotated[Path | None, to_file("Write JSON; use - for stdout (suppresses the text report).", "FILE|-")]


def check(
    inputs: Iterable[Path | str | None],
    *,
    html: Path | None,
    json: Path | None,
    csv: Path | None,
    output: Path | None = None,
    sarif: Path | None = None,
) -> None:
    """Refuse, before any work is done, outputs that cannot be written or would replace an input or each other.

    Raises:
        InputError: as of `destinations.check_outputs`.
    """
    named = [Path(each) for each in inputs if each is not None]
    check_outputs({"--html": html, "--json": json, "--csv": csv, "--sarif": sarif}, [*named, *_data_of(named)], output)


def _data_of(folders: Iterable[Path]) -> list[str]:
    """The files that the runs among these folders were trained on, which are read again to evaluate them."""
    from lorascope.errors import LorascopeError
    from lorascope.inputs import read_yaml

    paths = []
    for folder in folders:
        path = next((at / "config.yaml" for at in (folder, folder.parent) if (at / "config.yaml").is_file()), None)
        try:
            data = read_yaml(path).get("data") if path else None
        except LorascopeError:
            continue  # the command says what is wrong with it
        named = [data.get("path"), data.get("eval_path")] if isinstance(data, dict) else []
        paths += [each for each in named if isinstance(each, str)]
    return paths


def show(result: "Result", *, html: Path | None, json: Path | None, csv: Path | None, **options: Any) -> None:
    """Print the summary of a result, unless JSON goes to stdout, and write what was named. `options`: of its page."""
    import sys

    page = result.page(command=["lorascope", *sys.argv[1:]], **options)
    if str(json) != STDOUT:
        from lorascope.report import terminal

        sys.stdout.write(terminal.render(page))
    write_outputs(page, result.to_json, result.flat_rows, html=html, json=json, csv=csv)


def end_with_check(check: str | None, findings: "Iterable[Finding]") -> None:
    """Exit with 1 where `--check` asks for it and a finding is as bad as that.

    Raises:
        InputError: `check` is another word.
    """
    bad = severities_of(check)
    if any(finding.severity in bad for finding in findings):
        exit_with(1)


def severities_of(check: str | None) -> tuple[str, ...]:
    """What `--check` fails on. InputError for another word than error and warning."""
    from lorascope.errors import InputError

    known = {None: (), "error": ("error",), "warning": ("error", "warning")}
    if check not in known:
        raise InputError(f"--check={check} is not supported", expected="--check, --check=error or --check=warning")
    return known[check]


def write_sarif(path: Path | None, found: "Sequence[tuple[str, Sequence[Finding]]]") -> None:
    """The findings of each input by its path, as SARIF, where a file is named."""
    import sys

    if path is None:
        return
    from lorascope.analyses.sarif import sarif
    from lorascope.outputs import json_text, write_text

    write_text(path, json_text(sarif(found), ensure_ascii=True, indent=1) + "\n")
    if not streams.is_quiet():
        print(f"wrote {path}", file=sys.stderr)


def write_outputs(
    page: "Page",
    record: Callable[[], Mapping[str, Any]],
    rows: Callable[[], Sequence[Mapping[str, Any]]],
    *,
    html: Path | None,
    json: Path | None,
    csv: Path | None,
) -> None:
    """Write what was asked for, each file whole or not at all, and name it on stderr. `record` and `rows` are made
    only where they are wanted."""
    import os
    import sys

    from lorascope.errors import LorascopeError
    from lorascope.outputs import csv_text, json_text, write_text

    written = []
    if json is not None:
        text = json_text(record(), ensure_ascii=True) + "\n"
        if str(json) == STDOUT:
            if getattr(streams.real_stdout(), "name", None) == os.devnull:  # as `_streams.prepare` opened it
                raise LorascopeError("--json - writes to stdout, which is closed", hint="name a file")
            streams.real_stdout().write(text)
        else:
            write_text(json, text)
            written.append(json)
    if csv is not None:
        write_text(csv, csv_text(rows()))
        written.append(csv)
    if html is not None:
        from lorascope.report import html as pages

        pages.write(page, html)
        written.append(html)
    for path in () if streams.is_quiet() else written:
        print(f"wrote {path}", file=sys.stderr)
