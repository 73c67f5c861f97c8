"""Two gloo processes on the CPU, started by torchrun, against one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lorascope.errors import InputError
from lorascope.training.config import override, parse, resolved
from lorascope.training.parallel import pick_device
from lorascope.training.threads import usable_cores
from tests.training import two_processes
from tests.training.tiny import classifier_values, lm_values

SCRIPT = Path(two_processes.__file__)
# Adam divides by |g| + ε: some gradients of the base's own parameters are zero but for rounding (a key's bias)
SETTINGS = ("training.max_steps=3", "optim.max_grad_norm=0.1", "optim.adam_epsilon=1e-3")


CASES = ("classifier-fsdp", "language_model-ddp", "language_model-fsdp", "full-ddp", "random_subspace-ddp")


@pytest.fixture(scope="module")
def results(request, tmp_path_factory, tiny_bert, tiny_llama, labelled, plain_text):
    """What one process and two found for each case. The two share each step that the one takes in two passes."""
    makers = {"classifier": classifier_values(tiny_bert, labelled), "language_model": lm_values(tiny_llama, plain_text)}
    makers["classifier"]["method"]["dropout"] = 0.0
    makers["full"] = makers["classifier"] | {"method": {"name": "full"}}
    makers["random_subspace"] = makers["language_model"] | {"method": {"name": "random_subspace", "d": 50}}
    folders = {size: tmp_path_factory.mktemp(f"processes-{size}") for size in (1, 2)}
    for case in CASES:
        task, parallel = case.split("-")
        for size, more in ((1, "training.gradient_accumulation_steps=2"), (2, f"training.parallel={parallel}")):
            config = parse(override(makers[task], [*SETTINGS, more]))
            (folders[size] / f"{case}.yaml").write_text(yaml.safe_dump(resolved(config)))
    two_processes.main(folders[1])
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.training.two_processes", str(folders[2])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=SCRIPT.parents[2])
    assert done.returncode == 0, done.stderr[-2000:]
    return {
        case: [torch.load(folders[size] / f"{case}.{size}.{rank}.pt") for size, rank in ((1, 0), (2, 0), (2, 1))]
        for case in CASES
    }


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_gradients_of_one(results, case):
    one, first, second = results[case]
    assert (first["size"], second["size"]) == (2, 2)
    for name, gradient in one["gradients"].items():
        # float32, summed over processes in place of passes: a few units in the last place of the largest entry
        torch.testing.assert_close(first["gradients"][name], gradient, rtol=1e-5, atol=1e-6, msg=name)
        assert torch.equal(first["gradients"][name], second["gradients"][name])
    for name, tensor in one["adapter"].items():
        torch.testing.assert_close(first["adapter"][name], tensor, rtol=1e-4, atol=1e-5, msg=name)  # after 3 Adam steps
        assert torch.equal(first["adapter"][name], second["adapter"][name])
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], rel=1e-5)
    if case.endswith("fsdp"):
        assert first["held"] < 0.7  # about half the base, and the whole small adapter


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(InputError, match="expected auto, cpu, cuda or cuda:N"):
        pick_device("gpu")
    with pytest.raises(InputError, match="cuda:99 was asked for and is not there"):
        pick_device("cuda:99")
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda")
    assert usable_cores() >= 1
