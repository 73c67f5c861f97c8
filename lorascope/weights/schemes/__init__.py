"""Which tensors of a quantised checkpoint make a weight: one file for each family of schemes."""
