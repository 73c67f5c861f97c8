"""Trained weights on disk and in memory: adapters in any dialect, and full checkpoints read tensor by tensor."""
