"""The command line: one command, one file in this folder, and the one place where errors become a line."""

import atexit
import contextlib
import gc
import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from typing import Annotated, NoReturn, TextIO

import typer

import lorascope
from lorascope.cli import _streams as streams
from lorascope.cli._command import Command
from lorascope.cli._plugins import Group
from lorascope.errors import TRAIN, LorascopeError, needs_train, printable
from lorascope.registry import PluginWarning

MAX_SUMMARY = 60  # characters of a command's line in a terminal of 80 columns

app = typer.Typer(
    cls=Group,
    help="Analyse, compare and train LoRA-style adapters.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(requested: bool) -> None:
    if requested:
        typer.echo(lorascope.__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _register(name: str | None = None) -> None:
    """Every module of this folder with a function of its own name is a command; with a Typer of it, a group of them.

    Args:
        name: register this command alone, where it is one: the others are then not imported, nor their options made.
    """
    there = {each.name for each in app.registered_commands} | {each.name for each in app.registered_groups}
    modules = [each.name for each in pkgutil.iter_modules(importlib.import_module("lorascope.cli").__path__)]
    commands = [each for each in modules if not each.startswith("_") and each != "app"]
    for each in [name] if name in commands else commands:
        if each not in there:  # a process may run more than one command
            _add(each)


def _add(name: str) -> None:
    command = getattr(importlib.import_module(f"lorascope.cli.{name}"), name, None)
    if isinstance(command, typer.Typer):
        for subcommand in command.registered_commands:
            docstring = (subcommand.callback.__doc__ if subcommand.callback else None) or ""
            subcommand.cls = Command
            subcommand.help, subcommand.short_help = _help(docstring), _summary(docstring)
        app.add_typer(command, name=name, short_help=_summary(str(command.info.help)))
    elif callable(command):
        docstring = command.__doc__ or ""
        app.command(name, cls=Command, help=_help(docstring), short_help=_summary(docstring))(command)


def _help(docstring: str) -> str:
    """The docstring as help: indented paragraphs keep their lines (a YAML file, a command)."""
    paragraphs = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(f"\b\n{text}" if text.startswith("    ") else text for text in paragraphs)


def _summary(docstring: str) -> str:
    """The first sentence, for the list of commands; where that is too long, up to its colon, semicolon or bracket."""
    first = " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())
    sentence = re.split(r"(?<=[^.])\.(?= |$)", first)[0]
    if len(sentence) <= MAX_SUMMARY:
        return sentence
    ends = [match.start() for match in re.finditer(r" \(|[:;] ", sentence)]
    return sentence[: max((end for end in ends if end <= MAX_SUMMARY), default=len(sentence))]


def main() -> None:
    """Run a command. Exit code 2 for bad usage or input, 1 for a failure, and a traceback only for a bug of ours."""
    streams.prepare()
    atexit.register(gc.freeze)  # memory goes back as a whole: no last look for cycles, which costs a tenth of a command
    # What is not finite is null, "not known" or ∞ in the output; numpy's remark on it would be one line of our code.
    warnings.filterwarnings("ignore", category=RuntimeWarning, module=r"(lorascope|numpy|scipy)\b")
    warnings.showwarning = _show_warning
    _register(sys.argv[1] if len(sys.argv) > 1 else None)
    try:
        try:
            code = app(prog_name="lorascope", standalone_mode=False)
        finally:
            streams.real_stdout().flush()  # here, where a full disk or a reader that has gone is still ours to say
            streams.speak()
        if isinstance(code, int) and code:
            sys.exit(code)
    except LorascopeError as error:
        fail(error.sentence, error.exit_code, error.hint)
    except ModuleNotFoundError as error:
        if error.name not in TRAIN:
            raise
        missing = needs_train(error.name)
        fail(missing.sentence, missing.exit_code, missing.hint)
    except BrokenPipeError:
        streams.drop()  # the reader (head, less) has gone; that is not an error
        sys.exit(0)
    except UnicodeEncodeError as error:
        fail(f"a name holds half a character: {error.object[:200]!r}", 2)
    except OSError as error:
        streams.drop()
        fail(f"{error.filename or 'the output'}: {error.strerror or error}", 1)
    except MemoryError:
        fail("this needs more memory than the machine has", 1)
    except Exception as error:
        _usage(error)
        raise


def _usage(error: Exception) -> None:
    """Say what is wrong with the command line; nothing for other errors. Old versions of typer use click's classes, new
    ones classes of their own, so that they are told by what they have."""
    kind = type(error).__name__
    if kind == "Abort":
        sys.exit(1)
    if not hasattr(error, "format_message") or not hasattr(error, "exit_code"):
        return
    if kind == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
        sys.exit(error.exit_code)
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "lorascope"
    fail(error.format_message(), error.exit_code, f"{path} --help lists what it takes")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """As Python shows a warning; of a plug-in that is not used, one line without our file and code."""
    if issubclass(category, PluginWarning):
        text = f"warning: {printable(str(message))}\n"
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
    with contextlib.suppress(OSError):
        (file or sys.stderr).write(text)


def fail(message: str, code: int, hint: str | None = None) -> NoReturn:
    """One line that says what is wrong, one that says what to do, and the exit code."""
    from lorascope.report.terminal import wants_color  # not for `--help`

    with contextlib.suppress(OSError):
        red = wants_color(sys.stderr)
        mark, advice = ("\x1b[1;31merror:\x1b[0m", "\x1b[1;36mhint:\x1b[0m") if red else ("error:", "hint:")
        print(f"{mark} {printable(message)}", file=sys.stderr, flush=True)
        if hint:
            print(f"{advice} {printable(hint.rstrip('.'))}.", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
