"""CPU threads: how many, and how they wait. Torch-free, because the second is read when torch is loaded."""

import os


def wait_patiently() -> None:
    """Let OpenMP's threads sleep while they wait for each other; call it before torch is first imported.

    By default they spin. On an idle machine that gains little; beside another busy process it costs a factor: a step of
    MiniLM on two threads went from 0.4 s to 4 s (2 cores, load 3), and stayed at 0.4 s with sleeping threads.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def usable_cores() -> int:
    """Cores this process may use: its affinity, and the container's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max") as file:
            quota, period = file.read().split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max"
        return cores
