"""Config, data, packaged assets, the only training loop, and the record of a run."""
