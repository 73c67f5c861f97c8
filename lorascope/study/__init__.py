"""Studies: a question, a grid of runs, claims with pass criteria and negative controls, and one page.

A study is one script in `studies/`. It makes one `Study` and ends with

    if __name__ == "__main__":
        study.main()

so that `python studies/NAME.py` and `lorascope study run NAME` do the same: train what is not in the store yet,
measure, judge, and write `reports/NAME.json` and, from that alone, `reports/NAME.html`.
"""

from lorascope.study.claims import Claim, Control, Criterion
from lorascope.study.definition import Measure, MeasurementSpec, Study
from lorascope.study.grid import Arm, StudyScale
from lorascope.study.results import Results

__all__ = ["Arm", "MeasurementSpec", "Claim", "Control", "Criterion", "Measure", "Results", "Study", "StudyScale"]
