"""Changes after which everything computes the same (or differs only in speed): none can be noticed, each with why.

The key is (file, function, before, after), as `python -m tests.mutation` prints a survivor.
"""

_TRIPLET = ("lorascope/weights/formats/peft/adalora.py", "triplet", "a.shape[0] if a.shape else 0")
EQUIVALENT: dict[tuple[str, str, str, str], str] = {
    (*_TRIPLET, "a.shape[0] if a.shape else 1"): "an A without axes is refused, whatever its rank is taken for",
    (*_TRIPLET, "a.shape[0] if a.shape else -1"): "an A without axes is refused, whatever its rank is taken for",
}
