"""Commands and measures with `--device cuda` give the CPU's numbers, on the simulated device of `tests/cuda.py`."""

import json
import math

import pytest

from lorascope.study.measures import finished, intruding, rank, truncation
from lorascope.training import run
from lorascope.training.config import override, parse
from tests.cli.command import here
from tests.cuda import simulated
from tests.training.tiny import classifier_values

COMMANDS = {
    "activations": ["activations", "lora", "full", "--max-samples", 4, "--samples", 20, "--modules", "self.query"],
    "delta": ["delta", "base", "full/adapter", "--modules", "layer.0"],
    "dimension": ["dimension", "full", "--draws", 1, "--modules", "layer.0.attention.self"],
    "intruders": ["intruders", "lora", "--intervene", "-k", 2, "--epsilon", 0.9, "--lambdas", "0,1", "--no-cache"],
}


@pytest.fixture(scope="module")
def runs(tiny_bert, labelled, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    short = ["training.max_steps=4", "training.measure_cost=false", "model.dropout=0"]
    values = override(classifier_values(tiny_bert, labelled), short)
    (folder / "base").symlink_to(tiny_bert)
    run.train(parse(values), folder / "lora")
    for name, seed in (("full", 0), ("full-1", 1)):
        full = {**values, "method": {"name": "full", "embeddings": False}}
        run.train(parse({**full, "training": {**full["training"], "seed": seed}}), folder / name)
    return folder


def close(ours, theirs, where="$"):
    """Equal JSON, numbers to the rounding of float32 sums in another order."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            close(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for i, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            close(one, other, f"{where}[{i}]")
    elif isinstance(theirs, float) and math.isfinite(theirs):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4), where
    else:
        assert ours == theirs, where


def svds(device):
    return device.launched["aten._linalg_svd.default"]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_gives_the_same_on_a_device(name, runs, tmp_path):
    arguments = COMMANDS[name]
    on_cpu = here(*arguments, "--device", "cpu", "--json", tmp_path / "cpu.json", cwd=runs)
    assert on_cpu.returncode == 0, on_cpu.stderr
    with simulated() as device:
        done = here(*arguments, "--device", "cuda", "--json", tmp_path / "cuda.json", cwd=runs)
    assert done.returncode == 0, done.stderr
    assert device.launched.total() > 50
    assert name != "dimension" or svds(device) == 1  # query, key and value are of one shape
    close(*(json.loads((tmp_path / f"{place}.json").read_text()) for place in ("cuda", "cpu")))


def truncated(folders):
    """Their losses; a share of the gain would divide the rounding of one by the little that so short a run gains."""
    cut = truncation.truncations(finished.opened(folders[0]))
    for k in (0, 2, cut.largest):
        yield {"k": k, "loss": cut.keep("", cut.same(k)).loss}


SHAPES = 3  # of the matrices of the tiny model: attention, and the two of an MLP
MEASURES = {  # with how many SVDs of dense matrices: of the two runs, of ΔW and what is made from it
    "spectral": (rank.spectral, ["full"], {}, SHAPES),
    "spectral of a product": (rank.spectral, ["lora"], {}, 1),
    "shared": (rank.shared, ["full", "full-1"], {"replicate": 0}, 2 * SHAPES),
    "curves": (rank.curves, ["full", "full-1"], {"replicate": 0}, 2 * SHAPES),
    "leading": (intruding.leading, ["full"], {"method": ""}, SHAPES),
    "critical": (intruding.critical, ["full"], {"method": ""}, SHAPES),
    "truncations": (truncated, ["full"], {}, SHAPES),
}


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_gives_the_same_on_a_device_in_a_call_for_each_shape(name, runs):
    function, folders, params, calls = MEASURES[name]
    folders = [runs / folder for folder in folders]
    with finished.measured_on("cpu"):
        on_cpu = list(function(folders, **params))
    with simulated() as device, finished.measured_on("cuda"):
        close(list(function(folders, **params)), on_cpu)
    assert svds(device) == calls
    assert on_cpu
