"""What the words and marks of a study's page mean: definitions, the forest plot's caption, the intervals' coverage."""

from collections.abc import Mapping
from typing import Any

from lorascope.blocks import Definition, Definitions

FOREST = (
    "Each claim on a scale of its own: 0 is no effect, 1 is the published size, or the bound where none is published. "
    "A claim without a value for no effect, such as an equality, has no line for it, and its axis begins at the "
    "number 0."
)
HERE = "this page"
BLOCK = Definitions(
    (
        Definition(
            "Reproduced here",
            "the whole 95 % interval of every criterion lies inside its bound, and no negative control passes",
            HERE,
        ),
        Definition(
            "Weaker here",
            "the whole interval lies between no effect and the bound: in the published direction, and smaller than the "
            "share of the published size that the bound states",
            HERE,
        ),
        Definition(
            "Absent or opposite here",
            "the whole interval is on the other side of no effect, or within a margin around it that is stated (an "
            "equivalence test); without a value for no effect: entirely outside the bound. One criterion is enough; "
            "with k criteria its interval is at the level 1 − 0.05/k",
            HERE,
        ),
        Definition(
            "Inconclusive here",
            "everything else: an interval contains its bound or no effect, a number is missing, or a negative control "
            "is not decided",
            HERE,
        ),
        Definition(
            "Not specific here",
            "the criteria are met, and a negative control passes, too: the statistic does not discriminate",
            HERE,
        ),
        Definition(
            "Out of reach here",
            "this set-up cannot enter the published regime, for the reason given; numbers are shown, and no verdict is "
            "drawn",
            HERE,
        ),
        Definition("Withdrawn", "an earlier verdict was retracted, for the reason given", HERE),
        Definition(
            "Negative control",
            "the same number where the claim is known to be false; it is expected not to pass: its whole interval lies "
            "outside the bound",
            HERE,
        ),
        Definition(
            "Bound",
            "from which value on an effect counts as reproduced: a stated share of the published size, or ours, with "
            "the reason",
            HERE,
        ),
        Definition(
            "Interval",
            "95 %, expanded percentile bootstrap over replicates (and over texts where these are resampled), tail "
            "Φ(−√(n/(n−1)) · t₀.₉₇₅); 5,000 resamples where they cannot be enumerated",
            "Hesterberg 2015, §4.2",
        ),
        Definition(
            "Resampled",
            "jointly: replicates of arms that share runs, seeds or a measurement; independently: those of all other "
            "arms, with Welch-Satterthwaite degrees of freedom",
            "Satterthwaite 1946",
        ),
        Definition(
            "Power",
            "the probability of “reproduced” if the effect has the published size, and of “absent or opposite” if "
            "there is none, with the noise that is named",
            "noncentral t distribution",
        ),
        Definition(
            "p",
            "two-sided, of no effect, or of the bound where there is no value for no effect; of a claim with several "
            "criteria the largest of theirs, whichever decides. With few replicates it is the stricter one: intervals "
            "then cover less than 95 %",
            "t test",
        ),
        Definition(
            "q",
            "p adjusted for the number of claims of the study: the share of false positives among all claims with a q "
            "as small",
            "Benjamini and Hochberg 1995",
        ),
        Definition("Replicate", "a run with its own initialisation, data subset and data order", HERE),
    ),
    where="page",
)
NOMINAL = 0.945  # a coverage that rounds to 95 % needs no words


def coverage(record: Mapping[str, Any]) -> str:
    """How often an interval contains the true value, with as many replicates as the record has."""
    from lorascope.study.coverage import coverage as simulated

    n = record["scale"]["replicates"]
    if n < 2:
        return ""
    several = any(len(set(strata)) > 1 for strata in record["strata"].values())
    cases = [(1, "one arm")] + ([(2, "a difference of arms resampled apart")] if several else [])
    shares = [
        f"about {100 * share:.0f} % for {of}" for strata, of in cases if (share := simulated(n, strata)) < NOMINAL
    ]
    return f"with {n} replicates they contain the true value in {' and '.join(shares)}, not 95 %" if shares else ""
