"""`tests/gpu.sh` on a machine without a GPU: what would run on one, on the CPU with tiny sizes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu import delta, lines

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["tests", "lora", "sweep", "methods", "delta", "signs", "study"]


def run(*arguments, out) -> subprocess.CompletedProcess:
    command = ["bash", ROOT / "tests" / "gpu.sh", *arguments]
    env = os.environ | {"OUT": str(out), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)


def written(out) -> list[dict]:
    return [json.loads(line) for line in (out / "gpu.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("module", "part"), [(delta, "delta")])
def test_a_part_writes_its_lines(module, part, tmp_path, monkeypatch):
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(sys, "path", [*sys.path])
    module.run(part, dry=True)
    found = written(tmp_path)
    assert {line["part"] for line in found} == {part}
    assert not [line for line in found if "failed" in line]
    if part == "delta":  # `dense.spectrum` promises this of the upper half of the values; here it is of all
        assert found[-1]["largest_relative_difference"] < 1e-6
    else:
        assert [line["row"] for line in found] == ["floor", "peft", "lorascope"]
        assert found[-1]["gradient_to_peft"] < 0.02  # bfloat16 rounds to 2⁻⁹


def test_the_count_of_bytes_is_the_closed_form(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(lines.BENCHMARKS), *sys.path])
    import traffic

    n, m, k = traffic.TOKENS, 4096, 11008
    # forward x, W → y; backward g, W → dx; all in bfloat16
    assert traffic.count(traffic.floor, m, k).bytes == 2 * 2 * (n * m + n * k + m * k)
    counted = traffic.count(traffic.ours, m, k).bytes
    # besides: x → h and h, B, y → y; g → dh and dh, A, dx → dx; dh, x → dA and h, g → dB
    large = 2 * 2 * (n * m + n * k + m * k) + 2 * (n * m + 2 * n * k) + 2 * (n * k + 2 * n * m) + 2 * (n * m + n * k)
    assert large < counted < large * 1.02  # and what is of size n·r or r·(m + k)
    assert counted > traffic.GOAL * traffic.one_kernel(m, k)


def test_what_is_not_known_is_refused(tmp_path):
    assert run("--fast", out=tmp_path).returncode == 2
    done = run("--dry", "--parts", "delta,nothing", out=tmp_path)
    assert (done.returncode, "no part nothing" in done.stderr) == (2, True)
    assert not (tmp_path / "gpu.jsonl").exists()


@pytest.mark.slow
def test_every_part_runs_through(tmp_path):
    done = run("--dry", out=tmp_path)
    assert done.returncode == 0, done.stderr
    found = written(tmp_path)
    ended = {line["part"]: line["ended"] for line in found if "ended" in line}
    assert ended == dict.fromkeys(PARTS, 0)
    # 8 minutes: `study`, the last, has what the others leave, and 45 s at least
    assert sum(line["limit"] for line in found if "limit" in line and line["part"] != "study") + 45 <= 480
    assert not [line for line in found if "failed" in line]
    assert {line["part"] for line in found if "ended" not in line} == {"machine", *PARTS} - {"tests"}
