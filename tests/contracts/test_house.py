"""The shape of the house: imports point downward, and reading a file imports no torch."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lorascope

ROOT = Path(lorascope.__file__).parent
TESTS = Path(__file__).parents[1]
# Each room and what it may import. A room may always import itself.
GROUND = {
    "errors",
    "registry",
    "blocks",
    "inputs",
    "outputs",
    "destinations",
    "patterns",
    "locks",
    "portable",
    "architectures",
    "schema",
    "__init__",
}
ANALYSING = {"linalg", "updates", "weights", "models", "run_data", "analyses", "report"}
BELOW = {
    "linalg": GROUND,
    "updates": GROUND | {"linalg"},
    "weights": GROUND | {"linalg", "updates"},
    "models": GROUND | {"linalg", "updates", "weights"},
    "run_data": GROUND | {"linalg", "updates", "weights"},  # what passes between `training` and `analyses`
    "analyses": GROUND | {"linalg", "updates", "weights", "run_data", "report"},
    "adapt": GROUND | {"linalg", "updates", "weights", "models"},
    "methods": GROUND | {"linalg", "updates", "weights", "models", "adapt"},
    "training": GROUND | {"linalg", "updates", "weights", "models", "run_data", "adapt", "methods"},
    "report": GROUND,
    "study": GROUND | ANALYSING | {"adapt", "methods", "training"},
    "cli": GROUND | ANALYSING | {"adapt", "methods", "training", "study", "api"},
    "api": GROUND | ANALYSING | {"adapt", "methods", "training"},
    "callbacks": GROUND | ANALYSING | {"adapt", "methods", "training", "api"},
    "__main__": {"cli"},
} | dict.fromkeys(GROUND, GROUND)


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [node.module] if node.module != "lorascope" else [f"lorascope.{a.name}" for a in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("lorascope.")}
    return {room for room in rooms if (ROOT / room).is_dir() or (ROOT / f"{room}.py").exists()}


MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_downward(path):
    room = path.relative_to(ROOT).parts[0].removesuffix(".py")
    upward = imported_rooms(path) - BELOW[room] - {room}
    assert not upward, f"{path.relative_to(ROOT)} must not import {sorted(upward)}"


def dependencies() -> dict[str, set[str]]:
    """Every module, and the modules of ours that it imports, for typing only too."""
    paths = {".".join(("lorascope", *path.relative_to(ROOT).with_suffix("").parts)): path for path in MODULES}
    paths = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        imported: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                imported |= inside & paths.keys() or {str(node.module)}
        graph[name] = (imported & paths.keys()) - {name, "lorascope"}
    return graph


def test_no_files_import_each_other():
    graph = dependencies()
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise AssertionError(f"a circle of imports: {' ← '.join(error.args[1])}") from None


MARKS = re.compile(r"#\s*(noqa|type:|fmt:|ruff:|mypy:|pragma|pylint|nosec)")  # what a tool reads, and no reason


def reason_given(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> str:
    """The comments on the signature's own lines, from `def` to its colon, without those that are for tools."""
    depth, last, reasons = 0, None, []
    source = "\n".join(lines[node.lineno - 1 : node.end_lineno]) + "\n"
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if last is not None and token.start[0] > last:
            break
        if token.type == tokenize.COMMENT and not MARKS.match(token.string):
            reasons.append(token.string.lstrip("# "))
        if token.type == tokenize.OP and last is None:
            depth += (token.string in "([{") - (token.string in ")]}")
            last = token.start[0] if token.string == ":" and not depth else None
    return " ".join(reasons)


def oversized(text: str) -> list[str]:
    """The functions with more than 50 lines or 8 parameters that give no reason."""
    lines, found = text.splitlines(), []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            taken = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            parameters = len([name for name in taken if name not in ("self", "cls")])
            length = (node.end_lineno or 0) - node.lineno + 1
            if (length > 50 or parameters > 8) and not reason_given(node, lines):
                found.append(f"{node.name} has {length} lines, {parameters} parameters")
    return found


