"""Studies: a question, a grid of runs, claims with pass criteria and controls that must fail, and one page.

A study is one script in `studies/`. It makes one `Study` and ends with

    if __name__ == "__main__":
        study.main()

so that `python studies/NAME.py` and `lorascope study run NAME` do the same: train what is not in the store yet,
measure, judge, and write `reports/NAME.json` and, from that alone, `reports/NAME.html`.
"""

from lorascope.study.definition import Arm, Call, Claim, Control, Criterion, Measure, Results, Scale, Study

__all__ = ["Arm", "Call", "Claim", "Control", "Criterion", "Measure", "Results", "Scale", "Study"]
