"""How an update is trained: one method, one file, on a kind of update from `updates/`."""
