"""All singular values of a 4096 × 11008 ΔW on the GPU beside this machine's CPU: time, and how far they differ."""

import torch

from tests.gpu import lines

GOAL = 20.0  # times the CPU


def run(part: str, dry: bool) -> None:
    lines.benchmarks()
    import delta

    from lorascope.linalg import dense

    m, n = (64, 96) if dry else (4096, 11008)
    matrix = torch.from_numpy(delta.matrix_of(m, n))
    place = "cpu" if dry else "cuda"
    wait = (lambda: None) if dry else torch.cuda.synchronize
    there = matrix.to(place)
    dense.spectrum(there[:64])  # warms up
    spent, values = delta.clock(lambda: dense.spectrum(there).values, wait)
    lines.write(part, shape=[m, n], device=place, seconds=spent["wall"])
    torch.set_num_threads(2)  # the machine that the README's other figures are from has two cores
    alone, wanted = delta.clock(lambda: dense.spectrum(matrix.numpy()).values, lambda: None)
    error = float(((values.cpu() - torch.from_numpy(wanted)).abs() / torch.from_numpy(wanted)).max())
    times = {"cpu_seconds": alone["wall"], "times_faster": alone["wall"] / spent["wall"]}
    lines.write(part, shape=[m, n], **times, largest_relative_difference=error, goal=GOAL)
