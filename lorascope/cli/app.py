"""The command line: one command, one file in this folder, and the one place where errors become a line."""

import importlib
import inspect
import pkgutil
import sys
from typing import Annotated

import typer

import lorascope
from lorascope.errors import LorascopeError, printable

app = typer.Typer(
    help="Train low-rank adapters, and see what they did to the weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(lorascope.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _register() -> None:
    """Every module of this folder with a function of its own name is a command; with a Typer of it, a group of them."""
    package = importlib.import_module("lorascope.cli")
    for module in pkgutil.iter_modules(package.__path__):
        command = getattr(importlib.import_module(f"lorascope.cli.{module.name}"), module.name, None)
        if isinstance(command, typer.Typer) and module.name != "app":
            for each in command.registered_commands:
                each.help = _help((each.callback.__doc__ if each.callback else "") or "")
            app.add_typer(command, name=module.name)
        elif callable(command) and module.name != "app":
            app.command(module.name, help=_help(command.__doc__ or ""))(command)


def _help(docstring: str) -> str:
    """The docstring as help: indented paragraphs keep their lines (a YAML file, a command)."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(f"\b\n{text}" if text.startswith("    ") else text for text in paragraphs)


def main() -> None:
    """Run a command. Exit code 2 for bad usage or input, 1 for a failure, and a traceback only for a bug of ours."""
    _register()
    try:
        app()
    except LorascopeError as error:
        fail(str(error), error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()  # the reader (head, less) has gone; that is not an error
        sys.exit(0)
    except OSError as error:
        fail(f"{error.filename or 'the system'}: {error.strerror or error}", 1)
    except MemoryError:
        fail("this needs more memory than the machine has", 1)


def fail(message: str, code: int) -> None:
    print(f"lorascope: {printable(message)}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
