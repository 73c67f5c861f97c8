"""Values as a record has them: JSON's types, seven digits, null for what is not finite."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

DIGITS = 7  # of every number: more than any of them is accurate to


def rounded(value: Any) -> Any:
    """Nested maps and lists with numbers of seven digits."""
    if isinstance(value, Mapping):
        return {str(key): rounded(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(element) for element in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else scalar(value)


def scalar(value: Any) -> Any:
    """A cell, of NumPy's types too; None where it is not finite."""
    import numpy as np

    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def rows(table: "pd.DataFrame") -> dict[str, Any]:
    """Columns and rows, a missing value as null."""
    cells = [[scalar(value) for value in row] for row in table.itertuples(index=False, name=None)]
    return {"columns": [str(column) for column in table.columns], "rows": cells}
