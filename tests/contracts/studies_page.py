"""The results in STUDIES.md, made of the published records: `python -m tests.contracts.studies_page`."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorascope.study import index, record, scope
from lorascope.study.grid import ENCODER
from lorascope.study.verdict import VERDICTS

ROOT = Path(__file__).parents[2]
PAGE, REPORTS = ROOT / ".github/STUDIES.md", ROOT / "reports"
HEADING = "## Results\n"
HEAD = """
{scope}

After so few steps on one task a difference in gain is as much one of speed as of quality.
[reports/index.html](../reports/index.html) lists every claim with its verdict, interval, power and published setting.
What follows is written from the records by `python -m tests.contracts.studies_page`.
"""
Record = Mapping[str, Any]


def results(records: Sequence[Record]) -> str:
    """The section: the scope that most studies share, a table of verdicts, and each study's answer."""
    judged = [each for each in records if each["scale"]["conclusive"]]
    smoke = [f"`{name}`" for name in _of_smoke_alone(records)]
    counts = [Counter(claim["verdict"] for claim in each["claims"]) for each in judged]
    words = [word for word in VERDICTS if any(count[word] for count in counts)]
    rows = ["| study | " + " | ".join(words) + " |", "|---" * (1 + len(words)) + "|"]
    for each, count in zip(judged, counts, strict=True):
        rows.append(f"| {_link(each)} | {' | '.join(str(count[word]) for word in words)} |")
    answers = [f"- **{_link(each)}** {each['reading']}" for each in judged]
    parts = [
        HEAD.format(scope=scope.common(judged)).strip(),
        "\n".join(rows),
        index.counts(judged),
        f"Run at scale smoke only, which shows that they run: {', '.join(smoke)}." if smoke else "",
        "\n".join(answers),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _of_smoke_alone(records: Sequence[Record]) -> list[str]:
    """The studies that no test bed has a verdict of."""
    judged = {each["name"] for each in records if each["scale"]["conclusive"]}
    return list(dict.fromkeys(each["name"] for each in records if each["name"] not in judged))


def _link(found: Record) -> str:
    """A study's title, which leads to its page; two test beds of one study are told apart."""
    testbed = found["scale"]["testbed"]
    title = f"{found['title']} ({testbed})" if testbed != ENCODER else found["title"]
    return f"[{title}](../reports/{record.file_stem(found['name'], testbed)}.html)"


def page(records: Sequence[Record]) -> str:
    """The whole page with its results of these records."""
    text = PAGE.read_text(encoding="utf-8")
    return text[: text.index(HEADING) + len(HEADING)] + "\n" + results(records)


if __name__ == "__main__":
    PAGE.write_text(page(record.read_folder(REPORTS)[0]), encoding="utf-8")
