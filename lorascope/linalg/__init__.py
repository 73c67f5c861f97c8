"""Arrays in, arrays out: no adapters, no models.

The same functions take numpy arrays (the CPU path; reading a file imports no torch) and torch tensors (a GPU).
"""
