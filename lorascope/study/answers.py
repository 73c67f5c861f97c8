"""What a study's `reading` is made of: its verdicts in words, and their numbers as text."""

from collections.abc import Iterator, Mapping, Sequence

from lorascope.report import text as t
from lorascope.study.grid import StudyScale
from lorascope.study.verdict import JudgedCriterion, Verdict


class Answers(Mapping[str, Verdict]):
    """The verdicts of a study by the claim's name."""

    def __init__(self, verdicts: Sequence[Verdict], scale: StudyScale):
        self._verdicts = {verdict.name: verdict for verdict in verdicts}
        self._scale = scale

    @property
    def here(self) -> str:
        """On what the numbers were found: "on a 3-layer encoder after 100 steps"."""
        model, training = (self._scale.config.get(section, {}) for section in ("model", "training"))
        layers, steps = model.get("num_hidden_layers"), training.get("max_steps")
        size = f"a {layers}-layer {self._scale.testbed}" if layers else f"the {self._scale.testbed} {model.get('name')}"
        return f"on {size}" + (f" after {steps} steps" if steps else "")

    @property
    def testbed(self) -> str:
        """What was trained on: encoder, decoder."""
        return self._scale.testbed

    @property
    def opening(self) -> str:
        """The same at the beginning of a sentence."""
        return self.here[0].upper() + self.here[1:]

    def __getitem__(self, name: str) -> Verdict:
        return self._verdicts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._verdicts)

    def __len__(self) -> int:
        return len(self._verdicts)

    def verdict(self, name: str) -> str:
        """The claim's verdict: "reproduced here"."""
        return f"{self[name].verdict} here"

    def is_one_of(self, name: str, *words: str) -> bool:
        """Whether the claim's verdict is one of these words."""
        return self[name].verdict in words

    def criterion(self, name: str, place: int = 0) -> JudgedCriterion:
        """One of the claim's criteria, in the order of the script."""
        return self[name].criteria[place]

    def found(self, name: str, place: int = 0) -> str:
        """A criterion's estimate and interval, "−5.9 % [−13.5 %, 1.4 %]"; "not computed" where there is none."""
        criterion = self.criterion(name, place)
        if criterion.estimate is None:
            return "not computed"
        value = t.cell(criterion.estimate, criterion.unit)
        if criterion.low is None:
            return value
        return f"{value} [{t.cell(criterion.low, criterion.unit)}, {t.cell(criterion.high, criterion.unit)}]"
