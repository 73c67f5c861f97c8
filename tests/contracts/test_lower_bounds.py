"""The oldest versions that pyproject.toml allows: adapters are read, analysed, trained, merged.

torch is this environment's, for old builds for a CPU are not on the package index, unless OLDEST_TORCH=1 asks for its
lower bound, too: that takes 6 GB of CUDA, and is done before the bound is changed.
"""

import os
import subprocess
import tomllib
import venv
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SMOKE = "cli/test_quickstart.py cli/test_merge.py cli/test_train.py training/test_loop.py linalg/test_subspace.py"


def oldest(project: dict) -> dict[str, str]:
    """Each required package with its lowest version."""
    required = [*project["dependencies"], *project["optional-dependencies"].get("train", ())]
    bounds = {}
    for text in required:
        requirement = Requirement(text)
        (lower,) = (each.version for each in requirement.specifier if each.operator == ">=")
        bounds[requirement.name] = lower
    return bounds


def test_every_dependency_has_a_lower_bound():
    assert {"numpy", "torch", "transformers"} <= oldest(PROJECT).keys()


@pytest.mark.slow
def test_the_oldest_versions_do_the_main_things(tmp_path):
    bounds = oldest(PROJECT)
    if os.environ.get("OLDEST_TORCH") != "1":
        bounds["torch"] = version("torch")
    (tmp_path / "oldest.txt").write_text("".join(f"{name}=={bound}\n" for name, bound in bounds.items()))
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"

    def run(*command, **more):
        done = subprocess.run(
            [python, "-m", *command], capture_output=True, text=True, check=False, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)}, **more,
        )  # fmt: skip
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        return done.stdout

    seconds = 900 if bounds["torch"] == version("torch") else 3600
    run("pip", "install", "--quiet", "--constraint", tmp_path / "oldest.txt", *bounds, "pytest", timeout=seconds)
    listed = dict(line.split("==") for line in run("pip", "freeze").splitlines() if "==" in line)
    assert listed["numpy"].startswith(bounds["numpy"])
    tests = [f"tests/{each}" for each in SMOKE.split()]
    run("pytest", "-o", "addopts=", "-q", "-m", "not slow and not gpu", "-p", "no:cacheprovider", *tests)
