"""`lorascope schema`: the JSON Schema of what the commands write."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lorascope.analyses.json_schema.parts import Schema


def schema(
    command: Annotated[
        str | None,
        typer.Argument(
            metavar="[COMMAND]", help="Of this command alone, such as analyze, methods or study (its list)."
        ),
    ] = None,
) -> None:
    """Print the JSON Schema (2020-12) of the commands' JSON.

    Example:

        lorascope schema analyze > analyze.schema.json
    """
    from lorascope.analyses import json_schema
    from lorascope.outputs import json_text

    lists = {"methods": _methods, "study": _studies}
    if command in lists:
        made = lists[command]()
    else:
        made = json_schema.of_all() if command is None else json_schema.of_command(command)
    print(json_text(made, indent=1))


def _methods() -> "Schema":
    """`lorascope methods --json`; of one method without the counts."""
    from lorascope.analyses.json_schema import DIALECT
    from lorascope.analyses.json_schema.parts import COUNT, RANK, TEXT, TEXT_OR_NULL, by_name, closed, listed

    setting = closed(dict.fromkeys(("name", "type", "default", "doc"), TEXT))
    method = closed(
        {**dict.fromkeys(("name", "what", "paper", "kind", "formula", "about", "example"), TEXT),
         "facts": by_name(TEXT), "settings": listed(setting)},
        {"trained_parameters": RANK, "not_counted": TEXT_OR_NULL},
    )  # fmt: skip
    whole = closed(
        {"schema": {"const": 1}, "lorascope": TEXT, "methods": listed(method)},
        {"model": TEXT, "targets": TEXT, "parameters": COUNT},
    )
    return {"$schema": DIALECT, "title": "lorascope methods --json", **whole}


def _studies() -> "Schema":
    """`lorascope study list --json`."""
    from lorascope.analyses.json_schema import DIALECT
    from lorascope.analyses.json_schema.parts import (
        COUNT,
        NUMBER,
        RANK,
        TEXT,
        TEXT_OR_NULL,
        by_name,
        closed,
        listed,
        or_null,
    )

    last = closed({
        "scale": TEXT, "testbed": TEXT, "runs": COUNT, "hours": NUMBER, "devices": listed(TEXT), "date": TEXT,
        "judged": TEXT_OR_NULL, "verdicts": by_name(COUNT),
    })  # fmt: skip
    study = closed({
        "name": TEXT, "question": TEXT_OR_NULL, "claims": RANK, "runs": by_name(COUNT), "last": or_null(last),
        "error": TEXT_OR_NULL,
    })  # fmt: skip
    return {
        "$schema": DIALECT, "title": "lorascope study list --json",
        **closed({"schema": {"const": 2}, "studies": listed(study)}),
    }  # fmt: skip
