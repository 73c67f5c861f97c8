"""What `tests/gpu.sh` measures on a GPU, each part a module; `python -m tests.gpu PART [--dry]` runs one."""
