"""Rows as a pandas data frame, if pandas is installed."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rmtspec.errors import MissingDependencyError

if TYPE_CHECKING:
    import pandas as pd


def data_frame(rows: Sequence[dict[str, Any]], columns: list[str]) -> "pd.DataFrame":
    """Return rows as a DataFrame, nan for None; raise MissingDependencyError without pandas."""
    try:
        import pandas as pd
    except ImportError:
        raise MissingDependencyError(
            'to_pandas needs pandas, which is not installed: pip install "rmtspec[pandas]". '
            "`rows` holds the same as a list of dicts."
        ) from None
    values = [
        [math.nan if (value := row.get(c)) is None else value for c in columns] for row in rows
    ]
    return pd.DataFrame(values, columns=columns)
