"""CPU threads: how many, and how they wait. Torch-free, because the second is read when torch is loaded."""

import os


def limit_omp_spin() -> None:
    """Let OpenMP's threads spin briefly, then sleep, while they wait; call it before torch is first imported.

    By default they spin for milliseconds. Beside another busy process that costs a factor: a step of MiniLM on two
    threads went from 0.4 s to 4 s (2 cores, load 3). Sleeping at once costs a third of a step on an idle machine.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def usable_cores() -> int:
    """Cores this process may use: its affinity, and the container's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        return cores
