"""Numbers and dates as some countries write them, 51,88 and 01.03.2026, which are not read as numbers and dates."""

import re
from collections.abc import Sequence

import numpy as np

COMMA, DATE = "number with a comma", "date, not ISO"
_COMMA = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:\.\d{3})+),\d+\s*$")
_WHOLE = re.compile(r"[+-]?(?:\d+|\d{1,3}(?:\.\d{3})+)\s*$")
_DATE = re.compile(r"(?:\d{1,2}([./-])\d{1,2}\1(?:19|20)\d\d|(?:19|20)\d\d([./])\d{1,2}\2\d{1,2})(?!\d)")
# Shares of the values that have such a form, and that have a comma.
_NEARLY_ALL, _MOST = 0.95, 0.5


def local_form(words: Sequence[str], counts: np.ndarray) -> str:
    """Returns ``COMMA`` or ``DATE`` if nearly all texts have that form, otherwise nothing.

    Args:
        words: distinct texts.
        counts: how often each occurs.
    """

    def share(*patterns: re.Pattern[str]) -> float:
        fitting = [any(pattern.match(word.strip()) for pattern in patterns) for word in words]
        return float(counts[np.array(fitting, bool)].sum() / max(1, counts.sum()))

    if share(_DATE) >= _NEARLY_ALL:
        return DATE
    return COMMA if share(_COMMA) >= _MOST and share(_COMMA, _WHOLE) >= _NEARLY_ALL else ""


def local_form_warning(name: str, kind: str, example: str) -> str:
    """Returns what to do about a column of such texts."""
    quoted = '"' + name.replace('"', '""') + '"'
    if kind == COMMA:
        what, remedy = "numbers with a decimal comma", f"CAST(replace({quoted}, ',', '.') AS DOUBLE)"
    else:
        what, remedy = "dates that are not in ISO 8601", f"strptime({quoted}, '%d.%m.%Y')"
    return (
        f"'{name}' seems to hold {what}, such as {example!r}, and is left out: convert it, for instance by DuckDB "
        f"(--source duckdb --query) with {remedy}"
    )
