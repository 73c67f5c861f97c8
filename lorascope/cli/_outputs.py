"""What the commands that analyse write: JSON (to a file, or - for stdout), CSV, and the page. No command itself."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli import _streams as streams
from lorascope.cli._command import exit_with
from lorascope.destinations import STDOUT, check_outputs

if TYPE_CHECKING:
    from lorascope.analyses.base import Result
    from lorascope.analyses.sarif import Found
    from lorascope.blocks import Page


def to_file(help: str, metavar: str = "FILE") -> Any:
    """An option for something that is written: whether it could be read does not matter."""
    return typer.Option(metavar=metavar, readable=False, help=help)


Html = Annotated[Path | None, to_file("Write one self-contained HTML page.")]
Json = Annotated[Path | None, to_file("Write JSON; use - for stdout (suppresses the text report).", "FILE|-")]


@dataclass(frozen=True)
class Outputs:
    """What a command is to write with its result, and whether findings make it fail: its shared options, as given.

    Attributes:
        check: the severity on which `--check` fails; None where it was not given.

    Raises:
        InputError: `check` is another word than error and warning.
    """

    html: Path | None = None
    json: Path | None = None
    csv: Path | None = None
    sarif: Path | None = None
    check: str | None = None

    def __post_init__(self) -> None:
        self._failing()

    def refuse(self, inputs: Iterable[Path | str | None], folder: Path | None = None) -> None:
        """Refuse, before any work is done, files that cannot be written or would replace an input or each other.

        Raises:
            InputError: as of `destinations.check_outputs`.
        """
        named = [Path(each) for each in inputs if each is not None]
        files = {"--html": self.html, "--json": self.json, "--csv": self.csv, "--sarif": self.sarif}
        check_outputs(files, [*named, *_data_of(named)], folder)

    def show(self, result: "Result", inputs: Sequence[Path | str], **options: Any) -> None:
        """Print the summary of a result, write what was named, and end. `options`: of its page."""
        import sys

        page = result.page(command=["lorascope", *sys.argv[1:]], **options)
        found = [([str(each) for each in inputs], result.findings)]
        self.write(page, result.to_json, result.flat_rows, found)
        self.end(found)

    def write(
        self,
        page: "Page",
        record: Callable[[], Mapping[str, Any]],
        rows: Callable[[], Sequence[Mapping[str, Any]]],
        found: "Sequence[Found]",
    ) -> None:
        """Print the page's summary, unless JSON goes to stdout, and write what was named, each file whole or not at
        all. `record` and `rows` are made only where they are wanted; `found`: of SARIF."""
        import sys

        from lorascope.outputs import csv_text, json_text, write_text

        if str(self.json) != STDOUT:
            from lorascope.report import terminal

            sys.stdout.write(terminal.render(page))
        if self.json is not None:
            _write_json(self.json, json_text(record(), ensure_ascii=True) + "\n")
        if self.csv is not None:
            write_text(self.csv, csv_text(rows()))
            _say(self.csv)
        if self.html is not None:
            from lorascope.report import html as pages

            pages.write(page, self.html)
            _say(self.html)
        if self.sarif is not None:
            from lorascope.analyses.sarif import sarif

            write_text(self.sarif, json_text(sarif(found), ensure_ascii=True, indent=1) + "\n")
            _say(self.sarif)

    def end(self, found: "Sequence[Found]") -> None:
        """Exit with 1 where `--check` asks for it and a finding is as bad as that."""
        if any(finding.severity in self._failing() for _, findings in found for finding in findings):
            exit_with(1)

    def _failing(self) -> tuple[str, ...]:
        from lorascope.errors import InputError

        known = {None: (), "error": ("error",), "warning": ("error", "warning")}
        if self.check not in known:
            raise InputError(
                f"--check={self.check} is not supported", expected="--check, --check=error or --check=warning"
            )
        return known[self.check]


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


def _write_json(path: Path, text: str) -> None:
    import os

    from lorascope.errors import LorascopeError
    from lorascope.outputs import write_text

    if str(path) != STDOUT:
        write_text(path, text)
        _say(path)
        return
    if getattr(streams.real_stdout(), "name", None) == os.devnull:  # as `_streams.prepare` opened it
        raise LorascopeError("--json - writes to stdout, which is closed", hint="name a file")
    streams.real_stdout().write(text)


def _say(path: Path) -> None:
    import sys

    if not streams.is_quiet():
        print(f"wrote {path}", file=sys.stderr)