SIZED = sorted((*MODULES, *TESTS.rglob("*.py")))


@pytest.mark.parametrize("path", SIZED, ids=lambda p: str(p.relative_to(ROOT.parent)))
def test_files_and_functions_have_a_size(path):
    """450 lines a file; 50 lines and 8 parameters a function, but where a comment in its signature says why."""
    text = path.read_text()
    assert len(text.splitlines()) <= 450, f"{len(text.splitlines())} lines: look for the seam"
    assert not oversized(text)


@pytest.mark.parametrize(
    ("signature", "reason"),
    [
        ("def f(  # one for each option\n    x,\n):", "one for each option"),
        ("def f(\n    x: int = 1,  # of the paper\n) -> dict[str, int]:", "of the paper"),
        ("def f(x):  # noqa: PLR0915\n    # below the colon", ""),
        ("def f(x='#', y={'a': '# b'}):", ""),
        ("def f(x):  # type: ignore", ""),
        ("def f(x):\n    # a comment of the body", ""),
    ],
)
def test_a_reason_is_a_comment_in_the_signature(signature, reason):
    text = signature + "\n    'what it does # with a mark'\n" + "    y = 1\n" * 50
    (node,) = ast.parse(text).body
    assert reason_given(node, text.splitlines()) == reason
    assert bool(oversized(text)) == (not reason)


def test_eight_parameters_are_enough():
    assert not oversized("def f(self, a, b, c, d, /, e, *, f, g, h): pass")
    assert oversized("def f(a, b, c, d, /, e, *, f, g, h, i): pass")


def commands() -> list[tuple[str, ast.FunctionDef]]:
    """Every command, by its file and name: the function that has its file's name, and those that `study` registers."""
    named = []
    for path in sorted((ROOT / "cli").glob("[!_]*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and (node.name == path.stem or node.decorator_list):
                named.append((f"{path.stem}.{node.name}", node))
    return [each for each in named if not each[0].startswith("app.")]


COMMANDS = dict(commands())


def test_all_commands_are_looked_at():
    assert {"analyze.analyze", "dimension.dimension", "study.run", "study.list_"} <= COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_short(name):
    """40 lines of code at most, without its options and its help, which are as long as there is to say."""
    _, *body = COMMANDS[name].body  # the first is the docstring
    assert body[-1].end_lineno - body[0].lineno + 1 <= 40, "what it does belongs in the room that it is about"


def loaded_by(*arguments: str) -> set[str]:
    """The top-level modules that a command loads."""
    code = (
        "import sys, io, contextlib\n"
        "from lorascope.cli.app import main\n"
        f"sys.argv = ['lorascope', *{list(arguments)!r}]\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    with contextlib.suppress(SystemExit):\n"
        "        main()\n"
        "print(' '.join({name.split('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {"torch", "transformers", "scipy", "pandas", "matplotlib", "seaborn", "sklearn", "datasets"}


def test_help_imports_nothing_heavy():
    assert not loaded_by("--help") & (HEAVY | {"numpy"})


def test_analyze_on_a_cpu_imports_no_torch(lora_folder):
    loaded = loaded_by("analyze", str(lora_folder), "--json", "-")
    assert "numpy" in loaded
    assert not loaded & HEAVY


def test_every_command_has_help_with_an_example():
    import typer

    from lorascope.cli import app

    app._register()
    commands = named_commands(typer.main.get_command(app.app), "lorascope")
    assert {"lorascope analyze", "lorascope study", "lorascope study run"} <= set(commands)
    for name, command in commands.items():
        assert name in (command.help or ""), f"{name} shows no example"
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help, f"{name} {parameter.opts[0]} has no help"


def named_commands(group, name: str) -> dict:
    """Every command and every group under this one, by what is typed."""
    found = {}
    for own, command in group.commands.items():
        found[f"{name} {own}"] = command
        if hasattr(command, "commands"):
            found |= named_commands(command, f"{name} {own}")
    return found
