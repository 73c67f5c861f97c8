"""The registries: built-in members, and those of other packages, found by entry points."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import lorascope
from lorascope.errors import InputError

KIND = '''
"""ΔW = s·u vᵀ."""

from lorascope.linalg.factored import Factored
from lorascope.updates.base import Kind, Role, kinds


class RankOne(Kind):
    name = "toy_rank_one"
    formula = "ΔW = s·u·vᵀ"
    roles = {"u": Role(("d_out",), "outputs"), "v": Role(("d_in",), "inputs")}

    def delta(self, roles, scale=1.0, base=None):
        return Factored(roles["u"][:, None] * scale, roles["v"][None, :])

    def rank(self, shapes):
        return 1


kinds.register("toy_rank_one")(RankOne())
'''
FORMAT = '''
"""module.u and module.v."""

from lorascope.updates.base import Update
from lorascope.weights.formats.base import Format, Parsed, formats
from lorascope.weights.formats.key_groups import by_module


class Toy(Format):
    name = "toy"
    about = "a toy's"

    def claims(self, bundle):
        return bundle.metadata.get("format") == "toy"

    def read(self, bundle, ledger, base=None):
        groups = by_module(bundle.tensors, ("u", "v"))
        updates = {
            name: Update(name, "toy_rank_one", {role: group.take(ledger, role) for role in "uv"}, scale=2.0)
            for name, group in groups.items()
        }
        return Parsed(updates, "Toy")


formats.register("toy")(Toy())
'''
METHOD = '''
"""Toy: LoRA by another name."""

from lorascope.adapt.method import methods
from lorascope.methods.lora import LoRA


@methods.register("toy-lora")
class ToyLoRA(LoRA):
    """Trains what LoRA trains."""

    name, paper = "toy-lora", "Toy 2026"
'''
ANALYSIS = '''
"""How large are the updates? The Frobenius norm of each. It misleads where scales differ."""

from dataclasses import dataclass

from lorascope.analyses.base import Analysis, Result, analyses
from lorascope.blocks import Text
from lorascope.errors import InputError
from lorascope.patterns import Pattern


@dataclass(frozen=True, repr=False)
class Norms(Result):
    analysis = "toy_norms"
    rows: tuple = ()
    skipped: tuple = ()

    def summary(self):
        return {"modules": len(self.rows)}

    def record(self):
        return {"modules": list(self.rows)}


def run(adapter, *, modules=None):
    rows = [{"name": u.name, "norm": u.delta().frobenius_norm()} for u in adapter.updates.values()]
    return Norms(tuple(rows))


def blocks(result):
    return (Text(f"{len(result.rows)} norms measured by a toy"),)


analyses.register("toy_norms")(
    Analysis(__doc__, "adapter", run, lambda result: (), blocks, lambda result: ("Norms", "of a toy"), "toy_norms")
)
'''
ENTRY_POINTS = """
[lorascope.updates]
toy_rank_one = lorascope_toy.kind
[lorascope.formats]
toy = lorascope_toy.format
[lorascope.methods]
toy-lora = lorascope_toy.method
[lorascope.analyses]
toy_norms = lorascope_toy.analysis
"""
LOADED = "import sys; print([name for name in sys.modules if name.startswith('lorascope_toy')])"


def install(site: Path, package: str, files: dict[str, str], entry_points: str) -> Path:
    """What `pip install --target` leaves of a distribution without code to build."""
    (site / package).mkdir(parents=True)
    for name, text in {"__init__": "", **files}.items():
        (site / package / f"{name}.py").write_text(textwrap.dedent(text))
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(entry_points)
    return site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with an installed distribution that brings a kind, a format, a method and an analysis."""
    files = {"kind": KIND, "format": FORMAT, "method": METHOD, "analysis": ANALYSIS}
    return install(tmp_path_factory.mktemp("site"), "lorascope_toy", files, ENTRY_POINTS)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "toy.safetensors"
    tensors = {"q.u": np.array([3.0, 4.0], np.float32), "q.v": np.array([1.0, 0.0, 0.0], np.float32)}
    save_file(tensors, path, {"format": "toy"})
    return path


