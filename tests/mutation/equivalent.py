"""Changes after which everything computes the same (or differs only in speed): none can be noticed, each with why.

The key is (file, function, before, after), as `python -m tests.mutation` prints a survivor.
"""

EQUIVALENT: dict[tuple[str, str, str, str], str] = {}
