"""What all commands have in common: their groups in the list, `--quiet`, and options whose value may be left out.

No command itself.
"""

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from lorascope.cli import _streams as streams

GROUPS = (
    ("Inspect", ("analyze", "intruders", "activations", "trajectory", "schema")),
    ("Compare", ("compare", "delta", "dimension")),
    ("Change", ("resize", "merge", "convert", "extract")),
    ("Train", ("train", "quickstart", "methods")),
    ("Studies", ("study",)),
)
IMPLIED = {"--check": "error"}


class Command(TyperCommand):
    """A command with `--quiet`; `--check` alone is `--check=error`."""

    def __init__(self, *args: Any, **more: Any):
        super().__init__(*args, **more)
        self.params.append(_quiet_option())

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        filled = [f"{each}={IMPLIED[each]}" if each in IMPLIED else each for each in args[:end]]
        return super().parse_args(ctx, filled + args[end:])


def _quiet_option() -> Any:
    """The option `--quiet`, of the class that this version of typer has for options."""

    def quiet(ctx: Any, parameter: Any, value: bool) -> None:
        if value:
            streams.silence()

    return TyperOption(
        param_decls=["--quiet", "-q"], is_flag=True, default=False, expose_value=False, callback=quiet, is_eager=True,
        help="Print nothing but errors, and JSON where it was sent to stdout.",
    )  # fmt: skip


class Grouped(TyperGroup):
    """A group whose list of commands has headings, and whole summaries."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        names = [name for name in self.list_commands(ctx) if not getattr(self.get_command(ctx, name), "hidden", True)]
        known = {name for _, members in GROUPS for name in members}
        groups = [(title, [name for name in members if name in names]) for title, members in GROUPS]
        rest = [name for name in names if name not in known]
        width = max(map(len, names), default=0)
        for title, members in [*groups, ("More" if len(rest) < len(names) else "Commands", rest)]:
            rows = [(name.ljust(width), str(self.get_command(ctx, name).short_help or "")) for name in members]  # type: ignore[union-attr]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def exit_with(code: int) -> None:
    """End the command with this exit code, after its output."""
    raise typer.Exit(code)