def python(*arguments: str, site: Path) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(site), str(Path(lorascope.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)


def test_the_command_line_reads_a_plugins_format_and_kind(site, adapter):
    done = python("-m", "lorascope", "analyze", str(adapter), "--json", "-", site=site)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    record = json.loads(done.stdout)
    assert record["source"]["format"] == "toy"
    [module] = record["modules"]
    assert module["kind"] == "toy_rank_one"
    assert module["frobenius_norm"] == pytest.approx(10.0)


def test_the_command_line_runs_a_plugins_analysis(site, adapter):
    done = python("-m", "lorascope", "toy_norms", str(adapter), "--json", "-", site=site)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["modules"] == [{"name": "q", "norm": pytest.approx(10.0)}]
    shown = python("-m", "lorascope", "toy_norms", str(adapter), site=site)
    assert "1 norms measured by a toy" in shown.stdout
    help = python("-m", "lorascope", "toy_norms", "--help", site=site)
    assert "How large are the updates?" in help.stdout


def test_the_command_line_lists_a_plugins_method(site):
    done = python("-m", "lorascope", "methods", "toy-lora", site=site)
    assert done.returncode == 0, done.stderr
    assert "Toy 2026" in done.stdout


def test_plugins_are_not_loaded_where_nobody_needs_them(site, lora_folder):
    for arguments in (["--help"], ["analyze", str(lora_folder)], ["methods", "lora"]):
        code = f"from lorascope.cli.app import main; import sys; sys.argv[1:] = {arguments!r}\ntry: main()\n"
        code += f"except SystemExit: pass\n{LOADED}"
        done = python("-c", code, site=site)
        assert done.stdout.splitlines()[-1] == "[]", done.stderr


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("import a_module_that_nobody_has", "ModuleNotFoundError: No module named 'a_module_that_nobody_has'"),
        (
            FORMAT.replace("toy", "kohya"),
            "the format 'kohya' of lorascope_broken.format has the name of one of lorascope.weights.formats.kohya",
        ),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("", "it registers no format"),
    ],
    ids=["import", "built-in name", "exit", "nothing registered"],
)
def test_a_broken_plugin_is_one_warning_and_breaks_nothing(module, why, adapter, lora_folder, tmp_path):
    site = install(
        tmp_path, "lorascope_broken", {"format": module}, "[lorascope.formats]\nbroken = lorascope_broken.format\n"
    )
    done = python("-m", "lorascope", "analyze", str(adapter), site=site)
    assert done.returncode == 2
    warning, error = done.stderr.splitlines()
    assert warning == f"warning: the plug-in 'broken' of lorascope-broken is not used: {why}"
    assert "has an unknown adapter format" in error
    assert "kohya" in error
    assert python("-m", "lorascope", "analyze", str(lora_folder), site=site).returncode == 0


def test_a_broken_plugin_leaves_nothing_behind(tmp_path):
    kind = KIND + "\nraise RuntimeError('halfway')\n"
    site = install(tmp_path, "lorascope_half", {"kind": kind}, "[lorascope.updates]\nhalf = lorascope_half.kind\n")
    code = "from lorascope.updates.base import kinds; print(kinds.names()); print(kinds.names())"
    done = python("-W", "always", "-c", code, site=site)
    assert done.returncode == 0
    assert "toy_rank_one" not in done.stdout
    assert "low_rank" in done.stdout
    assert done.stderr.count("'half' of lorascope-half is not used: RuntimeError: halfway") == 1


def test_a_name_alone_imports_its_own_module_alone():
    code = (
        "import sys; from lorascope.updates.base import kinds; kinds.get('vera');"
        "print(sorted(name for name in sys.modules if name.startswith('lorascope.updates.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['lorascope.updates.base', 'lorascope.updates.vera']"


def test_a_near_name_is_suggested():
    from lorascope.updates.base import kinds

    with pytest.raises(InputError, match="did you mean 'low_rank'"):
        kinds.get("low_rnk")
    with pytest.raises(InputError, match="there is no kind of update named"):
        kinds.get("../base")


def test_a_name_has_one_owner():
    from lorascope.updates.base import kinds

    with pytest.raises(ValueError, match=r"'vera' of tests\.ground\.test_registry has the name of one of lorascope"):
        kinds.register("vera")(object())
