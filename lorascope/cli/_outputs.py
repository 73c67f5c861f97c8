"""What the commands that analyse write: JSON (to a file, or - for stdout), CSV, and the page. No command itself."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lorascope.blocks import Page


def write_outputs(
    page: "Page",
    record: Callable[[], Mapping[str, Any]],
    rows: Callable[[], Sequence[Mapping[str, Any]]],
    *,
    html: Path | None,
    json: Path | None,
    csv: Path | None,
) -> None:
    """Write what was asked for, each file whole or not at all, and name it on stderr. `record` and `rows` are made
    only where they are wanted."""
    import json as encoder
    import sys

    from lorascope.atomic import write_text

    written = []
    if json is not None:
        text = encoder.dumps(record(), allow_nan=False, separators=(",", ":")) + "\n"
        if str(json) == "-":
            sys.stdout.write(text)
        else:
            write_text(json, text)
            written.append(json)
    if csv is not None:
        write_text(csv, as_csv(rows()))
        written.append(csv)
    if html is not None:
        from lorascope.report import html as pages

        pages.write(page, html)
        written.append(html)
    for path in written:
        print(f"wrote {path}", file=sys.stderr)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as CSV; the columns are all keys, in order of appearance."""
    import csv
    import io

    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
