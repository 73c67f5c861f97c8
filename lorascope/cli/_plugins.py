"""Commands of analyses that other packages bring. No command itself.

`lorascope NAME ADAPTER ...` runs the analysis that a package announces under the entry point NAME of the group
`lorascope.analyses`. Entry points are looked at only for a name that is no command of ours.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorascope.cli._command import Grouped
from lorascope.cli._options import Base, Check, Html, Json, Modules, Sarif, csv_of
from lorascope.cli._outputs import Outputs

if TYPE_CHECKING:
    from lorascope.analyses.base import Analysis


class Group(Grouped):
    """Our commands; and, for a name that is none of them, the analysis of a plug-in."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return super().get_command(ctx, cmd_name) or _command(cmd_name)


def _command(name: str) -> Any:
    """The command of a plug-in's analysis; None where no package announces one of that name."""
    from importlib.metadata import entry_points

    from lorascope.errors import InputError

    if not entry_points(group="lorascope.analyses", name=name):
        return None
    from lorascope.analyses.base import analyses

    try:
        analysis = analyses.get(name)
    except InputError:
        return None  # a warning has said why it is not used
    return typer.main.get_command(_app(name, analysis))


def _app(name: str, analysis: "Analysis") -> typer.Typer:
    """A command line of the analysis alone, with the options that all analyses share."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

    @app.command(name, help=analysis.question)
    def run(
        paths: Annotated[list[Path], typer.Argument(metavar="ADAPTER...", help="An adapter file or folder.")],
        base: Base = None,
        modules: Modules = None,
        html: Html = None,
        json: Json = None,
        csv: Annotated[Path | None, csv_of("row of the result")] = None,
        check: Check = None,
        sarif: Sarif = None,
    ) -> None:
        outputs = Outputs(html, json, csv, sarif, check)
        outputs.refuse([*paths, base])
        result = analysis.run(_inputs(analysis, paths, base), modules=modules)
        outputs.show(result, paths)

    return app


def _inputs(analysis: "Analysis", paths: list[Path], base: str | None) -> Any:
    """What the analysis takes: one adapter, or several.

    Raises:
        InputError: it takes something else, which only Python can give it, or one adapter and got several.
    """
    from lorascope.api import reading
    from lorascope.errors import InputError

    if analysis.takes not in ("adapter", "adapters"):
        raise InputError(f"this analysis takes {analysis.takes}: call it from Python")
    if analysis.takes == "adapter" and len(paths) != 1:
        raise InputError("this analysis takes one adapter", found=f"{len(paths)} paths")
    checkpoint = reading.opened_base(base)
    adapters = [reading.read(path, base=checkpoint) for path in paths]
    return adapters[0] if analysis.takes == "adapter" else adapters
