"""`lorascope schema`: the JSON Schema of what the commands write."""

from typing import Annotated

import typer


def schema(
    command: Annotated[
        str | None, typer.Argument(metavar="[COMMAND]", help="Of this command alone, such as analyze.")
    ] = None,
) -> None:
    """Print the JSON Schema (2020-12) of the commands' JSON.

    Example:

        lorascope schema analyze > analyze.schema.json
    """
    from lorascope.analyses import json_schema
    from lorascope.outputs import json_text

    print(json_text(json_schema.of_all() if command is None else json_schema.of_command(command), indent=1))
